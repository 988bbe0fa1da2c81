"""Pooling over whole images."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.ir.formats import TensorType
from hwgen.ir.ops.base import (
    Codes,
    Op,
    check_output_shape,
    check_requant,
    check_same_format,
    same_interval,
    union_width,
)
from hwgen.ir.requant import Requant

__all__ = ["GlobalAvgPool", "GlobalMaxPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GlobalPool(Op):
    """A layer that reduces each channel of an image to one code; the output's shape is
    ``(channels,)``."""

    input: TensorType

    def __post_init__(self) -> None:
        Op.__post_init__(self)
        if len(self.input.shape) != 3:
            raise self.bad(f"needs an input (channels, height, width), not {self.input.shape}")
        check_output_shape(self, (self.input.channels,))

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return (self.input,)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalMaxPool(_GlobalPool):
    """Largest code of each channel. The format stays."""

    def __post_init__(self) -> None:
        _GlobalPool.__post_init__(self)
        check_same_format(self, "its input and output", self.input, self.output)

    def evaluate(self, *inputs: Codes) -> Codes:
        largest: Codes = inputs[0].max(axis=(2, 3))
        return largest


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalAvgPool(_GlobalPool):
    """Sum of ``code - zero`` over each channel, then a requantiser that divides."""

    requant: Requant

    def __post_init__(self) -> None:
        _GlobalPool.__post_init__(self)
        check_requant(self, self.requant, *self.accumulator_interval())

    def acc(self, x: Codes) -> Codes:
        """Accumulators ``(N, C)``."""
        total: Codes = (x - self.input.zero).sum(axis=(2, 3))
        return total

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        """Exact ``(low, high)`` of each channel's accumulator, int64 ``(C,)``."""
        low = self.input.pixels * (self.input.minimum - self.input.zero)
        high = self.input.pixels * (self.input.maximum - self.input.zero)
        return same_interval(self, self.input.channels, low, high)

    @property
    def accumulator_width(self) -> int:
        """Smallest signed width that holds all accumulators and 0."""
        return union_width(*self.accumulator_interval())

    def evaluate(self, *inputs: Codes) -> Codes:
        return self.requant.apply(self.acc(inputs[0]))
