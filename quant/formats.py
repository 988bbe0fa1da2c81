"""Choosing fixed-point formats from data: the largest value, a percentile, or the least error."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import floor, log2

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import Fixed

__all__ = ["Calibration", "choose_format", "decode", "quantize_to"]

Floats = NDArray[np.float64]


class Calibration(Enum):
    """How the range of a format is found."""

    MAX = "max"
    """The least range without saturation."""
    PERCENTILE = "percentile"
    """The least range that holds 99.99 % of the magnitudes."""
    MSE = "mse"
    """The range with the least mean squared error, saturation included."""


PERCENTILE = 99.99
NARROWEST = 8
"""Halvings of the range without saturation that the search for the least error tries."""
HOPELESS = 2.0
"""Multiple of the least error above which narrower ranges are not tried."""


def quantize_to(values: Floats, form: Fixed) -> NDArray[np.int64]:
    """Codes of ``values``: nearest, ties up, saturated."""
    scaled = np.floor(np.ldexp(values, form.frac) + 0.5) + form.zero
    codes: NDArray[np.int64] = np.clip(scaled, form.low, form.high).astype(np.int64)
    return codes


def decode(codes: NDArray[np.int64], form: Fixed) -> Floats:
    """The values that ``codes`` stand for, exact below 2**53."""
    values: Floats = np.ldexp((codes - form.zero).astype(np.float64), -form.frac)
    return values


def _covering(low: float, high: float, width: int, signed: bool) -> int | None:
    """Largest fraction length at which nothing in ``low..high`` saturates; None where all is 0.

    Codes round, so that a value may lie half a step beyond the last code.
    """
    probe = Fixed(width=width, frac=0, signed=signed)
    fracs = []
    if high > 0:
        fracs.append(floor(log2((probe.high + 0.5) / high)))
    if signed and low < 0:
        fracs.append(floor(log2((0.5 - probe.low) / -low)))
    return min(fracs, default=None)


def choose_format(
    values: Floats,
    *,
    width: int,
    signed: bool,
    calibration: Calibration,
    what: str,
    extremes: tuple[float, float] | None = None,
    finest: int | None = None,
    error: Callable[[Fixed], float] | None = None,
) -> Fixed:
    """The fixed-point format of ``width`` bits that suits ``values``.

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    width : int
        Bits, 1 to 16.
    signed : bool
        Negative values saturate to 0 where this is false.
    calibration : Calibration
    what : str
        For messages: whose values these are.
    extremes : tuple of float, optional
        Least and greatest value where ``values`` are a sample; theirs by default.
    finest : int, optional
        Most fraction bits. Whoever cannot use finer steps says so here.
    error : callable, optional
        What :attr:`Calibration.MSE` makes least, of a format; by default the sum of the squared
        errors of ``values``.

    Returns
    -------
    Fixed
        With :attr:`Calibration.MSE` never one of a greater error than with :attr:`Calibration.MAX`.

    Raises
    ------
    BadInput
        If the width is out of range, or a value is not finite.
    """
    if not 1 <= width <= 16:
        raise BadInput(f"the width of {what} must be 1 to 16 bits, not {width}; change its bits")
    flat = values.reshape(-1)
    low, high = extremes or (float(flat.min()), float(flat.max()))
    if not (np.isfinite(flat).all() and np.isfinite([low, high]).all()):
        raise BadInput(f"{what} must be finite, but reach NaN or infinity; train the network again")

    def form(frac: int) -> Fixed:
        return Fixed(width=width, frac=frac if finest is None else min(frac, finest), signed=signed)

    frac = _covering(low, high, width, signed)
    if frac is None:  # any format holds zeros
        return form(width - 1)
    if calibration is Calibration.PERCENTILE:
        limit = float(np.percentile(np.abs(flat), PERCENTILE))
        inner = _covering(max(low, -limit), min(high, limit), width, signed)
        return form(frac if inner is None else inner)
    if calibration is Calibration.MAX:
        return form(frac)
    cost = error or (lambda candidate: _squared_error(flat, candidate))
    best = form(frac)
    least = cost(best)
    for narrower in (form(frac + halvings) for halvings in range(1, NARROWEST + 1)):
        other = cost(narrower)
        if other < least:
            best, least = narrower, other
        elif other > HOPELESS * least:
            break  # saturation alone makes up the error, and it grows
    return best


def _squared_error(values: Floats, form: Fixed) -> float:
    error = decode(quantize_to(values, form), form) - values
    return float(np.dot(error, error))
