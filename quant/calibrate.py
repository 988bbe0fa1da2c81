"""What calibration images tell of a float network: values of its tensors, errors of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np
import torch
from torch import Tensor

from hwgen.ir import Fixed
from quant.formats import Floats, decode, quantize_to
from quant.graph import Conv, FloatGraph, Linear

__all__ = ["LayerInputs", "Observed", "Statistics", "observe"]

SAMPLES = 200_000
"""About as many values of a tensor are kept, spread over images, channels and positions."""

POSITIONS = 10_000
"""About as many output positions of a layer are looked at to choose its weights' format."""

BATCH = 32


@dataclass(kw_only=True, eq=False)
class Observed:
    """Values of a tensor.

    Parameters
    ----------
    low, high : float
        The extremes of all its values.
    parts : list of float64 arrays
        A sample.
    """

    low: float = float("inf")
    high: float = float("-inf")
    parts: list[Floats] = field(default_factory=list)

    def add(self, values: Tensor, images: int) -> None:
        """Take in a batch ``(n, *shape)`` of ``images`` in all."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        size = values[0].numel()
        step = max(1, size * images // SAMPLES)
        while gcd(step, size) > 1:  # else the sample would keep to some columns or channels
            step += 1
        self.parts.append(np.array(values.reshape(-1)[::step].numpy()))


@dataclass(kw_only=True, eq=False)
class LayerInputs:
    """Inputs of a convolution or linear layer.

    Parameters
    ----------
    node : Conv or Linear
    every : int
        Of so many images one is kept.
    total : Tensor
        Sum over all images, ``(1, *shape)``.
    count : int
        Number of images.
    kept : list of Tensor
        Inputs ``(n, *shape)`` of the images that are kept.
    """

    node: Conv | Linear
    every: int
    total: Tensor | float = 0.0
    count: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        """Take in a batch ``(n, *shape)``."""
        self.kept.append(values[-self.count % self.every :: self.every].clone())
        self.total = self.total + values.sum(0, keepdim=True)
        self.count += len(values)

    @property
    def mean_input(self) -> Tensor:
        """Mean over all images, ``(1, *shape)``."""
        assert isinstance(self.total, Tensor)
        return self.total / self.count

    @property
    def mean_by_weight(self) -> Floats:
        """Mean over images and positions, laid out to broadcast to the layer's weight."""
        node, mean = self.node, self.mean_input.numpy()[0]
        if isinstance(node, Linear):
            features: Floats = mean[None, :]
            return features
        out, taken = node.weight.shape[:2]
        group = np.arange(out) // (out // node.groups)
        channels = mean.reshape(len(mean), -1).mean(1)
        placed: Floats = channels[group[:, None] * taken + np.arange(taken)][:, :, None, None]
        return placed

    def rounding(self, form: Fixed) -> Floats:
        """What rounding to a format adds to the weights."""
        weight = self.node.weight
        return decode(quantize_to(weight, form), form) - weight

    def _outputs(self, change: Floats, inputs: Tensor) -> Tensor:
        """What a change of the weights adds to the outputs ``(n, out, positions)``."""
        layer = replace(self.node, weight=change, bias=np.zeros(len(change)))
        return layer.evaluate(inputs).reshape(len(inputs), len(change), -1)

    def squared_error(self, change: Floats, *, corrected: bool) -> float:
        """Sum of squares of what a change of the weights adds to the outputs.

        Parameters
        ----------
        change : float64 array
            In the shape of the weights.
        corrected : bool
            Without each channel's mean, which the bias can make up for.
        """
        error = self._outputs(change, torch.cat(self.kept))
        if corrected:
            error = error - error.mean((0, 2), keepdim=True)
        return float(error.square().sum())

    def mean_error(self, change: Floats) -> Floats:
        """Mean over images and positions of what a change of the weights adds, ``(out,)``.

        A layer without its bias is linear, so that the mean input gives the mean error.
        """
        mean: Floats = self._outputs(change, self.mean_input).mean((0, 2)).numpy()
        return mean


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """What :func:`observe` saw, by node name."""

    tensors: dict[str, Observed]
    layers: dict[str, LayerInputs]


def observe(graph: FloatGraph, images: Tensor, names: Sequence[str]) -> Statistics:
    """Run ``images`` through the float network once, in float64.

    Parameters
    ----------
    graph : FloatGraph
    images : Tensor
        ``(N, *input_shape)``, at least one.
    names : sequence of str
        Nodes whose tensors are wanted.

    Raises
    ------
    BadInput
        If the images have another shape.
    """
    tensors = {name: Observed() for name in names}
    layers = {}
    for node in graph.mac_nodes:
        shape = graph.shape(node.name)
        wanted = -(-POSITIONS // int(np.prod(shape[1:])))
        layers[node.name] = LayerInputs(node=node, every=max(1, len(images) // wanted))
    for values in graph.activations(images, dtype=torch.float64, batch_size=BATCH):
        for name, tensor in tensors.items():
            tensor.add(values[name], len(images))
        for layer in layers.values():
            layer.add(values[layer.node.inputs[0]])
    return Statistics(tensors=tensors, layers=layers)
