"""How a window stage walks an image: what each segment needs and what it releases.

A segment is one output position, or in FULL mode one image column of an output row. Both tables are
separable in (output row, segment column), which the hardware uses: it keeps only differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.geometry import Geometry

__all__ = ["Walk", "WindowMode"]


class WindowMode(Enum):
    """How many taps a window delivers a step."""

    TAP = "tap"
    COLUMN = "column"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Segments of one frame of a window stage, in raster order.

    Parameters
    ----------
    geometry : Geometry
    mode : WindowMode
    groups : int
        Words per pixel; 1 in FULL mode.
    """

    geometry: Geometry
    mode: WindowMode
    groups: int

    @property
    def rows(self) -> int:
        """Segment rows: output rows."""
        return self.geometry.out_height

    @property
    def columns(self) -> int:
        """Segments in a row: output columns, or in FULL mode the image columns that windows
        cover."""
        g = self.geometry
        if self.mode is WindowMode.FULL:
            return (g.out_width - 1) * g.stride[1] + g.kernel[1]
        return g.out_width

    @property
    def steps(self) -> int:
        """Steps in a segment."""
        g = self.geometry
        return {WindowMode.TAP: g.taps, WindowMode.COLUMN: g.kernel[1], WindowMode.FULL: 1}[
            self.mode
        ] * self.groups

    def produces(self, column: int) -> bool:
        """Whether the segments of this column deliver words (in FULL mode: complete a window)."""
        g = self.geometry
        if self.mode is not WindowMode.FULL:
            return True
        behind = column - (g.kernel[1] - 1)
        return behind >= 0 and behind % g.stride[1] == 0

    def column_need(self, column: int) -> int:
        """Image column that must have been written before the segment starts."""
        g = self.geometry
        if self.mode is WindowMode.FULL:
            return min(max(column - g.padding[1], 0), g.width - 1)
        return g.last_column(column)

    def row_need(self, row: int) -> int:
        """Image row that must have been written (up to ``column_need``)."""
        return self.geometry.last_row(row)

    def need(self) -> NDArray[np.int64]:
        """Linear pixel that must have been written, shape ``(rows, columns)``."""
        down = np.array([self.row_need(r) for r in range(self.rows)], dtype=np.int64)
        across = np.array([self.column_need(c) for c in range(self.columns)], dtype=np.int64)
        return down[:, None] * self.geometry.width + across[None, :]

    def row_start(self, row: int) -> int:
        """First image row that segment row ``row`` or a later one reads; the image height after the
        last."""
        if row >= self.rows:
            return self.geometry.height
        return max(self.geometry.first_row(row), 0)

    def row_moves(self, row: int) -> bool:
        """Whether the top image row of this segment row is dead afterwards, so that it releases as
        it goes."""
        return self.row_start(row + 1) > self.row_start(row)

    def column_start(self, column: int) -> int:
        """First image column, not below 0, that segment ``column`` or a later one of its row
        reads."""
        g = self.geometry
        first = column - g.padding[1] if self.mode is WindowMode.FULL else g.first_column(column)
        return min(max(first, 0), g.width)

    def release(self) -> NDArray[np.int64]:
        """Pixels of the frame that are dead once the segment's last step has fired, ``(rows,
        columns)``."""
        out = np.empty((self.rows, self.columns), dtype=np.int64)
        width = self.geometry.width
        for r in range(self.rows):
            out[r, :] = self.row_start(r) * width
            if self.row_moves(r):
                for c in range(self.columns - 1):
                    out[r, c] += self.column_start(c + 1)
            out[r, -1] = self.row_start(r + 1) * width
        return out

    def minimum_depth(self) -> int:
        """Smallest ring that cannot deadlock: words in TAP mode, image rows in the others.

        Before a segment all that it needs must fit beside what earlier segments have not released:
        ``need + 1 - release of the segment before`` pixels. Writing goes on while fewer words are
        held than the ring has, so the bound is sufficient too; what no segment needs is released by
        the frame's last one. The other modes keep whole image rows, a multiple of the kernel's.

        Returns
        -------
        int, at least 1. A ring of this depth may wait between segments; deeper ones wait less.
        """
        before = np.concatenate(([0], self.release().reshape(-1)[:-1]))
        pixels = max(int((self.need().reshape(-1) + 1 - before).max()), 1)
        if self.mode is WindowMode.TAP:
            return pixels * self.groups
        kernel_rows = self.geometry.kernel[0]
        return -(-pixels // (self.geometry.width * kernel_rows)) * kernel_rows
