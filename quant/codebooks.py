"""Scalar quantisers: uniform steps, Lloyd-Max, exact one-dimensional k-means, integer codebooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir.ops.base import Codes
from quant.formats import Floats

__all__ = [
    "Clusters",
    "best_step",
    "bin_means",
    "bins_of",
    "code_range",
    "covering_step",
    "integer_entries",
    "kmeans_exact",
    "least_squares_step",
    "lloyd_max",
    "midpoints",
    "power_of_two_step",
    "spread_levels",
    "uniform_codes",
]

COARSEST = 1.05
"""Where the search for the best step begins, as a multiple of the step without saturation."""
FINEST = 0.02
"""Where it ends."""
STEPS = 64
"""Steps between the two that it tries, in a geometric row; then it refines around the best."""


def code_range(width: int) -> tuple[int, int]:
    """Lowest and highest signed code of ``width`` bits."""
    return -(1 << (width - 1)), (1 << (width - 1)) - 1


def uniform_codes(values: Floats, step: float, low: int, high: int) -> Codes:
    """Codes of ``values``, each standing for a multiple of ``step``: nearest, ties up, saturated.

    Parameters
    ----------
    values : float64 array
        Any shape.
    step : float
        Positive.
    low, high : int
        Range of the codes.
    """
    return np.clip(np.floor(values / step + 0.5), low, high).astype(np.int64)


def covering_step(values: Floats, high: int) -> float:
    """The step at which the largest magnitude has the code ``high``: the range without saturation.

    1.0 where all values are 0.
    """
    top = float(np.abs(values).max(initial=0.0))
    return top / high if top else 1.0


def least_squares_step(values: Floats, codes: Codes) -> float:
    """The step with the least squared error for given codes; 0.0 where they fit no positive one."""
    power = float(np.vdot(codes, codes))
    return max(0.0, float(np.vdot(values, codes)) / power) if power else 0.0


def best_step(
    values: Floats,
    low: int,
    high: int,
    *,
    error: Callable[[float], float] | None = None,
) -> float:
    """The step of the uniform quantiser with the least error, saturation included.

    A geometric row of steps, then three rows around the best of the row before.

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    low, high : int
        Range of the codes, ``low <= 0 < high``.
    error : callable, optional
        What is made least, of a step; by default the squared error of ``values``.

    Returns
    -------
    float
        Never one of a greater error than that of :func:`covering_step`.
    """
    widest = covering_step(values, high)
    if not np.abs(values).max(initial=0.0):
        return widest

    def squared(step: float) -> float:
        difference = uniform_codes(values, step, low, high) * step - values
        return float(np.vdot(difference, difference))

    cost = error or squared
    steps = np.geomspace(widest * COARSEST, widest * FINEST, STEPS)
    ratio = steps[1] / steps[0]
    best, least = widest, cost(widest)
    for _ in range(4):
        for step in steps.tolist():
            other = cost(step)
            if other < least:
                best, least = step, other
        steps = best * ratio ** np.linspace(-0.75, 0.75, 7)
        ratio **= 0.25
    return best


def power_of_two_step(step: float) -> float:
    """The least power of two that is not below ``step`` (by more than rounding errors)."""
    return float(2.0 ** np.ceil(np.log2(step) - 1e-9))


def midpoints(levels: Floats) -> Floats:
    """Boundaries ``(k - 1,)`` between rising levels ``(k,)``: every value goes to the nearest."""
    return (levels[1:] + levels[:-1]) / 2


def bins_of(values: Floats, boundaries: Floats) -> Codes:
    """The bin of each value, 0 to ``len(boundaries)``: how many boundaries are not above it.

    Parameters
    ----------
    values : float64 array
        Any shape.
    boundaries : float64 array
        ``(k - 1,)``, never falling.
    """
    return np.searchsorted(boundaries, values, side="right").astype(np.int64)


def bin_means(values: Floats, bins: Codes, count: int, *, weights: Floats | None = None) -> Floats:
    """Mean of the values in each of ``count`` bins, ``(count,)``; NaN in an empty one.

    ``weights``: positive, in the shape of ``values``; all alike by default.
    """
    flat, each = bins.reshape(-1), None if weights is None else weights.reshape(-1)
    number = np.bincount(flat, weights=each, minlength=count)
    terms = values if weights is None else values * weights
    total = np.bincount(flat, weights=terms.reshape(-1), minlength=count)
    means: Floats = np.full(count, np.nan)
    np.divide(total, number, out=means, where=number > 0)
    return means


def integer_entries(levels: Floats, step: float, width: int) -> Codes:
    """Signed codes of ``width`` bits for levels, each a multiple of ``step``; NaN (empty) gives 0.

    Rising levels give codes that never fall, but may repeat: a codebook is their ``np.unique``.
    """
    low, high = code_range(width)
    return uniform_codes(np.nan_to_num(levels), step, low, high)


def spread_levels(values: Floats, count: int) -> Floats:
    """Levels that follow the values' density to the power 1/3: where Lloyd-Max does well to start.

    That is the density of the best levels as their number grows (Panter and Dite, 1951).

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    count : int
        Levels, at least 1.
    """
    density, edges = np.histogram(values, bins=max(64, 8 * count))
    reach = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    places = (np.arange(count) + 0.5) / count * reach[-1]
    levels: Floats = np.interp(places, reach, edges)
    return levels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """Levels of a scalar quantiser.

    Parameters
    ----------
    levels : float64 array
        ``(k,)``, rising: the mean of each cluster. Fewer than were asked for where there are fewer
        distinct values, or where a cluster came out empty.
    error : float
        Within-cluster sum of squares.
    rounds : int
        Iterations that were needed; 0 for :func:`kmeans_exact`.
    """

    levels: Floats = field(repr=False)
    error: float
    rounds: int = 0

    @property
    def boundaries(self) -> Floats:
        """Between neighbouring levels, ``(k - 1,)``."""
        return midpoints(self.levels)

    def bins(self, values: Floats) -> Codes:
        """The cluster of each value."""
        return bins_of(values, self.boundaries)


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Distinct values in rising order and running sums, so that any range costs O(1).

    ``count``, ``first`` and ``second`` are (weighted) sums of 1, v and v*v below each place, of values less
    their mean, which keeps the differences exact enough.
    """

    distinct: Floats
    mean: float
    count: Floats
    first: Floats
    second: Floats

    @classmethod
    def of(cls, values: Floats, weights: Floats | None = None) -> _Sums:
        flat = np.asarray(values, dtype=np.float64).reshape(-1)
        if flat.size == 0 or not np.isfinite(flat).all():
            raise BadInput("clustering needs at least one value, all of them finite")
        each = np.ones(flat.size) if weights is None else weights.reshape(-1)
        if each.shape != flat.shape or not (np.isfinite(each) & (each > 0)).all():
            raise BadInput("clustering needs a positive, finite weight for each value, or none")
        distinct, place = np.unique(flat, return_inverse=True)
        number = np.bincount(place.reshape(-1), weights=each)
        mean = float(np.average(flat, weights=each))
        centred = distinct - mean

        def running(terms: NDArray[np.float64]) -> Floats:
            return np.concatenate([[0.0], np.cumsum(terms)])

        return cls(
            distinct,
            mean,
            running(number.astype(np.float64)),
            running(number * centred),
            running(number * centred**2),
        )

    def error(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Floats:
        """Sum of squares about the mean of the places ``start`` to ``stop - 1``, at least one."""
        first = self.first[stop] - self.first[start]
        count = self.count[stop] - self.count[start]
        return np.maximum(self.second[stop] - self.second[start] - first * first / count, 0.0)

    def clusters(self, cuts: NDArray[np.int64], rounds: int) -> Clusters:
        """The clusters between cuts ``(k + 1,)``: places from 0 to the number of values."""
        cuts = np.unique(cuts)
        start, stop = cuts[:-1], cuts[1:]
        first = self.first[stop] - self.first[start]
        levels = first / (self.count[stop] - self.count[start]) + self.mean
        error = float(self.error(start, stop).sum())
        return Clusters(levels=levels, error=error, rounds=rounds)


def lloyd_max(
    values: Floats, start: Floats, *, rounds: int = 1000, weights: Floats | None = None
) -> Clusters:
    """Lloyd's algorithm for scalars (Lloyd 1957, Max 1960), from given levels to a fixed point.

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    start : float64 array
        ``(k,)`` levels in any order.
    rounds : int
        Most iterations.
    weights : float64 array, optional
        As in :func:`kmeans_exact`.

    Returns
    -------
    Clusters
        An empty cluster stays where it is until values come in, and is dropped at the end.

    Raises
    ------
    BadInput
        If there are no values or no levels, or one is not finite.
    """
    if start.size == 0 or not np.isfinite(start).all():
        raise BadInput("Lloyd's algorithm needs at least one level to start from, all finite")
    sums = _Sums.of(values, weights)
    levels = np.sort(start.astype(np.float64))
    cuts = np.zeros(0, dtype=np.int64)
    done = 0
    while done < rounds:
        done += 1
        places = np.searchsorted(sums.distinct, midpoints(levels), side="left")
        found = np.concatenate([[0], places, [len(sums.distinct)]]).astype(np.int64)
        if np.array_equal(found, cuts):
            break
        cuts = found
        number = sums.count[cuts[1:]] - sums.count[cuts[:-1]]
        total = sums.first[cuts[1:]] - sums.first[cuts[:-1]]
        means = np.divide(total, number, out=np.zeros_like(total), where=number > 0) + sums.mean
        levels = np.sort(np.where(number > 0, means, levels))
    return sums.clusters(cuts, done)


def kmeans_exact(values: Floats, count: int, *, weights: Floats | None = None) -> Clusters:
    """The clusters of scalars with the least within-cluster sum of squares, by dynamic programming.

    The best last cut is monotone in the number of values, so that each added cluster costs
    ``O(n log n)`` by divide and conquer (as in Ckmeans.1d.dp: Wang and Song 2011, Song and Zhong
    2020). Exact but for the rounding of float64 sums.

    Parameters
    ----------
    values : float64 array
        Any shape, at least one entry.
    count : int
        Clusters, at least 1.
    weights : float64 array, optional
        Of the squared errors, in the shape of ``values``, positive; all alike by default.

    Raises
    ------
    BadInput
        If there are no values, one is not finite, a weight is not positive, or ``count`` is below
        1.
    """
    if count < 1:
        raise BadInput(f"there must be at least 1 cluster, not {count}")
    sums = _Sums.of(values, weights)
    size = len(sums.distinct)
    if count >= size:
        return sums.clusters(np.arange(size + 1), 0)
    stops = np.arange(1, size + 1)
    least = sums.error(np.zeros(size, dtype=np.int64), stops)
    cuts = np.zeros((count, size), dtype=np.int32)  # where the last cluster of values 0..i begins
    for number in range(1, count):
        least, cuts[number] = _one_more(sums, least, number)
    places = [size]
    for number in range(count - 1, 0, -1):
        places.append(int(cuts[number, places[-1] - 1]))
    return sums.clusters(np.array([*places, 0], dtype=np.int64), 0)


def _one_more(sums: _Sums, least: Floats, number: int) -> tuple[Floats, NDArray[np.int32]]:
    """Least errors of values ``0..i`` in one cluster more than ``least`` has, and the last cuts.

    ``number`` is how many clusters ``least`` has: places below it have too few values, and stay at
    an error of 0 with every value a cluster of its own.
    """
    size = len(least)
    cut = np.arange(size, dtype=np.int64)
    result = np.zeros(size)
    stride = 1 << max(0, (size - 1).bit_length())
    while stride:
        # Places whose neighbours at this distance are done; their cuts bound the cut between.
        places = np.arange(stride - 1, size, 2 * stride)
        places = places[places >= number]
        left, right = places - stride, places + stride
        low = np.where(left >= 0, cut[np.maximum(left, 0)], 0)
        low = np.maximum(low, number)
        high = np.where(right < size, cut[np.minimum(right, size - 1)], size)
        high = np.maximum(np.minimum(high, places), low)
        _best_cuts(sums, least, places, low, high, result, cut)
        stride //= 2
    return result, cut.astype(np.int32)


def _best_cuts(
    sums: _Sums,
    least: Floats,
    places: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    result: Floats,
    cut: NDArray[np.int64],
) -> None:
    """Fill ``result`` and ``cut`` at ``places``, whose cuts lie within ``low..high``."""
    if not len(places):
        return
    lengths = high - low + 1
    begins = np.cumsum(lengths) - lengths
    tries = np.arange(int(lengths.sum())) - np.repeat(begins - low, lengths)
    cost = least[tries - 1] + sums.error(tries, np.repeat(places + 1, lengths))
    minimum = np.minimum.reduceat(cost, begins)
    hits = np.flatnonzero(cost == np.repeat(minimum, lengths))
    owner = np.searchsorted(begins, hits, side="right") - 1
    cut[places[owner[::-1]]] = tries[hits[::-1]]  # the first hit of each is written last
    result[places] = minimum
