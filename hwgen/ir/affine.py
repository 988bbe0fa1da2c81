"""Requantisation in floating point, where that is provably exact.

Integers below 2**24 are exact in float32, below 2**53 in float64, and scaling by a power of two is
exact. So a requantiser whose every intermediate value, counted in units of ``2 ** -shift``, stays
below the limit may run in floating point: add an offset, clip, round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.ops.base import Codes
from hwgen.ir.requant import Requant, Rounding

__all__ = ["FLOAT32", "FLOAT64", "Affine", "Array", "float_for"]

Array = NDArray[Any]
"""An array of float32, float64 or int64 that holds integers."""

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


def float_for(bound: int) -> np.dtype[Any] | None:
    """The smallest float type in which all integers up to ``bound`` are exact, if there is one."""
    if bound < 1 << 24:
        return FLOAT32
    return FLOAT64 if bound < 1 << 53 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """A requantiser of ``dot + bias`` as float operations; one entry of each array a channel.

    Attributes
    ----------
    requant : Requant
    bias : int64 array
        Part of the accumulator that ``dot`` does not hold yet.
    mult, add, shift, low, high : tuple of int
        The requantiser's, one a channel; ``low`` and ``high`` less ``zero``.
    dot_bound, bound : int
        Bounds on ``|dot * mult|`` and on every intermediate value, in units of ``2 ** -shift``.
    """

    requant: Requant
    bias: tuple[int, ...]
    mult: tuple[int, ...]
    add: tuple[int, ...]
    shift: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    bound: int

    @classmethod
    def of(cls, requant: Requant, low: Codes, high: Codes, bias: Codes | None = None) -> Affine:
        """The float form for accumulators in ``low..high`` (bias included), one entry a channel."""
        channels = low.shape[0]

        def full(values: tuple[int, ...]) -> tuple[int, ...]:
            return values * channels if len(values) == 1 else values

        mult, add, shift = full(requant.mult), full(requant.add), full(requant.shift)
        biases = (0,) * channels if bias is None else tuple(int(b) for b in bias)
        bottom = tuple(v - requant.zero for v in full(requant.low))
        top = tuple(v - requant.zero for v in full(requant.high))
        bound = 0
        for c in range(channels):
            for end in (int(low[c]), int(high[c])):
                # Every value on the way: the dot product alone, the accumulator, both scaled, the
                # offset; a half more than the last two (2**shift covers it and the exact sum).
                scaled = max(abs(end), abs(end - biases[c]), 1) * max(abs(mult[c]), 1)
                sums = abs(end * mult[c] + add[c]), abs(biases[c] * mult[c] + add[c])
                bound = max(bound, scaled, max(sums) + (1 << shift[c]), 0)
            bound = max(bound, abs(bottom[c]), abs(top[c]))
        if requant.rounding is Rounding.HALF_AWAY:
            bound *= 2  # the half is added also where shift is 0, which takes a bit more
        return cls(
            requant=requant,
            bias=biases,
            mult=mult,
            add=add,
            shift=shift,
            low=bottom,
            high=top,
            bound=bound,
        )

    @property
    def gain(self) -> tuple[float, ...]:
        """What ``dot`` is multiplied by; exact while ``mult`` is."""
        return tuple(m * 2.0**-s for m, s in zip(self.mult, self.shift, strict=True))

    def steps(
        self, source: Array, out: Array, work: Array, *, scaled: bool
    ) -> list[Callable[[], object]]:
        """The operations that requantise.

        Parameters
        ----------
        source : array (..., channels, frames)
            Dot products.
        out : array of the same shape
            Receives ``codes - zero``.
        work : array of the same shape
            Holds what is between; may be ``source`` or ``out``. Its type must be exact up to
            ``bound``.
        scaled : bool
            Whether ``source`` is multiplied by :attr:`gain` already. Not where the requantiser has
            a ReLU.
        """
        rounding, kind = self.requant.rounding, work.dtype.type
        units = [2.0**-s for s in self.shift]
        halves = [0] * len(units)
        if rounding is Rounding.HALF_UP:
            halves = [(1 << s) >> 1 for s in self.shift]

        def constant(values: list[float] | tuple[float, ...]) -> Any:
            """A scalar where channels agree, else a column that broadcasts over the frames."""
            return kind(values[0]) if len(set(values)) == 1 else np.array(values, kind)[:, None]

        chain: list[tuple[Any, tuple[Any, ...]]] = []
        add: list[int] | tuple[int, ...] = self.add
        if self.requant.relu:
            assert not scaled
            if any(self.bias):
                chain.append((np.add, (constant(self.bias),)))
            chain.append((np.maximum, (kind(0),)))
        else:
            add = [b * m + a for b, m, a in zip(self.bias, self.mult, self.add, strict=True)]
        if not scaled and any(g != 1.0 for g in self.gain):
            chain.append((np.multiply, (constant(self.gain),)))
        offset = [(a + h) * u for a, h, u in zip(add, halves, units, strict=True)]
        if any(offset):
            chain.append((np.add, (constant(offset),)))
        # The bounds are integers, so that clipping before rounding gives the same as after.
        chain.append((np.clip, (constant(self.low), constant(self.high))))
        if any(self.shift):
            if rounding is Rounding.HALF_AWAY:
                chain.append((_add_half_away, ()))
                chain.append((np.trunc, ()))
            else:
                chain.append((np.rint if rounding is Rounding.HALF_EVEN else np.floor, ()))
        places = [source, *[work] * (len(chain) - 1), out]
        return [
            _Call(function, (places[i], *extra), places[i + 1])
            for i, (function, extra) in enumerate(chain)
        ]


def _add_half_away(x: Array, out: Array) -> None:
    """``x + copysign(0.5, x)``."""
    np.add(x, np.copysign(x.dtype.type(0.5), x), out=out)


@dataclass(frozen=True, slots=True)
class _Call:
    """A function applied to arrays, its result written to another."""

    function: Any
    arguments: tuple[Any, ...]
    out: Array

    def __call__(self) -> None:
        self.function(*self.arguments, out=self.out)
