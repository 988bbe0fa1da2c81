"""ONNX operators as nodes of the float graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np
import onnx

from hwgen.errors import BadNetwork
from quant.graph import AvgPool, GlobalAvgPool, GlobalMaxPool, MaxPool, Shape
from quant.importers import convert
from quant.importers.build import Constant, GraphBuilder, Padded, RefusalError, Value
from quant.importers.hints import change_for

__all__ = ["HANDLERS", "Call"]

Pads = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One ONNX node with its operands.

    Parameters
    ----------
    operator : str
        Its ``op_type``.
    name : str
        Name wished for the node.
    inputs : tuple of Value or None
        None where an optional input is left out.
    attributes : dict
        Values by name; bytes as text.
    opset : int
        Version of the ONNX operators the file uses.
    batch : int
        What the batch axis reads as in shapes.
    """

    operator: str
    name: str
    inputs: tuple[Value | None, ...]
    attributes: dict[str, Any]
    opset: int
    batch: int

    def get(self, attribute: str, default: Any) -> Any:
        return self.attributes.get(attribute, default)

    def optional(self, place: int) -> Value | None:
        """Input ``place``, or None where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else None

    def value(self, place: int) -> Value:
        """Input ``place``, which must be there."""
        value = self.optional(place)
        if value is None:
            raise BadNetwork(f"its input {place} is missing")
        return value

    def constant(self, place: int, what: str) -> Constant | None:
        """Input ``place`` as a constant, None where it is left out."""
        value = self.optional(place)
        if value is None or isinstance(value, Constant):
            return value
        raise RefusalError(f"its {what} is computed from the input", f"use a constant {what}")

    def ints(self, attribute: str, place: int | None, default: Sequence[int] = ()) -> list[int]:
        """Integers from an attribute, or from input ``place`` where newer versions have them."""
        if attribute in self.attributes:
            return [int(v) for v in self.attributes[attribute]]
        constant = None if place is None else self.constant(place, attribute)
        if constant is None:
            return list(default)
        return [int(v) for v in constant.array.reshape(-1)]

    def number(self, attribute: str, place: int | None, default: float) -> float:
        """A number from an attribute or from input ``place``."""
        if attribute in self.attributes:
            return float(self.attributes[attribute])
        constant = None if place is None else self.constant(place, attribute)
        if constant is None or constant.array.size == 0:
            return default
        if constant.array.size != 1:
            raise RefusalError(f"its {attribute} is a tensor", "use one number")
        return float(constant.array.reshape(-1)[0])


Handler = Callable[[GraphBuilder, Call], Value]


def _size(b: GraphBuilder, x: Value) -> tuple[int, int]:
    """Height and width of an image, with zeros padded around it."""
    source, pads = (x.source, x.pads) if isinstance(x, Padded) else (b.ref(x), (0, 0, 0, 0))
    shape = b.shapes[source]
    if len(shape) != 3:
        raise BadNetwork(f"it needs an image (channels, height, width), not {shape}")
    return shape[1] + pads[0] + pads[2], shape[2] + pads[1] + pads[3]


def _pads(b: GraphBuilder, call: Call, kernel: Sequence[int], stride: Sequence[int]) -> Pads:
    """The padding that ``pads`` or ``auto_pad`` asks for."""
    mode = call.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = call.ints("pads", None, (0, 0, 0, 0))
        if len(pads) != 4:
            raise RefusalError(f"its pads {pads} are not two-dimensional", "use the 2-D layer")
        return pads[0], pads[1], pads[2], pads[3]
    if mode == "VALID":
        return (0, 0, 0, 0)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise BadNetwork(
            f"its auto_pad must be SAME_UPPER, SAME_LOWER, VALID or NOTSET, not {mode}"
        )
    totals = [
        max((-(-size // step) - 1) * step + taps - size, 0)
        for size, step, taps in zip(_size(b, call.value(0)), stride, kernel, strict=True)
    ]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    first, last = (less, more) if mode == "SAME_UPPER" else (more, less)
    return first[0], first[1], last[0], last[1]


def _conv(b: GraphBuilder, call: Call) -> Value:
    weight = call.constant(1, "weight")
    if weight is None:
        raise BadNetwork("its weight is missing")
    kernel = list(weight.array.shape[2:])
    if call.ints("kernel_shape", None, kernel) != kernel:
        raise BadNetwork(
            f"its kernel_shape {call.get('kernel_shape', None)} contradicts its weight, of shape"
            f" {weight.array.shape}"
        )
    stride = call.ints("strides", None, (1,) * len(kernel))
    if len(kernel) != 2 or len(stride) != 2:
        raise RefusalError("it is not two-dimensional", "use the 2-D layer")
    return convert.conv(
        b,
        call.name,
        call.value(0),
        weight,
        call.optional(2),
        stride=stride,
        pads=_pads(b, call, kernel, stride),
        dilation=call.ints("dilations", None, (1, 1)),
        groups=call.get("group", 1),
    )


def _gemm(b: GraphBuilder, call: Call) -> Value:
    if call.get("transA", 0):
        raise RefusalError("it transposes its input (transA)", "use transA 0")
    weight, bias = call.constant(1, "weight"), call.constant(2, "bias")
    if weight is None:
        raise BadNetwork("its weight is missing")
    matrix = b.weights(weight)
    if matrix.ndim != 2:
        raise BadNetwork(f"its weight must have two axes, not the shape {matrix.shape}")
    matrix = matrix if call.get("transB", 0) else matrix.T
    if bias is not None and call.get("beta", 1.0) != 1.0:
        bias = Constant(bias.name, b.weights(bias) * call.get("beta", 1.0))
    return convert.linear(b, call.name, call.value(0), matrix * call.get("alpha", 1.0), bias)


def _matmul(b: GraphBuilder, call: Call) -> Value:
    weight = call.constant(1, "second operand")
    if weight is None:
        raise BadNetwork("its second operand is missing")
    matrix = b.weights(weight)
    if matrix.ndim != 2:
        raise RefusalError(f"its weight has shape {matrix.shape}", "multiply by a matrix (in, out)")
    return convert.linear(b, call.name, call.value(0), matrix.T, None)


def _batch_norm(b: GraphBuilder, call: Call) -> Value:
    if call.get("training_mode", 0):
        raise RefusalError("it is in training mode", "export the network in evaluation mode")
    parameters = [call.constant(i, "statistics") for i in range(1, 5)]
    return convert.batch_norm(b, call.name, call.value(0), parameters, call.get("epsilon", 1e-5))


def _relu(b: GraphBuilder, call: Call) -> Value:
    return convert.clip(b, call.name, call.value(0), 0.0, inf)


def _clip(b: GraphBuilder, call: Call) -> Value:
    low, high = call.number("min", 1, -inf), call.number("max", 2, inf)
    return convert.clip(b, call.name, call.value(0), low, high)


def _pool(kind: type[MaxPool] | type[AvgPool]) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        kernel = call.ints("kernel_shape", None)
        stride = call.ints("strides", None, (1,) * len(kernel))
        if len(kernel) != 2 or len(stride) != 2:
            raise RefusalError("it is not two-dimensional", "use the 2-D layer")
        return convert.pool(
            b,
            call.name,
            call.value(0),
            kind,
            kernel=kernel,
            stride=stride,
            pads=_pads(b, call, kernel, stride),
            dilation=call.ints("dilations", None, (1, 1)),
            ceil_mode=bool(call.get("ceil_mode", 0)),
            count_include_pad=bool(call.get("count_include_pad", 0)),
        )

    return handler


def _global(kind: type[GlobalMaxPool] | type[GlobalAvgPool]) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        return convert.global_pool(b, call.name, call.value(0), kind, (2, 3), keep=True)

    return handler


def _reduce(kind: type[GlobalMaxPool] | type[GlobalAvgPool]) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        axes = call.ints("axes", 1)
        if not axes:
            raise RefusalError("it reduces all axes", "reduce height and width, axes (2, 3)")
        keep = bool(call.get("keepdims", 1))
        return convert.global_pool(b, call.name, call.value(0), kind, axes, keep=keep)

    return handler


def _view(b: GraphBuilder, call: Call, full: Sequence[int]) -> Value:
    """The input in the shape ``full``, batch included."""
    if len(full) < 2 or full[0] != call.batch:
        shown = tuple("N" if n == call.batch else n for n in full)
        raise RefusalError(
            f"it makes {shown} of {('N', *b.shape_of(call.value(0)))}, which joins images",
            "keep the batch as the first axis",
        )
    return convert.reshape(b, call.name, call.value(0), tuple(full[1:]))


def _flatten(b: GraphBuilder, call: Call) -> Value:
    shape: Shape = (call.batch, *b.shape_of(call.value(0)))
    axis = call.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return _view(b, call, (prod(shape[:axis]), prod(shape[axis:])))


def _reshape(b: GraphBuilder, call: Call) -> Value:
    full: Shape = (call.batch, *b.shape_of(call.value(0)))
    target = call.ints("shape", 1)
    if not call.get("allowzero", 0):
        target = [full[i] if n == 0 else n for i, n in enumerate(target)]
    if target[:1] == [1] and -1 in target[1:]:
        # A batch of one written into the file; the graph has no batch axis of its own.
        target[0] = call.batch
    if target.count(-1) == 1:
        known = prod(n for n in target if n != -1)
        if known <= 0 or prod(full) % known:
            raise BadNetwork(f"{target} does not hold the {prod(full[1:])} elements of {full[1:]}")
        target[target.index(-1)] = prod(full) // known
    elif target[:1] == [1] and prod(target) == prod(full[1:]):
        target[0] = call.batch
    return _view(b, call, target)


def _squeeze(b: GraphBuilder, call: Call) -> Value:
    full = (call.batch, *b.shape_of(call.value(0)))
    axes = {a % len(full) for a in call.ints("axes", 1)}
    if not axes:
        raise RefusalError("it drops every axis of size 1", "give its axes, (2, 3)")
    if any(full[a] != 1 or a == 0 for a in axes):
        raise BadNetwork(f"its axes {sorted(axes)} must have size 1 in {('N', *full[1:])}")
    return _view(b, call, [n for a, n in enumerate(full) if a not in axes])


def _unsqueeze(b: GraphBuilder, call: Call) -> Value:
    full = [call.batch, *b.shape_of(call.value(0))]
    given = call.ints("axes", 1)
    rank = len(full) + len(given)
    for axis in sorted(a % rank for a in given):
        full.insert(axis, 1)
    return _view(b, call, full)


def _pad(b: GraphBuilder, call: Call) -> Value:
    mode = call.get("mode", "constant")
    if mode != "constant":
        raise RefusalError(f"it pads in mode '{mode}'", "pad with zeros (mode 'constant')")
    x = call.value(0)
    rank = 4 if isinstance(x, Padded) else len(b.shape_of(x)) + 1
    pads = call.ints("pads", 1)
    axes = [a % rank for a in call.ints("axes", 3, range(rank))]
    if len(pads) != 2 * len(axes):
        raise BadNetwork(f"it has {len(pads)} pads for {len(axes)} axes, and needs two for each")
    by_axis = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if any(any(v) for a, v in by_axis.items() if a < 2):
        raise RefusalError("it pads channels or batch", "pad height and width only")
    (top, bottom), (left, right) = by_axis.get(2, (0, 0)), by_axis.get(3, (0, 0))
    return convert.pad(b, x, (top, left, bottom, right), call.number("value", 2, 0.0))


def _concat(b: GraphBuilder, call: Call) -> Value:
    values = [call.value(i) for i in range(len(call.inputs))]
    return convert.concat(b, call.name, values, call.get("axis", 1))


def _arithmetic(operator: str) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        match (call.value(0), call.value(1)):
            case (Constant() as constant, value):
                return convert.affine(b, call.name, value, constant, operator, constant_first=True)
            case (value, Constant() as constant):
                return convert.affine(b, call.name, value, constant, operator, constant_first=False)
        if operator != "add":
            raise RefusalError("it combines two activations", change_for(operator))
        return convert.add(b, call.name, call.value(0), call.value(1))

    return handler


def _sum(b: GraphBuilder, call: Call) -> Value:
    result = call.value(0)
    for place in range(1, len(call.inputs)):
        result = convert.add(b, call.name, result, call.value(place))
    return result


def _softmax(b: GraphBuilder, call: Call) -> Value:
    axis = call.get("axis", -1 if call.opset >= 13 else 1)
    return convert.softmax(b, call.value(0), axis, call.operator)


def _dropout(b: GraphBuilder, call: Call) -> Value:
    training = call.constant(2, "training_mode")
    if training is not None and bool(np.any(training.array)):
        raise RefusalError("it is in training mode", "export the network in evaluation mode")
    return call.value(0)


def _cast(b: GraphBuilder, call: Call) -> Value:
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.get("to", onnx.TensorProto.FLOAT))
    if kind.kind != "f":
        raise RefusalError(f"it converts to {kind}", "keep the network in float32")
    return call.value(0)


def _identity(b: GraphBuilder, call: Call) -> Value:
    return call.value(0)


HANDLERS: dict[str, Handler] = {
    "Add": _arithmetic("add"),
    "AveragePool": _pool(AvgPool),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _arithmetic("div"),
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global(GlobalAvgPool),
    "GlobalMaxPool": _global(GlobalMaxPool),
    "Identity": _identity,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _pool(MaxPool),
    "Mul": _arithmetic("mul"),
    "Pad": _pad,
    "ReduceMax": _reduce(GlobalMaxPool),
    "ReduceMean": _reduce(GlobalAvgPool),
    "Relu": _relu,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _arithmetic("sub"),
    "Sum": _sum,
    "Unsqueeze": _unsqueeze,
}
