"""A quantised network as its user would simulate it: torch in float64, rounded and clamped.

Walks the *float* graph with the float weights. From the integer network come the formats alone, the
integer biases (whose values the quantiser corrects) and the multipliers of batch norms and averages.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hwgen.ir import AvgPool as IntegerAvgPool
from hwgen.ir import MacOp, Network, Op, Requant, TensorType
from quant.graph import (
    INPUT,
    Add,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Flatten,
    FloatGraph,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Node,
    Relu,
)

__all__ = ["fake_quantised"]


def _round(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5)


def _to_format(x: Tensor, kind: TensorType) -> Tensor:
    """Real values on the grid of a tensor type."""
    return _round(x / kind.scale).clamp(kind.minimum, kind.maximum) * kind.scale


def _weights(layer: Conv | Linear, op: MacOp) -> Tensor:
    """Float weights on the grid of the integer layer's."""
    given = torch.tensor(layer.weight)
    if isinstance(layer, Conv) and op.weights.codes.ndim == 2:
        given = given[:, :, 0, 0]
    limit = 2.0 ** (op.weights.width - 1)
    return _round(given / op.weights.scale[0]).clamp(-limit, limit - 1) * op.weights.scale[0]


def _accumulate(layer: Conv | Linear, op: MacOp, x: Tensor) -> Tensor:
    step = op.input.scale * op.weights.scale[0]
    bias = None if op.bias is None else torch.tensor(op.bias.values).double() * step
    weights = _weights(layer, op)
    if weights.ndim == 2:
        return functional.linear(x, weights, bias)
    assert isinstance(layer, Conv)
    top, left, bottom, right = layer.padding
    padded = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(padded, weights, bias, layer.stride, groups=layer.groups)


def _column(values: tuple[int, ...], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 2))


def _scaled(codes: Tensor, rule: Requant, output: TensorType) -> Tensor:
    """Real values ``code * mult + add`` rounded to the grid of the output."""
    total = codes * _column(rule.mult, codes) + _column(rule.add, codes)
    return _to_format(total / 2.0 ** rule.shift[0] * output.scale, output)


def _relu(x: Tensor, relu: Relu, kind: TensorType) -> Tensor:
    top = None if relu.max is None else float(np.floor(relu.max / kind.scale + 0.5)) * kind.scale
    return x.clamp(min=0, max=top)


def _sums(node: AvgPool, op: IntegerAvgPool, x: Tensor) -> Tensor:
    """Averages in units of the input's step, times the least common multiple of the counts."""
    top, left, bottom, right = op.geometry.overhang
    padded = functional.pad(x / op.input.scale, (left, right, top, bottom))
    sums = functional.avg_pool2d(padded, node.kernel, node.stride, divisor_override=1)
    counts = node.counts(tuple(x.shape[1:]))
    return sums * torch.tensor(np.lcm.reduce(counts.reshape(-1)) // counts)


def _behind(graph: FloatGraph, ops: dict[str, Op], node: Node) -> list[Node]:
    """ReLU and affine that the requantiser of ``node`` does too."""
    found: list[Node] = []
    readers = graph.consumers(node.name)
    while len(readers) == 1 and isinstance(readers[0], Relu | ChannelAffine):
        if readers[0].name in ops:
            break
        found.append(readers[0])
        readers = graph.consumers(readers[0].name)
    return found


def _layer(node: Node, behind: list[Node], op: Op, inputs: list[Tensor]) -> Tensor:
    x, kind = inputs[0], op.output
    relus = [other for other in (node, *behind) if isinstance(other, Relu)]
    affine = next((other for other in behind if isinstance(other, ChannelAffine)), None)
    match node:
        case Conv() | Linear():
            assert isinstance(op, MacOp)
            total = _accumulate(node, op, x)
            if op.requant is None:
                return total
            if affine is None:
                made = _to_format(total, kind)
            else:  # the ReLU's limits come before the batch norm
                top = relus[0].max
                limit = None if top is None else torch.tensor(top * affine.scale + affine.offset)
                codes = total.clamp(min=0) / (op.input.scale * op.weights.scale[0])
                made = _scaled(codes, op.requant, kind)
                if limit is not None:
                    edge = _to_format(limit, kind).reshape(-1, *[1] * (x.ndim - 2))
                    rises = torch.tensor(affine.scale >= 0).reshape(edge.shape)
                    made = torch.where(rises, torch.minimum(made, edge), torch.maximum(made, edge))
                return made
        case AvgPool():
            assert isinstance(op, IntegerAvgPool)
            made = _scaled(_sums(node, op, x), op.requant, kind)
        case GlobalAvgPool():
            made = _scaled(x.sum((2, 3)) / op.input.scale, op.requant, kind)  # type: ignore[attr-defined]
        case ChannelAffine():
            made = _scaled(x / op.input.scale, op.requant, kind)  # type: ignore[attr-defined]
        case Relu():
            made = _to_format(x, kind)
        case Add():
            made = _to_format(inputs[0] + inputs[1], kind)
        case Concat():
            made = _to_format(torch.cat(inputs, 1), kind)
        case MaxPool():
            made = node.evaluate(x)
        case GlobalMaxPool():
            made = x.amax((2, 3))
        case Flatten():
            made = x.flatten(1)
        case _:
            raise AssertionError(f"no fake-quantised form of {type(node).__name__}")
    for relu in relus:
        made = _relu(made, relu, kind)
    return made


def fake_quantised(
    graph: FloatGraph, network: Network, images: NDArray[np.uint8]
) -> dict[str, NDArray[np.int64]]:
    """Codes of every layer's tensor, for raw images.

    Parameters
    ----------
    graph : FloatGraph
        The network of raw pixels: ``with_preprocessing(graph, preprocess)``.
    network : Network
        What the quantiser made of it.
    images : uint8 array
        ``(N, *input_shape)``.
    """
    ops = {op.name: op for op in network.ops}
    values = {INPUT: torch.tensor(images, dtype=torch.float64)}
    codes = {}
    for node in graph.nodes[1:]:
        inputs = [values[i] for i in node.inputs]
        if node.name not in ops:  # done by the layer before, or a vector flattened
            values[node.name] = inputs[0]
            continue
        op = ops[node.name]
        made = _layer(node, _behind(graph, ops, node), op, inputs)
        values[node.name] = made
        exact = made / op.output.scale
        assert bool((exact == exact.round()).all())
        codes[node.name] = exact.long().numpy()
    return codes
