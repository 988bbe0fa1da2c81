"""Folds per-channel affines (batch norm, preprocessing) into the layers around them, where exact.

Exact means in real numbers: the folded graph differs from the given one by float64 rounding alone.
A batch norm in front of a convolution that pads with zeros is the known case that is not: the
padding would have to become ``-offset / scale``. Such an affine stays, directly after its ReLU if
it can, so that the integer network takes it into that layer's requantiser.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from quant.graph import (
    AvgPool,
    ChannelAffine,
    Conv,
    Flatten,
    FloatGraph,
    Floats,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Node,
    Relu,
    Shape,
)

__all__ = ["fold"]

_Pool = MaxPool | AvgPool | GlobalAvgPool | GlobalMaxPool


def fold(graph: FloatGraph) -> FloatGraph:
    """Return ``graph`` with every affine folded that can be, and adjacent ReLUs merged.

    The rules, in order, until none applies:

    1. an affine that changes nothing is removed;
    2. an affine after an affine joins it, a ReLU after a ReLU joins it;
    3. an affine after a convolution or a linear layer joins its weight and bias;
    4. an affine joins the convolution or linear layer that follows, through pools and flatten,
       where no padding sees it;
    5. an affine after a pool moves in front of it, towards its ReLU, where the two commute.

    Rules 2 to 5 need the tensor between the two to have no other reader.

    Parameters
    ----------
    graph : FloatGraph

    Returns
    -------
    FloatGraph
        Its notes say what was folded, and what was kept and why.
    """
    folding = _Folding(graph)
    while folding.step():
        pass
    return folding.finish()


class _Folding:
    """The graph under change: nodes by name, in order, and their shapes (no rule changes one)."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.output = graph.output
        self.notes = list(graph.notes)
        self.shapes = {name: graph.shape(name) for name in self.nodes}

    def step(self) -> bool:
        """Apply the first rule that applies anywhere; False where none does."""
        rules = (
            self._drop_identity,
            self._join_same,
            self._fold_back,
            self._fold_forward,
            self._move_before_pool,
        )
        return any(rule(node) for rule in rules for node in tuple(self.nodes.values()))

    def finish(self) -> FloatGraph:
        for node in self.nodes.values():
            if isinstance(node, ChannelAffine):
                self.notes.append(f"'{node.name}' stays a per-channel affine: {self._reason(node)}")
        return FloatGraph(
            nodes=tuple(self.nodes.values()), output=self.output, notes=tuple(self.notes)
        )

    def _readers(self, name: str) -> list[Node]:
        return [node for node in self.nodes.values() if name in node.inputs]

    def _only_reader(self, name: str) -> Node | None:
        """The one node that reads ``name``; None if there are several or it is the output."""
        readers = self._readers(name)
        return readers[0] if len(readers) == 1 and name != self.output else None

    def _bypass(self, node: Node) -> None:
        """Remove a node of one input; its readers read that input."""
        source = node.inputs[0]
        del self.nodes[node.name]
        for reader in self._readers(node.name):
            inputs = tuple(source if name == node.name else name for name in reader.inputs)
            self.nodes[reader.name] = replace(reader, inputs=inputs)
        if self.output == node.name:
            self.output = source

    def _drop_identity(self, node: Node) -> bool:
        if not isinstance(node, ChannelAffine) or node.offset.any() or (node.scale != 1).any():
            return False
        self._bypass(node)
        self.notes.append(f"'{node.name}' changes nothing and was removed")
        return True

    def _join_same(self, node: Node) -> bool:
        if not isinstance(node, (ChannelAffine, Relu)):
            return False
        first = self.nodes[node.inputs[0]]
        if type(first) is not type(node) or self._only_reader(first.name) is not node:
            return False
        if isinstance(node, Relu) and isinstance(first, Relu):
            limits = [r.max for r in (first, node) if r.max is not None]
            self.nodes[node.name] = replace(node, max=min(limits, default=None))
        elif isinstance(node, ChannelAffine) and isinstance(first, ChannelAffine):
            self.nodes[node.name] = replace(
                node,
                scale=first.scale * node.scale,
                offset=first.offset * node.scale + node.offset,
            )
        self._bypass(first)
        self.notes.append(f"'{first.name}' joined '{node.name}'")
        return True

    def _fold_back(self, node: Node) -> bool:
        if not isinstance(node, ChannelAffine):
            return False
        layer = self.nodes[node.inputs[0]]
        if not isinstance(layer, (Conv, Linear)) or self._only_reader(layer.name) is not node:
            return False
        scale = node.scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
        self.nodes[layer.name] = replace(
            layer, weight=layer.weight * scale, bias=layer.bias * node.scale + node.offset
        )
        self._bypass(node)
        self.notes.append(f"'{node.name}' folded into '{layer.name}'")
        return True

    def _fold_forward(self, node: Node) -> bool:
        if not isinstance(node, ChannelAffine):
            return False
        path = self._path(node)
        if path.layer is None:
            return False
        self.nodes[path.layer.name] = _absorb(path.layer, path.scale, path.offset)
        self._bypass(node)
        self.notes.append(f"'{node.name}' folded into '{path.layer.name}', which follows it")
        return True

    def _path(self, node: ChannelAffine) -> _Path:
        """Follow an affine's tensor to a layer that can absorb it, or to what prevents that."""
        scale, offset = node.scale, node.offset
        name = node.name
        while True:
            reader = self._only_reader(name)
            if reader is None:
                several = (
                    f"'{name}' is read by several" if name != self.output else "it is the output"
                )
                return _Path(reason=several)
            shape = self.shapes[name]
            obstacle = _obstacle(reader, shape, scale, offset)
            if obstacle:
                return _Path(reason=obstacle)
            if isinstance(reader, (Conv, Linear)):
                return _Path(layer=reader, scale=scale, offset=offset)
            if isinstance(reader, Flatten):
                repeats = int(np.prod(shape[1:]))
                scale, offset = np.repeat(scale, repeats), np.repeat(offset, repeats)
            name = reader.name

    def _reason(self, node: ChannelAffine) -> str:
        return self._path(node).reason

    def _move_before_pool(self, node: Node) -> bool:
        if not isinstance(node, ChannelAffine):
            return False
        pool = self.nodes[node.inputs[0]]
        if not isinstance(pool, _Pool) or self._only_reader(pool.name) is not node:
            return False
        source = pool.inputs[0]
        if _obstacle(pool, self.shapes[source], node.scale, node.offset):
            return False
        moved = {pool.name: replace(pool, inputs=(node.name,))}
        moved_affine = replace(node, inputs=(source,))
        self._bypass(node)
        ordered: dict[str, Node] = {}
        for name, other in self.nodes.items():
            if name == pool.name:
                ordered[node.name] = moved_affine
            ordered[name] = moved.get(name, other)
        self.nodes = ordered
        self.shapes[node.name] = self.shapes[source]
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """Where an affine can go: a layer with the affine as that layer sees it, or why it cannot."""

    layer: Conv | Linear | None = None
    scale: Floats = field(default_factory=lambda: np.ones(0))
    offset: Floats = field(default_factory=lambda: np.zeros(0))
    reason: str = ""


