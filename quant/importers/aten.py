"""ATen operators as nodes of the float graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from quant.graph import AvgPool, GlobalAvgPool, GlobalMaxPool, MaxPool
from quant.importers import convert
from quant.importers.build import Constant, GraphBuilder, RefusalError, Value
from quant.importers.hints import change_for

__all__ = ["HANDLERS", "PASS_THROUGH", "Call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One ATen call with its arguments by name.

    Parameters
    ----------
    operator : str
        ATen name without overload and without the underscore of in-place forms.
    name : str
        Name wished for the node.
    arguments : dict
        Every argument of the schema; tensors are :data:`Value`.
    operands : tuple of Value
        The tensors among the arguments, in order.
    shape : tuple of int
        Shape of the (first) result, batch included.
    """

    operator: str
    name: str
    arguments: dict[str, Any]
    operands: tuple[Value, ...]
    shape: tuple[int, ...]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]


Handler = Callable[[GraphBuilder, Call], Value]

PASS_THROUGH = frozenset(
    {"contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy"}
)
"""Operators that change nothing of the values."""


def _twice(values: Sequence[int], default: Sequence[int] = ()) -> tuple[int, ...]:
    chosen = tuple(values) or tuple(default)
    return chosen * 2 if len(chosen) == 1 else chosen


def _symmetric(padding: Sequence[int]) -> tuple[int, int, int, int]:
    rows, columns = _twice(padding)
    return rows, columns, rows, columns


def _conv2d(b: GraphBuilder, call: Call) -> Value:
    weight, padding = call["weight"], call["padding"]
    if padding == "valid":
        pads = (0, 0, 0, 0)
    elif padding == "same":
        shape = weight.array.shape if isinstance(weight, Constant) else (1, 1, 1, 1)
        rows, columns = shape[2] - 1, shape[3] - 1
        pads = (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)
    else:
        pads = _symmetric(padding)
    return convert.conv(
        b,
        call.name,
        call["input"],
        weight,
        call["bias"],
        stride=_twice(call["stride"]),
        pads=pads,
        dilation=_twice(call["dilation"]),
        groups=call["groups"],
    )


def _linear(b: GraphBuilder, call: Call) -> Value:
    weight = call["weight"]
    if not isinstance(weight, Constant):
        raise RefusalError("its weight is computed from the input", "use a constant weight")
    return convert.linear(b, call.name, call["input"], b.weights(weight), call["bias"])


def _batch_norm(b: GraphBuilder, call: Call) -> Value:
    if call["training"]:
        raise RefusalError(
            "its statistics come from the batch also in evaluation mode",
            "use a batch norm that tracks running statistics",
        )
    parameters = [call[key] for key in ("weight", "bias", "running_mean", "running_var")]
    return convert.batch_norm(b, call.name, call["input"], parameters, call["eps"])


def _clip(low: str | float, high: str | float | None) -> Handler:
    """A clip whose bounds are constants or the arguments of those names."""

    def handler(b: GraphBuilder, call: Call) -> Value:
        bounds = [call[v] if isinstance(v, str) else v for v in (low, high)]
        if any(not isinstance(v, (int, float, type(None))) for v in bounds):
            raise RefusalError("its bounds are tensors", "use numbers as bounds")
        below, above = bounds
        return convert.clip(
            b,
            call.name,
            call.operands[0],
            -inf if below is None else below,
            inf if above is None else above,
        )

    return handler


def _max_pool(b: GraphBuilder, call: Call) -> Value:
    return convert.pool(
        b,
        call.name,
        call["self"],
        MaxPool,
        kernel=_twice(call["kernel_size"]),
        stride=_twice(call["stride"], call["kernel_size"]),
        pads=_symmetric(call["padding"]),
        dilation=_twice(call["dilation"]),
        ceil_mode=call["ceil_mode"],
    )


def _avg_pool(b: GraphBuilder, call: Call) -> Value:
    if call["divisor_override"] is not None:
        raise RefusalError(
            f"it divides by {call['divisor_override']} instead of the window's size",
            "leave divisor_override out and scale the next layer's weights",
        )
    return convert.pool(
        b,
        call.name,
        call["self"],
        AvgPool,
        kernel=_twice(call["kernel_size"]),
        stride=_twice(call["stride"], call["kernel_size"]),
        pads=_symmetric(call["padding"]),
        ceil_mode=call["ceil_mode"],
        count_include_pad=call["count_include_pad"],
    )


def _adaptive(kind: type[MaxPool] | type[AvgPool]) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        return convert.adaptive_pool(b, call.name, call["self"], kind, _twice(call["output_size"]))

    return handler


