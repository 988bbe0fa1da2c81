"""Nodes of the float graph: what each computes, on which shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from hwgen.errors import BadNetwork
from hwgen.ir import Geometry

__all__ = [
    "Add",
    "ChannelAffine",
    "Concat",
    "Conv",
    "Flatten",
    "Floats",
    "Input",
    "Linear",
    "Node",
    "Relu",
    "Shape",
]

MAX_INPUT = 2**26
"""Elements of the largest input taken for a network and not for a corrupt file."""

Floats = NDArray[np.float64]
"""Constants of a node: read-only float64."""

Shape = tuple[int, ...]
"""``(channels, height, width)`` or ``(features,)``, without the batch."""


def _constant(node: Node, kind: str, value: Any, ndim: int) -> Floats:
    """``value`` as a read-only, finite float64 copy of ``ndim`` axes."""
    array = np.array(value, dtype=np.float64, order="C")
    if array.ndim != ndim or array.size == 0:
        raise node.bad(f"its {kind} must have {ndim} axes and an entry, not shape {array.shape}")
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise node.bad(
            f"its {kind} must be finite and holds {array[place]} at {place}; train it again or"
            " load another checkpoint"
        )
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """An operation of the float graph; its name is also that of the tensor it makes.

    Parameters
    ----------
    name : str
        Unique in its graph.
    inputs : tuple of str
        Names of the nodes whose tensors it takes.

    Raises
    ------
    BadNetwork
        If a parameter is out of range, or a constant is not finite or of the wrong shape.
    """

    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name:
            raise BadNetwork("a node needs a name")
        if len(self.inputs) != self._arity():
            raise self.bad(f"must take {self._arity()} tensors, not {len(self.inputs)}")

    def _arity(self) -> int:
        return 1

    def bad(self, reason: str) -> BadNetwork:
        """An error that names this node."""
        return BadNetwork(f"{type(self).__name__} '{self.name}': {reason}")

    def image(self, shape: Shape) -> tuple[int, int, int]:
        """``shape`` as ``(channels, height, width)``, or :class:`BadNetwork` for a vector."""
        if len(shape) != 3:
            raise self.bad(f"needs an image (channels, height, width), not the shape {shape}")
        return shape[0], shape[1], shape[2]

    def shape(self, *inputs: Shape) -> Shape:
        """Shape of the result for input tensors of these shapes.

        Raises
        ------
        BadNetwork
            If the node cannot take them.
        """
        raise NotImplementedError

    def evaluate(self, *inputs: Tensor) -> Tensor:
        """The result ``(N, *shape)`` for tensors ``(N, *shape)``, in the dtype of the first."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Input(Node):
    """The network's input.

    Parameters
    ----------
    size : tuple of int
        ``(channels, height, width)`` or ``(features,)``.
    """

    size: Shape

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        if len(self.size) not in (1, 3) or min(self.size) < 1:
            raise self.bad(f"must be (channels, height, width) or (features,), not {self.size}")
        if prod(self.size) > MAX_INPUT:
            raise self.bad(f"has more than {MAX_INPUT} elements: {self.size}")

    def _arity(self) -> int:
        return 0

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def evaluate(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError("the input is given, not computed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv(Node):
    """Convolution (cross-correlation) with zero padding.

    Parameters
    ----------
    weight : float64 array
        ``(out, in / groups, rows, columns)``.
    bias : float64 array
        ``(out,)``.
    stride : tuple of int
        ``(rows, columns)``.
    padding : tuple of int
        Zeros at ``(top, left, bottom, right)``.
    groups : int
        Divides both channel counts.
    """

    weight: Floats
    bias: Floats
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        object.__setattr__(self, "weight", _constant(self, "weight", self.weight, 4))
        object.__setattr__(self, "bias", _constant(self, "bias", self.bias, 1))
        out = self.weight.shape[0]
        if self.bias.shape != (out,):
            raise self.bad(f"its bias must have shape ({out},), not {self.bias.shape}")
        if self.groups < 1 or out % self.groups:
            raise self.bad(f"its groups must divide its {out} output channels, not {self.groups}")

    def geometry(self, shape: Shape) -> Geometry:
        """Where the windows lie on an input of ``shape``."""
        _, height, width = self.image(shape)
        rows, columns = self.weight.shape[2:]
        return Geometry(
            height=height,
            width=width,
            kernel=(rows, columns),
            stride=self.stride,
            padding=self.padding,
        )

    def shape(self, *inputs: Shape) -> Shape:
        channels = self.image(inputs[0])[0]
        if channels != self.weight.shape[1] * self.groups:
            raise self.bad(
                f"its weight {self.weight.shape} in {self.groups} groups takes"
                f" {self.weight.shape[1] * self.groups} channels, not {channels}"
            )
        g = self.geometry(inputs[0])
        return (self.weight.shape[0], g.out_height, g.out_width)

    def evaluate(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        top, left, bottom, right = self.padding
        padding = (top, left)
        if padding != (bottom, right):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        weight = torch.tensor(self.weight, dtype=x.dtype)
        bias = torch.tensor(self.bias, dtype=x.dtype)
        return F.conv2d(x, weight, bias, self.stride, padding, groups=self.groups)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear(Node):
    """Fully connected layer, ``weight @ x + bias``.

    Parameters
    ----------
    weight : float64 array
        ``(out, in)``.
    bias : float64 array
        ``(out,)``.
    """

    weight: Floats
    bias: Floats

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        object.__setattr__(self, "weight", _constant(self, "weight", self.weight, 2))
        object.__setattr__(self, "bias", _constant(self, "bias", self.bias, 1))
        if self.bias.shape != self.weight.shape[:1]:
            raise self.bad(
                f"its bias must have shape {self.weight.shape[:1]}, not {self.bias.shape}"
            )

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != self.weight.shape[1:]:
            raise self.bad(
                f"takes a vector of {self.weight.shape[1]} features, not the shape {inputs[0]}"
            )
        return (self.weight.shape[0],)

    def evaluate(self, *inputs: Tensor) -> Tensor:
        dtype = inputs[0].dtype
        weight, bias = (torch.tensor(a, dtype=dtype) for a in (self.weight, self.bias))
        return F.linear(inputs[0], weight, bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelAffine(Node):
    """``x * scale + offset`` by channel: a batch norm with frozen statistics, or preprocessing.

    Parameters
    ----------
    scale, offset : float64 array
        ``(channels,)``, of a vector ``(features,)``. A scale may be negative or 0.
    """

    scale: Floats
    offset: Floats

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        object.__setattr__(self, "scale", _constant(self, "scale", self.scale, 1))
        object.__setattr__(self, "offset", _constant(self, "offset", self.offset, 1))
        if self.scale.shape != self.offset.shape:
            raise self.bad(f"has {self.scale.size} scales and {self.offset.size} offsets")

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0][0] != self.scale.size:
            raise self.bad(f"takes {self.scale.size} channels, not the shape {inputs[0]}")
        return inputs[0]

    def evaluate(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        view = (1, -1) + (1,) * (x.ndim - 2)
        scale, offset = (
            torch.tensor(a, dtype=x.dtype).view(view) for a in (self.scale, self.offset)
        )
        return x * scale + offset


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relu(Node):
    """``clip(x, 0, max)``; a maximum of 6 is ReLU6.

    Parameters
    ----------
    max : float or None
        Positive; None is no maximum.
    """

    max: float | None = None

    def __post_init__(self) -> None:
        Node.__post_init__(self)
        if self.max is not None and not (isfinite(self.max) and self.max > 0):
            raise self.bad(f"its maximum must be positive and finite, not {self.max}")

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0]

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(min=0, max=self.max)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flatten(Node):
    """An image as a vector in the order (channel, row, column)."""

    def shape(self, *inputs: Shape) -> Shape:
        return (prod(inputs[0]),)

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Add(Node):
    """Sum of two tensors of the same shape."""

    def _arity(self) -> int:
        return 2

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != inputs[1]:
            raise self.bad(f"needs two tensors of one shape, not {inputs[0]} and {inputs[1]}")
        return inputs[0]

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Concat(Node):
    """Tensors joined along their channels."""

    def _arity(self) -> int:
        return max(len(self.inputs), 2)

    def shape(self, *inputs: Shape) -> Shape:
        if len({s[1:] for s in inputs}) != 1 or len({len(s) for s in inputs}) != 1:
            raise self.bad(
                f"needs tensors that differ only in channels, not {', '.join(map(str, inputs))}"
            )
        return (sum(s[0] for s in inputs), *inputs[0][1:])

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 1)
