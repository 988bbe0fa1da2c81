"""Requantisation of a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.ir.formats import TensorType
from hwgen.ir.ops.base import (
    Codes,
    Op,
    check_output_shape,
    check_requant,
    same_interval,
    union_width,
)
from hwgen.ir.requant import Requant

__all__ = ["Rescale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale(Op):
    """Requantises ``code - zero``, per channel: normalisation, batch norm on its own, change of
    format."""

    input: TensorType
    requant: Requant

    def __post_init__(self) -> None:
        Op.__post_init__(self)
        check_output_shape(self, self.input.shape)
        check_requant(self, self.requant, *self.accumulator_interval())

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return (self.input,)

    def acc(self, x: Codes) -> Codes:
        """What the requantiser takes, ``(N, *shape)``."""
        return x - self.input.zero

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        """Exact ``(low, high)`` of each channel's accumulator, int64 ``(C,)``."""
        low, high = self.input.minimum - self.input.zero, self.input.maximum - self.input.zero
        return same_interval(self, self.input.channels, low, high)

    @property
    def accumulator_width(self) -> int:
        """Smallest signed width that holds all accumulators and 0."""
        return union_width(*self.accumulator_interval())

    def evaluate(self, *inputs: Codes) -> Codes:
        return self.requant.apply(self.acc(inputs[0]))
