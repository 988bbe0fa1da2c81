"""Layer-wise search: what it keeps, counts and saves; its networks as hardware."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwgen.errors import BadInput
from hwgen.flow.model import Model, load_model
from hwgen.ir import MacOp, Network, Requant, Rounding
from quant.assemble import Assembler
from quant.baseline import observe_graph, with_preprocessing
from quant.datasets import load_dataset
from quant.formats import Floats
from quant.grouping import group_nodes
from quant.methods import layerwise_round, layerwise_search
from quant.methods.layerwise import LayerwiseMode, LayerwiseOptions, layerwise
from quant.methods.layerwise_equalise import _best_steps, _factors, equalise
from quant.methods.layerwise_float import RoundedFloat
from quant.methods.layerwise_round import Calibrator, RoundingProblem
from quant.methods.layerwise_space import Price, Space, Widths
from quant.methods.layerwise_walk import Kind, Symmetric
from quant.methods.result import Result
from quant.splits import Splits
from tests.quant.methods.cosim import check_hardware
from tests.quant.methods.stopper import Stop, Stopper

SMALL = LayerwiseOptions(tolerance=0.03, max_drop=0.05, tries=6, images=200)
PAPER = LayerwiseOptions(mode=LayerwiseMode.PAPER, tolerance=0.02, max_drop=0.04)


@cache
def case(name: str = "digits-tiny") -> tuple[Model, Splits]:
    data = load_dataset("digits")
    model = load_model(name, data=data)
    return model, Splits.of(data, held_out=model.held_out, search=200)


def search(options: LayerwiseOptions, name: str = "digits-tiny", **given: Any) -> Result:
    model, splits = case(name)
    return layerwise(
        model.graph, preprocess=model.preprocess, splits=splits, options=options, **given
    )


@pytest.fixture(scope="module")
def improved() -> Result:
    return search(SMALL)


@pytest.fixture(scope="module")
def paper() -> Result:
    return search(PAPER, "lenet5")


def stored(values: tuple[int, ...]) -> int:
    """Bits of constants that have one entry a channel."""
    if len(values) == 1:
        return 0
    low, high = min(values), max(values)
    width = next(
        w
        for w in range(1, 64)
        if (low >= 0 and high < 2**w)
        or (low < 0 and -(2 ** (w - 1)) <= low and high < 2 ** (w - 1))
    )
    return width * len(values)


def counted(network: Network) -> tuple[float, float, float]:
    """Savings of memory and of multiplications by own and by input width, recomputed."""
    bits = numbers = own = true = macs = 0
    for op in network.ops:
        requant: Requant | None = getattr(op, "requant", None)
        if isinstance(op, MacOp):
            weights = op.weights.codes
            bits += weights.size * op.weights.width + op.output.size * op.output.width
            bits += 0 if op.bias is None else len(op.bias.codes) * op.bias.width
            biases = 0 if op.bias is None else len(op.bias.codes)
            numbers += weights.size + biases + op.output.size
            pixels = op.output.size // len(weights)
            work = weights.size * pixels
            macs += work
            own += work * op.weights.width * op.output.width
            true += work * op.weights.width * op.input.width
            if requant is not None:
                parts = (requant.mult, requant.add, requant.shift, requant.low, requant.high)
                bits += sum(stored(part) for part in parts)
                if len(requant.mult) == 1 and requant.mult[0] != 1:
                    bits += stored((requant.mult[0], requant.mult[0])) // 2
                if len(requant.add) == 1 and requant.add[0] != 0:
                    bits += stored((requant.add[0], requant.add[0])) // 2
                if len(requant.shift) == 1 and requant.mult != (1,):
                    bits += stored((requant.shift[0], requant.shift[0])) // 2
    return 1 - bits / (8 * numbers), 1 - own / (64 * macs), 1 - true / (64 * macs)


def test_it_keeps_within_the_limit_and_saves(improved: Result) -> None:
    assert improved.record["limit_met"]
    assert improved.search.relative <= 0.03
    assert improved.record["search_drop"] == pytest.approx(improved.search.relative)
    cost = improved.record["cost"]
    assert cost["memory_saved"] > 0.4
    assert cost["output_product_saved"] > 0.6
    json.dumps(improved.table())


def test_the_figures_are_those_of_the_network(improved: Result) -> None:
    cost = improved.record["cost"]
    names = ("memory_saved", "output_product_saved", "input_product_saved")
    assert [cost[name] for name in names] == pytest.approx(counted(improved.network))


def test_history_only_gets_better(improved: Result) -> None:
    prices = [entry["price"] for entry in improved.record["history"]]
    assert prices == sorted(prices, reverse=True)
    assert len(set(prices)) == len(prices)


def test_activations_are_unsigned_and_weights_have_scales_of_channels(improved: Result) -> None:
    macs = [op for op in improved.network.ops if isinstance(op, MacOp)]
    assert not any(op.output.signed for op in macs[:-1])
    assert any(len(op.weights.scale) > 1 for op in macs[:-1])
    assert len(macs[-1].weights.scale) == 1


def test_powers_of_two_need_no_multipliers() -> None:
    result = search(replace(SMALL, multipliers=False, tries=0))
    for op in result.network.ops:
        if isinstance(op, MacOp) and op.requant is not None:
            assert all(m > 0 and m & (m - 1) == 0 for m in op.requant.mult)
            mantissas = np.frexp(np.array(op.weights.scale))[0]
            assert (mantissas == 0.5).all()


def test_hardware(improved: Result) -> None:
    check_hardware(improved.network, case()[1].test_images)


def test_the_same_seed_gives_the_same_network(improved: Result) -> None:
    assert search(SMALL).network.same(improved.network)


@pytest.mark.parametrize(("options", "after"), [(SMALL, 4), (PAPER, 5)])
def test_an_interrupted_search_goes_on(
    options: LayerwiseOptions, after: int, tmp_path: Path
) -> None:
    whole = search(options)
    state = tmp_path / "state.npz"
    with pytest.raises(Stop):
        search(options, state=state, progress=Stopper(after))
    resumed = search(options, state=state)
    assert resumed.network.same(whole.network)
    assert resumed.table() == whole.table()
    before = state.read_bytes()
    with pytest.raises(BadInput, match="another search"):
        search(replace(options, tolerance=0.01), state=state)
    assert state.read_bytes() == before


def test_a_limit_that_cannot_be_met_keeps_the_best() -> None:
    options = LayerwiseOptions(tolerance=0.0, max_drop=0.0, bias_bits=2, scale_bits=2, images=200)
    result = search(options)
    assert not result.record["limit_met"]
    assert result.record["search_drop"] == pytest.approx(result.search.relative)
    assert result.search.relative > 0
    assert result.record["binding"] in [node.name for node in case()[0].graph.mac_nodes]
    assert set(result.record["widths"]["weights"].values()) <= {6, 8}


def test_paper_mode_chooses_symmetric_formats(paper: Result) -> None:
    assert paper.record["limit_met"]
    assert paper.record["judged_drop"] <= 0.04
    assert [e["kind"] for e in paper.record["history"][::5]] == [k.value for k in Kind]
    widths = {(e["kind"], e["layer"]): e["width"] for e in paper.record["history"]}
    for op in paper.network.ops:
        if isinstance(op, MacOp):
            width = widths["weights", op.name]
            assert op.weights.width == width
            assert np.abs(op.weights.codes).max() <= 2 ** (width - 1) - 1
            if op.requant is not None:
                assert op.requant.rounding is Rounding.HALF_EVEN
                assert op.output.signed
                assert op.requant.low == (0,)
                assert op.requant.high == (2 ** (widths["activations", op.name] - 1) - 1,)


def test_paper_mode_counts_as_the_paper_does(paper: Result) -> None:
    model, _ = case("lenet5")
    widths = {(e["kind"], e["layer"]): e["width"] for e in paper.record["history"]}
    bits = numbers = work = macs = 0
    for node in model.graph.mac_nodes:
        made = int(np.prod(model.graph.shape(node.name)))
        w, b, a = (widths[kind, node.name] for kind in ("weights", "biases", "activations"))
        bits += w * node.weight.size + b * len(node.bias) + a * made
        numbers += node.weight.size + len(node.bias) + made
        each = node.weight.size * made // len(node.bias)
        work, macs = work + w * a * each, macs + each
    cost = paper.record["paper_cost"]
    assert cost["memory"] == bits
    assert cost["memory_saved"] == pytest.approx(1 - bits / (8 * numbers))
    assert cost["multiplication"] == work
    assert cost["multiplication_saved"] == pytest.approx(1 - work / (64 * macs))


def rounded(images: int = 150, **given: Any) -> tuple[RoundedFloat, Any, Any, Any]:
    model, splits = case("lenet5")
    graph = with_preprocessing(model.graph, model.preprocess)
    pixels, labels = splits.search_images[:images], splits.search_labels[:images]
    return RoundedFloat(graph, group_nodes(graph), pixels, labels, **given), graph, pixels, labels


def test_the_rounded_float_network_counts_exactly() -> None:
    judge, graph, pixels, labels = rounded()
    out = graph.evaluate(pixels, dtype=torch.float32)
    assert judge.float_correct == int((out.argmax(1) == labels).sum())
    first, second = (node.name for node in graph.mac_nodes[:2])
    forms = {
        (Kind.WEIGHTS, first): Symmetric(width=3, frac=8),
        (Kind.ACTIVATIONS, first): Symmetric(width=3, frac=0),
        (Kind.WEIGHTS, second): Symmetric(width=3, frac=3),
    }
    judge.choose(Kind.WEIGHTS, first, forms[Kind.WEIGHTS, first])
    judge.choose(Kind.ACTIVATIONS, first, forms[Kind.ACTIVATIONS, first])
    found = judge.correct(Kind.WEIGHTS, second, forms[Kind.WEIGHTS, second])
    values = {"input": torch.tensor(pixels, dtype=torch.float32)}
    for node in graph.nodes[1:]:
        changed = node
        if (Kind.WEIGHTS, node.name) in forms:
            changed = replace(node, weight=forms[Kind.WEIGHTS, node.name].nearest(node.weight))
        values[node.name] = changed.evaluate(*(values[i] for i in node.inputs))
        if node.inputs[0] == first:  # the ReLU
            values[node.name] = forms[Kind.ACTIVATIONS, first].apply(values[node.name])
    right = int((values[graph.output].argmax(1).numpy() == labels).sum())
    assert found == right
    assert judge.correct(Kind.WEIGHTS, second, forms[Kind.WEIGHTS, second], right) == right
    assert judge.correct(Kind.WEIGHTS, second, forms[Kind.WEIGHTS, second], right + 1) is None


def test_equalising_changes_no_function() -> None:
    model, splits = case("lenet5")
    graph = with_preprocessing(model.graph, model.preprocess)
    level = equalise(graph, splits.train_images[:50])
    images = splits.test_images[:20]
    np.testing.assert_allclose(level.evaluate(images), graph.evaluate(images), rtol=1e-9, atol=1e-9)
    changed = [
        not np.array_equal(a.weight, b.weight)
        for a, b in zip(graph.mac_nodes, level.mac_nodes, strict=True)
    ]
    assert all(changed)


def test_equalised_steps_have_a_power_of_two_as_their_mean() -> None:
    generator = np.random.default_rng(3)
    values = np.maximum(generator.normal(size=(6, 2000)), 0) * np.geomspace(0.1, 3, 6)[:, None]
    values[2] = 0
    factors = _factors(values)
    assert factors[2] == 1
    steps, alive = _best_steps(values / factors[:, None])
    mean = np.log2(steps[alive]).mean()
    assert mean == pytest.approx(round(mean), abs=1e-6)
    before = np.log2(_best_steps(values)[0][alive])
    assert np.log2(steps[alive]).std() < before.std()


def test_neighbouring_scales_help_compensated_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(8)
    mixed = generator.normal(size=(400, 20)) @ generator.normal(size=(20, 20))
    given: dict[str, Any] = {
        "shape": (16, 20),
        "moments": [mixed.T @ mixed / 400 + 1e-3 * np.eye(20)],
        "target": generator.normal(size=(16, 20)),
        "mean_input": np.ones((1, 20)),
        "mean_output": np.zeros(16),
        "per_channel": True,
        "power_of_two": False,
    }
    both = RoundingProblem(**given), RoundingProblem(**given)
    found = error(both[0], both[0].solve(3, 8).weights)
    monkeypatch.setattr(layerwise_round, "NEARBY", ())
    plain = error(both[1], both[1].solve(3, 8).weights)
    assert found < plain


def test_widths_whose_formats_changed_have_another_key() -> None:
    model, splits = case()
    graph = with_preprocessing(model.graph, model.preprocess)
    space = Space(Assembler(graph), observe_graph(graph, splits.train_images[:50]))
    narrow, wide = space.uniform(3), space.uniform(5)
    before = space.key(narrow), space.key(wide), space.formats(narrow)
    space.coarsen(len(space.layers), 3)
    assert space.key(narrow) != before[0]
    assert space.formats(narrow) != before[2]
    assert space.key(wide) == before[1]


def test_moves_further_out_are_single_bits_too() -> None:
    widths = Widths((4, 2), (8,))
    near = layerwise_search.moves(widths)
    assert set(near) == {
        Widths((3, 2), (8,)),
        Widths((4, 2), (7,)),
        Widths((3, 3), (8,)),
        Widths((4, 3), (7,)),
        Widths((5, 2), (7,)),
    }
    far = layerwise_search._more_moves(widths)
    assert widths not in far
    assert len(set(far)) == len(far)
    for moved in far:
        changes = [abs(moved.at(p) - widths.at(p)) for p in range(3)]
        assert 1 <= sum(changes) <= 3
        assert all(2 <= moved.at(p) <= 8 for p in range(3))


def error(problem: RoundingProblem, weights: Floats) -> float:
    gap = problem.target - weights.reshape(problem.target.shape)
    return float(((gap @ problem.moments[0]) * gap).sum())


@pytest.mark.parametrize("width", [2, 3, 4])
def test_fitted_rounding_beats_plain_rounding(width: int) -> None:
    generator = np.random.default_rng(width)
    mixed = generator.normal(size=(400, 12)) @ generator.normal(size=(12, 12))
    problem = RoundingProblem(
        shape=(5, 12),
        moments=[mixed.T @ mixed / 400 + 1e-3 * np.eye(12)],
        target=generator.normal(size=(5, 12)),
        mean_input=np.ones((1, 12)),
        mean_output=np.zeros(5),
        per_channel=True,
        power_of_two=True,
    )
    plan = problem.solve(width, 8)
    scale = plan.scale[:, None]
    low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    assert plan.codes.min() >= low
    assert plan.codes.max() <= high
    plain = np.clip(np.rint(problem.target / scale), low, high) * scale
    assert error(problem, plan.weights) < error(problem, plain)
    # The mean input gives the mean output.
    np.testing.assert_allclose(plan.weights.sum(1) + plan.bias, 0, atol=1e-9)
    # No single code's neighbour is better.
    for place in np.ndindex(plan.codes.shape):
        for step in (-1, 1):
            codes = plan.codes.copy()
            codes[place] = np.clip(codes[place] + step, low, high)
            assert error(problem, codes * scale) >= error(problem, plan.weights) - 1e-9


def test_prices_are_those_of_the_counted_network() -> None:
    model, splits = case("lenet5")
    graph = with_preprocessing(model.graph, model.preprocess)
    assembler = Assembler(graph)
    space = Space(assembler, observe_graph(graph, splits.train_images[:50]))
    price = Price(space, 0.8)
    widths = space.uniform(4).moved(0, 3).moved(6, 5)
    calibrator = Calibrator(assembler, splits.train_images[:50], 0, multipliers=False)
    bits = dict(zip(space.layers, widths.weights, strict=True))
    plan, _ = calibrator.fit(bits, space.formats(widths), 8)
    _, own, true = counted(assembler.assemble(plan))
    # The last layer hands out accumulators; its own width counts as 8 bits in the search.
    assert price.work(widths, own=True) == pytest.approx(1 - own, abs=0.02)
    assert price.work(widths, own=False) == pytest.approx(1 - true)
    both = price.work(widths, own=True) + price.work(widths, own=False)
    assert price.total(widths) == pytest.approx(price.memory(widths) + 0.4 * both)


def test_other_images_confirm(improved: Result) -> None:
    confirmation = improved.record["confirmation"]
    assert confirmation["drop"] <= 0.03
    assert confirmation["images"] > 100


@pytest.mark.parametrize("drop", [0.0, 0.004, 0.01, 0.08])
def test_the_drop_that_is_allowed_sets_the_tolerance(drop: float) -> None:
    assert LayerwiseOptions(max_drop=drop).tolerance == 0.75 * drop
    assert LayerwiseOptions(max_drop=drop, mode=LayerwiseMode.PAPER).tolerance == 0.5 * drop
    given = min(0.003, drop)
    assert LayerwiseOptions(max_drop=drop, tolerance=given).tolerance == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": -0.1}, "tolerance must be a relative drop"),
        ({"max_drop": 1.0}, "max_drop must be a relative drop"),
        ({"images": 5}, "images must be a whole number at least 10, not 5"),
        ({"images": 10.5}, "images must be a whole number at least 10, not 10.5"),
        ({"bias_bits": 17}, "bias_bits must be a whole number from 2 to 16, not 17"),
        ({"calibration": 0}, "calibration must be a whole number at least 1, not 0"),
        ({"calibration": None}, "calibration must be a whole number at least 1, not None"),
        ({"scale_bits": 3.3}, "scale_bits must be a whole number from 2 to 24, not 3.3"),
        ({"mode": "paper"}, "mode must be one of LayerwiseMode.IMPROVED, .*not 'paper'"),
        ({"multiplications": -1.0}, "multiplications must be a weight of at least 0, not -1.0"),
        ({"tolerance": 0.02}, "tolerance must be at most max_drop, 0.01, not 0.02"),
    ],
)
def test_options_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LayerwiseOptions(**settings)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        (LayerwiseMode.PAPER, {"tries": 3}),
        (LayerwiseMode.PAPER, {"bias_bits": 16}),
        (LayerwiseMode.PAPER, {"multipliers": False}),
        (LayerwiseMode.PAPER, {"scale_bits": 24}),
        (LayerwiseMode.PAPER, {"multiplications": 0}),
        (LayerwiseMode.IMPROVED, {"presume": False}),
    ],
)
def test_options_of_the_other_mode(mode: LayerwiseMode, settings: dict[str, Any]) -> None:
    (other,) = set(LayerwiseMode) - {mode}
    (name,) = settings
    words = f"{name} changes nothing here, as the mode is {mode}; give {other}, or leave {name} out"
    with pytest.raises(BadInput, match=words):
        LayerwiseOptions(mode=mode, **settings)
    given = LayerwiseOptions(mode=other, **settings)
    assert getattr(given, name) == settings[name]
    with pytest.raises(BadInput, match=words):
        replace(given, mode=mode)


@pytest.mark.parametrize("mode", LayerwiseMode)
def test_options_are_copied_with_changes(mode: LayerwiseMode) -> None:
    """Neither a default that the mode decides nor one of the other mode stands in the way."""
    options = LayerwiseOptions(mode=mode)
    assert replace(options, images=20) == LayerwiseOptions(mode=mode, images=20)
    assert replace(options, tolerance=None) == options
    for other in LayerwiseMode:
        assert replace(options, mode=other, tolerance=None) == LayerwiseOptions(mode=other)


def test_more_images_than_there_are() -> None:
    with pytest.raises(BadInput, match="at most the 200 images of the search set, not 1000"):
        search(LayerwiseOptions(images=1000))


def test_seed_out_of_range() -> None:
    model, splits = case()
    for seed in (-1, 1 << 32):
        with pytest.raises(BadInput, match="the seed must be a whole number"):
            layerwise(model.graph, preprocess=model.preprocess, splits=splits, seed=seed)


def test_too_few_training_images() -> None:
    model, splits = case()
    for count in (0, 1, 19):
        few = replace(
            splits,
            train_images=splits.train_images[:count],
            train_labels=splits.train_labels[:count],
        )
        with pytest.raises(BadInput, match=f"at least 20 training images, .*not {count}; give"):
            layerwise(model.graph, preprocess=model.preprocess, splits=few)
