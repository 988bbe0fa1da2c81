"""A float graph as torch trains it: parameters of its layers, and a program of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from quant import graph as fg
from quant.straight import TensorMap

__all__ = ["Layer", "Step", "layers_of", "mac", "program"]

_PASSES = fg.MaxPool | fg.AvgPool | fg.GlobalAvgPool | fg.GlobalMaxPool | fg.Flatten


class Layer:
    """Parameters of a convolution or linear layer.

    A layer that reads raw pixels is trained as if these were normalised, ``x = mean + spread * z``:
    ``weight * spread`` and ``bias + sum(weight * mean)`` are the parameters, so that one learning
    rate suits all layers.
    """

    def __init__(self, node: fg.Conv | fg.Linear, mean: Tensor | None, spread: Tensor) -> None:
        self.node, self.mean, self.spread = node, mean, spread
        self.mask: Tensor | None = None
        weight = torch.tensor(node.weight, dtype=torch.float64)
        bias = torch.tensor(node.bias, dtype=torch.float64)
        if mean is not None:
            bias = bias + (weight * mean).flatten(1).sum(1)
        self.weight = (weight * spread).float().requires_grad_()
        self.bias = bias.float().requires_grad_()

    def real(self) -> tuple[Tensor, Tensor]:
        """Weight and bias for raw pixels, as functions of the parameters."""
        weight = self.weight / self.spread
        if self.mask is not None:
            weight = weight * self.mask
        bias = self.bias
        if self.mean is not None:
            bias = bias - (weight * self.mean).flatten(1).sum(1)
        return weight, bias


def layers_of(graph: fg.FloatGraph, images: NDArray[np.uint8]) -> dict[str, Layer]:
    """Parameters of every layer by name; raw ``images (N, C, H, W)`` condition the first."""
    sample = images[:: max(1, len(images) // 2000)].astype(np.float64)
    mean, square = sample.mean((0, 2, 3)), np.square(sample).mean((0, 2, 3))
    layers = {}
    for node in graph.mac_nodes:
        moments = None
        if _reads_pixels(graph, node.inputs[0]):
            centred = not (isinstance(node, fg.Conv) and any(node.padding))  # else zeros come in
            spread = np.sqrt(square - mean**2 if centred else square)
            moments = (mean * centred, np.where(spread > 1, spread, 1.0))
        if moments is None:
            layers[node.name] = Layer(node, None, torch.ones(()))
        else:
            m, s = (torch.tensor(_by_weight(node, part), dtype=torch.float32) for part in moments)
            layers[node.name] = Layer(node, m, s)
    return layers


def _reads_pixels(graph: fg.FloatGraph, name: str) -> bool:
    node = graph.node(name)
    if isinstance(node, fg.Input):
        return True
    return isinstance(node, _PASSES) and _reads_pixels(graph, node.inputs[0])


def _by_weight(node: fg.Conv | fg.Linear, channels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of input channels laid out as the layer's weights."""
    if isinstance(node, fg.Linear):
        each = node.weight.shape[1] // len(channels)
        return np.repeat(channels, each)[None, :]
    out, taken = node.weight.shape[:2]
    group = np.arange(out) // (out // node.groups)
    found: NDArray[np.float64] = channels[group[:, None] * taken + np.arange(taken)]
    return found[:, :, None, None]


def mac(node: fg.Conv | fg.Linear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's result with other weights and biases."""
    if isinstance(node, fg.Linear):
        return F.linear(x, weight, bias)
    top, left, bottom, right = node.padding
    padding = (top, left)
    if padding != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    # Channels last, which what follows keeps: pools are then several times as fast.
    weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, node.stride, padding, groups=node.groups)


def _behind_pools(
    graph: fg.FloatGraph, outputs: Mapping[str, TensorMap]
) -> dict[str, list[TensorMap]]:
    """The maps of each node, those of a max pool's only source moved behind it: fewer elements.

    So is a ReLU there, which is then the first of the maps: neither result nor gradient changes.
    """
    found: dict[str, list[TensorMap]] = {}
    for node in graph.nodes[1:]:
        maps = found.pop(node.name, [])
        pool = _only_pool(graph, node)
        if pool is not None and _is_plain_relu(node):
            maps = [*maps, torch.relu]
        if node.name in outputs:
            maps = [*maps, outputs[node.name]]
        if maps:
            found[node.name if pool is None else pool.name] = maps
    return found


def _only_pool(graph: fg.FloatGraph, node: fg.Node) -> fg.Node | None:
    """The max pool that alone reads a node; None where there is none."""
    readers = graph.consumers(node.name)
    alone = len(readers) == 1 and node.name != graph.output
    return readers[0] if alone and isinstance(readers[0], fg.MaxPool | fg.GlobalMaxPool) else None


def _is_plain_relu(node: fg.Node) -> bool:
    return isinstance(node, fg.Relu) and node.max is None


Step = tuple[str, tuple[str, ...], Callable[..., Tensor] | None, tuple[str, ...]]
"""A node's name, its inputs, what computes it (None for a layer) and tensors not needed again."""


def program(graph: fg.FloatGraph, outputs: Mapping[str, TensorMap]) -> list[Step]:
    """The steps that compute a graph, each node's map behind it or behind the max pool there."""
    maps = _behind_pools(graph, outputs)
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    steps: list[Step] = []
    for node in graph.nodes[1:]:
        mac = isinstance(node, fg.Conv | fg.Linear)
        compute = None if mac else _compute(graph, node)
        name, own = node.name, maps.get(node.name, [])
        done = tuple(sorted({i for i in node.inputs if last[i] == name and i != graph.output}))
        steps.append((name, node.inputs, compute, () if own else done))
        for place, step in enumerate(own):
            steps.append((name, (name,), step, done if place == len(own) - 1 else ()))
    return steps


def _compute(graph: fg.FloatGraph, node: fg.Node) -> Callable[..., Tensor]:
    """What computes a node; its constants are made once."""
    if isinstance(node, fg.MaxPool) and not any(graph.geometry(node.name).overhang):
        kernel, stride = node.kernel, node.stride
        return lambda x: F.max_pool2d(x, kernel, stride)
    if isinstance(node, fg.AvgPool) and not any(graph.geometry(node.name).overhang):
        kernel, stride = node.kernel, node.stride
        return lambda x: F.avg_pool2d(x, kernel, stride)
    if _is_plain_relu(node):
        return torch.relu if _only_pool(graph, node) is None else lambda x: x
    if isinstance(node, fg.ChannelAffine):
        view = (1, -1) + (1,) * (len(graph.shape(node.name)) - 1)
        scale, offset = (
            torch.tensor(part, dtype=torch.float32).view(view) for part in (node.scale, node.offset)
        )
        return lambda x: torch.addcmul(offset, x, scale)
    return node.evaluate
