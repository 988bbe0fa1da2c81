"""What a quantisation method decides: integer weights, biases and formats, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import Fixed
from hwgen.ir.ops.base import Codes
from quant.formats import Floats

__all__ = ["LayerPlan", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPlan:
    """Constants of one convolution or linear layer. Compares by identity.

    Parameters
    ----------
    codes : int64 array
        What is multiplied, in the shape of the float layer's weight: ``(out, in / groups, rows,
        columns)`` or ``(out, in)``. With a codebook every code is one of its entries.
    width : int
        Bits of a code, signed.
    scale : float64 array
        What a code of 1 stands for: ``(1,)`` for the tensor, or ``(out,)``. Positive; powers of two
        need no multiplier behind the accumulator. A layer whose accumulators are the network's
        result has one for the tensor.
    bias : float64 array
        Real biases ``(out,)``, any correction included.
    bias_width : int
        Bits of a bias code, signed.
    bias_step : float, optional
        What a bias code of 1 stands for, rounded up to a power of two times the accumulator's
        step and never finer than that; only where ``scale`` is the tensor's. By default the step
        with the least squared error.
    codebook : tuple of int, optional
        Entries in rising order. The hardware stores indices.
    offset : float64 array, optional
        What the batch norm behind the layer's ReLU adds ``(out,)``, in place of the graph's. Whoever
        moves it makes up for that in the biases of the layers that read the tensor.
    """

    codes: Codes = field(repr=False)
    width: int
    scale: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    bias_width: int
    bias_step: float | None = None
    codebook: tuple[int, ...] | None = None
    offset: Floats | None = field(default=None, repr=False)

    @property
    def weights(self) -> Floats:
        """The real weights that the codes stand for."""
        return self.codes * self.scale.reshape(-1, *[1] * (self.codes.ndim - 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A quantised network before it is assembled: see :class:`quant.assemble.Assembler`.

    Parameters
    ----------
    layers : mapping of str to LayerPlan
        Every convolution and linear layer by the name of its node.
    outputs : mapping of str to Fixed
        Formats of the codes that layers make, by the name of the node (that of the convolution,
        not of the ReLU behind it). Layers whose outputs are concatenated or pass through the same
        pool have one format. A layer whose accumulators are the result has none.
    """

    layers: Mapping[str, LayerPlan]
    outputs: Mapping[str, Fixed]

    def layer(self, name: str) -> LayerPlan:
        """The plan of a layer.

        Raises
        ------
        BadInput
            If there is none.
        """
        if name not in self.layers:
            raise BadInput(f"the plan lacks layer {name}; it has {', '.join(self.layers)}")
        return self.layers[name]

    def with_layers(self, **changes: LayerPlan) -> Plan:
        """The same plan but for some layers' constants; give names that are no identifiers as a mapping."""
        return replace(self, layers={**self.layers, **changes})

    def with_outputs(self, changes: Mapping[str, Fixed]) -> Plan:
        """The same plan but for some formats."""
        return replace(self, outputs={**self.outputs, **changes})


def tensor_scale(value: float) -> Floats:
    """One scale for a tensor, as :class:`LayerPlan` wants it."""
    return np.array([value], dtype=np.float64)
