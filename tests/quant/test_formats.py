"""Choosing fixed-point formats."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import Fixed
from quant.formats import Calibration, choose_format, decode, quantize_to

FLOATS = st.floats(-1e6, 1e6).map(lambda v: 0.0 if abs(v) < 1e-12 else v)
VALUES = st.lists(FLOATS, min_size=1, max_size=20).map(np.array)


def choose(values: NDArray[np.float64], width: int, calibration: Calibration, **more: Any) -> Fixed:
    signed = bool(more.pop("signed", True))
    return choose_format(
        values, width=width, signed=signed, calibration=calibration, what="the test", **more
    )


def squared_error(values: NDArray[np.float64], form: Fixed) -> float:
    return float(((decode(quantize_to(values, form), form) - values) ** 2).sum())


def saturates(values: NDArray[np.float64], form: Fixed) -> bool:
    """Whether a value lies more than half a step beyond the codes; exact."""
    codes = [Fraction(float(v)) * Fraction(2) ** form.frac for v in values]
    half = Fraction(1, 2)
    return any(c > form.high + half or c < form.low - half for c in codes)


@given(FLOATS, st.integers(1, 16), st.integers(-12, 24), st.booleans())
def test_codes_are_the_nearest(value: float, width: int, frac: int, signed: bool) -> None:
    form = Fixed(width=width, frac=frac, signed=signed)
    exact = Fraction(value) * Fraction(2) ** frac
    expected = min(max(floor(exact + Fraction(1, 2)), form.low), form.high)
    assert quantize_to(np.array([value]), form).tolist() == [expected]
    assert decode(np.array([expected]), form)[0] == expected * 2.0**-frac


@given(VALUES, st.integers(1, 16), st.booleans())
def test_max_is_the_finest_without_saturation(
    values: NDArray[np.float64], width: int, signed: bool
) -> None:
    if not signed:
        values = np.abs(values)
    form = choose(values, width, Calibration.MAX, signed=signed)
    assert (form.width, form.signed) == (width, signed)
    assert not saturates(values, form)
    finer = Fixed(width=width, frac=form.frac + 1, signed=signed)
    assert saturates(values, finer) or not values.any()


@pytest.mark.parametrize("width", [1, 2, 8, 16])
def test_half_a_step_beyond_the_last_code_does_not_saturate(width: int) -> None:
    low = -(2 ** (width - 1)) - 0.5
    assert choose(np.array([low]), width, Calibration.MAX).frac == 0
    assert choose(np.array([low - 1e-6]), width, Calibration.MAX).frac == -1
    high = 2**width - 0.5
    assert choose(np.array([high]), width, Calibration.MAX, signed=False).frac == 0
    assert choose(np.array([high + 1e-6]), width, Calibration.MAX, signed=False).frac == -1


@given(VALUES, st.integers(1, 16))
def test_unsigned_formats_look_at_positive_values_only(
    values: NDArray[np.float64], width: int
) -> None:
    form = choose(values, width, Calibration.MAX, signed=False)
    assert form == choose(np.maximum(values, 0), width, Calibration.MAX, signed=False)


@given(VALUES, st.integers(1, 16), st.booleans())
def test_least_squares_is_never_worse_than_max(
    values: NDArray[np.float64], width: int, signed: bool
) -> None:
    best = choose(values, width, Calibration.MSE, signed=signed)
    widest = choose(values, width, Calibration.MAX, signed=signed)
    assert squared_error(values, best) <= squared_error(values, widest)


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "standard_t"])
@pytest.mark.parametrize("width", range(1, 9))
def test_least_squares_finds_the_best_of_all(draw: str, width: int) -> None:
    rng = np.random.default_rng(width)
    values = rng.standard_t(3, 4000) if draw == "standard_t" else getattr(rng, draw)(size=4000)
    form = choose(values, width, Calibration.MSE)
    every = [Fixed(width=width, frac=f, signed=True) for f in range(-20, 40)]
    assert squared_error(values, form) == min(squared_error(values, f) for f in every)


def test_the_search_goes_on_behind_a_small_rise() -> None:
    errors = {0: 1.0, 1: 1.5, 2: 0.5, 3: 9.0, 4: 0.1}
    form = choose(np.array([-128.0]), 8, Calibration.MSE, error=lambda f: errors[f.frac])
    assert form.frac == 2  # and ends where hopeless


def test_percentile_leaves_out_the_rarest() -> None:
    values = np.append(np.linspace(-1, 1, 50_000), [1000.0, -1000.0])
    form = choose(values, 8, Calibration.PERCENTILE)
    assert form.frac == 6  # ±1 without saturation, to half a step
    assert choose(values, 8, Calibration.MAX).frac == -3
    kept = np.abs(values) <= 127.5 / 64
    assert kept.mean() > 0.9999


def test_percentile_of_almost_only_zeros_keeps_the_rest() -> None:
    values = np.zeros(100_000)
    values[0] = 5.0
    assert choose(values, 8, Calibration.PERCENTILE) == choose(values, 8, Calibration.MAX)


def test_sampled_values_with_known_extremes() -> None:
    values = np.linspace(-1, 1, 100)
    wide = choose(values, 8, Calibration.MAX, extremes=(-1.0, 100.0))
    assert wide.frac == 0
    assert choose(values, 8, Calibration.MSE, extremes=(-1.0, 100.0)).frac > 4


@pytest.mark.parametrize("calibration", Calibration)
@pytest.mark.parametrize("width", [1, 2, 16])
def test_zeros_have_a_format(calibration: Calibration, width: int) -> None:
    form = choose(np.zeros(3), width, calibration)
    assert not quantize_to(np.zeros(3), form).any()


def test_one_signed_bit_is_minus_one_or_zero() -> None:
    values = np.array([-0.25, -0.25, 0.01, 0.0])
    form = choose(values, 1, Calibration.MSE)
    assert decode(quantize_to(values, form), form).tolist() == [-0.25, -0.25, 0.0, 0.0]
    # What is positive has no code; a range wide enough lets it become 0.
    positive = choose(np.array([1.0, 2.0, 3.0]), 1, Calibration.MSE)
    assert quantize_to(np.array([1.0, 2.0, 3.0]), positive).tolist() == [0, 0, 0]


@pytest.mark.parametrize("calibration", Calibration)
def test_no_finer_than_asked(calibration: Calibration) -> None:
    form = choose(np.array([1e-9, -1e-9]), 8, calibration, finest=20)
    assert form.frac == 20
    assert choose(np.array([1.0, -1.0]), 8, calibration, finest=20).frac < 10


@pytest.mark.parametrize("width", [0, -1, 17, 33])
def test_width_out_of_range(width: int) -> None:
    with pytest.raises(BadInput, match=f"the width of the test must be 1 to 16 bits, not {width}"):
        choose(np.ones(1), width, Calibration.MAX)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    with pytest.raises(BadInput, match="the test must be finite"):
        choose(np.array([1.0, value]), 8, Calibration.MSE)
