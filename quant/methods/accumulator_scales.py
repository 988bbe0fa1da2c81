"""The scales of a layer's channels, and the integer weights at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from quant.methods.accumulator_fit import (
    QUICK,
    Effort,
    Fit,
    Limits,
    Moments,
    bias_unit,
    fit_codes,
)
from quant.methods.accumulator_project import Real

__all__ = ["Observed", "Scales", "best_scales", "best_single", "plain_fit", "seen_interval"]


class Scales(Enum):
    """Scales of a layer's output channels."""

    SHIFT = "shift"
    """Powers of two: requantisers shift."""
    MULTIPLY = "multiply"
    """Real: requantisers multiply."""


STEPS = (1.0, 0.5, 0.25)
REAL_STEPS = (1.2, 0.85, 0.6, 0.42)
SINGLE_STEPS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Multiples of the step at which a channel just fits; finer ones drop the smallest weights."""

LONGEST = 8
"""Doublings of a step until what was observed fits."""


class Observed:
    """Input codes that accumulators must not leave ``bits`` bits on.

    Parameters
    ----------
    codes : float32 array ``(samples, taps)``
    bits : int
    """

    def __init__(self, codes: Real, bits: int) -> None:
        self.codes, self.bits = codes, bits

    def fits(self, fit: Fit) -> NDArray[np.bool_]:
        """Whether each channel's accumulators fit, bool ``(out,)``."""
        low, high = seen_interval(self.codes, fit)
        half = 1 << (self.bits - 1)
        good: NDArray[np.bool_] = (low >= -half) & (high < half)
        return good


def seen_interval(codes: Real, fit: Fit) -> tuple[Real, Real]:
    """Least and largest accumulator of each channel on samples."""
    acc = codes.astype(np.float32) @ fit.codes.T.astype(np.float32)
    low: Real = acc.min(0).astype(np.float64) + fit.bias
    high: Real = acc.max(0).astype(np.float64) + fit.bias
    return low, high


def _base(known: Moments, limits: Limits) -> Real:
    """The step at which a channel just fits, unrounded; or at which no weight saturates."""
    size = np.abs(known.target)
    widest = np.maximum(size.max(1), 1e-12) / limits.high
    if limits.acc_high is None:
        free: Real = widest
        return free
    far = max(limits.input_high, -limits.input_low)
    if limits.input_low:
        total = size.sum(1)
    else:
        plus, minus = np.maximum(known.target, 0), np.maximum(-known.target, 0)
        total = np.maximum(plus.sum(1), minus.sum(1))
    least: Real = np.maximum(total * far / limits.acc_high, widest / 2)
    return least


def best_scales(
    known: Moments,
    limits: Limits,
    scales: Scales,
    effort: Effort,
    observed: Observed | None = None,
) -> Fit:
    """The fit of the least error of each channel.

    Parameters
    ----------
    known : Moments
    limits : Limits
    scales : Scales
    effort : Effort
    observed : Observed, optional
        Steps are as coarse as its accumulators need.
    """
    base = _base(known, limits)
    if scales is Scales.SHIFT:
        steps = np.stack([2.0 ** np.ceil(np.log2(base)) * f for f in STEPS])
    else:
        steps = np.stack([base * f for f in REAL_STEPS])
    count, rows = steps.shape
    fit = fit_codes(_repeat(known, count), steps.reshape(-1), limits, QUICK)
    best = fit.error.reshape(count, rows).argmin(0)
    chosen = steps[best, np.arange(rows)]
    found = fit_codes(known, chosen, limits, effort)
    for _ in range(LONGEST if observed else 0):
        assert observed is not None
        good = observed.fits(found)
        if good.all():
            break
        chosen = np.where(good, chosen, 2 * chosen)
        found = fit_codes(known, chosen, limits, effort)
    return found


def best_single(
    known: Sequence[Moments],
    limits: Limits,
    effort: Effort,
    observed: Sequence[Observed] | None = None,
) -> list[Fit]:
    """Fits of one scale for all channels of all groups; parameters as in :func:`best_scales`."""
    base = max(float(_base(one, limits).max()) for one in known)

    def fits(factor: float, effort: Effort) -> list[Fit]:
        scales = [np.full(len(one.target), base * factor) for one in known]
        pairs = zip(known, scales, strict=True)
        return [fit_codes(one, scale, limits, effort) for one, scale in pairs]

    errors = [sum(float(f.error.sum()) for f in fits(x, QUICK)) for x in SINGLE_STEPS]
    factor = SINGLE_STEPS[int(np.argmin(errors))]
    found = fits(factor, effort)
    for _ in range(LONGEST if observed else 0):
        assert observed is not None
        if all(o.fits(f).all() for o, f in zip(observed, found, strict=True)):
            break
        factor *= 2**0.5
        found = fits(factor, effort)
    return found


def _repeat(known: Moments, count: int) -> Moments:
    return replace(
        known,
        target=np.tile(known.target, (count, 1)),
        mean_out=np.tile(known.mean_out, count),
    )


def plain_fit(known: Sequence[Moments], limits: Limits) -> list[Fit]:
    """Nearest integers at one power-of-two scale with the least error, one fit for each group.

    What is usual: no weight makes up for another, nothing bounds a sum.
    """
    top = max(float(np.abs(one.target).max()) for one in known)
    # A format of one bit holds no positive weight, but -1.
    base = 2.0 ** np.ceil(np.log2(max(top, 1e-12) / max(limits.high, 1)))
    best: list[Fit] = []
    for factor in STEPS:
        step = base * factor
        fits = []
        for one in known:
            wanted = one.target / step
            codes = np.clip(np.floor(wanted + 0.5), limits.low, limits.high)
            bias = one.mean_out / step - codes @ one.mean_codes
            unit = bias_unit(limits.clip_bias(bias))
            bias = replace(limits, bias_unit=unit).clip_bias(bias)
            off = codes - wanted
            error = np.einsum("ok,ok->o", off @ one.covariance, off) * step**2
            fits.append(
                Fit(
                    codes=codes.astype(np.int64),
                    bias=bias.astype(np.int64),
                    scale=np.full(len(wanted), step),
                    error=error,
                )
            )
        if not best or _total(fits) < _total(best):
            best = fits
    return best


def _total(fits: Sequence[Fit]) -> float:
    return sum(float(fit.error.sum()) for fit in fits)
