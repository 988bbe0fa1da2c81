"""Residual addition."""

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

__all__ = ["Add"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Op):
    """``acc = mult[0] * (a - zero_a) + mult[1] * (b - zero_b)``, then a requantiser.

    Parameters
    ----------
    types : tuple of two TensorType
        Types of the two inputs, of one shape.
    mult : tuple of two int
        Bring both inputs to one scale.
    requant : Requant
    """

    types: tuple[TensorType, TensorType]
    mult: tuple[int, int]
    requant: Requant

    def __post_init__(self) -> None:
        Op.__post_init__(self)
        if (
            len(self.types) != 2
            or len(self.mult) != 2
            or self.types[0].shape != self.types[1].shape
        ):
            raise self.bad(
                "needs two inputs of one shape and two multipliers, not"
                f" {[t.shape for t in self.types]}"
                f" and {self.mult}"
            )
        check_output_shape(self, self.types[0].shape)
        check_requant(self, self.requant, *self.accumulator_interval())

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return self.types

    def acc(self, a: Codes, b: Codes) -> Codes:
        """Accumulators ``(N, *shape)``."""
        return self.mult[0] * (a - self.types[0].zero) + self.mult[1] * (b - self.types[1].zero)

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        """Exact ``(low, high)`` of each channel's accumulator, int64 ``(C,)``."""
        low = high = 0
        for kind, mult in zip(self.types, self.mult, strict=True):
            ends = sorted((mult * (kind.minimum - kind.zero), mult * (kind.maximum - kind.zero)))
            low, high = low + ends[0], high + ends[1]
        return same_interval(self, self.types[0].channels, low, high)

    @property
    def accumulator_width(self) -> int:
        """Smallest signed width that holds all accumulators and 0."""
        return union_width(*self.accumulator_interval())

    def evaluate(self, *inputs: Codes) -> Codes:
        return self.requant.apply(self.acc(*inputs))
