"""Cycle-exact models of the actors, and plain loops for the data, both written from the design page.

Nothing here shares a formula with the components: the models walk the steps of the actors one by
one, with lists of what every step needs and releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.walk import Walk, WindowMode
from tests.rtl.bench import Beat, OutputModel


class WindowModel:
    """Actors ``write`` and ``read`` of a window stage.

    ``words`` is the ring's size in words.
    """

    def __init__(self, walk: Walk, words: int, out_depth: int) -> None:
        self.words = words
        self.groups = walk.groups
        self.out = OutputModel(out_depth, 2)
        self.steps = self._steps(walk)
        self.step = next(self.steps)
        self.written = self.released = 0

    @staticmethod
    def _steps(walk: Walk) -> Iterator[tuple[int, int | None, bool]]:
        """(pixel needed, pixels released by it or None, delivers) of each step, for ever."""
        need, release = walk.need(), walk.release()
        pixels = walk.geometry.height * walk.geometry.width
        base = 0
        while True:
            for row, column in product(range(walk.rows), range(walk.columns)):
                for k in range(walk.steps):
                    last = k == walk.steps - 1
                    yield (
                        base + int(need[row, column]),
                        base + int(release[row, column]) if last else None,
                        walk.produces(column),
                    )
            base += pixels

    def ready(self) -> bool:
        return self.written - self.released < self.words

    def valid(self) -> bool:
        return self.out.valid

    def tick(self, beat: Beat | None, taken: bool) -> None:
        need, release, delivers = self.step
        if self.written // self.groups > need and (self.out.available or not delivers):
            if delivers:
                self.out.fire()
            if release is not None:
                self.released = release * self.groups
            self.step = next(self.steps)
        self.written += beat is not None
        self.out.tick(taken)


def pixel_beats(images: NDArray[np.int64], lanes: int) -> list[tuple[int, ...]]:
    """Images ``(N, groups * lanes, H, W)`` as beats of ``lanes`` codes."""
    n, channels, height, width = images.shape
    return [
        tuple(int(code) for code in images[f, g : g + lanes, y, x])
        for f, y, x in product(range(n), range(height), range(width))
        for g in range(0, channels, lanes)
    ]


def window_beats(
    images: NDArray[np.int64], walk: Walk, lanes: int, pad: int, group_major: bool
) -> list[tuple[int, ...]]:
    """What a window stage delivers for images ``(N, groups * lanes, H, W)``."""
    g = walk.geometry
    rows, columns = g.kernel

    def word(frame: int, group: int, y: int, x: int) -> list[int]:
        if not (0 <= y < g.height and 0 <= x < g.width):
            return [pad] * lanes
        return [int(code) for code in images[frame, group * lanes : (group + 1) * lanes, y, x]]

    beats = []
    for f, yo, xo in product(range(len(images)), range(g.out_height), range(g.out_width)):
        top, left = yo * g.stride[0] - g.padding[0], xo * g.stride[1] - g.padding[1]
        groups = range(walk.groups)
        if walk.mode is WindowMode.FULL:
            beats.append(
                [
                    c
                    for ky in range(rows)
                    for kx in range(columns)
                    for c in word(f, 0, top + ky, left + kx)
                ]
            )
        elif walk.mode is WindowMode.COLUMN:
            order = (
                product(groups, range(columns)) if group_major else product(range(columns), groups)
            )
            for pair in order:
                group, kx = pair if group_major else pair[::-1]
                beats.append([c for ky in range(rows) for c in word(f, group, top + ky, left + kx)])
        elif group_major:
            for group, ky, kx in product(groups, range(rows), range(columns)):
                beats.append(word(f, group, top + ky, left + kx))
        else:
            for ky, kx, group in product(range(rows), range(columns), groups):
                beats.append(word(f, group, top + ky, left + kx))
    return [tuple(beat) for beat in beats]
