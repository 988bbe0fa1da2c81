"""Concatenation of channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwgen.ir.formats import TensorType
from hwgen.ir.ops.base import Codes, Op, check_output_shape, check_same_format

__all__ = ["Concat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Op):
    """Inputs of one format behind one another on the channel (or feature) axis.

    Parameters
    ----------
    types : tuple of TensorType
        Types of the inputs, at least one; equal but for the number of channels.
    """

    types: tuple[TensorType, ...]

    def __post_init__(self) -> None:
        Op.__post_init__(self)
        if not self.types or len({t.shape[1:] for t in self.types}) != 1:
            raise self.bad(
                f"needs inputs of one height and width, not {[t.shape for t in self.types]}"
            )
        shape = (sum(t.channels for t in self.types), *self.types[0].shape[1:])
        check_output_shape(self, shape)
        for kind in self.types:
            check_same_format(self, "its inputs and output", kind, self.output)

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return self.types

    def evaluate(self, *inputs: Codes) -> Codes:
        return np.concatenate(inputs, axis=1)
