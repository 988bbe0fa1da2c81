"""Layers on arrays with the batch innermost: ``(rows, columns, channels, frames)`` or ``(features,
frames)``.

With frames innermost every window, pool, pad and channel offset is a contiguous run of frames, and
a convolution is one small matrix product per output position without gathering single pixels.
Tensors hold ``code - zero``, so that padding is 0 and zero points vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np

from hwgen.ir.affine import FLOAT64, Affine, Array, float_for
from hwgen.ir.formats import TensorType
from hwgen.ir.geometry import Geometry
from hwgen.ir.ops import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MacOp,
    MaxPool,
    Op,
    Rescale,
)
from hwgen.ir.ops.base import Codes

__all__ = ["MacFacts", "Scratch", "Step", "Tensor", "build"]

Step = Callable[[], object]
"""Something that reads and writes the plan's arrays."""

ALIGNMENT = 64
"""Bytes: a cache line."""

Border = tuple[int, int, int, int]
"""Pixels ``(top, left, bottom, right)`` around an image."""


def _aligned(count: int) -> Array:
    """Zeroed bytes that begin on a cache line."""
    raw = np.zeros(count + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count]


@dataclass(slots=True)
class Scratch:
    """Memory that layers share for what they need only while they run, one area a role.

    A first pass with no areas measures (:attr:`bytes`); the second hands out views of the areas.
    """

    areas: dict[str, Array] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def take(self, role: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of undefined contents, valid until the role is taken again."""
        count = prod(shape) * dtype.itemsize
        self.bytes[role] = max(self.bytes.get(role, 0), count)
        area = self.areas.get(role)
        if area is None:
            return np.empty(shape, dtype)
        return area[:count].view(dtype).reshape(shape)

    def reserve(self, frames: int) -> Scratch:
        """Areas for ``frames`` frames, after a measuring pass with one."""
        areas = {role: _aligned(count * frames) for role, count in self.bytes.items()}
        return Scratch(areas=areas)


@dataclass(frozen=True, slots=True)
class Tensor:
    """The array of a tensor: ``full`` with a border of zeros, ``view`` the image or vector in
    it."""

    type: TensorType
    full: Array
    view: Array
    border: Border

    @classmethod
    def make(cls, kind: TensorType, frames: int, border: Border) -> Tensor:
        """A zeroed tensor in the smallest exact type."""
        bound = max(abs(kind.minimum - kind.zero), abs(kind.maximum - kind.zero))
        dtype = float_for(bound) or np.dtype(np.int64)
        if len(kind.shape) == 1:
            flat = _aligned(kind.size * frames * dtype.itemsize).view(dtype).reshape(-1, frames)
            return cls(kind, flat, flat, (0, 0, 0, 0))
        channels, height, width = kind.shape
        top, left, bottom, right = border
        shape = (top + height + bottom, left + width + right, channels, frames)
        full = _aligned(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
        return cls(kind, full, full[top : top + height, left : left + width], border)

    def load(self, codes: Array) -> None:
        """Take codes ``(n, *shape)`` for the first ``n`` frames."""
        order = (3, 2, 0, 1) if self.view.ndim == 4 else (1, 0)
        frames = self.view[..., : codes.shape[0]]
        np.copyto(frames.transpose(order), codes, casting="unsafe")
        if self.type.zero:
            frames -= self.type.zero

    def store(self, codes: Codes) -> None:
        """Write the first frames as codes ``(n, *shape)``."""
        order = (3, 2, 0, 1) if self.view.ndim == 4 else (1, 0)
        np.copyto(codes, self.view[..., : codes.shape[0]].transpose(order), casting="unsafe")
        if self.type.zero:
            codes += self.type.zero


@dataclass(frozen=True, slots=True)
class MacFacts:
    """What follows from a layer's constants alone, the same for all batches.

    Attributes
    ----------
    bound : int
        No partial sum of products, accumulator or weight exceeds it in magnitude.
    affine : Affine or None
        The requantiser, biases included.
    """

    bound: int
    affine: Affine | None

    @classmethod
    def of(cls, op: MacOp) -> MacFacts:
        """The facts of a layer."""
        bound = max(op.magnitude, int(np.abs(op.weights.codes).max()))
        affine = None
        if op.requant is not None:
            bias = None if op.bias is None else op.bias.values
            affine = Affine.of(op.requant, *op.accumulator_interval(), bias)
        return cls(bound, affine)


def build(
    op: Op,
    sources: list[Tensor],
    out: Tensor,
    scratch: Scratch,
    pool: MaxPool | None = None,
    facts: MacFacts | None = None,
) -> list[Step]:
    """The steps that evaluate a layer, and the max pool behind it where one is given.

    ``pool`` requires an ``op`` that is a convolution without a requantiser or with a monotone one:
    the largest accumulator then gives the largest code.
    """
    steps: list[Step] | None = None
    match op:
        case Conv() | Linear():
            steps = _mac(op, facts or MacFacts.of(op), sources[0], out, scratch, pool)
        case MaxPool():
            fill = float(op.input.minimum - op.input.zero)
            steps = _windows(np.maximum, sources[0].view, op.geometry, out.view, fill, scratch)
        case AvgPool() | GlobalAvgPool():
            steps = _average(op, sources[0], out, scratch)
        case GlobalMaxPool():
            steps = [partial(np.maximum.reduce, sources[0].view, axis=(0, 1), out=out.view)]
        case Flatten():
            pixels = sources[0].view
            channels, height, width = op.input.shape
            flat = out.view.reshape(channels, height, width, -1)
            steps = [partial(np.copyto, flat, pixels.transpose(2, 0, 1, 3))]
        case Add():
            steps = _add(op, sources, out, scratch)
        case Concat():
            steps, start = [], 0
            for source in sources:
                stop = start + source.type.channels
                steps.append(partial(np.copyto, out.view[..., start:stop, :], source.view))
                start = stop
        case Rescale():
            affine = Affine.of(op.requant, *op.accumulator_interval())
            steps = _requantise(affine, sources[0].view, out, scratch)
    return _direct(op, sources, out, pool) if steps is None else steps


def _direct(op: Op, sources: list[Tensor], out: Tensor, pool: MaxPool | None) -> list[Step]:
    """``Op.evaluate`` itself, where no float type is exact."""

    def run() -> None:
        frames = out.view.shape[-1]
        arrays = []
        for source in sources:
            codes = np.empty((frames, *source.type.shape), dtype=np.int64)
            source.store(codes)
            arrays.append(codes)
        made = op.evaluate(*arrays)
        out.load(made if pool is None else pool.evaluate(made))

    return [run]


def _requantise(
    affine: Affine, source: Array, out: Tensor, scratch: Scratch, *, scaled: bool = False
) -> list[Step] | None:
    """Steps of a requantiser; None where float64 is not exact."""
    dtype = float_for(affine.bound)
    if dtype is None or source.dtype.kind != "f" or out.view.dtype.kind != "f":
        return None
    dtype = np.result_type(dtype, source.dtype)
    work = out.view
    if work.dtype != dtype:
        work = scratch.take("work", source.shape, dtype)
    return list(affine.steps(source, out.view, work, scaled=scaled))


def _mac(
    op: MacOp,
    facts: MacFacts,
    source: Tensor,
    out: Tensor,
    scratch: Scratch,
    pool: MaxPool | None,
) -> list[Step] | None:
    """Dot products, then the pool, then bias and requantiser; None where float64 is not exact."""
    dtype = float_for(facts.bound)
    if dtype is None or source.view.dtype.kind != "f" or out.view.dtype.kind != "f":
        return None
    weights = op.weights.codes.astype(np.float64)
    affine, scaled = facts.affine, False
    if affine is not None:
        # Multiplier and shift go into the weights where all partial sums stay exact: with the
        # weights times mult they are below magnitude * |mult|, and the power of two changes
        # exponents only. Each weight times mult must be exact too (the magnitude of a network of
        # zeros is 0).
        largest = max(abs(m) for m in affine.mult)
        reach = facts.bound * max(largest, 1)
        scaled = not affine.requant.relu and reach < 1 << (53 if dtype == FLOAT64 else 24)
        if scaled:
            weights *= np.array(affine.gain).reshape(-1, *[1] * (weights.ndim - 1))
    if isinstance(op, Conv):
        steps, acc = _convolve(op, weights.astype(dtype), source, scratch)
    else:
        steps, acc = _multiply(weights.astype(dtype), source, scratch)
    if pool is not None:
        shape = (pool.geometry.out_height, pool.geometry.out_width, *acc.shape[2:])
        pooled = scratch.take("pooled", shape, acc.dtype)
        steps += _windows(np.maximum, acc, pool.geometry, pooled, -np.inf, scratch)
        acc = pooled
    if affine is None:
        offset = np.zeros(1) if op.bias is None else op.bias.values[:, None]
        return [*steps, partial(np.add, acc, offset.astype(dtype), out=out.view)]
    rest = _requantise(affine, acc, out, scratch, scaled=scaled)
    return None if rest is None else steps + rest


def _multiply(weights: Array, source: Tensor, scratch: Scratch) -> tuple[list[Step], Array]:
    """Dot products of a linear layer, ``(out, frames)``."""
    acc = scratch.take("acc", (weights.shape[0], source.view.shape[1]), weights.dtype)
    steps: list[Step] = []
    columns = source.view
    if columns.dtype != weights.dtype:
        columns = scratch.take("columns", source.view.shape, weights.dtype)
        steps.append(partial(np.copyto, columns, source.view, casting="same_kind"))
    steps.append(partial(np.matmul, weights, columns, out=acc))
    return steps, acc


def _block(op: Conv) -> int:
    """Output columns per matrix product.

    A wider block copies less (neighbouring windows share columns) but multiplies by more zeros. A
    copied number costs about as much as eight multiplications.
    """
    g, best, cost = op.geometry, 1, float("inf")
    if op.groups > 1:
        return 1
    for block in (1, 2, 3, 4):
        if g.out_width % block:
            continue
        columns = (block - 1) * g.stride[1] + g.kernel[1]
        products = g.positions * op.out_channels * g.kernel[0] * columns * op.input.channels
        copies = g.out_width // block * columns * g.height * op.input.channels
        if products + 8 * copies < cost:
            best, cost = block, products + 8 * copies
    return best


def _convolve(
    op: Conv, weights: Array, source: Tensor, scratch: Scratch
) -> tuple[list[Step], Array]:
    """Dot products of a convolution, ``(out rows, out columns, out, frames)``.

    The image is copied into column blocks as wide as ``block`` windows. In a block the rows of a
    window follow one another in memory, so that it is one contiguous matrix ``(taps, frames)``;
    windows of successive rows overlap and are not copied. Taps of the block outside a window have
    the weight 0.
    """
    g, frames, dtype = op.geometry, source.view.shape[-1], weights.dtype
    groups, outs, per = op.groups, op.out_channels // op.groups, weights.shape[1]
    acc = scratch.take("acc", (g.out_height, g.out_width, op.out_channels, frames), dtype)
    top, left = source.border[0] - g.padding[0], source.border[1] - g.padding[1]
    rows = (g.out_height - 1) * g.stride[0] + g.kernel[0]
    columns = (g.out_width - 1) * g.stride[1] + g.kernel[1]
    image = source.full[top : top + rows, left : left + columns]
    if g.kernel == (1, 1) and groups == 1 and image.dtype == dtype:
        picked = image[:: g.stride[0], :: g.stride[1]]
        return [partial(np.matmul, weights.reshape(outs, per), picked, out=acc)], acc
    block = _block(op)
    blocks, wide = g.out_width // block, (block - 1) * g.stride[1] + g.kernel[1]
    # (rows, blocks, groups, per, frames, wide) -> (groups, blocks, rows, wide, per, frames)
    grouped = image.reshape(rows, columns, groups, per, frames)
    slid = np.lib.stride_tricks.sliding_window_view(grouped, wide, axis=1)
    taken = slid[:, :: block * g.stride[1]].transpose(2, 1, 0, 5, 3, 4)
    copied = scratch.take("columns", taken.shape, dtype)
    steps: list[Step] = [partial(np.copyto, copied, taken, casting="same_kind")]
    row = wide * per
    runs = copied.reshape(groups, blocks, rows * row, frames)
    slid = np.lib.stride_tricks.sliding_window_view(runs, g.kernel[0] * row, axis=2)
    matrices = slid[:, :, :: g.stride[0] * row].transpose(0, 1, 2, 4, 3)
    packed = np.zeros((groups, block, outs, g.kernel[0], wide, per), dtype)
    split = weights.reshape(groups, outs, per, *g.kernel).transpose(0, 1, 3, 4, 2)
    for place in range(block):
        start = place * g.stride[1]
        packed[:, place, :, :, start : start + g.kernel[1]] = split
    packed = packed.reshape(groups, 1, 1, block * outs, -1)
    # (out rows, blocks, groups, block * outs, frames) -> (groups, blocks, out rows, ...); groups or
    # block is 1, so that both orders of (block, groups) are the same memory.
    target = acc.reshape(g.out_height, blocks, groups, block * outs, frames).transpose(
        2, 1, 0, 3, 4
    )
    steps.append(partial(np.matmul, packed, matrices, out=target))
    return steps, acc


def _windows(
    function: np.ufunc, source: Array, geometry: Geometry, out: Array, fill: float, scratch: Scratch
) -> list[Step]:
    """Reduce windows along rows, then columns; taps outside the image count as ``fill``."""
    shape = (geometry.out_height, *source.shape[1:])
    between = scratch.take("rows", shape, out.dtype)
    steps = _along(function, source, geometry, 0, between, fill)
    turned = between.transpose(1, 0, 2, 3), out.transpose(1, 0, 2, 3)
    return steps + _along(function, turned[0], geometry, 1, turned[1], fill)


def _along(
    function: np.ufunc, source: Array, g: Geometry, axis: int, out: Array, fill: float
) -> list[Step]:
    """Reduce windows along the first axis of both arrays, which is ``axis`` of the geometry."""
    kernel, stride, before = g.kernel[axis], g.stride[axis], g.padding[axis]
    size, count = source.shape[0], out.shape[0]

    def tap(index: int) -> tuple[slice, slice]:
        """Outputs whose tap lies inside, and where."""
        first = max(-(-(before - index) // stride), 0)
        last = min((size - 1 + before - index) // stride, count - 1)
        start = first * stride - before + index
        stop = start + max(last - first, -1) * stride + 1
        return slice(first, last + 1), slice(start, stop, stride)

    taps = [tap(index) for index in range(kernel)]
    taps = [(to, place) for to, place in taps if to.stop > to.start]
    whole = [t for t in taps if (t[0].start, t[0].stop) == (0, count)]
    steps: list[Step] = []
    if len(whole) > 1:
        steps.append(partial(function, source[whole[0][1]], source[whole[1][1]], out=out))
        done = whole[:2]
    elif whole:
        steps.append(partial(np.copyto, out, source[whole[0][1]], casting="same_kind"))
        done = whole
    else:
        steps.append(partial(out.fill, fill))
        done = []
    for to, place in taps:
        if (to, place) not in done:
            steps.append(partial(function, out[to], source[place], out=out[to]))
    return steps


def _average(
    op: AvgPool | GlobalAvgPool, source: Tensor, out: Tensor, scratch: Scratch
) -> list[Step] | None:
    """Sums over windows, times the position's multiplier, then the requantiser."""
    low, high = op.accumulator_interval()
    largest = max(abs(op.input.minimum - op.input.zero), abs(op.input.maximum - op.input.zero))
    taps = op.geometry.taps if isinstance(op, AvgPool) else op.input.pixels
    factor = int(op.multipliers.max()) if isinstance(op, AvgPool) else 1
    dtype = float_for(max(largest, 1) * taps * factor)
    if dtype is None or source.view.dtype.kind != "f":
        return None
    dtype = np.result_type(dtype, source.view.dtype)
    acc = scratch.take("acc", out.view.shape, dtype)
    if isinstance(op, AvgPool):
        steps = _windows(np.add, source.view, op.geometry, acc, 0.0, scratch)
        if not op.uniform:
            factors = op.multipliers.astype(dtype)[:, :, None, None]
            steps.append(partial(np.multiply, acc, factors, out=acc))
    else:
        steps = [partial(np.add.reduce, source.view, axis=(0, 1), dtype=dtype, out=acc)]
    rest = _requantise(Affine.of(op.requant, low, high), acc, out, scratch)
    return None if rest is None else steps + rest


def _add(op: Add, sources: list[Tensor], out: Tensor, scratch: Scratch) -> list[Step] | None:
    """The weighted sum of two tensors, then the requantiser."""
    bound = sum(
        abs(m) * max(abs(t.minimum - t.zero), abs(t.maximum - t.zero))
        for m, t in zip(op.mult, op.types, strict=True)
    )
    dtype = float_for(max(bound, *(abs(m) for m in op.mult)))
    views = [source.view for source in sources]
    if dtype is None or any(view.dtype.kind != "f" for view in views):
        return None
    dtype = np.result_type(dtype, *views)
    acc = scratch.take("acc", out.view.shape, dtype)
    other = scratch.take("rows", out.view.shape, dtype)
    factors = [dtype.type(m) for m in op.mult]
    steps: list[Step] = [
        partial(np.multiply, views[0], factors[0], out=acc),
        partial(np.multiply, views[1], factors[1], out=other),
        partial(np.add, acc, other, out=acc),
    ]
    rest = _requantise(Affine.of(op.requant, *op.accumulator_interval()), acc, out, scratch)
    return None if rest is None else steps + rest
