"""Which nodes of a float graph become one integer layer, and which tensors share a format."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.errors import UnsupportedLayer
from hwgen.ir import INPUT
from quant.graph import (
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

__all__ = ["Group", "check_vectors", "group_nodes", "is_result", "joint_formats", "never_negative"]

_Selects = MaxPool | GlobalMaxPool | Flatten


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """A node that makes codes, with the ReLU and the affine that its requantiser does too.

    Parameters
    ----------
    node : Node
        Gives the integer layer its name.
    relu : Relu or None
        The ReLU behind it; the node itself where that is one.
    affine : ChannelAffine or None
        A batch norm behind the ReLU.
    """

    node: Node
    relu: Relu | None = None
    affine: ChannelAffine | None = None

    @property
    def last(self) -> Node:
        """The float node whose tensor the codes stand for."""
        return self.affine or self.relu or self.node

    @property
    def keeps_format(self) -> bool:
        """Whether codes pass through unchanged."""
        return isinstance(self.node, _Selects | Concat)


def group_nodes(graph: FloatGraph, *, norms_apart: bool = False) -> tuple[Group, ...]:
    """Nodes joined with what their requantisers can do: ReLU, then affine.

    Each is taken in only where nothing else reads what it takes, an affine never with
    ``norms_apart``: the codes before a batch norm then have a format of their own.
    """
    groups: list[Group] = []
    taken: set[str] = set()
    for node in graph.nodes[1:]:
        if node.name in taken:
            continue
        group = Group(node=node, relu=node if isinstance(node, Relu) else None)
        if not group.keeps_format:
            if group.relu is None and isinstance(reader := _only_reader(graph, node.name), Relu):
                group = Group(node=node, relu=reader)
            reader = _only_reader(graph, group.last.name)
            has_relu = isinstance(node, Conv | Linear) and group.relu is not None
            if has_relu and not norms_apart and isinstance(reader, ChannelAffine):
                group = Group(node=node, relu=group.relu, affine=reader)
        groups.append(group)
        taken |= {part.name for part in (group.relu, group.affine) if part is not None}
    return tuple(groups)


def _only_reader(graph: FloatGraph, name: str) -> Node | None:
    readers = graph.consumers(name)
    return readers[0] if len(readers) == 1 else None  # none of the output


def joint_formats(groups: tuple[Group, ...]) -> dict[str, str]:
    """Each tensor's representative: tensors that must share one format have the same."""
    parent = {INPUT: INPUT}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for group in groups:
        name = group.last.name
        parent[name] = name
        if group.keeps_format:
            for source in group.node.inputs:
                parent[root(source)] = name
    return {name: root(name) for name in parent}


def never_negative(graph: FloatGraph, name: str) -> bool:
    """Whether a tensor holds no negative value, whatever the raw pixels are."""
    node = graph.node(name)
    if node.name == INPUT or isinstance(node, Relu):
        return True
    sources = all(never_negative(graph, source) for source in node.inputs)
    if isinstance(node, ChannelAffine):
        return sources and bool((node.scale >= 0).all() and (node.offset >= 0).all())
    passes = MaxPool | AvgPool | GlobalMaxPool | GlobalAvgPool | Flatten | Concat | Add
    return sources and isinstance(node, passes)


def is_result(graph: FloatGraph, name: str) -> bool:
    """Whether a tensor's values are the network's, at most selected from or flattened."""
    if name == graph.output:
        return True
    readers = graph.consumers(name)
    selected = len(readers) == 1 and isinstance(readers[0], _Selects)
    return selected and is_result(graph, readers[0].name)


def check_vectors(graph: FloatGraph) -> None:
    """Refuse a 1x1 image from a global pool where an integer layer cannot take it as a vector.

    Raises
    ------
    UnsupportedLayer
        With every layer that cannot.
    """
    vectors: set[str] = set()
    problems = []
    for node in graph.nodes[1:]:
        of_vectors = [name for name in node.inputs if name in vectors]
        if isinstance(node, GlobalAvgPool | GlobalMaxPool) and not of_vectors:
            vectors.add(node.name)
        if not of_vectors or isinstance(node, Flatten):
            continue
        vectors.add(node.name)
        mixed = len(of_vectors) != len(node.inputs)
        point = isinstance(node, Conv) and node.groups == 1 and node.weight.shape[2:] == (1, 1)
        if mixed or not (point or isinstance(node, Relu | ChannelAffine | Add | Concat)):
            problems.append(
                f"{type(node).__name__} '{node.name}' takes '{of_vectors[0]}', the 1x1 image of a"
                " global pool; flatten it and use linear layers from there on"
            )
    if problems:
        raise UnsupportedLayer("cannot quantise:\n  " + "\n  ".join(problems))
