"""The rules of the layer-wise search of Goyal, Vanschoren, van Acht and Nijssen (arXiv 2102.02147)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import ceil, isfinite, log2

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.errors import BadInput
from quant.formats import Floats

__all__ = [
    "START",
    "WIDER",
    "Kind",
    "Symmetric",
    "Trial",
    "allowed",
    "neighbourhood",
    "start_format",
    "walk",
]

WORTH = 0.0015
"""By how much less a wider neighbour's relative drop must be to win."""

WIDER = 4
"""Bits that a kind starts wider where it loses too much alone."""


class Kind(Enum):
    """What of a layer is quantised, in the order of the search."""

    WEIGHTS = "weights"
    BIASES = "biases"
    ACTIVATIONS = "activations"


START = {Kind.WEIGHTS: 12, Kind.BIASES: 8, Kind.ACTIVATIONS: 12}
"""Widths in bits at which the search starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetric:
    """The paper's number format: ``clip(round(x * 2**frac), -high, high)``, ties to even.

    Parameters
    ----------
    width : int
        Bits, the sign's included, at least 1. One bit leaves only the code 0.
    frac : int
        Fraction bits; may be negative or exceed the width.

    >>> Symmetric(width=3, frac=1).codes(np.array([0.25, 0.75, -9.0])).tolist()
    [0, 2, -3]
    """

    width: int
    frac: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise BadInput(f"a format must have at least 1 bit, not {self.width}")

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.width - 1)) - 1

    def codes(self, values: Floats) -> NDArray[np.int64]:
        """Integer codes of float64 values."""
        rounded = np.rint(np.ldexp(values, self.frac))
        return np.clip(rounded, -self.high, self.high).astype(np.int64)

    def nearest(self, values: Floats) -> Floats:
        """The values that the codes stand for."""
        out: Floats = np.ldexp(self.codes(values).astype(np.float64), -self.frac)
        return out

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """:meth:`nearest` on a tensor; exact in float32 for widths up to 24 bits."""
        scaled = torch.mul(values, 2.0**self.frac).round_()
        return scaled.clamp_(-self.high, self.high).mul_(2.0**-self.frac)

    def moved(self, width: int, frac: int) -> Symmetric:
        """The format so many bits wider and finer."""
        return Symmetric(width=self.width + width, frac=self.frac + frac)


def start_format(largest: float, width: int) -> Symmetric:
    """Where the search starts: ``frac = width - 1 - ceil(log2 largest)``; one bit for zeros.

    Raises
    ------
    BadInput
        If the largest magnitude is not finite.
    """
    if not isfinite(largest):
        raise BadInput("values must be finite, but reach NaN or infinity; train the network again")
    if largest == 0:
        return Symmetric(width=1, frac=0)
    return Symmetric(width=width, frac=width - 1 - ceil(log2(largest)))


def allowed(kind: Kind, layer: int, layers: int, tolerance: float) -> float:
    """The relative drop that a layer's choice may reach.

    Parameters
    ----------
    kind : Kind
    layer : int
        From 1 to ``layers``.
    layers : int
    tolerance : float
        The paper's T: what the weights may lose in the end; the activations may lose as much again.
    """
    share = tolerance * layer / layers
    if kind is Kind.WEIGHTS:
        return share
    return tolerance if kind is Kind.BIASES else tolerance + share


Trial = Callable[[Symmetric, float], float | None]
"""``trial(form, limit)``: the relative drop with one tensor in a format, None where above the limit."""


def walk(trial: Trial, start: Symmetric, limit: float) -> tuple[Symmetric, float]:
    """Choose the format of one tensor.

    Parameters
    ----------
    trial : callable
        See :data:`Trial`; with the limit 1 it always gives a drop.
    start : Symmetric
    limit : float
        The relative drop that is allowed.

    Returns
    -------
    Symmetric
    float
        Its relative drop: above the limit only where all that was tried is.
    """
    best, drop = start, None
    while best.width > 1:  # width and fraction together, one step over a bump
        for step in (1, 2):
            if best.width - step < 1:
                continue
            found = trial(candidate := best.moved(-step, -step), limit)
            if found is not None:
                best, drop = candidate, found
                break
        else:
            break
    while best.width > 1:  # width alone: the range shrinks
        found = trial(candidate := best.moved(-1, 0), limit)
        if found is None:
            break
        best, drop = candidate, found
    if drop is None:
        drop = trial(best, 1.0)
        assert drop is not None
    return neighbourhood(trial, best, drop)


def neighbourhood(trial: Trial, centre: Symmetric, drop: float) -> tuple[Symmetric, float]:
    """The best of the formats within one bit of width and fraction.

    The one of the least drop wins if it is not wider than the centre, or better by 0.0015.
    """
    best, least = centre, drop
    for width in (-1, 0, 1):
        for frac in (-1, 0, 1):
            if centre.width + width < 1 or (width, frac) == (0, 0):
                continue
            found = trial(candidate := centre.moved(width, frac), least)
            if found is not None and found < least:
                best, least = candidate, found
    if best.width > centre.width and drop - least < WORTH - 1e-12:
        return centre, drop
    return best, least
