"""What each operator means in the float graph; both routes end here, so they agree.

Every function takes the builder, the name wished for the node, and the operands. It returns the
value that stands for the result, and raises :class:`RefusalError` or :class:`BadNetwork` if there
is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork
from hwgen.ir import Geometry
from quant.graph import (
    Add,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Flatten,
    Floats,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Relu,
    Shape,
)
from quant.importers.build import (
    Constant,
    Dropped,
    GraphBuilder,
    Padded,
    Ref,
    RefusalError,
    Value,
    Viewed,
)

__all__ = [
    "adaptive_pool",
    "add",
    "affine",
    "batch_norm",
    "clip",
    "concat",
    "conv",
    "global_pool",
    "linear",
    "pad",
    "pool",
    "reshape",
    "softmax",
]

NO_LIMIT = 3.0e38
"""Exporters write "no maximum" as the largest float32."""

Pads = tuple[int, int, int, int]


def _ones(values: Sequence[int], what: str) -> None:
    if any(v != 1 for v in values):
        raise RefusalError(
            f"its {what} {tuple(values)} is not 1",
            f"use {what} 1 (a larger kernel with zeros is the same)",
        )


def _pair(values: Sequence[int], what: str) -> tuple[int, int]:
    if len(values) != 2:
        raise RefusalError(
            f"its {what} {tuple(values)} is not two-dimensional", "use the 2-D layer"
        )
    return int(values[0]), int(values[1])


def _check_pads(pads: Pads, kernel: tuple[int, int]) -> None:
    if any(pad >= size for pad, size in zip(pads, kernel * 2, strict=True)):
        raise RefusalError(
            f"its padding {pads} (top, left, bottom, right) is not smaller than its"
            f" {kernel[0]}x{kernel[1]} kernel, so a window could hold padding alone",
            "use a larger kernel or less padding",
        )


def _no_negative_pads(pads: Pads) -> None:
    if min(pads) < 0:
        raise RefusalError(f"negative padding {pads} crops the image", "use padding of at least 0")


def conv(
    b: GraphBuilder,
    name: str,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    *,
    stride: Sequence[int],
    pads: Pads,
    dilation: Sequence[int],
    groups: int,
) -> Ref:
    """Convolution; zeros padded in front of it join its own."""
    if not isinstance(weight, Constant):
        raise RefusalError("its weight is computed from the input", "use a constant weight")
    # The constants first, so that one that is not finite is reported whatever else is wrong.
    array = b.weights(weight)
    if array.ndim != 4:
        raise RefusalError(
            f"its weight has shape {array.shape}, not (out, in, rows, columns)", "use Conv2d"
        )
    offsets = _bias(b, bias, array.shape[0])
    _ones(dilation, "dilation")
    _no_negative_pads(pads)
    if isinstance(x, Padded):
        pads = _sum_pads(pads, x.pads)
        x = Ref(x.source)
    _check_pads(pads, (array.shape[2], array.shape[3]))
    return b.add(
        Conv,
        name,
        b.ref(x),
        weight=array,
        bias=offsets,
        stride=_pair(stride, "stride"),
        padding=pads,
        groups=groups,
    )


def _sum_pads(a: Pads, b: Pads) -> Pads:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def _bias(b: GraphBuilder, bias: Value | None, count: int) -> Floats:
    if bias is None:
        return np.zeros(count)
    if not isinstance(bias, Constant):
        raise RefusalError("its bias is computed from the input", "use a constant bias")
    array = b.weights(bias)
    if array.size == 1 or (array.size == count and array.shape[-1:] == (count,)):
        return np.broadcast_to(array.reshape(-1), (count,))
    raise BadNetwork(f"its bias must have shape ({count},), not {array.shape}")


def linear(b: GraphBuilder, name: str, x: Value, weight: Floats, bias: Value | None) -> Ref:
    """Fully connected layer; ``weight`` is (out, in), through :meth:`GraphBuilder.weights`."""
    source = b.ref(x)
    shape = b.shapes[source]
    if len(shape) != 1:
        raise RefusalError(
            f"it acts on the last axis of an image {shape}", "put a flatten in front of it"
        )
    if weight.ndim != 2:
        raise RefusalError(f"its weight has shape {weight.shape}, not two axes", "use a 2-D weight")
    return b.add(Linear, name, source, weight=weight, bias=_bias(b, bias, weight.shape[0]))


def batch_norm(
    b: GraphBuilder, name: str, x: Value, parameters: Sequence[Value | None], epsilon: float
) -> Ref:
    """Batch norm with frozen statistics; ``parameters`` are weight, bias, mean, variance."""
    source = b.ref(x)
    channels = b.shapes[source][0]
    arrays = []
    for value, default in zip(parameters, (1.0, 0.0, None, None), strict=True):
        if value is None and default is not None:
            arrays.append(np.full(channels, default))
        elif isinstance(value, Constant):
            arrays.append(b.weights(value))
        else:
            raise RefusalError(
                "its statistics come from the batch, not from training",
                "use a batch norm that tracks running statistics",
            )
    gamma, beta, mean, variance = arrays
    # ONNX stores epsilon as float32; rounding it on both routes makes them agree to the last bit.
    spread = variance + float(np.float32(epsilon))
    if not (spread > 0).all():
        channel = int(np.argmin(spread))
        raise BadNetwork(
            f"variance + epsilon must be positive, and is {spread[channel]} in channel {channel}"
        )
    scale = gamma / np.sqrt(spread)
    return b.add(ChannelAffine, name, source, scale=scale, offset=beta - mean * scale)


def affine(
    b: GraphBuilder, name: str, x: Value, constant: Constant, operator: str, *, constant_first: bool
) -> Ref:
    """``x operator constant`` where the constant is one number per channel."""
    source = b.ref(x)
    shape = b.shapes[source]
    value = _per_channel(b.weights(constant), shape)
    zero, one = np.zeros_like(value), np.ones_like(value)
    match operator:
        case "add":
            scale, offset = one, value
        case "sub":
            scale, offset = (-one, value) if constant_first else (one, -value)
        case "mul":
            scale, offset = value, zero
        case _:
            if constant_first:
                raise RefusalError("it divides by an activation", "divide by a constant")
            if not value.all():
                raise BadNetwork(f"it divides by 0 in channel {int(np.argmin(value != 0))}")
            scale, offset = 1.0 / value, zero
    return b.add(ChannelAffine, name, source, scale=scale, offset=offset)


def _per_channel(array: Floats, shape: Shape) -> NDArray[np.float64]:
    """One number per channel, from a constant that broadcasts against ``(N, *shape)``."""
    if array.ndim > len(shape) + 1:
        raise RefusalError(f"its constant has shape {array.shape}", "use one number per channel")
    full = array.reshape((1,) * (len(shape) + 1 - array.ndim) + array.shape)
    if (
        full.shape[0] != 1
        or any(n != 1 for n in full.shape[2:])
        or full.shape[1] not in (1, shape[0])
    ):
        raise RefusalError(
            f"its constant of shape {array.shape} varies by position on a tensor {shape}",
            "use one number per channel, of shape (1, channels, 1, 1)",
        )
    return np.broadcast_to(full.reshape(-1), (shape[0],)).copy()


def add(b: GraphBuilder, name: str, x: Value, y: Value) -> Ref:
    """Sum of two activations of one shape."""
    first, second = b.ref(x), b.ref(y)
    if b.shapes[first] != b.shapes[second]:
        raise RefusalError(
            f"it adds tensors of shapes {b.shapes[first]} and {b.shapes[second]}",
            "bring both to one shape, without broadcasting",
        )
    return b.add(Add, name, first, second)


def concat(b: GraphBuilder, name: str, values: Sequence[Value], axis: int) -> Ref:
    """Tensors joined along the channels; ``axis`` counts the batch as 0."""
    sources = [b.ref(v) for v in values]
    rank = len(b.shapes[sources[0]]) + 1
    if axis % rank != 1:
        raise RefusalError(f"it joins along axis {axis}", "join along the channels (axis 1)")
    return b.add(Concat, name, *sources) if len(sources) > 1 else Ref(sources[0])


def clip(b: GraphBuilder, name: str, x: Value, low: float, high: float) -> Ref:
    """ReLU, or ReLU with a maximum."""
    if low != 0 or not high > 0:
        raise RefusalError(
            f"it clips to {low}..{high}", "use ReLU, or a clip from 0 to a positive maximum (ReLU6)"
        )
    return b.add(Relu, name, b.ref(x), max=None if high >= NO_LIMIT or high == inf else float(high))


def pad(b: GraphBuilder, x: Value, pads: Pads, value: float) -> Value:
    """Zeros around an image, to be taken up by the next window."""
    _no_negative_pads(pads)
    if not any(pads):
        return x
    if value != 0:
        raise RefusalError(f"it pads with {value}", "pad with 0")
    if isinstance(x, Padded):
        return Padded(x.source, _sum_pads(x.pads, pads))
    return Padded(b.ref(x), pads)


def pool(
    b: GraphBuilder,
    name: str,
    x: Value,
    kind: type[MaxPool] | type[AvgPool],
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Pads,
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Ref:
    """Max or average pool; zeros padded in front of it join where that is exact."""
    _ones(dilation, "dilation")
    _no_negative_pads(pads)
    size, step = _pair(kernel, "kernel"), _pair(stride, "stride")
    if isinstance(x, Padded):
        if kind is MaxPool and not b.nonnegative(x.source):
            raise RefusalError(
                "zeros are padded in front of a max pool, which its own padding does not do",
                "put the padding after a ReLU, or use the pool's own padding",
            )
        if kind is AvgPool and any(pads) and not count_include_pad:
            raise RefusalError(
                "zeros padded in front of it count, and those of its own padding do not",
                "use one padding",
            )
        pads, count_include_pad = _sum_pads(pads, x.pads), True
        x = Ref(x.source)
    source = b.ref(x)
    if len(b.shapes[source]) != 3:
        raise BadNetwork(f"it needs an image (channels, height, width), not {b.shapes[source]}")
    _check_pads(pads, size)
    geometry = Geometry(
        height=b.shapes[source][-2],
        width=b.shapes[source][-1],
        kernel=size,
        stride=step,
        padding=pads,
        ceil_mode=ceil_mode,
    )
    # One spelling for one meaning: a window of the whole image is a global pool, a ceil mode that
    # adds no window is written False, and a padding count without padding True.
    if size == (geometry.height, geometry.width) and not any(pads) and geometry.positions == 1:
        return b.add(GlobalMaxPool if kind is MaxPool else GlobalAvgPool, name, source)
    adds_window = any(o > p for o, p in zip(geometry.overhang[2:], pads[2:], strict=True))
    made = {} if kind is MaxPool else {"count_include_pad": count_include_pad or not any(pads)}
    return b.add(
        kind,
        name,
        source,
        kernel=size,
        stride=step,
        padding=pads,
        ceil_mode=adds_window,
        **made,
    )


def adaptive_pool(
    b: GraphBuilder,
    name: str,
    x: Value,
    kind: type[MaxPool] | type[AvgPool],
    size: Sequence[int],
) -> Ref:
    """Pool to a given size, where that size divides the image."""
    source = b.ref(x)
    rows, columns = _pair(size, "output size")
    shape = b.shapes[source]
    if (rows, columns) == (1, 1):
        return b.add(GlobalMaxPool if kind is MaxPool else GlobalAvgPool, name, source)
    if len(shape) != 3 or rows < 1 or columns < 1 or shape[1] % rows or shape[2] % columns:
        raise RefusalError(
            f"its output size {rows}x{columns} does not divide the image {shape}",
            "use an output size of 1, or one that divides the image's height and width",
        )
    kernel = (shape[1] // rows, shape[2] // columns)
    return pool(b, name, x, kind, kernel=kernel, stride=kernel, pads=(0, 0, 0, 0))


def global_pool(
    b: GraphBuilder,
    name: str,
    x: Value,
    kind: type[GlobalMaxPool] | type[GlobalAvgPool],
    axes: Sequence[int],
    *,
    keep: bool,
) -> Value:
    """Mean or maximum over height and width; ``axes`` count the batch as 0."""
    shape = b.shape_of(x)
    rank = len(shape) + 1
    wanted = {a % rank for a in axes}
    source = x.source if isinstance(x, Viewed) else b.ref(x)
    image = b.shapes[source]
    spatial = len(image) == 3 and shape[0] == image[0] and wanted == set(range(2, rank)) != set()
    if not spatial:
        raise RefusalError(
            f"it reduces the axes {tuple(sorted(axes))} of a tensor {('N', *shape)}",
            "reduce height and width together, axes (2, 3)",
        )
    made = b.add(kind, name, source)
    return reshape(b, name, made, (image[0], *(1,) * (rank - 2)) if keep else (image[0],))


def reshape(b: GraphBuilder, name: str, x: Value, shape: Shape) -> Value:
    """The same elements in another shape; becomes a flatten, nothing, or a view to be resolved."""
    source = x.source if isinstance(x, Viewed) else b.ref(x)
    current = b.shapes[source]
    if prod(shape) != prod(current):
        raise RefusalError(
            f"it reshapes {current} to {shape}, which mixes images of a batch",
            "keep the batch axis",
        )
    if shape == current:
        return Ref(source)
    node = b.nodes[source]
    if isinstance(node, Flatten) and b.shapes[node.inputs[0]] == shape:
        return Ref(node.inputs[0])
    if len(shape) == 1:
        return b.add(Flatten, f"{name}_flatten" if b.nodes.get(name) else name, source)
    return Viewed(source, shape)


def softmax(b: GraphBuilder, x: Value, axis: int, operator: str) -> Value:
    """Softmax over the classes: kept aside until it proves to be the output."""
    source = b.ref(x)
    shape = b.shapes[source]
    if axis % (len(shape) + 1) != 1 or prod(shape[1:]) != 1:
        raise RefusalError(
            f"it normalises axis {axis} of a tensor {('N', *shape)}",
            "use it over the classes (axis 1) of a vector, as the last node, or remove it",
        )
    return Dropped(source, operator)
