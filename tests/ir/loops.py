"""The integer meaning of every layer as plain Python loops on plain integers.

Slow, and written without looking at the array code: the reference of references.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Geometry,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    Rescale,
    Rounding,
)

Frame = Any
"""Nested lists ``[channel][row][column]`` or ``[feature]`` of int."""


def round_fraction(value: Fraction, rounding: Rounding) -> int:
    """An integer near a fraction, from the definition of the rounding."""
    below = floor(value)
    rest = value - below
    match rounding:
        case Rounding.FLOOR:
            return below
        case Rounding.HALF_UP:
            return below + (rest >= Fraction(1, 2))
        case Rounding.HALF_EVEN:
            return round(value)  # Python's own rule for fractions
        case Rounding.HALF_AWAY:
            up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and value > 0)
            return below + up


def requant(rule: Requant, acc: int, channel: int) -> int:
    """A code from an accumulator."""

    def pick(values: tuple[int, ...]) -> int:
        return values[channel] if len(values) > 1 else values[0]

    if rule.relu and acc < 0:
        acc = 0
    value = Fraction(acc * pick(rule.mult) + pick(rule.add), 2 ** pick(rule.shift))
    code = round_fraction(value, rule.rounding) + rule.zero
    return min(max(code, pick(rule.low)), pick(rule.high))


def taps(g: Geometry, row: int, column: int) -> list[tuple[int, int, int, int]]:
    """``(ky, kx, y, x)`` of the taps of a window that lie in the image."""
    found = []
    for ky in range(g.kernel[0]):
        for kx in range(g.kernel[1]):
            y = row * g.stride[0] - g.padding[0] + ky
            x = column * g.stride[1] - g.padding[1] + kx
            if 0 <= y < g.height and 0 <= x < g.width:
                found.append((ky, kx, y, x))
    return found


def counted(g: Geometry, row: int, column: int, *, include_pad: bool) -> int:
    """Taps by which an average divides."""
    if not include_pad:
        return len(taps(g, row, column))
    count = 0
    for ky in range(g.kernel[0]):
        for kx in range(g.kernel[1]):
            y = row * g.stride[0] - g.padding[0] + ky
            x = column * g.stride[1] - g.padding[1] + kx
            count += y < g.height + g.padding[2] and x < g.width + g.padding[3]
    return count


def conv(op: Conv, x: Frame) -> Frame:
    weights, outs = op.weights.codes.tolist(), op.out_channels // op.groups
    inputs, zero = op.input.channels // op.groups, op.input.zero
    out = []
    for o in range(op.out_channels):
        base = (o // outs) * inputs
        bias = 0 if op.bias is None else int(op.bias.codes[o]) * 2**op.bias.shift
        plane = []
        for row in range(op.geometry.out_height):
            line = []
            for column in range(op.geometry.out_width):
                acc = bias
                for ky, kx, y, px in taps(op.geometry, row, column):
                    for i in range(inputs):
                        acc += weights[o][i][ky][kx] * (x[base + i][y][px] - zero)
                line.append(acc if op.requant is None else requant(op.requant, acc, o))
            plane.append(line)
        out.append(plane)
    return out


def linear(op: Linear, x: Frame) -> Frame:
    weights, out = op.weights.codes.tolist(), []
    for o in range(op.out_channels):
        acc = 0 if op.bias is None else int(op.bias.codes[o]) * 2**op.bias.shift
        for i, code in enumerate(x):
            acc += weights[o][i] * (code - op.input.zero)
        out.append(acc if op.requant is None else requant(op.requant, acc, o))
    return out


def pool(op: MaxPool | AvgPool, x: Frame) -> Frame:
    g = op.geometry
    places = [(r, c) for r in range(g.out_height) for c in range(g.out_width)]
    common = 1
    if isinstance(op, AvgPool):
        include = op.count_include_pad
        common = lcm(*(counted(g, r, c, include_pad=include) for r, c in places))
    out = []
    for channel, plane in enumerate(x):
        made = []
        for row, column in places:
            codes = [plane[y][px] for _, _, y, px in taps(g, row, column)]
            if isinstance(op, MaxPool):
                made.append(max(codes))
                continue
            count = counted(g, row, column, include_pad=op.count_include_pad)
            acc = sum(code - op.input.zero for code in codes) * (common // count)
            made.append(requant(op.requant, acc, channel))
        out.append([made[r * g.out_width : (r + 1) * g.out_width] for r in range(g.out_height)])
    return out


def elementwise(rule: Requant, accs: Frame) -> Frame:
    """Requantise accumulators ``[channel]...``."""

    def deep(value: Frame, channel: int) -> Frame:
        if isinstance(value, list):
            return [deep(v, channel) for v in value]
        return requant(rule, value, channel)

    return [deep(value, channel) for channel, value in enumerate(accs)]


def combine(values: Sequence[Frame], factors: Sequence[int], zeros: Sequence[int]) -> Frame:
    """``sum factor * (value - zero)`` of equally nested lists."""
    if isinstance(values[0], list):
        return [combine(v, factors, zeros) for v in zip(*values, strict=True)]
    return sum(f * (v - z) for v, f, z in zip(values, factors, zeros, strict=True))


def evaluate_op(op: Op, *inputs: Frame) -> Frame:
    """A layer's output codes for one frame."""
    match op:
        case Conv():
            return conv(op, inputs[0])
        case Linear():
            return linear(op, inputs[0])
        case MaxPool() | AvgPool():
            return pool(op, inputs[0])
        case GlobalMaxPool():
            return [max(max(row) for row in plane) for plane in inputs[0]]
        case GlobalAvgPool():
            zero = op.input.zero
            sums = [sum(code - zero for row in plane for code in row) for plane in inputs[0]]
            return elementwise(op.requant, sums)
        case Flatten():
            return [code for plane in inputs[0] for row in plane for code in row]
        case Add():
            zeros = [kind.zero for kind in op.types]
            return elementwise(op.requant, combine(inputs, op.mult, zeros))
        case Concat():
            return [plane for frame in inputs for plane in frame]
        case Rescale():
            return elementwise(op.requant, combine(inputs, [1], [op.input.zero]))
    raise AssertionError(f"no loops for {type(op).__name__}")


def evaluate(network: Network, codes: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Codes of every tensor, one frame after another."""
    frames = []
    for frame in codes.tolist():
        tensors = {INPUT: frame}
        for op in network.ops:
            tensors[op.name] = evaluate_op(op, *(tensors[name] for name in op.inputs))
        frames.append(tensors)
    return {name: np.array([tensors[name] for tensors in frames]) for name in frames[0]}
