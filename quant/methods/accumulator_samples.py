"""What calibration images tell of each layer's inputs, channel by channel, and units of tensors.

A rectifier passes a positive factor through, so that each channel of a tensor may be measured in a
unit of its own at no cost in hardware: the layer that makes it is divided by the unit, the layer
that reads it multiplied (cross-layer equalisation, Nagel et al. 2019). A unit here is the value at
which a channel saturates. Channels of small values then use all codes too, and what counts for the
accumulator, the sum of the weights that read them, falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from hwgen.ir import INPUT
from quant import graph as fg
from quant.formats import Floats
from quant.grouping import group_nodes, never_negative

__all__ = ["FREE", "Samples", "Ties", "best_clips", "collect", "layer_taps", "tie_units"]

ROWS = 4000
"""About as many windows of a layer are kept."""

VALUES = 20_000
"""About as many values of a channel are kept."""

BATCH = 250
FAINT = 64.0
"""Channels fainter than the strongest by more than this factor are measured as if they were not."""

FREE = "free"

_PASSES = fg.MaxPool | fg.AvgPool | fg.GlobalAvgPool | fg.GlobalMaxPool | fg.Flatten


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ties:
    """Which tensors have a unit for each channel, and which share it.

    Parameters
    ----------
    root : mapping of str to str
        Each tensor's representative.
    free : set of str
        Representatives whose channels may have units; the others have 1.
    """

    root: Mapping[str, str]
    free: frozenset[str]

    def is_free(self, name: str) -> bool:
        """Whether the channels of a tensor may have units."""
        return self.root[name] in self.free


def tie_units(graph: fg.FloatGraph) -> Ties:
    """Find the tensors whose channels may be measured in units of their own.

    Layers' results, through rectifiers without a maximum, pools, additions and flattening, up to
    other layers. Not pixels, not the network's result, not what an affine or a concatenation
    touches.
    """
    parent: dict[str, str] = {node.name: node.name for node in graph.nodes}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    fixed = {INPUT, graph.output}
    spread = {node.name: 1 for node in graph.nodes}
    for node in graph.nodes[1:]:
        if isinstance(node, fg.Conv | fg.Linear):
            continue
        if isinstance(node, fg.ChannelAffine | fg.Concat) or (
            isinstance(node, fg.Relu) and node.max is not None
        ):
            fixed.update((node.name, *node.inputs))
            continue
        spread[node.name] = spread[node.inputs[0]]
        if isinstance(node, fg.Flatten):
            shape = graph.shape(node.inputs[0])
            spread[node.name] *= int(np.prod(shape[1:]))
        if len({spread[name] for name in node.inputs}) > 1:
            fixed.update((node.name, *node.inputs))
        for name in node.inputs:
            parent[root(name)] = root(node.name)
    roots = {name: root(name) for name in parent}
    bound = {roots[name] for name in fixed}
    return Ties(root=roots, free=frozenset(set(roots.values()) - bound))


def layer_taps(node: fg.Conv | fg.Linear, values: Tensor, places: NDArray[np.intp]) -> Floats:
    """Windows of a layer's input, ``(len(places), channels * rows * columns)``.

    Parameters
    ----------
    node : Conv or Linear
    values : Tensor
        ``(N, *shape)``.
    places : int array
        Indices into (image, position); of a linear layer images.
    """
    if isinstance(node, fg.Linear):
        return np.asarray(values[torch.from_numpy(places)].float().numpy())
    top, left, bottom, right = node.padding
    padded = F.pad(values.float(), (left, right, top, bottom))
    rows, columns = node.weight.shape[2:]
    view = padded.unfold(2, rows, node.stride[0]).unfold(3, columns, node.stride[1])
    wide = view.shape[3]
    image, place = np.divmod(places, view.shape[2] * wide)
    y, x = np.divmod(place, wide)
    taken = view[torch.from_numpy(image), :, torch.from_numpy(y), torch.from_numpy(x)]
    return np.asarray(taken.flatten(1).numpy())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What calibration images tell.

    Parameters
    ----------
    images : uint8 array
        The images ``(N, C, H, W)``.
    places : mapping of str to int array
        By layer: which windows were kept, see :func:`layer_taps`.
    taps : mapping of str to float32 array
        By layer: their values, ``(rows, channels * rows * columns)``.
    channels : mapping of str to int array
        By layer: the channel of each column of ``taps``, as the layer's input counts them.
    values : mapping of str to float32 array
        By tensor: some positions, ``(rows, channels)``.
    """

    images: NDArray[np.uint8] = field(repr=False)
    places: Mapping[str, NDArray[np.intp]] = field(repr=False)
    taps: Mapping[str, Floats] = field(repr=False)
    channels: Mapping[str, NDArray[np.intp]] = field(repr=False)
    values: Mapping[str, Floats] = field(repr=False)


