"""From clusters of weights to the integer constants of layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hwgen.ir.ops.base import Codes
from quant.calibrate import LayerInputs
from quant.codebooks import (
    code_range,
    covering_step,
    integer_entries,
    kmeans_exact,
    power_of_two_step,
    uniform_codes,
)
from quant.formats import Floats
from quant.graph import Conv, Linear
from quant.methods.cluster_seeds import Seeding, Swarm, clustered
from quant.plan import LayerPlan, tensor_scale
from quant.straight import TensorMap, uniform_ste, without_mean

__all__ = [
    "ClusteredLayer",
    "Compensated",
    "cluster_layer",
    "grid_steps",
    "layer_plan",
    "tuned_plan",
    "tuning_map",
]

STEPS = np.geomspace(1.05, 0.3, 32)
"""Multiples of the step without saturation that are tried for the integer grid."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusteredLayer:
    """A layer's weights as clusters.

    Parameters
    ----------
    bins : int64 array
        Cluster of each weight in the shape of the weights: 0 is that of the pruned ones, which are
        exactly 0, ``i`` is level ``i - 1``.
    levels : float64 array
        ``(k,)``, rising: the centroids of the other weights.
    error : float
        Within-cluster sum of squares.
    least : float
        The least that there is with so many clusters.
    """

    bins: Codes = field(repr=False)
    levels: Floats = field(repr=False)
    error: float
    least: float

    @property
    def weights(self) -> Floats:
        """Every weight's centroid."""
        found: Floats = np.concatenate([[0.0], self.levels])[self.bins]
        return found


def cluster_layer(
    weights: Floats,
    bits: int,
    seeding: Seeding,
    generator: np.random.Generator,
    swarm: Swarm | None = None,
) -> ClusteredLayer:
    """Cluster a layer's weights into ``2 ** bits`` clusters, one of them for those that are 0.

    Parameters
    ----------
    weights : float64 array
        Any shape; without clusters (:attr:`Seeding.NONE`) each distinct weight is its own.
    bits : int
    seeding : Seeding
    generator : numpy.random.Generator
    swarm : Swarm, optional
    """
    bins = np.zeros(weights.shape, dtype=np.int64)
    kept = weights != 0
    values = weights[kept]
    if values.size == 0:
        return ClusteredLayer(bins=bins, levels=np.zeros(0), error=0.0, least=0.0)
    if seeding is Seeding.NONE:
        levels, places = np.unique(values, return_inverse=True)
        bins[kept] = places + 1
        return ClusteredLayer(bins=bins, levels=levels, error=0.0, least=0.0)
    count = (1 << bits) - 1
    found = clustered(values, count, seeding, generator, swarm)
    bins[kept] = found.bins(values) + 1
    least = kmeans_exact(values, count).error
    return ClusteredLayer(bins=bins, levels=found.levels, error=found.error, least=least)


def layer_plan(
    node: Conv | Linear,
    layer: ClusteredLayer,
    inputs: LayerInputs,
    *,
    bits: int,
    entry_bits: int | None,
    bias_bits: int,
    power_of_two: bool,
) -> LayerPlan:
    """Integer constants: the centroids on the grid whose error at the layer's outputs is least.

    Parameters
    ----------
    node : Conv or Linear
        With pruned weights and their bias.
    layer : ClusteredLayer
    inputs : LayerInputs
        What the layer reads on calibration images.
    bits : int
        Of the codes, or of the indices into a codebook.
    entry_bits : int or None
        Bits of a codebook's entries; None: no codebook, the codes are multiplied.
    bias_bits : int
    power_of_two : bool
        Whether the step must be one.
    """
    width = entry_bits or bits
    high = code_range(width)[1]

    def codes_at(step: float) -> Codes:
        levels = integer_entries(layer.levels, step, width)
        found: Codes = np.concatenate([np.zeros(1, dtype=np.int64), levels])[layer.bins]
        return found

    def error(step: float) -> float:
        return inputs.squared_error(codes_at(step) * step - node.weight, corrected=True)

    step = min(grid_steps(layer.levels, high, power_of_two=power_of_two), key=error)
    codes = codes_at(step)
    entries = np.unique(np.append(codes, 0)).tolist()
    return LayerPlan(
        codes=codes,
        width=width,
        scale=tensor_scale(step),
        bias=node.bias - inputs.mean_error(codes * step - node.weight),
        bias_width=bias_bits,
        codebook=tuple(entries) if entry_bits else None,
    )


