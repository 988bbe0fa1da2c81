"""Sliding windows: which pixels a K x K window touches, when they are complete and when they are
dead.

The integer layers, the dataflow's schedule and the hardware's counters all read this one
description.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.errors import BadNetwork

__all__ = ["Geometry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A ``kernel`` window that slides over a ``height x width`` image.

    Parameters
    ----------
    height, width : int
        Input size in pixels.
    kernel : tuple of int
        ``(rows, columns)`` of the window.
    stride : tuple of int
        Step in ``(rows, columns)``.
    padding : tuple of int
        Pixels added at ``(top, left, bottom, right)``.
    ceil_mode : bool
        Whether a last window that starts inside the image (or its top/left padding) but runs past
        the end counts, as in PyTorch's pooling.

    Raises
    ------
    BadNetwork
        If there is no output position, or a value is out of range.
    """

    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width, *self.kernel, *self.stride) < 1 or min(self.padding) < 0:
            raise BadNetwork(
                "a window needs sizes, kernel and stride of at least 1 and padding of at least 0,"
                " not"
                f" {self.height}x{self.width}, {self.kernel}, {self.stride}, {self.padding}"
            )
        top, left, bottom, right = self.padding
        if (
            top >= self.kernel[0]
            or bottom >= self.kernel[0]
            or left >= self.kernel[1]
            or right >= self.kernel[1]
        ):
            raise BadNetwork(
                f"padding {self.padding} must be smaller than the kernel {self.kernel}"
            )
        if min(self.out_height, self.out_width) < 1:
            raise BadNetwork(
                f"a {self.kernel[0]}x{self.kernel[1]} window does not fit into"
                f" {self.height}x{self.width} pixels with padding {self.padding}"
            )

    def _out(self, axis: int) -> int:
        size = (self.height, self.width)[axis]
        before, after = self.padding[axis], self.padding[axis + 2]
        span = size + before + after - self.kernel[axis]
        step = self.stride[axis]
        if not self.ceil_mode:
            return span // step + 1
        count = -(-span // step) + 1
        return count - 1 if (count - 1) * step >= size + before else count

    @property
    def out_height(self) -> int:
        """Output rows."""
        return self._out(0)

    @property
    def out_width(self) -> int:
        """Output columns."""
        return self._out(1)

    @property
    def positions(self) -> int:
        """Output pixels."""
        return self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """Pixels in a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def padded(self) -> bool:
        """Whether some window reaches outside the image."""
        last_row = (self.out_height - 1) * self.stride[0] - self.padding[0] + self.kernel[0]
        last_column = (self.out_width - 1) * self.stride[1] - self.padding[1] + self.kernel[1]
        return (
            self.padding[0] > 0
            or self.padding[1] > 0
            or last_row > self.height
            or last_column > self.width
        )

    @property
    def overhang(self) -> tuple[int, int, int, int]:
        """Pixels by which windows really reach outside at ``(top, left, bottom, right)``."""
        last_row = (self.out_height - 1) * self.stride[0] - self.padding[0] + self.kernel[0]
        last_column = (self.out_width - 1) * self.stride[1] - self.padding[1] + self.kernel[1]
        return (
            self.padding[0],
            self.padding[1],
            max(last_row - self.height, 0),
            max(last_column - self.width, 0),
        )

    def first_row(self, out_row: int) -> int:
        """Top row of a window; negative inside the padding."""
        return out_row * self.stride[0] - self.padding[0]

    def first_column(self, out_column: int) -> int:
        """Left column of a window; negative inside the padding."""
        return out_column * self.stride[1] - self.padding[1]

    def last_row(self, out_row: int) -> int:
        """Bottom row of a window that lies in the image."""
        return min(self.first_row(out_row) + self.kernel[0], self.height) - 1

    def last_column(self, out_column: int) -> int:
        """Right column of a window that lies in the image."""
        return min(self.first_column(out_column) + self.kernel[1], self.width) - 1
