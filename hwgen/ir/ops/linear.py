"""Fully connected layer."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.ir.ops.base import Codes
from hwgen.ir.ops.mac import MacOp, exact_dot, mac_interval

__all__ = ["Linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(MacOp):
    """``acc[o] = bias[o] + sum w[o, i] * (code[i] - zero)``; weights ``(out, in)``."""

    def __post_init__(self) -> None:
        MacOp.__post_init__(self)
        shape = self.weights.codes.shape
        if len(shape) != 2 or self.input.shape != shape[1:]:
            raise self.bad(
                f"needs weights (out, in) and an input (in,), not {shape} and {self.input.shape};"
                f" flatten images first"
            )
        self._check_mac((shape[0],))

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        return mac_interval(self.input, self.weights, self.bias)

    def acc(self, x: Codes) -> Codes:
        # One column: the batch. (out, in) @ (in, N)
        total = exact_dot(self.weights.codes, (x - self.input.zero).T, self.magnitude).T
        return total if self.bias is None else total + self.bias.values
