"""Projection of weights onto budgets for the sums of their parts, and rounding within them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HALVINGS", "Real", "project", "shrink_round"]

Real = NDArray[np.floating[Any]]
"""Real numbers, or integers as floats: float64, or float32 where speed counts."""

HALVINGS = 24
"""Of the interval in which the least shrinkage is looked for."""


def project(values: Real, positive: Real, negative: Real, *, joint: bool = False) -> Real:
    """The nearest point whose positive entries sum to at most ``positive``, and so on.

    Parameters
    ----------
    values : float array ``(rows, taps)``
    positive, negative : float arrays ``(rows,)``
        Budgets, at least 0.
    joint : bool
        Whether ``positive`` bounds the sum of all magnitudes.
    """
    if joint:
        return np.sign(values) * _onto_simplex(np.abs(values), positive)
    plus = _onto_simplex(np.maximum(values, 0), positive)
    return plus - _onto_simplex(np.maximum(-values, 0), negative)


def _onto_simplex(values: Real, budget: Real) -> Real:
    """Non-negative rows, projected onto those of a sum of at most ``budget``."""
    over = values.sum(1) > budget
    if not over.any():
        return values
    part, limit = values[over], budget[over]
    falling = -np.sort(-part, axis=1)
    ahead = np.cumsum(falling, axis=1) - limit[:, None]
    count = np.arange(1, part.shape[1] + 1)
    # The last place where an entry exceeds the threshold that it and all larger ones imply.
    last = np.maximum((falling * count > ahead).sum(1), 1) - 1
    threshold = np.maximum(ahead[np.arange(len(part)), last] / (last + 1), 0)
    out = values.copy()
    out[over] = np.maximum(part - threshold[:, None], 0)
    return out


def shrink_round(
    values: Real,
    positive: Real,
    negative: Real,
    *,
    low: int,
    high: int,
    joint: bool = False,
) -> Real:
    """Integers near ``values`` within the budgets: least shrinkage, then the nearest integer.

    Rounding to nearest after shrinking by 1/2 is rounding toward zero (A2Q's); here the shrinkage
    is the least that meets the budget, so that it is used up. Parameters as in :func:`project`;
    ``low <= 0 <= high`` bound each integer.
    """
    if joint:
        size = np.clip(np.abs(values), 0, min(-low, high))
        return np.sign(values) * _shrunk(size, positive)
    plus = _shrunk(np.clip(values, 0, high), positive)
    return plus - _shrunk(np.clip(-values, 0, -low), negative)


def _shrunk(values: Real, budget: Real) -> Real:
    rounded: Real = np.floor(values + 0.5)
    over = rounded.sum(1) > budget
    if over.any():
        part, limit = values[over], budget[over]
        least, most = np.zeros(len(part)), part.max(1) + 0.5
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            fits = np.floor(np.maximum(part - middle[:, None], 0) + 0.5).sum(1) <= limit
            least, most = np.where(fits, least, middle), np.where(fits, middle, most)
        rounded[over] = np.floor(np.maximum(part - most[:, None], 0) + 0.5)
    return rounded
