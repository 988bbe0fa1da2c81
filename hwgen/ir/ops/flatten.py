"""Image to vector."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.ir.formats import TensorType
from hwgen.ir.ops.base import Codes, Op, check_output_shape, check_same_format

__all__ = ["Flatten"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(Op):
    """``(channels, height, width)`` to ``(channels * height * width,)``, in that order. The format
    stays."""

    input: TensorType

    def __post_init__(self) -> None:
        Op.__post_init__(self)
        if len(self.input.shape) != 3:
            raise self.bad(f"needs an input (channels, height, width), not {self.input.shape}")
        check_output_shape(self, (self.input.size,))
        check_same_format(self, "its input and output", self.input, self.output)

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return (self.input,)

    def evaluate(self, *inputs: Codes) -> Codes:
        return inputs[0].reshape(inputs[0].shape[0], -1)