def _global(kind: type[GlobalMaxPool] | type[GlobalAvgPool]) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        axes = call.arguments.get("dim")
        if not axes or call.arguments.get("dtype") is not None:
            raise RefusalError("it reduces all axes", "reduce height and width, axes (2, 3)")
        return convert.global_pool(b, call.name, call["self"], kind, axes, keep=call["keepdim"])

    return handler


def _reshape(b: GraphBuilder, call: Call) -> Value:
    shape = call.shape
    if len(shape) < 2 or shape[0] != 2:
        raise RefusalError(
            f"it makes {shape} from a batch of 2 images, which joins images",
            "keep the batch as the first axis, as in x.flatten(1)",
        )
    return convert.reshape(b, call.name, call.operands[0], shape[1:])


def _slice(b: GraphBuilder, call: Call) -> Value:
    if call.shape[1:] != b.shape_of(call["self"]) or call.shape[0] != 2:
        raise RefusalError(f"it cuts a part of shape {call.shape} out", change_for(call.operator))
    return call.operands[0]


def _dropout(b: GraphBuilder, call: Call) -> Value:
    if call["train"] and call["p"] > 0:
        raise RefusalError(
            "it drops at random also in evaluation mode",
            "use nn.Dropout, or give F.dropout training=self.training",
        )
    return call.operands[0]


def _arithmetic(operator: str) -> Handler:
    def handler(b: GraphBuilder, call: Call) -> Value:
        first, second = call["self"], call["other"]
        alpha = call.arguments.get("alpha", 1)
        swap = call.operator == "rsub"
        if swap:
            first, second = second, first
        sides = [
            Constant(call.name, np.asarray(v, dtype=np.float64))
            if isinstance(v, (int, float))
            else v
            for v in (first, second)
        ]
        if alpha != 1:
            raise RefusalError(f"it scales a summand by alpha {alpha}", "leave alpha out")
        if call.arguments.get("rounding_mode") is not None:
            raise RefusalError("it rounds", "leave rounding_mode out")
        match sides:
            case [Constant() as constant, value]:
                return convert.affine(b, call.name, value, constant, operator, constant_first=True)
            case [value, Constant() as constant]:
                return convert.affine(b, call.name, value, constant, operator, constant_first=False)
        if operator != "add":
            raise RefusalError("it combines two activations", change_for(operator))
        return convert.add(b, call.name, *sides)

    return handler


def _cat(b: GraphBuilder, call: Call) -> Value:
    return convert.concat(b, call.name, call["tensors"], call["dim"])


def _pad(b: GraphBuilder, call: Call) -> Value:
    if call.arguments.get("mode", "constant") != "constant":
        raise RefusalError(f"it pads in mode '{call['mode']}'", "pad with zeros")
    given = [*call["pad"], 0, 0, 0, 0]
    left, right, top, bottom = given[:4]
    if any(given[4:]):
        raise RefusalError("it pads channels or batch", "pad height and width only")
    return convert.pad(b, call.operands[0], (top, left, bottom, right), call["value"] or 0.0)


def _softmax(b: GraphBuilder, call: Call) -> Value:
    return convert.softmax(b, call["self"], call["dim"], call.operator)


def _to(b: GraphBuilder, call: Call) -> Value:
    dtype = call.arguments.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise RefusalError(f"it converts to {dtype}", "keep the network in float32")
    return call.operands[0]


HANDLERS: dict[str, Handler] = {
    "_to_copy": _to,
    "adaptive_avg_pool2d": _adaptive(AvgPool),
    "adaptive_max_pool2d": _adaptive(MaxPool),
    "add": _arithmetic("add"),
    "alpha_dropout": _dropout,
    "amax": _global(GlobalMaxPool),
    "avg_pool2d": _avg_pool,
    "batch_norm": _batch_norm,
    "cat": _cat,
    "clamp": _clip("min", "max"),
    "clamp_min": _clip("min", None),
    "clip": _clip("min", "max"),
    "concat": _cat,
    "concatenate": _cat,
    "constant_pad_nd": _pad,
    "conv2d": _conv2d,
    "div": _arithmetic("div"),
    "dropout": _dropout,
    "feature_alpha_dropout": _dropout,
    "feature_dropout": _dropout,
    "flatten": _reshape,
    "hardtanh": _clip("min_val", "max_val"),
    "linear": _linear,
    "log_softmax": _softmax,
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "mean": _global(GlobalAvgPool),
    "mul": _arithmetic("mul"),
    "pad": _pad,
    "relu": _clip(0.0, None),
    "relu6": _clip(0.0, 6.0),
    "reshape": _reshape,
    "rsub": _arithmetic("sub"),
    "slice": _slice,
    "softmax": _softmax,
    "squeeze": _reshape,
    "sub": _arithmetic("sub"),
    "to": _to,
    "unsqueeze": _reshape,
    "view": _reshape,
}
