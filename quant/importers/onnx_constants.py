"""Evaluates the few ONNX operators that exporters leave between constants, mostly on shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwgen.errors import BadNetwork
from quant.importers.onnx_ops import Call

__all__ = ["FOLDABLE", "evaluate"]

Array = NDArray[Any]

MAX_SIZE = 2**27
"""Elements of the largest constant computed; a small file must not fill the memory."""


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[Call, Sequence[Array]], Array]:
    def apply(call: Call, arrays: Sequence[Array]) -> Array:
        shape = np.broadcast_shapes(arrays[0].shape, arrays[1].shape)
        _check_size(shape)
        return function(arrays[0], arrays[1])

    return apply


def _check_size(shape: Sequence[int]) -> None:
    size = 1
    for n in shape:
        size *= int(n)
    if size > MAX_SIZE:
        raise BadNetwork(f"its constant would have the shape {tuple(shape)}")


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        return np.trunc(np.true_divide(a, b)).astype(a.dtype)
    return np.asarray(a / b)


def _gather(call: Call, arrays: Sequence[Array]) -> Array:
    data, index = arrays[:2]
    axis = call.get("axis", 0) % max(data.ndim, 1)
    _check_size((*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]))
    return np.asarray(np.take(data, index.astype(np.int64), axis=axis))


def _axes(call: Call, arrays: Sequence[Array]) -> tuple[int, ...]:
    given = arrays[1].reshape(-1) if len(arrays) > 1 else call.get("axes", ())
    return tuple(int(a) for a in given)


def _squeeze(call: Call, arrays: Sequence[Array]) -> Array:
    return np.squeeze(arrays[0], axis=_axes(call, arrays) or None)


def _unsqueeze(call: Call, arrays: Sequence[Array]) -> Array:
    return np.expand_dims(arrays[0], axis=_axes(call, arrays))


def _concat(call: Call, arrays: Sequence[Array]) -> Array:
    return np.concatenate(list(arrays), axis=call.get("axis", 0))


def _slice(call: Call, arrays: Sequence[Array]) -> Array:
    data = arrays[0]
    steps: Any
    if call.opset < 10:
        starts, ends = call.get("starts", ()), call.get("ends", ())
        axes, steps = call.get("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = arrays[1], arrays[2]
        axes = arrays[3] if len(arrays) > 3 else np.arange(len(starts))
        steps = arrays[4] if len(arrays) > 4 else np.ones(len(starts), dtype=np.int64)
    cut = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[int(axis)] = slice(int(start), int(end), int(step))
    return data[tuple(cut)]


def _reshape(call: Call, arrays: Sequence[Array]) -> Array:
    data = arrays[0]
    target = [int(n) for n in (arrays[1] if len(arrays) > 1 else call.get("shape", ()))]
    return data.reshape([data.shape[i] if n == 0 else n for i, n in enumerate(target)])


def _transpose(call: Call, arrays: Sequence[Array]) -> Array:
    return np.transpose(arrays[0], call.get("perm", None))


def _cast(call: Call, arrays: Sequence[Array]) -> Array:
    return arrays[0].astype(onnx.helper.tensor_dtype_to_np_dtype(call.get("to", 1)))


FOLDABLE: dict[str, Callable[[Call, Sequence[Array]], Array]] = {
    "Add": _binary(lambda a, b: np.asarray(a + b)),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _binary(_divide),
    "Gather": _gather,
    "Identity": lambda call, arrays: arrays[0],
    "Mul": _binary(lambda a, b: np.asarray(a * b)),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _binary(lambda a, b: np.asarray(a - b)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def evaluate(call: Call, arrays: Sequence[Array]) -> Array:
    """Result of a node whose inputs are all constants.

    Raises
    ------
    BadNetwork
        If it cannot be computed.
    """
    try:
        with np.errstate(all="ignore"):
            return FOLDABLE[call.operator](call, arrays)
    except (IndexError, TypeError, ValueError) as error:
        raise BadNetwork(f"its constant cannot be computed: {error}") from error
