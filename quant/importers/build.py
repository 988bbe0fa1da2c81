"""Collects nodes and problems while a network is read, whichever format it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork, UnsupportedLayer
from quant.graph import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Flatten,
    FloatGraph,
    GlobalAvgPool,
    GlobalMaxPool,
    Input,
    MaxPool,
    Node,
    Relu,
    Shape,
)

__all__ = [
    "Constant",
    "Dropped",
    "GraphBuilder",
    "Padded",
    "Ref",
    "RefusalError",
    "Value",
    "Viewed",
]

LISTED_PROBLEMS = 50
KEEPS_SIGN = (MaxPool, AvgPool, GlobalMaxPool, GlobalAvgPool, Flatten, Concat, Add)


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor that a node of the graph makes."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A tensor known at import, under its name in the source."""

    name: str
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Padded:
    """A tensor with ``pads`` zeros at (top, left, bottom, right), to be taken up by a window."""

    source: str
    pads: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Viewed:
    """A tensor in a shape that the graph has no node for, until a later view makes it one again."""

    source: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Dropped:
    """``operator(source)``, which keeps the order of the classes; only the output may be one."""

    source: str
    operator: str


@dataclass(frozen=True, slots=True)
class Hidden:
    """A tensor that an earlier problem hides."""


Value = Ref | Constant | Padded | Viewed | Dropped | Hidden
"""What a source's tensor became."""


