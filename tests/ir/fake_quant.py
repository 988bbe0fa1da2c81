"""Networks as fake-quantised torch in float64: real numbers on a grid, with torch's own layers.

A tensor holds ``(code - zero) * scale``. With scales that are powers of two everything stays exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    Rescale,
    Rounding,
    TensorType,
)


def column(values: tuple[int, ...], ndim: int) -> Tensor:
    """A per-channel constant that broadcasts against ``(N, C, ...)``."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, *[1] * (ndim - 2))


def requant(rule: Requant, acc: Tensor, output: TensorType) -> Tensor:
    """Real values on the output's grid from accumulators in units of the accumulator."""
    ndim = acc.ndim
    acc = torch.relu(acc) if rule.relu else acc
    value = acc * column(rule.mult, ndim) + column(rule.add, ndim)
    value = value / 2.0 ** column(rule.shift, ndim)
    match rule.rounding:
        case Rounding.FLOOR:
            value = torch.floor(value)
        case Rounding.HALF_UP:
            value = torch.floor(value + 0.5)
        case Rounding.HALF_EVEN:
            value = torch.round(value)
        case Rounding.HALF_AWAY:
            value = torch.sign(value) * torch.floor(value.abs() + 0.5)
    low, high = (column(bound, ndim) - rule.zero for bound in (rule.low, rule.high))
    return torch.minimum(torch.maximum(value, low), high) * output.scale


def windows_max(op: MaxPool, x: Tensor) -> Tensor:
    top, left, bottom, right = op.geometry.overhang
    x = functional.pad(x, (left, right, top, bottom), value=-torch.inf)
    return functional.max_pool2d(x, op.geometry.kernel, op.geometry.stride)


def windows_average(op: AvgPool, x: Tensor) -> Tensor:
    """Accumulators: the average times the divisor."""
    g = op.geometry
    top, left, bottom, right = g.overhang
    symmetric = (top, left) == (g.padding[2], g.padding[3])
    if symmetric and 2 * top <= g.kernel[0] and 2 * left <= g.kernel[1]:
        mean = functional.avg_pool2d(
            x, g.kernel, g.stride, g.padding[:2], g.ceil_mode, op.count_include_pad
        )
        return torch.round(mean * op.divisor)  # the average itself may have no finite binary form
    ones = torch.ones(x.shape[1], 1, *g.kernel, dtype=torch.float64)
    padded = functional.pad(x, (left, right, top, bottom))
    sums = functional.conv2d(padded, ones, stride=g.stride, groups=x.shape[1])
    return sums * torch.tensor(op.multipliers)


def mac(op: Conv | Linear, x: Tensor) -> Tensor:
    """Accumulators in units of their step, from real inputs and weights."""
    step = op.input.scale * op.weights.scale[0]
    weights = torch.tensor(op.weights.codes).double() * op.weights.scale[0]
    bias = None if op.bias is None else torch.tensor(op.bias.values).double() * step
    if isinstance(op, Linear):
        return functional.linear(x, weights, bias) / step
    g = op.geometry
    top, left, bottom, right = g.padding
    padded = functional.pad(x, (left, right, top, bottom))
    made = functional.conv2d(padded, weights, bias, g.stride, groups=op.groups)
    return made / step


def layer(op: Op, inputs: list[Tensor]) -> Tensor:
    """Real output of a layer for real inputs."""
    x = inputs[0]
    match op:
        case Conv() | Linear():
            acc = mac(op, x)
            return (
                acc * op.output.scale if op.requant is None else requant(op.requant, acc, op.output)
            )
        case MaxPool():
            return windows_max(op, x)
        case AvgPool():
            return requant(op.requant, windows_average(op, x / op.input.scale), op.output)
        case GlobalAvgPool():
            return requant(op.requant, x.sum((2, 3)) / op.input.scale, op.output)
        case GlobalMaxPool():
            return x.amax((2, 3))
        case Flatten():
            return torch.flatten(x, 1)
        case Concat():
            return torch.cat(inputs, 1)
        case Rescale():
            return requant(op.requant, x / op.input.scale, op.output)
        case Add():
            first, second = (
                mult * value / kind.scale
                for mult, value, kind in zip(op.mult, inputs, op.types, strict=True)
            )
            return requant(op.requant, first + second, op.output)
    raise AssertionError(f"no torch form of {type(op).__name__}")


def evaluate(network: Network, codes: Tensor) -> Tensor:
    """Output codes, int64."""
    source = network.input
    tensors = {INPUT: (codes.double() - source.zero) * source.scale}
    for op in network.ops:
        tensors[op.name] = layer(op, [tensors[name] for name in op.inputs])
    output = network.output_type
    made = tensors[network.output] / output.scale + output.zero
    assert bool((made == made.round()).all())
    return made.long()
