"""The float graph: what an imported network computes, before any quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hwgen.errors import BadInput, BadNetwork
from hwgen.ir import INPUT, Geometry
from quant.nodes import (
    Add,
    ChannelAffine,
    Concat,
    Conv,
    Flatten,
    Floats,
    Input,
    Linear,
    Node,
    Relu,
    Shape,
)
from quant.pools import AvgPool, GlobalAvgPool, GlobalMaxPool, MaxPool

__all__ = [
    "INPUT",
    "Add",
    "AvgPool",
    "ChannelAffine",
    "Concat",
    "Conv",
    "Flatten",
    "FloatGraph",
    "Floats",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Input",
    "Linear",
    "MaxPool",
    "Node",
    "Relu",
    "Shape",
    "difference",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FloatGraph:
    """A network of float operations with one input and one output.

    Parameters
    ----------
    nodes : tuple of Node
        In topological order; the first is the only :class:`Input` and has the name ``"input"``.
        Every node leads to the output.
    output : str
        Name of the node whose tensor is the result.
    notes : tuple of str
        What import and folding changed, for the report.

    Raises
    ------
    BadNetwork
        If the order, a name or a shape is wrong, or no node is a convolution or a linear layer.
    """

    nodes: tuple[Node, ...]
    output: str
    notes: tuple[str, ...] = ()
    _shapes: dict[str, Shape] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shapes", {})
        for place, node in enumerate(self.nodes):
            if isinstance(node, Input) != (place == 0) or (node.name == INPUT) != (place == 0):
                raise BadNetwork(
                    f"the first node of a graph, and no other, must be an Input named '{INPUT}';"
                    f" node {place} is the {type(node).__name__} '{node.name}'"
                )
            if node.name in self._shapes:
                raise BadNetwork(f"two nodes have the name '{node.name}'; rename one")
            for name in node.inputs:
                if name not in self._shapes:
                    raise node.bad(f"takes '{name}', which no earlier node makes")
            self._shapes[node.name] = node.shape(*(self._shapes[i] for i in node.inputs))
        if self.output not in self._shapes:
            raise BadNetwork(f"the output '{self.output}' is not a node of the graph")
        self._check_use()

    def _check_use(self) -> None:
        used = {self.output}.union(*(node.inputs for node in self.nodes))
        unused = [node.name for node in self.nodes if node.name not in used]
        if unused:
            raise BadNetwork(f"these nodes lead to no output: {', '.join(unused)}; remove them")
        if not self.mac_nodes:
            raise BadNetwork(
                "a network must have at least one convolution or linear layer, and this one has"
                f" none among its {len(self.nodes) - 1} operations"
            )

    @property
    def input_shape(self) -> Shape:
        """Shape of the input, ``(channels, height, width)`` or ``(features,)``."""
        return self._shapes[INPUT]

    @property
    def output_shape(self) -> Shape:
        """Shape of the result, ``(features,)`` or ``(channels, height, width)``."""
        return self._shapes[self.output]

    @property
    def mac_nodes(self) -> tuple[Conv | Linear, ...]:
        """Convolutions and linear layers, in order."""
        return tuple(node for node in self.nodes if isinstance(node, (Conv, Linear)))

    def shape(self, name: str) -> Shape:
        """Shape of the tensor that the node ``name`` makes, without the batch."""
        return self._shapes[self.node(name).name]

    def node(self, name: str) -> Node:
        """The node called ``name``.

        Raises
        ------
        BadNetwork
            If there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise BadNetwork(f"the graph has no node '{name}'")

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that take the tensor ``name``, in order; the output itself is not listed."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def geometry(self, name: str) -> Geometry:
        """Window geometry of a convolution or pool.

        Raises
        ------
        BadNetwork
            If the node ``name`` has no windows.
        """
        node = self.node(name)
        if not isinstance(node, (Conv, MaxPool, AvgPool)):
            raise node.bad("has no windows")
        return node.geometry(self._shapes[node.inputs[0]])

    def activations(
        self,
        images: ArrayLike | Tensor,
        *,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float64,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield, batch by batch, every node's tensor ``(n, *shape)`` by name.

        Parameters
        ----------
        images : array or tensor
            Preprocessed input ``(N, *input_shape)``.
        batch_size : int
            Images at a time: bounds the memory.
        dtype : torch.dtype
            ``torch.float64`` is the reference; ``torch.float32`` is about twice as fast.

        Raises
        ------
        BadInput
            If the images have another shape.
        """
        data = self._images(images)
        for start in range(0, len(data), max(batch_size, 1)):
            with torch.no_grad():
                values = {INPUT: data[start : start + batch_size].to(dtype)}
                for node in self.nodes[1:]:
                    values[node.name] = node.evaluate(*(values[i] for i in node.inputs))
            yield values

    def evaluate(
        self,
        images: ArrayLike | Tensor,
        *,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float64,
    ) -> NDArray[Any]:
        """The network's results ``(N, *output_shape)``; parameters as in :meth:`activations`."""
        results = []
        data = self._images(images)
        last = {name: node.name for node in self.nodes for name in node.inputs}
        for start in range(0, len(data), max(batch_size, 1)):
            with torch.no_grad():
                values = {INPUT: data[start : start + batch_size].to(dtype)}
                for node in self.nodes[1:]:
                    values[node.name] = node.evaluate(*(values[i] for i in node.inputs))
                    for name in set(node.inputs):
                        if last[name] == node.name and name != self.output:
                            del values[name]
                results.append(values[self.output].numpy())
        return np.concatenate(results)

    def _images(self, images: ArrayLike | Tensor) -> Tensor:
        data = images if isinstance(images, Tensor) else torch.tensor(np.asarray(images))
        if tuple(data.shape[1:]) != self.input_shape or len(data) == 0:
            wanted = ", ".join(map(str, ("N", *self.input_shape)))
            raise BadInput(
                f"the network takes images of shape ({wanted}), N at least 1, not"
                f" {tuple(data.shape)}"
            )
        return data

    def same_up_to_names(self, other: FloatGraph) -> bool:
        """Whether both graphs hold the same nodes in the same order, whatever their names."""
        return difference(self, other) is None


def difference(a: FloatGraph, b: FloatGraph) -> str | None:
    """The first place where two graphs differ in more than names, or None."""
    if len(a.nodes) != len(b.nodes):
        return f"{len(a.nodes)} and {len(b.nodes)} nodes"
    place_a = {node.name: i for i, node in enumerate(a.nodes)}
    place_b = {node.name: i for i, node in enumerate(b.nodes)}
    for node, twin in zip(a.nodes, b.nodes, strict=True):
        where = f"{type(node).__name__} '{node.name}' and {type(twin).__name__} '{twin.name}'"
        if type(node) is not type(twin):
            return where
        if [place_a[i] for i in node.inputs] != [place_b[i] for i in twin.inputs]:
            return f"{where}: inputs {node.inputs} and {twin.inputs}"
        for item in fields(node):
            if item.name in ("name", "inputs"):
                continue
            if not np.array_equal(getattr(node, item.name), getattr(twin, item.name)):
                return f"{where}: {item.name}"
    if place_a[a.output] != place_b[b.output]:
        return f"the outputs '{a.output}' and '{b.output}'"
    return None