class RefusalError(Exception):
    """A node that cannot be converted: ``RefusalError(reason, change)``.

    Never leaves the importers: the driver turns it into a line of the collected message.
    """

    def __init__(self, reason: str, change: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.change = change


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Opaque(Node):
    """Stands for a node that was refused, so that what follows it can be checked too."""

    size: Shape

    def _arity(self) -> int:
        return 0

    def shape(self, *inputs: Shape) -> Shape:
        return self.size


@dataclass(slots=True)
class GraphBuilder:
    """A float graph in the making.

    Parameters
    ----------
    size : tuple of int
        Shape of the input.
    """

    size: Shape
    nodes: dict[str, Node] = field(init=False, default_factory=dict)
    shapes: dict[str, Shape] = field(init=False, default_factory=dict)
    notes: list[str] = field(init=False, default_factory=list)
    problems: list[str] = field(init=False, default_factory=list)
    unsupported: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._put(Input(name=INPUT, inputs=(), size=self.size))

    def _put(self, node: Node) -> Ref:
        shape = node.shape(*(self.shapes[i] for i in node.inputs))
        self.nodes[node.name] = node
        self.shapes[node.name] = shape
        return Ref(node.name)

    def unique(self, wish: str) -> str:
        """A free name like ``wish``, of letters, digits, dots and underscores."""
        base = re.sub(r"[^A-Za-z0-9_.]+", "_", wish).strip("_.") or "node"
        name, count = base, 0
        while name in self.nodes or name == INPUT:
            count += 1
            name = f"{base}_{count}"
        return name

    def add(self, kind: type[Node], wish: str, *inputs: str, **fields: Any) -> Ref:
        """Add a node under a name like ``wish``.

        Raises
        ------
        BadNetwork
            If the node contradicts itself or cannot take these tensors.
        """
        return self._put(kind(name=self.unique(wish), inputs=inputs, **fields))

    def opaque(self, wish: str, shape: Shape | None) -> Ref | Hidden:
        """Stand-in for a refused node's result; hidden where its shape is not known."""
        if shape is None or len(shape) not in (1, 3) or min(shape) < 1:
            return Hidden()
        return self.add(_Opaque, wish, size=shape)

    def refuse(self, name: str, operator: str, reason: str, change: str) -> None:
        """Record that the source's node ``name`` cannot be converted."""
        self.unsupported = True
        self.problems.append(f"node '{name}' ({operator}): {reason}; {change}")

    def blame(self, name: str, operator: str, reason: str) -> None:
        """Record that the source's node ``name`` is inconsistent."""
        self.problems.append(f"node '{name}' ({operator}): {reason}")

    def weights(self, value: Constant) -> NDArray[np.float64]:
        """A constant as float64; one that is not finite is recorded and read with zeros."""
        if value.array.dtype.kind not in "fiu":
            raise RefusalError(
                f"the tensor '{value.name}' has the type {value.array.dtype}", "store it as float32"
            )
        with np.errstate(invalid="ignore"):  # a signalling NaN, which is reported below
            array = value.array.astype(np.float64)
        broken = ~np.isfinite(array)
        if broken.any():
            place = tuple(int(i) for i in np.argwhere(broken)[0])
            line = (
                f"tensor '{value.name}': weights must be finite, and {int(broken.sum())} of"
                f" {array.size} are not, the first at {place}: {array[place]}; train it again or"
                " load another checkpoint"
            )
            if line not in self.problems:
                self.problems.append(line)
            array[broken] = 0.0
        return array

    def ref(self, value: Value) -> str:
        """The node behind a value that must be a plain activation tensor.

        Raises
        ------
        RefusalError
            If it is a constant, padding or view that no node took up, or a softmax before the end.
        """
        match value:
            case Ref(name):
                return name
            case Padded():
                raise RefusalError(
                    "it takes a padded tensor, and padding converts only in front of a convolution"
                    " or a pool",
                    "move the padding into the next convolution's or pool's own padding",
                )
            case Viewed(source, shape):
                raise RefusalError(
                    f"it takes a tensor reshaped from {self.shapes[source]} to {shape}",
                    "keep (channels, height, width) up to a flatten into one vector",
                )
            case Dropped(_, operator):
                raise RefusalError(
                    f"it takes the result of {operator}, which converts only as the last node",
                    f"remove the {operator}",
                )
            case Constant(name, _):
                raise RefusalError(
                    f"it takes the constant '{name}' where an activation is expected",
                    "compute the constant part before export",
                )
            case Hidden():
                raise AssertionError("drivers skip nodes behind a problem")

    def shape_of(self, value: Value) -> Shape:
        """Shape of an activation or a view, without the batch."""
        return value.shape if isinstance(value, Viewed) else self.shapes[self.ref(value)]

    def nonnegative(self, name: str) -> bool:
        """Whether the tensor of a node is proved to hold no negative value."""
        node = self.nodes[name]
        if isinstance(node, Relu):
            return True
        return isinstance(node, KEEPS_SIGN) and all(map(self.nonnegative, node.inputs))

    def raise_problems(self) -> None:
        """Raise everything recorded as one error.

        Raises
        ------
        UnsupportedLayer
            If a node cannot be converted.
        BadNetwork
            If the problems are all inconsistencies.
        """
        if not self.problems:
            return
        count = len(self.problems)
        lines = self.problems[:LISTED_PROBLEMS]
        if count > len(lines):
            lines = [*lines, f"and {count - len(lines)} more"]
        head = "1 problem keeps" if count == 1 else f"{count} problems keep"
        message = "\n  ".join([f"{head} the network from being converted:", *lines])
        raise (UnsupportedLayer if self.unsupported else BadNetwork)(message)

    def finish(self, output: Value) -> FloatGraph:
        """The graph whose result is ``output``.

        Raises
        ------
        UnsupportedLayer, BadNetwork
            Everything recorded, in one message.
        """
        if isinstance(output, Dropped):
            self.notes.append(
                f"{output.operator} at the output was dropped: it keeps the order of the classes"
            )
            output = Ref(output.source)
        if not isinstance(output, Hidden):
            try:
                self.ref(output)
            except RefusalError as refusal:
                reason = refusal.reason.replace("it takes", "the network returns")
                self.refuse("output", "output", reason, refusal.change)
        self.raise_problems()
        name = self.ref(output)
        needed = {name, INPUT}
        for node in reversed(self.nodes.values()):
            if node.name in needed:
                needed.update(node.inputs)
        kept = tuple(node for node in self.nodes.values() if node.name in needed)
        if name != INPUT and not any(INPUT in node.inputs for node in kept):
            raise BadNetwork("the output does not depend on the input")
        return FloatGraph(nodes=kept, output=name, notes=tuple(self.notes))
