"""Choosing fixed-point formats from data: the largest value, a percentile, or the least squared error."""

from __future__ import annotations

from enum import Enum
from math import floor, log2

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import Fixed

__all__ = ["Calibration", "choose_format", "quantize_to"]

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
NARROWEST = 6
"""Halvings of the covering range that the MSE search tries."""


def quantize_to(values: Floats, form: Fixed) -> NDArray[np.int64]:
    """Codes of ``values``: nearest, ties up, saturated."""
    scaled = np.floor(np.ldexp(values, form.frac) + 0.5)
    return np.clip(scaled, form.low, form.high).astype(np.int64)


def _covering(values: Floats, width: int, signed: bool, frac_of_zero: int) -> int:
    """Largest fraction length at which nothing of ``values`` saturates."""
    probe = Fixed(width=width, frac=0, signed=signed)
    top, bottom = float(values.max()), float(values.min())
    fracs = []
    if top > 0:
        # Codes round, so that the largest value may lie half a step above the largest code.
        fracs.append(floor(log2((probe.high + 0.5) / top)) if probe.high else floor(log2(0.5 / top)))
    if bottom < 0:
        fracs.append(floor(log2((-probe.low + 0.5) / -bottom)) if probe.low else frac_of_zero)
    return min(fracs) if fracs else frac_of_zero


def choose_format(
    values: Floats, *, width: int, signed: bool, calibration: Calibration, what: str
) -> Fixed:
    """The fixed-point format of ``width`` bits that suits ``values``.

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    width : int
        Bits, 1 to 16.
    signed : bool
    calibration : Calibration
    what : str
        For messages: whose values these are.

    Raises
    ------
    BadInput
        If the width is out of range.
    """
    if not 1 <= width <= 16:
        raise BadInput(f"the width of {what} must be 1 to 16 bits, not {width}; change its bits")
    flat = values.reshape(-1)
    frac = _covering(flat, width, signed, width - 1)
    if calibration is Calibration.PERCENTILE:
        limit = float(np.percentile(np.abs(flat), PERCENTILE))
        if limit > 0:
            frac = max(frac, _covering(np.clip(flat, -limit, limit), width, signed, width - 1))
    forms = [Fixed(width=width, frac=frac, signed=signed)]
    if calibration is Calibration.MSE:
        forms = [Fixed(width=width, frac=frac + extra, signed=signed) for extra in range(NARROWEST + 1)]
        if width == 1:  # a range wider than the values can serve -1 and 0
            forms += [Fixed(width=1, frac=frac - 1, signed=signed)]
    if len(forms) == 1:
        return forms[0]
    return min(forms, key=lambda form: _squared_error(flat, form))


def _squared_error(values: Floats, form: Fixed) -> float:
    error = np.ldexp(quantize_to(values, form).astype(np.float64), -form.frac) - values
    return float(np.dot(error, error))


