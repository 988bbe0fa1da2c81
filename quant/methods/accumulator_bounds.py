"""Bounds on accumulators: from formats, from weights, from what was observed.

A layer fits ``P`` bits if its final accumulators, bias included, lie in ``-2**(P-1) ..
2**(P-1) - 1``. What partial sums do does not matter: two's complement adds modulo ``2**P``, so that
a sum that wrapped on the way is right in the end if the end fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import INPUT, Fixed, MacOp, Network
from hwgen.ir.formats import signed_width
from hwgen.ir.ops.base import Codes

__all__ = [
    "Bound",
    "Pair",
    "Wraps",
    "count_wraps",
    "formats_width",
    "maximal_pairs",
    "needed_width",
    "worst_inputs",
    "wrapped",
]

BATCH = 200


class Bound(Enum):
    """How it is known that accumulators fit."""

    FORMATS = "formats"
    """From the widths of data and weights and the number of taps: holds for any weights."""
    WEIGHTS = "weights"
    """From the weights: the exact interval of each channel, for any input."""
    CALIBRATED = "calibrated"
    """On the calibration images only: others may wrap around, which is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Widths of a layer's data and weights, in bits, and of the accumulator that they need."""

    data: int
    weights: int
    accumulator: int


def formats_width(taps: int, data: Fixed, weights: int) -> int:
    """Accumulator of any weights of a width on any data of a format, the bias left out.

    About data width + weight width + log2(taps); exact: the sums of the extreme products.
    """
    low = -(1 << (weights - 1))
    ends = [w * x for w in (low, -low - 1) for x in (data.low, data.high)]
    return signed_width(taps * min(ends), taps * max(ends))


def needed_width(low: NDArray[Any], high: NDArray[Any]) -> Codes:
    """Smallest signed width of each channel's interval, ``(out,)``."""
    return np.array(
        [signed_width(min(int(a), 0), max(int(b), 0)) for a, b in zip(low, high, strict=True)]
    )


def maximal_pairs(needed: Mapping[tuple[int, int], int], bits: int) -> tuple[Pair, ...]:
    """The pairs that fill an accumulator: widening data or weights breaks the bound.

    Parameters
    ----------
    needed : mapping of (int, int) to int
        Accumulator width by (data width, weight width). Widths beyond those given do not count as
        possible.
    bits : int
        Width of the accumulator.

    Returns
    -------
    tuple of Pair
        By rising data width; empty if none fits.
    """
    fits = {pair for pair, width in needed.items() if width <= bits}
    # Wider weights have a finer step and may, by luck of rounding, need less; that counts too.
    return tuple(
        Pair(data=data, weights=weights, accumulator=needed[data, weights])
        for data, weights in sorted(fits)
        if (data + 1, weights) not in fits and (data, weights + 1) not in fits
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wraps:
    """Accumulators that do not fit, on some images.

    Parameters
    ----------
    images : int
    layers : mapping of str to int
        By layer: accumulators outside of the width, over all images, channels and positions.
    touched : int
        Images with any.
    """

    images: int
    layers: Mapping[str, int]
    touched: int

    @property
    def total(self) -> int:
        """Accumulators in all."""
        return sum(self.layers.values())


def wrapped(acc: Codes, bits: int) -> Codes:
    """What a two's-complement accumulator of ``bits`` holds of a sum."""
    half = 1 << (bits - 1)
    return ((acc + half) & ((1 << bits) - 1)) - half


def count_wraps(
    network: Network, images: NDArray[np.uint8], bits: int, *, wrap: bool = False
) -> tuple[Wraps, Codes]:
    """Count accumulators beyond a width, layer by layer.

    Parameters
    ----------
    network : Network
        Its own accumulators are as wide as they need.
    images : uint8 array
        ``(N, C, H, W)``.
    bits : int
    wrap : bool
        Whether the layers go on with what ``bits`` bits hold, as hardware would that has no more.

    Returns
    -------
    Wraps
    int64 array
        Outputs ``(N, classes)``.
    """
    counts: dict[str, int] = {op.name: 0 for op in network.ops if isinstance(op, MacOp)}
    touched, outputs = 0, []
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for start in range(0, len(images), BATCH):
        values: dict[str, Codes] = {INPUT: images[start : start + BATCH].astype(np.int64)}
        hit = np.zeros(len(values[INPUT]), dtype=bool)
        for op in network.ops:
            inputs = [values[name] for name in op.inputs]
            if not isinstance(op, MacOp):
                values[op.name] = op.evaluate(*inputs)
                continue
            acc = op.acc(inputs[0])
            beyond = ((acc < low) | (acc > high)).reshape(len(acc), -1)
            counts[op.name] += int(beyond.sum())
            hit |= beyond.any(axis=1)
            kept = wrapped(acc, bits) if wrap else acc
            values[op.name] = kept if op.requant is None else op.requant.apply(kept)
        touched += int(hit.sum())
        outputs.append(values[network.output].reshape(len(hit), -1))
    found = Wraps(images=len(images), layers=counts, touched=touched)
    return found, np.concatenate(outputs)


def worst_inputs(op: MacOp) -> tuple[Codes, Codes]:
    """Inputs that drive each channel's accumulator to the ends of its interval.

    Parameters
    ----------
    op : MacOp
        Of one group.

    Returns
    -------
    lowest, highest : int64 arrays
        Windows ``(out, in, rows, columns)`` of input codes, or vectors ``(out, in)``.
    """
    codes, low, high = op.weights.codes, op.input.minimum, op.input.maximum
    return np.where(codes > 0, low, high), np.where(codes > 0, high, low)
