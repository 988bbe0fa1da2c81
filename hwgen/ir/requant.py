"""Requantisation: the one place where codes are scaled, rounded and saturated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork

__all__ = ["Requant", "Rounding"]


class Rounding(Enum):
    """How ``value / 2 ** shift`` becomes an integer."""

    FLOOR = "floor"
    """Toward minus infinity: drop the bits."""
    HALF_UP = "half_up"
    """``floor(x + 1/2)``."""
    HALF_EVEN = "half_even"
    """To nearest, ties to the even integer."""
    HALF_AWAY = "half_away"
    """To nearest, ties away from zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requant:
    """``clip(round((relu?(acc) * mult + add) / 2 ** shift) + zero, low, high)``.

    Every tuple has one entry for the tensor or one for each channel.

    Parameters
    ----------
    mult, add : tuple of int
        Multiplier and offset at the accumulator's scale. ``mult = 1, add = 0`` is the power-of-two
        case.
    shift : tuple of int
        Bits dropped, each at least 0.
    low, high : tuple of int
        Saturation bounds, after ``zero`` was added.
    zero : int
        Code that stands for 0 in the output.
    rounding : Rounding
        How the dropped bits round.
    relu : bool
        Whether negative accumulators become 0 first. A plain ReLU needs only ``low = zero``; this
        is for a batch norm that follows the ReLU.

    Raises
    ------
    BadNetwork
        If a shift is negative, a bound pair is empty, or two tuples have different lengths above 1.
    """

    mult: tuple[int, ...] = (1,)
    add: tuple[int, ...] = (0,)
    shift: tuple[int, ...] = (0,)
    low: tuple[int, ...]
    high: tuple[int, ...]
    zero: int = 0
    rounding: Rounding = Rounding.HALF_UP
    relu: bool = False

    def __post_init__(self) -> None:
        lengths = {len(t) for t in (self.mult, self.add, self.shift, self.low, self.high)} - {1}
        if len(lengths) > 1 or 0 in lengths:
            raise BadNetwork(
                "a requantiser's mult, add, shift, low and high must each have 1 entry or one a"
                " channel,"
                f" not {[len(t) for t in (self.mult, self.add, self.shift, self.low, self.high)]}"
            )
        if min(self.shift) < 0:
            raise BadNetwork(f"a requantiser's shift must be at least 0, not {min(self.shift)}")
        bounds = len(self.low) if len(self.low) > 1 else len(self.high)
        for channel in range(bounds):
            low = self.low[channel % len(self.low)]
            high = self.high[channel % len(self.high)]
            if low > high:
                raise BadNetwork(
                    f"a requantiser's low must not exceed its high: channel {channel} has {low}"
                    f" and {high}"
                )

    @property
    def channels(self) -> int:
        """Number of channels told apart: 1 when every parameter is per tensor."""
        return max(len(t) for t in (self.mult, self.add, self.shift, self.low, self.high))

    @property
    def scaled(self) -> bool:
        """Whether hardware needs a multiplier or an offset: it then takes two cycles more."""
        common = self.common_shift()
        return any(m != 1 for m in common.mult) or any(a != 0 for a in common.add)

    @property
    def monotone(self) -> bool:
        """Whether a larger accumulator never gives a smaller code, so that a max pool may come
        first."""
        return min(self.mult) >= 0

    def channel(self, index: int) -> Requant:
        """The requantiser of one channel, every tuple of length 1."""

        def pick(values: tuple[int, ...]) -> tuple[int, ...]:
            return (values[index] if len(values) > 1 else values[0],)

        return Requant(
            mult=pick(self.mult),
            add=pick(self.add),
            shift=pick(self.shift),
            low=pick(self.low),
            high=pick(self.high),
            zero=self.zero,
            rounding=self.rounding,
            relu=self.relu,
        )

    def common_shift(self) -> Requant:
        """The same function with one shift for all channels.

        Exact for every rounding: ``(a * m + b) / 2**s`` equals ``(a * m * 2**d + b * 2**d) /
        2**(s+d)``.
        """
        if len(self.shift) == 1:
            return self
        top, n = max(self.shift), self.channels
        full = [self.channel(c) for c in range(n)]
        return Requant(
            mult=tuple(c.mult[0] << (top - c.shift[0]) for c in full),
            add=tuple(c.add[0] << (top - c.shift[0]) for c in full),
            shift=(top,),
            low=self.low,
            high=self.high,
            zero=self.zero,
            rounding=self.rounding,
            relu=self.relu,
        )

    def apply(self, acc: NDArray[np.int64], axis: int = 1) -> NDArray[np.int64]:
        """Requantise accumulators.

        Parameters
        ----------
        acc : int64 array
            Accumulators, the channel on ``axis``. ``acc * mult + add`` must fit 62 bits.

        Returns
        -------
        int64 array of the same shape, every entry in ``low..high`` of its channel.
        """

        def spread(values: tuple[int, ...]) -> Any:
            if len(values) == 1:
                return np.int64(values[0])
            return np.array(values, dtype=np.int64).reshape(
                [-1 if i == axis else 1 for i in range(acc.ndim)]
            )

        value: NDArray[np.int64] = np.asarray(acc, dtype=np.int64)
        if self.relu:
            value = np.maximum(value, 0)
        value = value * spread(self.mult) + spread(self.add)
        value = round_shift(value, spread(self.shift), self.rounding)
        return np.clip(value + self.zero, spread(self.low), spread(self.high))

    def interval(self, low: int, high: int, channel: int = 0) -> tuple[int, int]:
        """Exact output range of one channel for accumulators in ``low..high``."""
        single = self.channel(channel if self.channels > 1 else 0)
        ends = single.apply(np.array([[low], [high]], dtype=np.int64))
        return int(ends.min()), int(ends.max())


def round_shift(
    value: NDArray[np.int64], shift: NDArray[np.int64] | np.int64, rounding: Rounding
) -> NDArray[np.int64]:
    """``round(value / 2 ** shift)`` on int64, exact; ``shift`` broadcasts against ``value``."""
    if rounding is Rounding.FLOOR:
        return value >> shift
    half = (np.int64(1) << shift) >> 1  # 0 where nothing is dropped
    if rounding is Rounding.HALF_UP:
        return (value + half) >> shift
    if rounding is Rounding.HALF_AWAY:
        return np.where(value < 0, -((half - value) >> shift), (value + half) >> shift)
    # Ties to even: adding half - 1 + (lowest kept bit) carries exactly when the rest exceeds a
    # half, or equals it and the kept part is odd. Where shift is 0 there is no rest and nothing is
    # added.
    odd = (value >> shift) & 1
    return (value + np.where(half > 0, half - 1 + odd, 0)) >> shift
