"""Requantisers from real factors: saturation bounds of a ReLU, shifts, multipliers."""

from __future__ import annotations

from math import floor, gcd, log2

import numpy as np

from hwgen.ir import Fixed, Requant, Rounding
from quant.formats import Floats
from quant.grouping import Group

__all__ = ["scaled_requant", "shift_requant"]

Bounds = tuple[tuple[int, ...], tuple[int, ...]]

PRODUCT_BITS = 60
"""Signed width that an accumulator times a multiplier may take: one less than the network's limit,
so that an offset of the same width can be added."""


def _bounds(group: Group | None, form: Fixed) -> Bounds:
    """Lowest and highest codes, within the limits of the group's ReLU."""
    low, high = form.low, form.high
    if group is None or group.relu is None:
        return (low,), (high,)
    top = group.relu.max
    if group.affine is None:
        limit = high if top is None else min(high, _nearest(top, form))
        return (max(low, form.zero),), (limit,)
    if top is None:
        return (low,), (high,)
    scale, offset = group.affine.scale, group.affine.offset
    ends = [min(max(_nearest(float(v), form), low), high) for v in top * scale + offset]
    falls = [s < 0 for s in scale]
    return (
        tuple(end if fall else low for end, fall in zip(ends, falls, strict=True)),
        tuple(high if fall else end for end, fall in zip(ends, falls, strict=True)),
    )


def _nearest(value: float, form: Fixed) -> int:
    return floor(float(np.ldexp(value, form.frac)) + 0.5) + form.zero


def shift_requant(
    fracs: tuple[int, ...], form: Fixed, *, rounding: Rounding, group: Group | None = None
) -> Requant:
    """From accumulators of so many fraction bits to ``form``.

    Parameters
    ----------
    fracs : tuple of int
        One for the tensor or one a channel.
    form : Fixed
    rounding : Rounding
    group : Group, optional
        Its ReLU limits the codes.
    """
    low, high = _bounds(group, form)
    return Requant(
        mult=_once(tuple(1 << max(form.frac - frac, 0) for frac in fracs)),
        shift=_once(tuple(max(frac - form.frac, 0) for frac in fracs)),
        low=low,
        high=high,
        zero=form.zero,
        rounding=rounding,
    )


def scaled_requant(
    factors: Floats,
    offsets: Floats,
    form: Fixed,
    *,
    group: Group,
    width: int,
    scale_bits: int,
    rounding: Rounding,
) -> Requant:
    """Codes ``acc * factor + offset`` of ``form``, with integer multipliers.

    Parameters
    ----------
    factors, offsets : float64 arrays
        One entry for the tensor or one a channel: output steps per accumulator step, and output
        steps.
    form : Fixed
    group : Group
        Its ReLU comes first where it has an affine, and limits the codes.
    width : int
        Signed width of the accumulators.
    scale_bits : int
        Most bits of a multiplier, its sign included.
    rounding : Rounding
    """
    bits = max(2, min(scale_bits, PRODUCT_BITS - width))
    top, far = float(np.abs(factors).max()), float(np.abs(offsets).max())
    shift = 0 if top == 0 else max(0, bits - 2 - floor(log2(top)))
    # Bits below those of the largest offset that fits cannot tell: the rest of the sum is smaller.
    shift = min(shift, PRODUCT_BITS - 2 - max(form.width, floor(far).bit_length()))
    mult, add = (
        tuple(int(v) for v in np.floor(np.ldexp(values, shift) + 0.5))
        for values in (factors, offsets)
    )
    common = gcd(1 << shift, *mult, *add)
    low, high = _bounds(group, form)
    return Requant(
        mult=_once(tuple(m // common for m in mult)),
        add=_once(tuple(a // common for a in add)),
        shift=(shift - (common.bit_length() - 1),),
        low=low,
        high=high,
        zero=form.zero,
        rounding=rounding,
        relu=group.affine is not None,
    )


def _once(values: tuple[int, ...]) -> tuple[int, ...]:
    """One entry where all agree."""
    return values[:1] if len(set(values)) == 1 else values
