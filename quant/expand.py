"""More or fewer channels in the layers of a float network.

More: the function stays as it is, by the Net2WiderNet of Chen, Goodfellow and Shlens (2016), "Net2Net:
accelerating learning via knowledge transfer". A unit is copied, and what the next layers made of it
is split between the copies, unevenly, so that training drives them apart. Fewer: the channels of
the least weight go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import floor, isfinite, prod

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput, UnsupportedLayer
from quant import graph as fg
from quant.formats import Floats

__all__ = ["channels_after", "obstacle", "resizable", "resize"]

UNEVEN = 0.5
"""Standard deviation of the difference between two copies' outgoing weights, over the root mean
square of those weights."""

_PASSES = (
    fg.Relu
    | fg.ChannelAffine
    | fg.MaxPool
    | fg.AvgPool
    | fg.GlobalAvgPool
    | fg.GlobalMaxPool
    | fg.Flatten
)
_Nodes = dict[str, fg.Node]


def channels_after(channels: int, factor: float) -> int:
    """Channels of a layer of ``channels`` behind a resize: nearest, halves up, at least 1."""
    return max(1, floor(channels * factor + 0.5))


def obstacle(graph: fg.FloatGraph, name: str) -> str | None:
    """Why a layer's channels cannot be resized on their own; None where they can.

    Raises
    ------
    BadNetwork
        If there is no such node.
    """
    node = graph.node(name)
    if not isinstance(node, fg.Conv | fg.Linear):
        return f"{name} is a {type(node).__name__}, no convolution or linear layer"
    if isinstance(node, fg.Conv) and node.groups > 1:
        return f"{name} is a convolution in {node.groups} groups"
    waiting = [name]
    while waiting:
        tensor = waiting.pop()
        if tensor == graph.output:
            return f"the channels of {name} are the network's result"
        for reader in graph.consumers(tensor):
            if isinstance(reader, _PASSES):
                waiting.append(reader.name)
            elif isinstance(reader, fg.Conv) and reader.groups > 1:
                return f"{reader.name}, a convolution in {reader.groups} groups, reads {name}"
            elif not isinstance(reader, fg.Conv | fg.Linear):
                kind = type(reader).__name__
                return f"the {kind} '{reader.name}' joins the channels of {name} with others"
    return None


def resizable(graph: fg.FloatGraph) -> tuple[str, ...]:
    """Names of the layers whose channels can be resized, in order."""
    return tuple(node.name for node in graph.mac_nodes if obstacle(graph, node.name) is None)


def resize(graph: fg.FloatGraph, factors: Mapping[str, float], *, seed: int = 0) -> fg.FloatGraph:
    """A network with more or fewer channels.

    Parameters
    ----------
    graph : FloatGraph
    factors : mapping of str to float
        By layer, above 0 and at most 16: a layer of ``C`` channels gets :func:`channels_after` of
        them. Where all are at least 1, the network computes the same in exact arithmetic.
    seed : int
        Of which channels are copied and how their outgoing weights are split. The layers that stay
        as they are do not change what others get.

    Returns
    -------
    FloatGraph
        With the same nodes. Copies come behind the channels that were there.

    Raises
    ------
    BadInput
        If a factor is out of range or for no layer.
    UnsupportedLayer
        If a layer that is to change is joined with others or makes the network's result.
    """
    layers = [node.name for node in graph.mac_nodes]
    problems = []
    for name, factor in factors.items():
        if name not in layers:
            raise BadInput(
                f"a channel factor is given for {name}, but the layers are {', '.join(layers)}"
            )
        if not (isfinite(factor) and 0 < factor <= 16):
            raise BadInput(
                f"the channel factor of {name} must be above 0 and at most 16, not {factor}"
            )
        reason = obstacle(graph, name)
        if factor != 1 and reason is not None:
            problems.append(f"{reason}; give it the factor 1")
    if problems:
        raise UnsupportedLayer("cannot resize:\n  " + "\n  ".join(problems))
    for place, name in enumerate(layers):
        node = graph.node(name)
        assert isinstance(node, fg.Conv | fg.Linear)
        have, want = len(node.bias), channels_after(len(node.bias), factors.get(name, 1))
        if want > have:
            graph = _widen(graph, node, want, np.random.default_rng([seed, place]))
        elif want < have:
            graph = _narrow(graph, node, want)
    return graph


def _path(graph: fg.FloatGraph, name: str) -> tuple[list[fg.Node], list[tuple[fg.Node, int]]]:
    """The nodes that pass a layer's channels on, and the layers that read them.

    Each reader comes with the inputs that one channel is: 1, or the pixels of a flattened image.
    """
    passed: list[fg.Node] = []
    readers: list[tuple[fg.Node, int]] = []
    waiting = [(name, 1)]
    while waiting:
        tensor, each = waiting.pop()
        for reader in graph.consumers(tensor):
            if isinstance(reader, fg.Flatten):
                waiting.append((reader.name, each * prod(graph.shape(tensor)[1:])))
                passed.append(reader)
            elif isinstance(reader, _PASSES):
                waiting.append((reader.name, each))
                passed.append(reader)
            else:
                readers.append((reader, each))
    return passed, readers


def _columns(channels: NDArray[np.int64], each: int) -> NDArray[np.int64]:
    """The inputs of a reader that stand for channels."""
    return (channels[:, None] * each + np.arange(each)).reshape(-1)


def _replaced(graph: fg.FloatGraph, changed: _Nodes) -> fg.FloatGraph:
    return replace(graph, nodes=tuple(changed.get(node.name, node) for node in graph.nodes))


def _taken(node: fg.Conv | fg.Linear, passed: list[fg.Node], source: NDArray[np.int64]) -> _Nodes:
    """A layer and what passes its channels on, with the channels ``source``."""
    changed: _Nodes = {node.name: replace(node, weight=node.weight[source], bias=node.bias[source])}
    for other in passed:
        if isinstance(other, fg.ChannelAffine):
            changed[other.name] = replace(
                other, scale=other.scale[source], offset=other.offset[source]
            )
    return changed


def _widen(
    graph: fg.FloatGraph, node: fg.Conv | fg.Linear, want: int, generator: np.random.Generator
) -> fg.FloatGraph:
    """Copy channels, each as seldom as possible."""
    have = len(node.bias)
    rounds = -(-(want - have) // have)
    copied = np.concatenate([generator.permutation(have) for _ in range(rounds)])[: want - have]
    source = np.concatenate([np.arange(have), copied])
    passed, readers = _path(graph, node.name)
    changed = _taken(node, passed, source)
    for reader, each in readers:
        assert isinstance(reader, fg.Conv | fg.Linear)
        parts = _split(reader.weight, _columns(source, each), generator)
        changed[reader.name] = replace(reader, weight=parts)
    return _replaced(graph, changed)


def _split(weight: Floats, source: NDArray[np.int64], generator: np.random.Generator) -> Floats:
    """Weights ``(out, inputs, ...)`` for inputs that are copies of ``source``: copies add up."""
    copies = np.bincount(source, minlength=weight.shape[1])
    view = (1, -1) + (1,) * (weight.ndim - 2)
    rms = float(np.sqrt(np.square(weight).mean()))
    parts: Floats = (weight / copies.reshape(view))[:, source]
    noise = generator.normal(0, UNEVEN * rms / 2, parts.shape)
    total = np.zeros_like(weight)
    np.add.at(np.moveaxis(total, 1, 0), source, np.moveaxis(noise, 1, 0))
    noise -= (total / copies.reshape(view))[:, source]  # copies' noises cancel; a single's is 0
    return parts + noise


def _narrow(graph: fg.FloatGraph, node: fg.Conv | fg.Linear, want: int) -> fg.FloatGraph:
    """Keep the channels whose incoming and outgoing weights are largest, in their order."""
    passed, readers = _path(graph, node.name)
    have = len(node.bias)
    energy = np.square(node.weight.reshape(have, -1)).sum(1)
    out = np.zeros(have)
    for reader, each in readers:
        assert isinstance(reader, fg.Conv | fg.Linear)
        moved = np.moveaxis(reader.weight, 1, 0).reshape(have, each, -1)
        out += np.square(moved).sum((1, 2))
    for other in passed:
        if isinstance(other, fg.ChannelAffine):
            energy = energy * np.square(other.scale)
    kept = np.sort(np.argsort(-energy * out, kind="stable")[:want])
    changed = _taken(node, passed, kept)
    for reader, each in readers:
        assert isinstance(reader, fg.Conv | fg.Linear)
        changed[reader.name] = replace(reader, weight=reader.weight[:, _columns(kept, each)])
    return _replaced(graph, changed)
