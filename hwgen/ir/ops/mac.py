"""Multiply-accumulate layers: the accumulator and its exact interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.formats import TensorType
from hwgen.ir.ops.base import (
    ARITHMETIC_BITS,
    Bias,
    Codes,
    Op,
    Weights,
    check_output_shape,
    check_requant,
    union_width,
)
from hwgen.ir.requant import Requant

__all__ = ["MacOp", "exact_dot", "mac_interval"]


def mac_interval(
    source: TensorType,
    weights: Weights,
    bias: Bias | None,
    *,
    padded: NDArray[np.bool_] | bool = False,
) -> tuple[Codes, Codes]:
    """Exact interval of each output channel's accumulator, from the weights, the bias and the input
    range.

    Parameters
    ----------
    source : TensorType
        Type of the layer's input; its range counts.
    weights, bias
        Constants of the layer.
    padded : bool or bool array that broadcasts against ``weights.codes``
        Taps that can lie outside the image. They contribute 0 there, so their interval includes 0.

    Returns
    -------
    low, high : int64 arrays
        ``(out,)``.
    """
    lowest, highest = source.minimum - source.zero, source.maximum - source.zero
    first = np.where(padded, min(lowest, 0), lowest)
    last = np.where(padded, max(highest, 0), highest)
    codes = weights.codes
    # Each product is monotone in its input, so an end of the interval is the sum of the products'
    # ends.
    ends = codes * first, codes * last
    axes = tuple(range(1, codes.ndim))
    low, high = np.minimum(*ends).sum(axis=axes), np.maximum(*ends).sum(axis=axes)
    if bias is not None:
        low, high = low + bias.values, high + bias.values
    return low, high


def exact_dot(weights: Codes, columns: Codes, bound: int) -> Codes:
    """``weights @ columns`` of integers, exact.

    Parameters
    ----------
    weights : int64 array
        ``(out, taps)``.
    columns : int64 array
        ``(..., taps, positions)``.
    bound : int
        No partial sum exceeds it in magnitude, in whatever order the products are added. Integers
        below 2**53 are exact in float64, with or without fused multiply-add.
    """
    exact = np.float64 if bound < 1 << 53 else np.int64
    total: Codes = np.matmul(weights.astype(exact), columns.astype(exact)).astype(np.int64)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class MacOp(Op):
    """A layer of dot products: ``bias + sum weights * (codes - zero)``, then a requantiser.

    Parameters
    ----------
    input : TensorType
        Type of the tensor that it takes.
    weights : Weights
    bias : Bias or None
    requant : Requant or None
        None: the output codes are the accumulators, signed, of the accumulator's width, zero point
        0.
    """

    input: TensorType
    weights: Weights
    bias: Bias | None = None
    requant: Requant | None = None

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return (self.input,)

    @property
    def out_channels(self) -> int:
        """Output channels or features."""
        count: int = self.weights.codes.shape[0]
        return count

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, padded taps counted."""
        return self.weights.codes.size * self.output.pixels

    @property
    def code_bias(self) -> Codes:
        """Biases for dot products of the codes themselves, int64 ``(out,)``; 0 where nothing is added.

        ``sum w (x - z) = sum w x - z sum w``, the input's zero point being ``z``. A padded tap that
        carries the code ``z`` contributes nothing, so this holds for every window.
        """
        sums: Codes = self.weights.codes.reshape(self.out_channels, -1).sum(axis=1)
        own = 0 if self.bias is None else self.bias.values
        return own - self.input.zero * sums

    def acc(self, x: Codes) -> Codes:
        """Accumulators ``(N, *output.shape)`` of the codes ``(N, *input.shape)``."""
        raise NotImplementedError

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        """Exact ``(low, high)`` of each channel's accumulator, int64 ``(out,)``."""
        raise NotImplementedError

    @property
    def accumulator_width(self) -> int:
        """Smallest signed width that holds all accumulators and 0."""
        return union_width(*self.accumulator_interval())

    @property
    def magnitude(self) -> int:
        """Bound on every partial sum of products, in any order, and on every accumulator.

        A partial sum lacks some products, as if they were 0; so it lies in the interval of the sum
        in which each product may also be 0. This is at most ``sum |w| * max |x - zero|``.
        """
        low, high = mac_interval(self.input, self.weights, None, padded=True)
        first, last = self.accumulator_interval()
        bound: int = max(int(np.abs(ends).max()) for ends in (low, high, first, last))
        return bound

    def evaluate(self, *inputs: Codes) -> Codes:
        acc = self.acc(inputs[0])
        return acc if self.requant is None else self.requant.apply(acc)

    def _check_mac(self, shape: tuple[int, ...]) -> None:
        """What convolutions and linear layers check alike; ``shape`` is that of the output."""
        check_output_shape(self, shape)
        if self.bias is not None and self.bias.codes.shape != (self.out_channels,):
            raise self.bad(
                f"has {self.out_channels} output channels, but {self.bias.codes.size} biases"
            )
        largest = max(
            abs(self.input.minimum - self.input.zero), abs(self.input.maximum - self.input.zero)
        )
        # Checked in Python integers first: the exact interval below must not wrap.
        taps = self.weights.codes[0].size
        width = self.weights.width + largest.bit_length() + taps.bit_length()
        if (
            max(width, 0 if self.bias is None else self.bias.width + self.bias.shift)
            >= ARITHMETIC_BITS
        ):
            raise self.bad(
                f"may need {width + 1} bits of accumulator, more than {ARITHMETIC_BITS}; use"
                " narrower codes"
            )
        low, high = self.accumulator_interval()
        if self.requant is not None:
            check_requant(self, self.requant, low, high)
            return
        needed = union_width(low, high)
        if not self.output.signed or self.output.width != needed or self.output.zero != 0:
            raise self.bad(
                f"has no requantiser, so that its output must be signed, {needed} bits wide (its"
                f" accumulator's width) and have the zero point 0, not"
                f" {'signed' if self.output.signed else 'unsigned'}, {self.output.width} bits and"
                f" {self.output.zero}"
            )
        if int(low.min()) < self.output.minimum or int(high.max()) > self.output.maximum:
            raise self.bad(
                f"makes accumulators of {int(low.min())}..{int(high.max())}, outside of its output"
                " type's"
                f" {self.output.minimum}..{self.output.maximum}"
            )
