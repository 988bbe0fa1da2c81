"""Integer weights of one layer whose accumulators fit: projection, rounding, compensation.

A layer computes ``y = W x + b`` of real inputs; the hardware has ``s * (q xq + c)`` of the inputs'
codes ``xq``, an integer matrix ``q`` and integer biases ``c``. On calibration samples the mean of
the difference goes into ``c``; its variance is ``(s q - V) H (s q - V)^T`` plus a constant, where
``H`` is the covariance of ``xq`` and ``V`` the least-squares map from ``xq`` to ``y``. So rounding
errors of one weight are made up for by the others (as in OPTQ, Frantar et al. 2023), under a bound
on the sums of the positive and of the negative codes (A2Q and A2Q+, Colbert et al. 2023 and 2024,
bound the sum of magnitudes; with inputs that are never negative the two sums count on their own,
which is up to twice as tight, and centring the weights, A2Q+, comes out where it helps).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quant.methods.accumulator_project import Real, project, shrink_round

__all__ = [
    "BIAS_BITS",
    "QUICK",
    "Effort",
    "Fit",
    "Limits",
    "Moments",
    "bias_unit",
    "descend",
    "fit_codes",
    "moments",
]

RIDGE = 0.01
"""Added to the diagonal of a covariance, relative to its mean: samples are few."""

BIAS_BITS = 16
"""Most bits of a stored bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to look for the best integers.

    Parameters
    ----------
    steps : int
        Of the projected gradient.
    sweeps : int
        Of the coordinate descent.
    rounds : int
        Biases and the budgets that they leave are found in turn, so many times at most.
    """

    steps: int = 30
    sweeps: int = 4
    rounds: int = 3


QUICK = Effort(steps=12, sweeps=1, rounds=1)
"""To compare scales."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """What samples tell of a group of channels.

    Parameters
    ----------
    target : float64 array ``(out, taps)``
        ``V``: real output for an input code of 1.
    covariance : float64 array ``(taps, taps)``
        ``H``, of input codes; positive definite.
    mean_codes : float64 array ``(taps,)``
        Mean input codes.
    mean_out : float64 array ``(out,)``
        Mean real outputs, bias included.
    """

    target: Real = field(repr=False)
    covariance: Real = field(repr=False)
    mean_codes: Real = field(repr=False)
    mean_out: Real = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What integer weights and biases must keep to.

    Parameters
    ----------
    low, high : int
        Smallest and largest code of a weight.
    input_low, input_high : int
        Smallest (at most 0) and largest (at least 0) code of the input.
    acc_low, acc_high : int or None
        Interval of accumulators, for any input; None: no bound.
    bias_low, bias_high : int
        Smallest and largest integer bias.
    bias_unit : int
        Biases are multiples of it: wide ones are stored without their lowest bits.
    """

    low: int
    high: int
    input_low: int
    input_high: int
    acc_low: int | None
    acc_high: int | None
    bias_low: int
    bias_high: int
    bias_unit: int = 1

    def clip_bias(self, bias: Real, low: Real | None = None, high: Real | None = None) -> Real:
        """The nearest biases that may be, within ``low`` and ``high`` too."""
        unit = self.bias_unit
        first: Real = np.full(bias.shape, float(self.bias_low))
        last: Real = np.full(bias.shape, float(self.bias_high))
        if self.acc_low is not None and self.acc_high is not None:
            first, last = np.maximum(first, self.acc_low), np.minimum(last, self.acc_high)
        if low is not None and high is not None:
            first, last = np.maximum(first, low), np.minimum(last, high)
        first, last = np.ceil(first / unit) * unit, np.floor(last / unit) * unit
        found: Real = np.clip(np.floor(bias / unit + 0.5) * unit, first, last)
        return found

    def budgets(self, bias: Real) -> tuple[Real, Real, bool]:
        """Largest sums of positive codes and of magnitudes of negative ones, for integer biases.

        Returns
        -------
        positive, negative : float64 arrays
            In the shape of ``bias``; infinite without a bound.
        joint : bool
            Whether both sums share one budget: inputs of both signs.
        """
        if self.acc_low is None or self.acc_high is None:
            free = np.full(bias.shape, np.inf)
            return free, free, False
        up, down = np.maximum(self.acc_high - bias, 0), np.maximum(bias - self.acc_low, 0)
        far = max(self.input_high, 1)
        if self.input_low == 0:
            return np.floor(up / far), np.floor(down / far), False
        both = np.floor(np.minimum(up, down) / max(far, -self.input_low))
        return both, both, True

    def room(self, codes: Real) -> tuple[Real, Real]:
        """Smallest and largest integer biases that codes ``(..., taps)`` leave."""
        low = np.full(codes.shape[:-1], float(self.bias_low))
        high = np.full(codes.shape[:-1], float(self.bias_high))
        if self.acc_low is None or self.acc_high is None:
            return low, high
        plus, minus = np.maximum(codes, 0).sum(-1), np.maximum(-codes, 0).sum(-1)
        top = plus * self.input_high - minus * self.input_low
        bottom = plus * self.input_low - minus * self.input_high
        return np.maximum(low, self.acc_low - bottom), np.minimum(high, self.acc_high - top)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Integer weights and biases.

    Parameters
    ----------
    codes : int64 array ``(out, taps)``
    bias : int64 array ``(out,)``
        At the accumulator's scale.
    scale : float64 array ``(out,)``
        What 1 in the accumulator stands for.
    error : float64 array ``(out,)``
        Mean square of what the rounding adds to the real outputs, per channel.
    """

    codes: NDArray[np.int64] = field(repr=False)
    bias: NDArray[np.int64] = field(repr=False)
    scale: Real
    error: Real


def moments(
    weight: Real,
    bias: Real,
    inputs: Real,
    codes: Real,
    unit: Real,
    *,
    compensate: bool = True,
) -> Moments:
    """Moments of samples.

    Parameters
    ----------
    weight : float64 array ``(out, taps)``
        Real weights, for real inputs.
    bias : float64 array ``(out,)``
    inputs : float array ``(samples, taps)``
        Real inputs of the float network.
    codes : float array ``(samples, taps)``
        Their codes, or those that the integer network has there.
    unit : float64 array ``(taps,)``
        Real value of a code of 1.
    compensate : bool
        Whether the target makes up for the inputs' errors; else it is the weights.
    """
    mean_in = inputs.mean(0, dtype=np.float64)
    mean_codes = codes.mean(0, dtype=np.float64)
    centred = (codes - mean_codes.astype(codes.dtype)).astype(np.float32)
    real = (inputs - mean_in.astype(inputs.dtype)).astype(np.float32)
    count = len(codes)
    covariance = (centred.T @ centred).astype(np.float64) / count
    mixed = (real.T @ centred).astype(np.float64) / count  # (taps of inputs, taps of codes)
    ridge = RIDGE * float(np.diag(covariance).mean()) + 1e-9
    covariance[np.diag_indices_from(covariance)] += ridge
    direct = weight * unit
    # Least squares, drawn to the weights themselves where samples say nothing.
    target = direct
    if compensate:
        rest = weight @ mixed - direct @ covariance + ridge * direct
        target = direct + np.linalg.solve(covariance, rest.T).T
    return Moments(
        target=target,
        covariance=covariance,
        mean_codes=mean_codes,
        mean_out=weight @ mean_in + bias,
    )


def _relax(
    wanted: Real,
    covariance: Real,
    positive: Real,
    negative: Real,
    joint: bool,
    steps: int,
) -> tuple[Real, Real, Real]:
    """Real codes of the least error within the budgets, and the prices of the two budgets."""
    point, price = wanted, np.zeros(len(wanted), dtype=wanted.dtype)
    plus, minus = np.maximum(wanted, 0).sum(1), np.maximum(-wanted, 0).sum(1)
    over = plus + minus > positive if joint else (plus > positive) | (minus > negative)
    prices = price, price.copy()
    if not over.any():
        return point, *prices
    goal, p, n = wanted[over], positive[over], negative[over]
    step = np.float32(1 / _largest(covariance))
    z = ahead = project(goal, p, n, joint=joint)
    momentum = 1.0
    for _ in range(steps):  # FISTA (Beck and Teboulle 2009)
        new = project(ahead - step * ((ahead - goal) @ covariance), p, n, joint=joint)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + np.float32((momentum - 1) / following) * (new - z)
        z, momentum = new, following
    pull = (goal - z) @ covariance  # where a code is in use its price is what it would gain
    for place, used in ((0, z > 1e-6), (1, z < -1e-6)):
        gain = np.where(used, np.abs(pull), 0).sum(1) / np.maximum(used.sum(1), 1)
        prices[place][over] = gain
    point = wanted.copy()
    point[over] = z
    return point, *prices


def _largest(covariance: Real) -> float:
    """About the largest eigenvalue, and not below it."""
    x = np.ones(len(covariance), dtype=covariance.dtype)
    size = 1.0
    for _ in range(30):
        x = covariance @ x
        size = float(np.linalg.norm(x))
        x = x / np.float32(size)
    return 1.05 * size


def descend(
    codes: Real,
    wanted: Real,
    covariance: Real,
    budgets: tuple[Real, Real],
    prices: tuple[Real, Real],
    *,
    low: int,
    high: int,
    joint: bool = False,
    sweeps: int,
) -> Real:
    """Coordinate descent over integers within budgets, all rows at once.

    Least ``(q - wanted) H (q - wanted)^T / 2 + price of each unit of |q|``, tap after tap; a price
    keeps the budget open for those taps that need it most.

    Parameters
    ----------
    codes : float array ``(rows, taps)``
        Integers to start from, within the budgets.
    wanted : float array ``(rows, taps)``
    covariance : float array ``(taps, taps)``
    budgets, prices : pairs of float arrays ``(rows,)``
        Of the positive and of the negative codes.
    low, high, joint
        As in :func:`shrink_round`.
    """
    q = codes.copy()
    slope = (q - wanted) @ covariance
    plus, minus = np.maximum(q, 0).sum(1), np.maximum(-q, 0).sum(1)
    diagonal = np.diag(covariance)
    order = np.argsort(-diagonal, kind="stable")
    for _ in range(sweeps):
        moved = 0
        for k in order:
            old = q[:, k]
            best = old - slope[:, k] / diagonal[k]
            up, down = prices[0] / diagonal[k], prices[1] / diagonal[k]
            best = np.where(best > 0, np.maximum(best - up, 0), np.minimum(best + down, 0))
            best = np.floor(best + 0.5)
            now_up, now_down = np.maximum(old, 0), np.maximum(-old, 0)
            if joint:
                free = budgets[0] - plus - minus + now_up + now_down
                best = np.minimum(np.maximum(best, -free), free)
            else:
                best = np.minimum(best, budgets[0] - plus + now_up)
                best = np.maximum(best, minus - now_down - budgets[1])
            best = np.minimum(np.maximum(best, low), high)
            delta = best - old
            changed = np.flatnonzero(delta)
            if len(changed) == 0:
                continue
            moved += len(changed)
            plus += np.maximum(best, 0) - now_up
            minus += np.maximum(-best, 0) - now_down
            q[:, k] = best
            slope[changed] += delta[changed, None] * covariance[k]
        if moved == 0:
            break
    return q


def bias_unit(bias: Real) -> int:
    """Power of two that integer biases must be multiples of to be stored in 16 bits."""
    far = int(np.abs(bias).max())
    return 1 if far < 1 << (BIAS_BITS - 1) else 1 << (far.bit_length() - BIAS_BITS + 2)


def fit_codes(known: Moments, scales: Real, limits: Limits, effort: Effort) -> Fit:
    """Integer weights and biases at given scales.

    Wide biases are multiples of a power of two, so that they are stored in few bits.

    Parameters
    ----------
    known : Moments
        Of ``out`` channels.
    scales : float64 array ``(out,)``
        What 1 in the accumulator stands for.
    limits : Limits
    effort : Effort
    """
    wanted = known.target / scales[:, None]
    level = known.mean_out / scales
    fine, covariance = wanted.astype(np.float32), known.covariance.astype(np.float32)

    def biases(q: Real) -> Real:
        return np.floor(level - q @ known.mean_codes + 0.5)

    bias = biases(wanted)
    limits = replace(limits, bias_unit=bias_unit(limits.clip_bias(bias)))
    active = np.arange(len(wanted))  # rows whose bias leaves less than their weights take
    codes = np.zeros_like(fine)
    for _ in range(effort.rounds):
        codes[active] = _integers(
            fine[active], covariance, limits, limits.clip_bias(bias[active]), effort
        )
        bias = biases(codes)
        low, high = limits.room(codes)
        wished = limits.clip_bias(bias)
        active = np.flatnonzero((wished < low) | (wished > high))
        if len(active) == 0:
            break
    low, high = limits.room(codes)
    kept = limits.clip_bias(bias, low, high)
    off = codes - fine
    error = np.einsum("ok,ok->o", off @ covariance, off).astype(np.float64)
    error = (error + (kept - (level - codes @ known.mean_codes)) ** 2) * scales**2
    return Fit(codes=codes.astype(np.int64), bias=kept.astype(np.int64), scale=scales, error=error)


def _integers(wanted: Real, covariance: Real, limits: Limits, bias: Real, effort: Effort) -> Real:
    """Integer weights for integer biases."""
    positive, negative, joint = limits.budgets(bias)
    positive, negative = positive.astype(wanted.dtype), negative.astype(wanted.dtype)
    point, *prices = _relax(wanted, covariance, positive, negative, joint, effort.steps)
    start = shrink_round(point, positive, negative, low=limits.low, high=limits.high, joint=joint)
    return descend(
        start,
        wanted,
        covariance,
        (positive, negative),
        (prices[0], prices[1]),
        low=limits.low,
        high=limits.high,
        joint=joint,
        sweeps=effort.sweeps,
    )
