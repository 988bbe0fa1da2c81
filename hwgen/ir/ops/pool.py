"""Pooling over windows."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np

from hwgen.ir.formats import TensorType
from hwgen.ir.geometry import Geometry
from hwgen.ir.ops.base import (
    Codes,
    Op,
    check_output_shape,
    check_requant,
    check_same_format,
    same_interval,
    union_width,
)
from hwgen.ir.ops.windows import inside_counts, windows
from hwgen.ir.requant import Requant

__all__ = ["AvgPool", "MaxPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool(Op):
    """A layer that reduces each window of each channel."""

    input: TensorType
    geometry: Geometry

    def __post_init__(self) -> None:
        Op.__post_init__(self)
        g = self.geometry
        if (g.height, g.width) != self.input.shape[1:]:
            raise self.bad(
                f"needs an input (channels, {g.height}, {g.width}), its geometry's size, not"
                f" {self.input.shape}"
            )
        check_output_shape(self, (self.input.channels, g.out_height, g.out_width))

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool(_Pool):
    """Largest code of each window; padding reads as the lowest code. The format stays."""

    def __post_init__(self) -> None:
        _Pool.__post_init__(self)
        check_same_format(self, "its input and output", self.input, self.output)

    def evaluate(self, *inputs: Codes) -> Codes:
        largest: Codes = windows(inputs[0], self.geometry, self.input.minimum).max(axis=(4, 5))
        return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPool(_Pool):
    """Sum of ``code - zero`` over each window, then a requantiser that divides.

    Where windows differ in the number of taps that count (:attr:`counts`), the sum is multiplied by
    ``lcm(counts) // count`` of its position first, so that one requantiser divides all exactly by
    ``lcm(counts)``; see :attr:`divisor`.

    Parameters
    ----------
    count_include_pad : bool
        Whether taps in the padding count (they contribute 0).
    requant : Requant
    """

    count_include_pad: bool
    requant: Requant

    def __post_init__(self) -> None:
        _Pool.__post_init__(self)
        check_requant(self, self.requant, *self.accumulator_interval())

    @property
    def counts(self) -> Codes:
        """Taps that count at each position, ``(out rows, out columns)``."""
        return inside_counts(self.geometry, include_pad=self.count_include_pad)

    @property
    def uniform(self) -> bool:
        """Whether all windows count the same number of taps."""
        counts = self.counts
        return bool((counts == counts[0, 0]).all())

    @property
    def divisor(self) -> int:
        """The accumulator is this many times the average: the least common multiple of the
        counts."""
        return lcm(*(int(c) for c in np.unique(self.counts)))

    @property
    def multipliers(self) -> Codes:
        """What a window's sum is multiplied by, ``(out rows, out columns)``; all 1 where
        uniform."""
        return self.divisor // self.counts

    def acc(self, x: Codes) -> Codes:
        """Accumulators ``(N, C, out rows, out columns)``."""
        total: Codes = windows(x - self.input.zero, self.geometry, 0).sum(axis=(4, 5))
        return total * self.multipliers

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        """Exact ``(low, high)`` of each channel's accumulator over all positions, int64
        ``(C,)``."""
        # Python integers: the least common multiple of many counts may be large.
        inside = np.unique(
            np.stack([inside_counts(self.geometry), self.counts]).reshape(2, -1), axis=1
        )
        taps = [int(t) * (self.divisor // int(c)) for t, c in inside.T]
        ends = self.input.minimum - self.input.zero, self.input.maximum - self.input.zero
        low, high = min(t * ends[0] for t in taps), max(t * ends[1] for t in taps)
        return same_interval(self, self.input.channels, low, high)

    @property
    def accumulator_width(self) -> int:
        """Smallest signed width that holds all accumulators and 0."""
        return union_width(*self.accumulator_interval())

    def evaluate(self, *inputs: Codes) -> Codes:
        return self.requant.apply(self.acc(inputs[0]))