def _obstacle(node: Node, shape: Shape, scale: Floats, offset: Floats) -> str:
    """Why an affine in front of ``node``, on ``shape``, cannot pass or join it; empty if it can."""
    match node:
        case Conv() if node.geometry(shape).padded and offset.any():
            return f"'{node.name}' pads with zeros, which the offset does not reach"
        case MaxPool() | GlobalMaxPool() if (scale < 0).any():
            return f"'{node.name}' takes maxima, and a scale is negative"
        case AvgPool() if node.count_include_pad and _counts_padding(node, shape) and offset.any():
            return f"'{node.name}' counts zero padding, which the offset does not reach"
        case (
            Conv()
            | Linear()
            | Flatten()
            | MaxPool()
            | AvgPool()
            | GlobalAvgPool()
            | GlobalMaxPool()
        ):
            return ""
    return f"the {type(node).__name__} '{node.name}' cannot take it"


def _counts_padding(pool: AvgPool, shape: Shape) -> bool:
    inside = replace(pool, count_include_pad=False)
    return bool((pool.counts(shape) != inside.counts(shape)).any())


def _absorb(layer: Conv | Linear, scale: Floats, offset: Floats) -> Conv | Linear:
    """``layer(x * scale + offset)`` as one layer."""
    if isinstance(layer, Linear):
        return replace(layer, weight=layer.weight * scale, bias=layer.bias + layer.weight @ offset)
    out, width = layer.weight.shape[:2]
    by_group = (layer.groups, width)
    gain, shift = (_of_outputs(a.reshape(by_group), out, layer.groups) for a in (scale, offset))
    return replace(
        layer,
        weight=layer.weight * gain[:, :, None, None],
        bias=layer.bias + np.einsum("oirc,oi->o", layer.weight, shift),
    )


def _of_outputs(by_group: Floats, out: int, groups: int) -> Floats:
    """Values ``(groups, in / groups)`` as each output channel sees them, ``(out, in / groups)``."""
    repeated: Floats = np.repeat(by_group, out // groups, axis=0)
    return repeated
