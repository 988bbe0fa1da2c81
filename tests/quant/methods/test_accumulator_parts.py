"""Bounds against brute force, projection and rounding under them, wraps, worst-case inputs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwgen.ir import (
    INPUT,
    Bias,
    Conv,
    Fixed,
    Geometry,
    Linear,
    MacOp,
    Network,
    TensorType,
    Weights,
    mac_interval,
)
from hwgen.ir.ops.base import union_width
from quant import graph as fg
from quant.methods.accumulator_bounds import (
    count_wraps,
    formats_width,
    maximal_pairs,
    needed_width,
    worst_inputs,
    wrapped,
)
from quant.methods.accumulator_fit import (
    Effort,
    Limits,
    descend,
    fit_codes,
    moments,
)
from quant.methods.accumulator_project import project, shrink_round
from quant.methods.accumulator_samples import best_clips, layer_taps, tie_units
from quant.methods.accumulator_scales import Scales, best_scales
from tests.quant.methods.cosim import check_hardware

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("taps", "data", "weights"), [(1, 1, 2), (2, 2, 2), (2, 3, 3), (3, 2, 2)])
def test_the_width_from_formats_is_exact(taps: int, data: int, weights: int, signed: bool) -> None:
    form, kind = Fixed(width=data, frac=0, signed=signed), Fixed(width=weights, frac=0, signed=True)
    sums = [
        sum(w * x for w, x in zip(ws, xs, strict=True))
        for ws in product(kind.codes, repeat=taps)
        for xs in product(form.codes, repeat=taps)
    ]
    found = formats_width(taps, form, weights)
    assert found == union_width(np.array(sums), np.array(sums))


@given(st.data())
def test_pairs_are_those_that_nothing_widens(data: st.DataObject) -> None:
    grid = {(n, m): data.draw(st.integers(8, 16)) for n in range(1, 5) for m in range(2, 6)}
    pairs = {(p.data, p.weights): p.accumulator for p in maximal_pairs(grid, 12)}
    for (n, m), width in grid.items():
        wider = [grid.get(p, 99) <= 12 for p in ((n + 1, m), (n, m + 1))]
        assert ((n, m) in pairs) == (width <= 12 and not any(wider))
    assert all(grid[pair] == width for pair, width in pairs.items())


def _problem(seed: int, rows: int = 4, taps: int = 6) -> tuple[NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 3, (rows, taps))
    return values, *(rng.integers(0, 12, rows).astype(float) for _ in range(2))


@given(seeds, st.booleans())
def test_projection_is_the_nearest_point_within_the_budgets(seed: int, joint: bool) -> None:
    values, positive, negative = _problem(seed)
    point = project(values, positive, negative, joint=joint)
    plus, minus = np.maximum(point, 0).sum(1), np.maximum(-point, 0).sum(1)
    if joint:
        assert (plus + minus <= positive + 1e-9).all()
    else:
        assert (plus <= positive + 1e-9).all()
        assert (minus <= negative + 1e-9).all()
    # The nearest point of a convex set: no feasible point lies on the other side of it.
    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = project(rng.normal(0, 5, values.shape), positive, negative, joint=joint)
        assert (((values - point) * (other - point)).sum(1) <= 1e-9).all()


@given(seeds, st.booleans())
def test_rounding_keeps_the_budgets_and_shrinks_no_more_than_it_must(
    seed: int, joint: bool
) -> None:
    values, positive, negative = _problem(seed)
    free = np.full(len(values), np.inf)
    nearest = np.sign(values) * np.floor(np.abs(values) + 0.5)
    saturated = shrink_round(values, free, free, low=-3, high=3, joint=joint)
    np.testing.assert_array_equal(saturated, np.clip(nearest, -3, 3))
    codes = shrink_round(values, positive, negative, low=-99, high=99, joint=joint)
    assert (np.abs(codes) <= np.abs(nearest)).all()
    assert (codes * nearest >= 0).all()
    sides = [(np.abs(codes), np.abs(nearest), positive)]
    if not joint:
        parts = ((codes, nearest, positive), (-codes, -nearest, negative))
        sides = [(np.maximum(c, 0), np.maximum(n, 0), b) for c, n, b in parts]
    for mine, full, budget in sides:
        assert (mine.sum(1) <= budget).all()
        # Shrinking grows until the sum fits, a unit at a time: all of the budget is used.
        over = full.sum(1) > budget
        assert (mine.sum(1)[~over] == full.sum(1)[~over]).all()
        assert (mine.sum(1)[over] >= budget[over] - 1e-9).all()


@settings(max_examples=30)
@given(seeds)
def test_descent_keeps_budgets_and_never_rises(seed: int) -> None:
    values, positive, negative = _problem(seed, rows=3, taps=3)
    rng = np.random.default_rng(seed)
    factor = rng.normal(0, 1, (3, 3))
    covariance = factor @ factor.T + 0.1 * np.eye(3)
    start = shrink_round(values, positive, negative, low=-3, high=3)
    none = np.zeros(3)
    end = descend(
        start, values, covariance, (positive, negative), (none, none), low=-3, high=3, sweeps=20
    )

    def error(q: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.einsum("ok,kl,ol->o", q - values, covariance, q - values)

    assert (error(end) <= error(start) + 1e-9).all()
    assert (np.maximum(end, 0).sum(1) <= positive).all()
    assert (np.maximum(-end, 0).sum(1) <= negative).all()
    # No change of one weight that the limits allow is any better.
    for k, step in product(range(3), (-1, 1)):
        other = end.copy()
        other[:, k] += step
        allowed = (
            (np.maximum(other, 0).sum(1) <= positive)
            & (np.maximum(-other, 0).sum(1) <= negative)
            & (np.abs(other) <= 3).all(1)
        )
        assert (error(other)[allowed] >= error(end)[allowed] - 1e-9).all()


def test_descent_finds_the_optimum_of_a_tiny_case() -> None:
    wanted = np.array([[1.4, 1.4, -0.6]])
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    budgets = np.array([4.0]), np.array([1.0])
    start = shrink_round(wanted, *budgets, low=-3, high=3)
    none = np.zeros(1)
    found = descend(start, wanted, covariance, budgets, (none, none), low=-3, high=3, sweeps=9)
    best = min(
        (np.array(q, dtype=float) for q in product(range(-3, 4), repeat=3)),
        key=lambda q: (
            np.inf
            if np.maximum(q, 0).sum() > 4 or np.maximum(-q, 0).sum() > 1
            else (q - wanted[0]) @ covariance @ (q - wanted[0])
        ),
    )
    difference, optimum = found[0] - wanted[0], best - wanted[0]
    assert difference @ covariance @ difference == pytest.approx(optimum @ covariance @ optimum)


@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans(), st.sampled_from(Scales))
def test_fitted_layers_fit_on_every_input(seed: int, signed: bool, scales: Scales) -> None:
    rng = np.random.default_rng(seed)
    form = Fixed(width=2, frac=0, signed=signed)
    codes = rng.integers(form.low, form.high + 1, (200, 3)).astype(np.float32)
    inputs = (codes + rng.normal(0, 0.2, codes.shape)).astype(np.float32)
    known = moments(rng.normal(0, 1, (5, 3)), rng.normal(0, 2, 5), inputs, codes, np.ones(3))
    limits = Limits(
        low=-7,
        high=7,
        input_low=form.low,
        input_high=form.high,
        acc_low=-16,
        acc_high=15,
        bias_low=-16,
        bias_high=15,
    )
    fit = best_scales(known, limits, scales, Effort())
    every = np.array(list(product(form.codes, repeat=3)))
    acc = every @ fit.codes.T + fit.bias
    assert acc.min() >= -16
    assert acc.max() <= 15
    if scales is Scales.SHIFT:
        assert (np.frexp(fit.scale)[0] == 0.5).all()
    # A wider accumulator never makes the fit at given steps worse by much: here, not at all.
    wide = Limits(
        **{name: getattr(limits, name) for name in ("low", "high", "input_low", "input_high")},
        acc_low=None,
        acc_high=None,
        bias_low=-999,
        bias_high=999,
    )
    loose = fit_codes(known, fit.scale, wide, Effort())
    assert loose.error.sum() <= fit.error.sum() * 1.3 + 1e-6


def test_targets_make_up_for_the_errors_of_the_inputs() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(2, 1, (5000, 1))
    inputs = (common + rng.normal(0, 0.5, (5000, 4))).astype(np.float32)
    codes = np.clip(np.floor(inputs + 0.5), 0, 3)  # saturates: codes are too small on average
    weight, bias = rng.normal(0, 1, (2, 4)), rng.normal(0, 1, 2)
    known = moments(weight, bias, inputs, codes, np.ones(4))
    plain = moments(weight, bias, inputs, codes, np.ones(4), compensate=False)
    np.testing.assert_array_equal(plain.target, weight)
    wanted = inputs @ weight.T

    def error(target: NDArray[np.float64]) -> float:
        return float((codes @ target.T - wanted).var(axis=0).sum())

    assert error(known.target) < 0.95 * error(weight)


def test_taps_are_what_a_convolution_multiplies() -> None:
    rng = np.random.default_rng(1)
    node = fg.Conv(
        name="c",
        inputs=(INPUT,),
        weight=rng.normal(size=(3, 2, 3, 2)),
        bias=np.zeros(3),
        stride=(2, 1),
        padding=(1, 0, 0, 1),
    )
    values = torch.tensor(rng.normal(size=(4, 2, 5, 6)))
    out = node.evaluate(values).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    places = rng.permutation(len(out))[:9]
    taps = layer_taps(node, values, places)
    np.testing.assert_allclose(
        taps @ node.weight.reshape(3, -1).T, out[places], rtol=1e-4, atol=1e-5
    )


def test_clips_have_the_least_error_channel_by_channel() -> None:
    rng = np.random.default_rng(2)
    values = np.abs(rng.normal(0, 1, (4000, 3)) * [1.0, 8.0, 0.0]).astype(np.float32)
    clips = best_clips(values, 3, signed=False)
    assert clips[1] == pytest.approx(8 * clips[0], rel=0.25)
    assert clips[0] < values[:, 0].max(), "a few large values saturate"
    assert clips[2] > 0, "a channel without values is measured all the same"


def test_units_pass_rectifiers_and_stop_at_results() -> None:
    weight = np.ones((2, 2, 1, 1))

    def conv(name: str, source: str) -> fg.Conv:
        return fg.Conv(name=name, inputs=(source,), weight=weight, bias=np.zeros(2))

    nodes = (
        fg.Input(name=INPUT, inputs=(), size=(2, 4, 4)),
        conv("a", INPUT),
        fg.Relu(name="r", inputs=("a",)),
        conv("b", "r"),
        fg.Add(name="s", inputs=("b", "r")),
        fg.Relu(name="t", inputs=("s",), max=6.0),
        conv("c", "t"),
        fg.Relu(name="u", inputs=("c",)),
        fg.Flatten(name="f", inputs=("u",)),
        fg.Linear(name="d", inputs=("f",), weight=np.ones((2, 32)), bias=np.zeros(2)),
    )
    ties = tie_units(fg.FloatGraph(nodes=nodes, output="d"))
    assert ties.is_free("c")
    assert ties.root["c"] == ties.root["u"] == ties.root["f"]
    assert not any(ties.is_free(name) for name in (INPUT, "a", "r", "b", "s", "t", "d"))


def _network(seed: int = 3) -> Network:
    """One convolution on raw pixels that hands out accumulators of 12 bits, filled."""
    rng = np.random.default_rng(seed)
    kind = TensorType(shape=(2, 3, 3), width=8, signed=False)
    limits = Limits(
        low=-8,
        high=7,
        input_low=0,
        input_high=255,
        acc_low=-2048,
        acc_high=2047,
        bias_low=-2048,
        bias_high=2047,
    )
    biases = rng.integers(-100, 100, 3)
    positive, negative, joint = limits.budgets(biases.astype(float))
    codes = shrink_round(rng.normal(0, 3, (3, 18)), positive, negative, low=-8, high=7, joint=joint)
    weights = Weights(codes=codes.astype(np.int64).reshape(3, 2, 3, 3), width=4)
    bias = Bias(codes=biases, width=8)
    geometry = Geometry(height=3, width=3, kernel=(3, 3), stride=(1, 1), padding=(0, 0, 0, 0))
    low, high = mac_interval(kind, weights, bias)
    width = union_width(low, high)
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        input=kind,
        weights=weights,
        bias=bias,
        geometry=geometry,
        output=TensorType(shape=(3, 1, 1), width=width, signed=True),
    )
    return Network(name="worst", input=kind, ops=(conv,), output="conv")


def test_worst_inputs_reach_the_bound_in_golden_and_in_hardware() -> None:
    network = _network()
    conv = network.ops[0]
    assert isinstance(conv, MacOp)
    lowest, highest = worst_inputs(conv)
    codes = np.concatenate([lowest, highest])
    outputs = network.evaluate(codes).reshape(6, 3)
    low, high = conv.accumulator_interval()
    np.testing.assert_array_equal(np.diag(outputs[:3]), low)
    np.testing.assert_array_equal(np.diag(outputs[3:]), high)
    assert max(needed_width(low, high)) == conv.accumulator_width == 12
    assert low.min() >= -2048
    assert high.max() <= 2047
    assert (high > 2047 - 2 * 255).all(), "all of the accumulator is used"
    check_hardware(network, codes.astype(np.uint8), count=6)


def test_wraps_are_counted_one_by_one() -> None:
    network = _network()
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (250, 2, 3, 3)).astype(np.uint8)
    acc = network.evaluate(images.astype(np.int64)).reshape(250, 3)
    bits = 10
    beyond = (acc < -512) | (acc > 511)
    assert 0 < beyond.sum() < beyond.size
    wraps, outputs = count_wraps(network, images, bits)
    assert wraps.images == 250
    assert wraps.layers == {"conv": int(beyond.sum())}
    assert wraps.total == int(beyond.sum())
    assert wraps.touched == int(beyond.any(axis=1).sum())
    np.testing.assert_array_equal(outputs, acc)
    again, held = count_wraps(network, images, bits, wrap=True)
    assert again == wraps
    np.testing.assert_array_equal(held, (acc + 512) % 1024 - 512)
    np.testing.assert_array_equal(
        wrapped(np.array([-513, -512, 511, 512]), bits), [511, -512, 511, -512]
    )


def test_layers_go_on_with_what_wrapped() -> None:
    vector = TensorType(shape=(1,), width=8, signed=False)
    first = Linear(
        name="first",
        inputs=(INPUT,),
        input=vector,
        weights=Weights(codes=np.array([[1]]), width=2),
        output=TensorType(shape=(1,), width=9, signed=True),
    )
    second = Linear(
        name="second",
        inputs=("first",),
        input=first.output,
        weights=Weights(codes=np.array([[1]]), width=2),
        output=TensorType(shape=(1,), width=9, signed=True),
    )
    network = Network(name="two", input=vector, ops=(first, second), output="second")
    images = np.array([[200]], dtype=np.uint8)
    exact, outputs = count_wraps(network, images, 8)
    assert exact.layers == {"first": 1, "second": 1}
    assert outputs.tolist() == [[200]]
    held, outputs = count_wraps(network, images, 8, wrap=True)
    assert held.layers == {"first": 1, "second": 0}
    assert outputs.tolist() == [[200 - 256]]