def collect(graph: fg.FloatGraph, images: NDArray[np.uint8], seed: int = 0) -> Samples:
    """Run images through the network of raw pixels and keep samples of its tensors.

    Parameters
    ----------
    graph : FloatGraph
    images : uint8 array
        ``(N, C, H, W)``.
    seed : int
        Of the choice of positions.
    """
    rng = np.random.default_rng([seed, 5])
    places, channels = {}, {}
    for node in graph.mac_nodes:
        shape = graph.shape(node.name)
        positions = int(np.prod(shape[1:]))
        each = min(positions, max(1, -(-ROWS // len(images))))
        image = np.repeat(np.arange(len(images)), each)
        place = rng.random((len(images), positions)).argsort(1)[:, :each].ravel()
        places[node.name] = image * positions + place
        inputs = graph.shape(node.inputs[0])[0]
        per = int(np.prod(node.weight.shape[2:])) if isinstance(node, fg.Conv) else 1
        channels[node.name] = np.repeat(np.arange(inputs), per)
    names = {g.last.name for g in group_nodes(graph)} | {n.inputs[0] for n in graph.mac_nodes}
    taps: dict[str, list[Floats]] = {name: [] for name in places}
    values: dict[str, list[Floats]] = {name: [] for name in sorted(names)}
    start = 0
    for tensors in graph.activations(images, dtype=torch.float32, batch_size=BATCH):
        count = len(tensors[graph.output])
        for node in graph.mac_nodes:
            positions = int(np.prod(graph.shape(node.name)[1:]))
            mine = places[node.name] - start * positions
            mine = mine[(mine >= 0) & (mine < count * positions)]
            taps[node.name].append(layer_taps(node, tensors[node.inputs[0]], mine))
        for name, kept in values.items():
            kept.append(_some(tensors[name], len(images), rng))
        start += count
    return Samples(
        images=images,
        places=places,
        taps={name: np.concatenate(parts) for name, parts in taps.items()},
        channels=channels,
        values={name: np.concatenate(parts) for name, parts in values.items()},
    )


def _some(tensor: Tensor, images: int, rng: np.random.Generator) -> Floats:
    """Some positions of a batch, ``(rows, channels)``."""
    if tensor.ndim == 2:
        return np.array(tensor.float().numpy())
    flat = tensor.flatten(2)
    positions = flat.shape[2]
    each = min(positions, max(1, VALUES // images))
    place = torch.from_numpy(rng.random((len(flat), positions)).argsort(1)[:, :each].copy())
    taken = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1))
    return np.array(taken.transpose(1, 2).reshape(-1, flat.shape[1]).float().numpy())


CLIPS = np.geomspace(0.15, 1.0, 16)
"""Shares of a channel's largest value at which it may saturate."""


def best_clips(values: Floats, bits: int, *, signed: bool) -> Floats:
    """Where each channel best saturates: the least mean squared error of ``bits``-bit codes.

    Parameters
    ----------
    values : float array ``(rows, channels)``
    bits : int
    signed : bool
        Codes then reach as far below 0.

    Returns
    -------
    float64 array ``(channels,)``
        Positive; 1 where all values are 0.
    """
    size = np.abs(values)
    top = size.max(0).astype(np.float64)
    levels = (1 << (bits - signed)) - 1 if bits > signed else 1
    best, least = np.where(top > 0, top, 1.0), np.full(len(top), np.inf)
    for share in CLIPS:
        clip = np.where(top > 0, top * share, 1.0)
        step = (clip / (levels + 1)).astype(np.float32)
        off = np.minimum(np.floor(size / step + 0.5), levels) * step - size
        error = np.einsum("nc,nc->c", off, off)
        better = error < least
        best, least = np.where(better, clip, best), np.where(better, error, least)
    strongest = float(top.max())
    return np.maximum(best, strongest / FAINT) if strongest > 0 else best


def joint_values(
    graph: fg.FloatGraph, samples: Samples, names: list[str], channels: int
) -> tuple[Floats, bool]:
    """Samples of tensors of one unit, one under another, and whether any may be negative.

    ``channels`` is that of the tensors before they were flattened.
    """
    stacked = [samples.values[name] for name in names]
    parts = [part.reshape(len(part), channels, -1) for part in stacked]
    flat = [part.transpose(0, 2, 1).reshape(-1, channels) for part in parts]
    return np.concatenate(flat), not all(never_negative(graph, name) for name in names)