def grid_steps(levels: Floats, high: int, *, power_of_two: bool) -> list[float]:
    """Steps to try for the integer grid, falling.

    Parameters
    ----------
    levels : float64 array
        ``(k,)``.
    high : int
        Largest code.
    power_of_two : bool
        Whether they must be powers of two.
    """
    if not levels.any():
        return [1.0]
    steps = covering_step(levels, high) * STEPS
    if not power_of_two:
        return [float(step) for step in steps]
    return sorted({power_of_two_step(float(step)) for step in steps}, reverse=True)


def tuning_map(layer: ClusteredLayer, plan: LayerPlan) -> TensorMap:
    """What fine-tuning makes of a layer's weights.

    On the integer grid without a codebook. With one every weight becomes its cluster's mean, so
    that the gradients of a cluster add up and its centroid moves (Han, Mao, Dally 2016).
    """
    kept = torch.tensor(layer.bins > 0)
    if plan.codebook is None:
        low, high = code_range(plan.width)
        grid = uniform_ste(plan.scale[0], low, high)
        return lambda w: grid(w) * kept
    bins = torch.tensor(layer.bins.reshape(-1))
    number = torch.bincount(bins, minlength=len(layer.levels) + 1).clamp(min=1).float()

    def centroids(w: Tensor) -> Tensor:
        total = torch.zeros(len(number)).index_add(0, bins, w.reshape(-1))
        return (total / number)[bins].reshape(w.shape) * kept

    return centroids


class Compensated:
    """A map of a layer's weights, with biases less the mean that it adds to the outputs.

    Parameters
    ----------
    mapped : callable
    inputs : LayerInputs
        What the layer reads on calibration images.
    """

    def __init__(self, mapped: TensorMap, inputs: LayerInputs) -> None:
        self._mapped = mapped
        self._mean = torch.tensor(inputs.mean_by_weight, dtype=torch.float32)
        self._change: Tensor | None = None

    def weights(self, w: Tensor) -> Tensor:
        """The map itself; call it before :meth:`biases` in every forward pass."""
        found = self._mapped(w)
        self._change = found - w
        return found

    def biases(self, b: Tensor) -> Tensor:
        """The map of the biases ``(out,)``."""
        assert self._change is not None
        return without_mean(b, self._change, self._mean)


def tuned_plan(
    node: Conv | Linear,
    layer: ClusteredLayer,
    plan: LayerPlan,
    inputs: LayerInputs,
    *,
    compensated: bool = False,
) -> LayerPlan:
    """The plan after fine-tuning with :func:`tuning_map`.

    Parameters
    ----------
    node : Conv or Linear
        As trained, not mapped.
    layer : ClusteredLayer
    plan : LayerPlan
        Of before.
    inputs : LayerInputs
        As for :func:`layer_plan`.
    compensated : bool
        Whether it was trained with :class:`Compensated` biases.
    """
    weights = node.weight

    def bias(mapped: Floats) -> Floats:
        """As it was trained with those weights, see :meth:`Compensated.biases`."""
        if not compensated:
            return node.bias
        added = (mapped - weights) * inputs.mean_by_weight
        less: Floats = node.bias - added.reshape(len(added), -1).sum(1)
        return less

    if plan.codebook is None:
        low, high = code_range(plan.width)
        codes = uniform_codes(weights, plan.scale[0], low, high)
        found = replace(plan, codes=codes * (layer.bins > 0), bias=node.bias)
        return replace(found, bias=bias(found.weights))
    number = np.bincount(layer.bins.reshape(-1), minlength=len(layer.levels) + 1)[1:]
    total = np.bincount(
        layer.bins.reshape(-1), weights=weights.reshape(-1), minlength=len(number) + 1
    )[1:]
    levels = total / np.maximum(number, 1)
    order = np.argsort(levels, kind="stable")  # training may move one centroid past another
    places = np.concatenate([[0], 1 + np.argsort(order, kind="stable")])
    moved = replace(layer, levels=levels[order], bins=places[layer.bins])
    return layer_plan(
        replace(node, weight=moved.weights, bias=bias(moved.weights)),
        moved,
        inputs,
        bits=plan.width,
        entry_bits=plan.width,
        bias_bits=plan.bias_width,
        power_of_two=bool(np.frexp(plan.scale[0])[0] == 0.5),
    )
