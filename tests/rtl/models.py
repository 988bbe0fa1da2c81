"""Cycle-exact models of the actors, and plain loops for the data, written from the design page.

Nothing here shares a formula with the components: the models walk the steps of the actors one by
one, with lists of what every step needs and releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from amaranth.hdl import Elaboratable, Module, ResetInserter, Signal
from amaranth.lib import stream
from numpy.typing import NDArray

from hwgen.ir.requant import Requant
from hwgen.ir.walk import Walk, WindowMode
from tests.rtl.bench import Beat, OutputModel, Reference


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


def requant_cycles(requant: Requant | None) -> int:
    if requant is None:
        return 0
    return 4 if any(m != 1 for m in requant.common_shift().mult) or any(requant.add) else 2


def tree_cycles(terms: int) -> int:
    levels = 0
    while terms > 1:
        terms, levels = (terms + 1) // 2, levels + 1
    return levels


class MacModel:
    """Actors ``write`` and ``issue`` of a MAC stage."""

    def __init__(
        self,
        in_lanes: int,
        words: int,
        folds: int,
        capacity: int,
        requant: Requant | None,
        out_depth: int,
    ) -> None:
        latency = 2 + 1 + tree_cycles(in_lanes) + 1 + requant_cycles(requant)
        self.out = OutputModel(out_depth, latency)
        self.capacity = capacity
        self.steps = self._steps(words, folds)
        self.step = next(self.steps)
        self.written = self.released = 0

    @staticmethod
    def _steps(words: int, folds: int) -> Iterator[tuple[int, bool, bool]]:
        """(words that must be written, releases, delivers) of each step, for ever."""
        base = 0
        while True:
            for fold, word in product(range(folds), range(words)):
                yield base + word + 1, fold == folds - 1, word == words - 1
            base += words

    def ready(self) -> bool:
        return self.written - self.released < self.capacity

    def valid(self) -> bool:
        return self.out.valid

    def tick(self, beat: Beat | None, taken: bool) -> None:
        written, releases, delivers = self.step
        fires = self.written >= written and (self.out.available or not delivers)
        self.written += beat is not None
        if fires:
            if delivers:
                self.out.fire()
            self.released += releases
            self.step = next(self.steps)
        self.out.tick(taken)


def mac_beats(
    vectors: NDArray[np.int64],
    weights: NDArray[np.int64],
    bias: NDArray[np.int64],
    requant: Requant | None,
) -> list[tuple[int, ...]]:
    """What a MAC stage delivers for vectors ``(N, words, in_lanes)``; Python's own integers."""
    folds, words, out_lanes, in_lanes = weights.shape
    beats = []
    for vector in vectors.tolist():
        for fold in range(folds):
            beat = []
            for out in range(out_lanes):
                acc = int(bias[fold, out])
                for word, k in product(range(words), range(in_lanes)):
                    acc += int(weights[fold, word, out, k]) * vector[word][k]
                beat.append(requantized(acc, requant, fold * out_lanes + out))
            beats.append(tuple(beat))
    return beats


def requantized(acc: int, requant: Requant | None, channel: int) -> int:
    """One accumulator through :meth:`Requant.apply`; a channel too many is don't-care."""
    if requant is None:
        return acc
    single = requant.channel(min(channel, requant.channels - 1) if requant.channels > 1 else 0)
    return int(single.apply(np.array([[acc]]))[0, 0])


class TakeModel:
    """A stage with the single actor ``take``, which delivers with every ``steps``-th beat."""

    def __init__(self, steps: int, latency: int, out_depth: int) -> None:
        self.out = OutputModel(out_depth, latency)
        self.steps = steps
        self.step = 0

    def ready(self) -> bool:
        return self.step < self.steps - 1 or self.out.available

    def valid(self) -> bool:
        return self.out.valid

    def tick(self, beat: Beat | None, taken: bool) -> None:
        if beat is not None:
            if self.step == self.steps - 1:
                self.out.fire()
            self.step = (self.step + 1) % self.steps
        self.out.tick(taken)


def reduce_beats(
    beats: NDArray[np.int64],
    lanes: int,
    steps: int,
    groups: int,
    kind: str,
    requant: Requant | None,
) -> list[tuple[int, ...]]:
    """What a reducing stage delivers for beats ``(N, rows * lanes)``."""
    out = []
    for k in range(0, len(beats), steps):
        rows = beats[k : k + steps].reshape(-1, lanes)
        values = [max(column) if kind == "max" else sum(column) for column in rows.T.tolist()]
        group = k // steps % groups
        out.append(
            tuple(requantized(value, requant, group * lanes + c) for c, value in enumerate(values))
        )
    return out


class ResetInMidFrame(Elaboratable):
    """A component that first works on noise for ``cycles`` cycles and is then reset.

    From outside it neither accepts nor delivers until ``start`` cycles have passed.
    """

    def __init__(self, component: Any, cycles: int) -> None:
        self.component = component
        self.cycles = cycles
        self.i = stream.Signature(component.i.payload.shape()).create()
        self.o = stream.Signature(component.o.payload.shape()).create()

    @property
    def start(self) -> int:
        return self.cycles + 1

    def elaborate(self, platform: object) -> Any:
        m = Module()
        part = self.component
        reset, running = Signal(), Signal()
        count = Signal(range(self.cycles + 1))
        m.submodules.part = ResetInserter(reset)(part)
        noise = Signal(len(part.i.payload.as_value()), init=1)
        m.d.comb += [
            self.o.payload.eq(part.o.payload),
            self.o.valid.eq(part.o.valid & running),
            self.i.ready.eq(part.i.ready & running),
            reset.eq(~running & (count == self.cycles)),
        ]
        m.d.sync += noise.eq(noise * 5 + 3)
        with m.If(running):
            m.d.comb += [
                part.i.payload.eq(self.i.payload),
                part.i.valid.eq(self.i.valid),
                part.o.ready.eq(self.o.ready),
            ]
        with m.Else():
            m.d.comb += [
                part.i.payload.eq(noise),
                part.i.valid.eq(~noise[-1] | noise[0]),
                part.o.ready.eq(count[:2] != 0),
            ]
            m.d.sync += [count.eq(count + 1), running.eq(reset)]
        return m


class Later:
    """A model whose component is silent for the first ``start`` cycles."""

    def __init__(self, model: Reference, start: int) -> None:
        self.model = model
        self.start = start

    def ready(self) -> bool:
        return self.start <= 0 and self.model.ready()

    def valid(self) -> bool:
        return self.start <= 0 and self.model.valid()

    def tick(self, beat: Beat | None, taken: bool) -> None:
        if self.start <= 0:
            self.model.tick(beat, taken)
        self.start -= 1
