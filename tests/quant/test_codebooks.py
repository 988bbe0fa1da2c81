"""Scalar quantisers against exhaustive search and their own conditions of optimality."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwgen.errors import BadInput
from quant.codebooks import (
    best_step,
    bin_means,
    bins_of,
    code_range,
    covering_step,
    integer_entries,
    kmeans_exact,
    least_squares_step,
    lloyd_max,
    midpoints,
    power_of_two_step,
    spread_levels,
    uniform_codes,
)

NORMAL = np.random.default_rng(0).standard_normal((40, 25))


def _error(part: list[float]) -> float:
    return float(((np.array(part) - np.mean(part)) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=9),
    count=st.integers(1, 5),
)
def test_exact_clusters_are_the_best_of_all_cuts(values: list[int], count: int) -> None:
    ordered = sorted(float(v) for v in values)
    fewest = min(count, len(ordered))
    best = min(
        sum(_error(ordered[a:b]) for a, b in zip((0, *cuts), (*cuts, len(ordered)), strict=True))
        for cuts in combinations(range(1, len(ordered)), fewest - 1)
    )
    found = kmeans_exact(np.array(ordered), count)
    assert found.error == pytest.approx(best, abs=1e-9)
    assert len(found.levels) <= count
    assert (np.diff(found.levels) > 0).all()


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 300), count=st.integers(1, 20), seed=st.integers(0, 5))
def test_exact_clusters_never_lose_to_lloyd_max(size: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size)
    found = lloyd_max(values, rng.choice(values, count))
    exact = kmeans_exact(values, count)
    assert exact.error <= found.error * (1 + 1e-9) + 1e-12
    again = lloyd_max(values, exact.levels)  # an optimum is a fixed point
    assert again.error == pytest.approx(exact.error, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_plain_dynamic_programme_agrees(count: int) -> None:
    values = np.sort(np.random.default_rng(count).standard_normal(120))
    sums = np.concatenate([[0], np.cumsum(values)])
    squares = np.concatenate([[0], np.cumsum(values**2)])

    def error(a: int, b: int) -> float:
        return float(squares[b] - squares[a] - (sums[b] - sums[a]) ** 2 / (b - a))

    least = [error(0, i) for i in range(1, 121)]
    for number in range(1, count):
        least = [
            min((least[j - 1] + error(j, i + 1) for j in range(number, i + 1)), default=0.0)
            for i in range(120)
        ]
    assert kmeans_exact(values, count).error == pytest.approx(least[-1], rel=1e-9)


def test_weights_count_like_repeated_values() -> None:
    rng = np.random.default_rng(7)
    values, times = rng.standard_normal(60), rng.integers(1, 5, 60)
    repeated, weights = np.repeat(values, times), times.astype(np.float64)
    exact = kmeans_exact(values, 6, weights=weights)
    assert exact.levels == pytest.approx(kmeans_exact(repeated, 6).levels)
    found = lloyd_max(values, values[:5], weights=weights)
    assert found.levels == pytest.approx(lloyd_max(repeated, values[:5]).levels)
    bins = exact.bins(values)
    assert bin_means(values, bins, 6, weights=weights) == pytest.approx(exact.levels)


def test_lloyd_max_reaches_a_fixed_point_and_the_known_normal_levels() -> None:
    values = np.random.default_rng(3).standard_normal(400_000)
    found = lloyd_max(values, spread_levels(values, 4))
    assert found.levels == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=0.01)  # Max 1960
    bins = found.bins(values)
    assert bin_means(values, bins, 4) == pytest.approx(found.levels, abs=1e-9)
    assert found.error == pytest.approx(((found.levels[bins] - values) ** 2).sum(), rel=1e-9)


def test_an_empty_cluster_is_dropped() -> None:
    found = lloyd_max(np.array([0.0, 1.0, 1.0, 2.0]), np.array([1.0, 90.0, 80.0]))
    assert found.levels.tolist() == [1.0]
    assert lloyd_max(np.array([5.0]), np.array([0.0, 1.0])).levels.tolist() == [5.0]


def test_clip_without_saturation_and_with_the_least_error() -> None:
    low, high = code_range(4)
    assert (low, high) == (-8, 7)
    widest = covering_step(NORMAL, high)
    assert np.abs(NORMAL / widest).max() == pytest.approx(7)
    best = best_step(NORMAL, low, high)

    def error(step: float) -> float:
        return float(((uniform_codes(NORMAL, step, low, high) * step - NORMAL) ** 2).sum())

    tried = [error(step) for step in np.linspace(0.02, 1.05, 2000) * widest]
    assert error(best) <= min(tried) * 1.002
    assert error(best) < error(widest)
    codes = uniform_codes(NORMAL, best, low, high)
    assert low <= codes.min() <= codes.max() <= high
    fitted = least_squares_step(NORMAL, codes)
    assert ((codes * fitted - NORMAL) ** 2).sum() <= error(best)
    assert best_step(NORMAL, low, high, error=lambda step: step) < widest * 0.03


def test_ties_go_up() -> None:
    assert uniform_codes(np.array([-1.5, -0.5, 0.5, 1.5, 9.0]), 1.0, -2, 1).tolist() == [
        -1,
        0,
        1,
        1,
        1,
    ]


def test_bins_entries_and_means() -> None:
    boundaries = midpoints(np.array([-2.0, 0.0, 1.0, 4.0]))
    assert boundaries.tolist() == [-1.0, 0.5, 2.5]
    bins = bins_of(np.array([[-3.0, -1.0], [0.5, 2.0]]), boundaries)
    assert bins.tolist() == [[0, 1], [2, 2]]
    means = bin_means(np.array([[-3.0, -1.0], [0.5, 2.0]]), bins, 4)
    assert means[:3].tolist() == [-3.0, -1.0, 1.25]
    assert np.isnan(means[3])
    assert integer_entries(means, 0.5, 3).tolist() == [-4, -2, 3, 0]
    assert [power_of_two_step(s) for s in (0.25, 0.26, 0.5)] == [0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: kmeans_exact(np.array([]), 2), "at least one value"),
        (lambda: kmeans_exact(np.array([np.nan]), 2), "finite"),
        (lambda: kmeans_exact(NORMAL, 0), "at least 1 cluster"),
        (lambda: lloyd_max(NORMAL, np.array([])), "at least one level"),
        (lambda: kmeans_exact(NORMAL, 2, weights=0 * NORMAL), "positive, finite weight"),
    ],
)
def test_what_cannot_be_clustered_is_refused(call: object, part: str) -> None:
    with pytest.raises(BadInput, match=part):
        call()  # type: ignore[operator]


def test_zeros_have_a_step() -> None:
    zeros = np.zeros(4)
    assert covering_step(zeros, 7) == best_step(zeros, -8, 7) == 1.0
    assert least_squares_step(zeros, zeros.astype(np.int64)) == 0.0
