"""Channels scaled so that one format suits all channels of a tensor, and so that powers of two fit.

A positive factor on a channel of a layer with a ReLU (and of a batch norm behind it) can be taken back
in the weights of the layers that read it, so the float function stays the same, and the integer network
needs nothing for it: its scales of activations are in effect real numbers, one a channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from quant import graph as fg
from quant.formats import Floats
from quant.grouping import Group, group_nodes

__all__ = ["channel_groups", "channel_values", "equalise"]

TARGET_BITS = 5
"""Width for which a channel's range, and a tensor's, is chosen."""

SHARE = 0.4
"""Power of a channel's ideal factor that is applied: the rest would cost the readers' weights more."""

SAMPLES = 20_000
"""Values of a channel that are looked at."""

SHRINK = tuple(0.94**k for k in range(36))
"""Ranges that are tried, as parts of the one without saturation."""

_Passes = fg.MaxPool | fg.AvgPool | fg.GlobalMaxPool | fg.GlobalAvgPool | fg.Flatten


def equalise(graph: fg.FloatGraph, images: NDArray[np.uint8]) -> fg.FloatGraph:
    """The same function with channels that have about the same range.

    Parameters
    ----------
    graph : FloatGraph
        Takes raw pixels.
    images : uint8 array
        Calibration images ``(N, C, H, W)``.
    """
    plans = {group.last.name: (group, readers) for group, readers in channel_groups(graph)}
    values = channel_values(graph, images, list(plans), SAMPLES)
    changed = {node.name: node for node in graph.nodes}
    for tensor, (group, readers) in plans.items():
        found = values[tensor]
        if group.affine is not None:  # its offset takes no codes: see quant.methods.layerwise_grids
            found = np.abs(found - group.affine.offset[:, None])
        _apply(graph, changed, group, readers, _factors(found))
    return replace(graph, nodes=tuple(changed[node.name] for node in graph.nodes))


def channel_groups(
    graph: fg.FloatGraph,
) -> Iterator[tuple[Group, list[fg.Conv | fg.Linear]]]:
    """Layers with a ReLU whose channels a factor or a constant may change, in the network's order.

    Each comes with the layers that take its channels, at most pooled and flattened, and so can take
    the change back. Those whose channels anything else takes are left out.
    """
    for group in group_nodes(graph):
        readers = _channel_readers(graph, group)
        if readers:
            yield group, readers


def _channel_readers(graph: fg.FloatGraph, group: Group) -> list[fg.Conv | fg.Linear] | None:
    """The layers that take a group's channels, at most pooled and flattened; None if others do."""
    if not isinstance(group.node, fg.Conv | fg.Linear) or group.relu is None:
        return None
    if group.affine is None and group.relu.max is not None:
        return None
    found: list[fg.Conv | fg.Linear] = []
    names = [group.last.name]
    while names:
        name = names.pop()
        if name == graph.output:
            return None
        for node in graph.consumers(name):
            if isinstance(node, fg.Conv | fg.Linear):
                found.append(node)
            elif isinstance(node, _Passes):
                names.append(node.name)
            else:
                return None
    return found


def channel_values(
    graph: fg.FloatGraph, images: NDArray[np.uint8], names: list[str], samples: int
) -> Mapping[str, Floats]:
    """A sample of each tensor's values, ``(channels, n)``, n about ``samples``."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for values in graph.activations(torch.tensor(images), dtype=torch.float32, batch_size=50):
        for name in names:
            tensor = values[name].flatten(2) if values[name].ndim > 2 else values[name][..., None]
            rows = tensor.transpose(0, 1).flatten(1)
            step = max(1, rows.shape[1] * len(images) // (len(values[name]) * samples))
            parts[name].append(rows[:, ::step])
    return {name: torch.cat(part, 1).double().numpy() for name, part in parts.items()}


def _factors(values: Floats) -> Floats:
    """What each channel ``(channels, n)`` is divided by, ``(channels,)``.

    Part of what would give each channel its own best step, times what makes the mean of these steps
    a power of two.
    """
    best, alive = _best_steps(values)
    if not alive.any():
        return np.ones(len(values))
    middle = np.exp(np.log(best[alive]).mean())
    factors = (best / middle) ** SHARE * (middle / 2.0 ** np.rint(np.log2(middle)))
    return np.asarray(np.where(alive, factors, 1.0))


def _best_steps(values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The step of each row with the least squared error, ``(rows,)``, and which rows are not 0."""
    low = -(1 << (TARGET_BITS - 1)) if (values < 0).any() else 0
    high = (1 << TARGET_BITS) - 1 + low
    top = np.maximum(values.max(1) / (high + 0.5), 0.0)
    if low:
        top = np.maximum(top, values.min(1) / (low - 0.5))
    alive = top > 0
    top = np.where(alive, top, 1.0)
    best, least = top, np.full(len(top), np.inf)
    for part in SHRINK:
        step = (top * part)[:, None]
        error = np.square(np.clip(np.rint(values / step), low, high) * step - values).sum(1)
        best = np.where(error < least, top * part, best)
        least = np.minimum(error, least)
    return np.asarray(best), alive


def _apply(
    graph: fg.FloatGraph,
    changed: dict[str, fg.Node],
    group: Group,
    readers: list[fg.Conv | fg.Linear],
    factors: Floats,
) -> None:
    """Divide a group's channels by factors and multiply what reads them."""
    if group.affine is not None:
        affine = changed[group.affine.name]
        assert isinstance(affine, fg.ChannelAffine)
        changed[affine.name] = replace(
            affine, scale=affine.scale / factors, offset=affine.offset / factors
        )
    else:
        node = changed[group.node.name]
        assert isinstance(node, fg.Conv | fg.Linear)
        shape = (-1, *[1] * (node.weight.ndim - 1))
        changed[node.name] = replace(
            node, weight=node.weight / factors.reshape(shape), bias=node.bias / factors
        )
    for reader in readers:
        node = changed[reader.name]
        assert isinstance(node, fg.Conv | fg.Linear)
        if isinstance(node, fg.Linear):
            each = np.repeat(factors, node.weight.shape[1] // len(factors))
            changed[node.name] = replace(node, weight=node.weight * each)
            continue
        per = node.weight.shape[1]
        parts = factors.reshape(node.groups, per)
        rows = np.repeat(parts, node.weight.shape[0] // node.groups, axis=0)
        changed[node.name] = replace(node, weight=node.weight * rows[:, :, None, None])
