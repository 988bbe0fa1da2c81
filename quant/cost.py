"""What an integer network costs to store and to multiply, counted bit by bit.

Memory is what Goyal, Vanschoren, van Acht and Nijssen ("Fixed-point Quantization of Convolutional
Neural Networks for Quantized Inference on Embedded Platforms", 2021) count, the sum of width times
count over weights, biases and output activations, and besides every other constant that hardware
stores: codebooks, and multipliers, offsets, shifts and bounds of requantisers. The cost of the
multiplications is theirs too: the sum over convolutions and linear layers of weight width times
activation width times multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwgen.errors import BadInput
from hwgen.ir import Add, AvgPool, MacOp, Network, Op, Requant
from hwgen.ir.formats import width_of

__all__ = ["BASE_BITS", "Cost", "LayerCost", "model_bits", "network_cost"]

BASE_BITS = 8
"""Width of everything in the network that savings are measured against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer costs.

    Parameters
    ----------
    name : str
    weights, codebook, biases, requantiser : int
        Bits of constants. Weights count with their stored width: that of a place in the codebook
        where there is one, whose entries then count with the width of what is multiplied.
    activations : int
        Bits of the layer's output for one image; 0 for a layer that passes codes on.
    output_product, input_product : int
        Weight width times activation width times multiply-accumulates, the activation width being
        that of the layer's own output (the paper's formula) or of its input (what the multipliers
        see).
    numbers : int
        Weights, biases and output activations; a layer whose biases are all zero has none.
    macs : int
        Multiply-accumulates for one image, those with padding included.
    """

    name: str
    weights: int = 0
    codebook: int = 0
    biases: int = 0
    requantiser: int = 0
    activations: int = 0
    output_product: int = 0
    input_product: int = 0
    numbers: int = 0
    macs: int = 0

    @property
    def constants(self) -> int:
        """Bits of all constants."""
        return self.weights + self.codebook + self.biases + self.requantiser

    @property
    def memory(self) -> int:
        """Bits of constants and output activations."""
        return self.constants + self.activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a network costs: the sums over its layers, and what 8 bits everywhere would cost.

    Parameters
    ----------
    layers : tuple of LayerCost
        In the network's order, those without any cost left out.
    """

    layers: tuple[LayerCost, ...]

    @property
    def constants(self) -> int:
        """Size of the model: bits of all constants."""
        return sum(layer.constants for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bits of all constants and output activations."""
        return sum(layer.memory for layer in self.layers)

    @property
    def output_product(self) -> int:
        """Cost of the multiplications with the layers' own output widths."""
        return sum(layer.output_product for layer in self.layers)

    @property
    def input_product(self) -> int:
        """Cost of the multiplications with the layers' input widths."""
        return sum(layer.input_product for layer in self.layers)

    @property
    def base_memory(self) -> int:
        """The memory with 8 bits for every weight, bias and output activation and nothing else."""
        return BASE_BITS * sum(layer.numbers for layer in self.layers)

    @property
    def base_product(self) -> int:
        """The cost of the multiplications with 8 bits everywhere."""
        return BASE_BITS * BASE_BITS * sum(layer.macs for layer in self.layers)

    @property
    def memory_saved(self) -> float:
        """Fraction of :attr:`base_memory` saved, negative where more is needed."""
        return 1 - self.memory / self.base_memory

    @property
    def output_product_saved(self) -> float:
        """Fraction of :attr:`base_product` saved, with the layers' own output widths."""
        return 1 - self.output_product / self.base_product

    @property
    def input_product_saved(self) -> float:
        """Fraction of :attr:`base_product` saved, with the layers' input widths."""
        return 1 - self.input_product / self.base_product

    def table(self) -> dict[str, Any]:
        """The figures as JSON values."""
        names = ("constants", "memory", "output_product", "input_product")
        saved = ("memory_saved", "output_product_saved", "input_product_saved")
        return {name: getattr(self, name) for name in (*names, *saved)}


def network_cost(
    network: Network, *, output_bits: Mapping[str, int] | None = None, paper: bool = False
) -> Cost:
    """Count a network's bits.

    Output activations are those of layers that make codes of their own: convolutions, linear
    layers, average pools, residual additions, rescalings. Max pools, flattening and concatenation
    pass codes on and the network's input is given; they count nothing. A max pool is counted as if
    its input were stored, as in the paper.

    Of a requantiser counts what has one entry a channel, at the smallest width that holds its
    entries, and of what is the same for all channels a multiplier other than 1, an offset and a zero
    point other than 0, and the shift behind such a multiplier. A shift alone and a bound for all
    channels are wires. Biases behind an input with a zero point count as hardware stores them, less
    the zero point times the sum of the channel's weights.

    Parameters
    ----------
    network : Network
    output_bits : mapping of str to int, optional
        Widths of outputs by layer that count in place of the network's, for a layer that hands out
        accumulators though its method gave it a width.
    paper : bool
        Count as the paper does: constants of requantisers (where batch norms end up, which the
        paper leaves in floating point) are free, and only convolutions and linear layers have
        output activations.

    Raises
    ------
    BadInput
        If there is no such layer, or its width is below 0.
    """
    given = dict(output_bits or {})
    unknown = given.keys() - {op.name for op in network.ops}
    if unknown:
        raise BadInput(
            f"output widths are given for {', '.join(sorted(unknown))}, but the layers are"
            f" {', '.join(op.name for op in network.ops)}"
        )
    for name, bits in given.items():
        if bits < 0:
            raise BadInput(f"the output width of layer {name} must be at least 0, not {bits}")
    layers = [_layer(op, given.get(op.name, op.output.width), paper=paper) for op in network.ops]
    return Cost(layers=tuple(layer for layer in layers if layer.memory or layer.numbers))


def model_bits(network: Network) -> int:
    """Size of the model: bits of all constants, as :func:`network_cost` counts them."""
    return network_cost(network).constants


def _layer(op: Op, width: int, *, paper: bool) -> LayerCost:
    """The cost of a layer whose output has ``width`` bits."""
    count = op.output.size
    if isinstance(op, MacOp):
        weights, macs = op.weights, op.macs
        book = weights.codebook or ()
        biases = 0 if op.bias is None else op.bias.codes.size
        return LayerCost(
            name=op.name,
            weights=weights.codes.size * weights.stored_width,
            codebook=len(book) * weights.width,
            biases=_bias_bits(op),
            requantiser=0 if paper or op.requant is None else _requantiser(op.requant),
            activations=count * width,
            output_product=weights.width * width * macs,
            input_product=weights.width * op.input.width * macs,
            numbers=weights.codes.size + biases + count,
            macs=macs,
        )
    requant: Requant | None = getattr(op, "requant", None)
    if requant is None or paper:
        return LayerCost(name=op.name)
    factors = 0
    if isinstance(op, Add):
        factors = sum(_stored((m,)) for m in op.mult if abs(m).bit_count() != 1)
    elif isinstance(op, AvgPool) and not op.uniform:
        factors = _stored(tuple(int(m) for m in op.multipliers.reshape(-1)))
    return LayerCost(
        name=op.name,
        requantiser=_requantiser(requant) + factors,
        activations=count * width,
        numbers=count,
    )


def _bias_bits(op: MacOp) -> int:
    """Bits of a layer's biases, as hardware stores them: with what a zero point of its input adds."""
    if not op.input.zero:
        return 0 if op.bias is None else op.bias.codes.size * op.bias.width
    added = op.code_bias
    return _stored(tuple(added.tolist())) if added.any() else 0


def _requantiser(requant: Requant) -> int:
    """Bits of a requantiser's constants."""
    bits = sum(
        _stored(values)
        for values in (requant.mult, requant.add, requant.shift, requant.low, requant.high)
        if len(values) > 1
    )
    if len(requant.mult) == 1 and requant.mult != (1,):
        bits += _stored(requant.mult)
    if len(requant.add) == 1 and requant.add != (0,):
        bits += _stored(requant.add)
    if len(requant.shift) == 1 and requant.mult != (1,):
        bits += _stored(requant.shift)
    if requant.zero:
        bits += _stored((requant.zero,))
    return bits


def _stored(values: tuple[int, ...]) -> int:
    """Bits of entries of one width, the smallest that holds all."""
    width, _ = width_of(min(values), max(values))
    return len(values) * width
