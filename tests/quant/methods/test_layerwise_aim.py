"""Layer-wise search for given savings: what it reaches, how accurate it is, what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwgen.errors import BadInput
from hwgen.flow.model import Model, load_model
from quant.cost import network_cost
from quant.datasets import load_dataset
from quant.formats import Floats
from quant.judge import Judge
from quant.methods import layerwise_round
from quant.methods.layerwise import LayerwiseMode, LayerwiseOptions, layerwise
from quant.methods.layerwise_aim import AimedSearch
from quant.methods.layerwise_round import RoundingProblem
from quant.methods.layerwise_search import Evaluations
from quant.methods.layerwise_space import Price, Widths
from quant.methods.result import Result
from quant.plan import LayerPlan
from quant.progress import Advance
from quant.splits import Splits
from tests.quant.methods.stopper import Stop, Stopper

AIMED = LayerwiseOptions(memory_saved=0.5, multiplications_saved=0.75, max_drop=0.05, tries=8)


@cache
def case() -> tuple[Model, Splits]:
    data = load_dataset("digits")
    model = load_model("digits-tiny", data=data)
    return model, Splits.of(data, held_out=model.held_out, search=200)


def search(options: LayerwiseOptions, **more: Any) -> Result:
    model, splits = case()
    return layerwise(
        model.graph, preprocess=model.preprocess, splits=splits, options=options, **more
    )


def savings(result: Result) -> tuple[float, float]:
    cost = network_cost(result.network)
    return cost.memory_saved, cost.output_product_saved


@pytest.fixture(scope="module")
def aimed() -> Result:
    return search(AIMED)


# What is reached.


@pytest.mark.parametrize(
    ("memory", "multiplications"), [(0.5, 0.75), (0.62, None), (None, 0.85), (0.0, None)]
)
def test_savings_are_reached(memory: float | None, multiplications: float | None) -> None:
    """As the cost of the network counts them, all constants included."""
    options = replace(AIMED, memory_saved=memory, multiplications_saved=multiplications, tries=3)
    result = search(options)
    reached = savings(result)
    assert reached[0] >= (memory or 0.0)
    assert reached[1] >= (multiplications or 0.0)
    cost = result.record["cost"]
    assert (cost["memory_saved"], cost["output_product_saved"]) == reached
    last = result.record["history"][-1]
    assert (last["memory_saved"], last["multiplication_saved"]) == reached
    for entry in result.record["history"]:
        assert entry["memory_saved"] >= (memory or 0.0)
        assert entry["multiplication_saved"] >= (multiplications or 0.0)


def test_the_record(aimed: Result) -> None:
    record = aimed.record
    assert record["limit_met"]
    assert record["search_drop"] == pytest.approx(aimed.search.relative)
    assert record["search_drop"] <= 0.05
    losses = [entry["loss"] for entry in record["history"]]
    assert losses == sorted(losses, reverse=True)
    assert record["options"]["tolerance"] is None
    bits = record["widths"]["weights"]
    used = {op.name: op.weights.width for op in aimed.network.ops if hasattr(op, "weights")}
    assert bits == used
    json.dumps(aimed.table())


def test_more_savings_cost_accuracy(aimed: Result) -> None:
    further = search(replace(AIMED, memory_saved=0.65, multiplications_saved=0.88))
    assert further.record["history"][-1]["loss"] > aimed.record["history"][-1]["loss"]


def test_more_tries_are_no_worse(aimed: Result) -> None:
    """The first networks judged are those of the least added loss; none is forgotten."""
    few = search(replace(AIMED, tries=0))  # one network
    assert len(few.record["history"]) == 1
    assert few.record["history"][0]["loss"] == aimed.record["history"][0]["loss"]
    assert aimed.record["history"][-1]["loss"] <= few.record["history"][0]["loss"]


def test_it_is_no_less_accurate_than_uniform_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to save what 4 bits everywhere save, by the loss on all images that choose or confirm."""
    seen: list[AimedSearch] = []
    run = AimedSearch.run

    def watched(self: AimedSearch, advance: Advance) -> Any:
        seen.append(self)
        return run(self, advance)

    monkeypatch.setattr(AimedSearch, "run", watched)
    search(replace(AIMED, tries=0))
    evaluations = seen[0].evaluations
    uniform, _ = evaluations.network(evaluations.space.uniform(4))
    cost = network_cost(uniform)
    asked = (cost.memory_saved, cost.output_product_saved)
    result = search(replace(AIMED, memory_saved=asked[0], multiplications_saved=asked[1]))
    assert savings(result)[0] >= asked[0]
    assert savings(result)[1] >= asked[1]
    judges = evaluations.judge, evaluations.control

    def loss(network: Any) -> float:
        scores = [judge.score(network) for judge in judges]
        return sum(s.loss * s.images for s in scores) / sum(s.images for s in scores)

    found = loss(result.network)
    assert found == pytest.approx(result.record["history"][-1]["loss"])
    assert found <= loss(uniform)


def test_a_drop_beyond_the_limit_names_the_layer_that_binds() -> None:
    result = search(replace(AIMED, memory_saved=0.7, max_drop=0.001, tries=2))
    assert not result.record["limit_met"]
    assert result.record["binding"] in [node.name for node in case()[0].graph.mac_nodes]
    assert savings(result)[0] >= 0.7
    splits = case()[1]
    score = Judge(splits.search_images, splits.search_labels).score(result.network)
    assert score.accuracy == result.search.integer


# Interrupted searches.


@pytest.mark.parametrize("after", [0, 5])
def test_an_interrupted_search_goes_on(aimed: Result, after: int, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    with pytest.raises(Stop):
        search(AIMED, state=state, progress=Stopper(after))
    resumed = search(AIMED, state=state)
    assert resumed.network.same(aimed.network)
    assert resumed.table() == aimed.table()
    before = state.read_bytes()
    with pytest.raises(BadInput, match="another search"):
        search(replace(AIMED, memory_saved=0.51), state=state)
    assert state.read_bytes() == before


def test_a_search_interrupted_while_it_measures_goes_on(
    aimed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, left = tmp_path / "state.npz", [9]
    measure = Evaluations.divergence

    def stopping(self: Evaluations, *places: Any, **more: Any) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return measure(self, *places, **more)

    monkeypatch.setattr(Evaluations, "divergence", stopping)
    with pytest.raises(Stop):
        search(AIMED, state=state)
    monkeypatch.undo()
    assert search(AIMED, state=state).table() == aimed.table()


# What cannot be saved.


@pytest.mark.parametrize(
    ("memory", "multiplications"), [(0.99, None), (None, 0.99), (0.5, 0.97), (0.75, 0.5)]
)
def test_savings_beyond_the_narrowest_widths(
    memory: float | None, multiplications: float | None, tmp_path: Path
) -> None:
    """They are refused before the work, and leave no state that would refuse other savings."""
    options = replace(AIMED, memory_saved=memory, multiplications_saved=multiplications)
    asked = f"{memory or 0:.1%} of memory and {multiplications or 0:.1%} of multiplications"
    words = f"the savings asked for, {asked}, are beyond 2 bits everywhere, which save"
    with pytest.raises(BadInput, match=re.escape(words)):
        search(options, state=tmp_path / "state.npz")
    assert not list(tmp_path.iterdir())


def test_what_the_narrowest_widths_save_can_be_asked_for() -> None:
    """The message tells it; accumulators that are narrower too are seen only when it is counted."""
    with pytest.raises(BadInput) as caught:
        search(replace(AIMED, multiplications_saved=0.99))
    told = [float(x) / 100 for x in re.findall(r"([\d.]+)%", str(caught.value))][-2:]
    result = search(
        replace(AIMED, memory_saved=told[0] - 0.002, multiplications_saved=told[1] - 0.002)
    )
    assert savings(result)[0] >= told[0] - 0.002
    assert savings(result)[1] >= told[1] - 0.002
    assert set(result.record["widths"]["weights"].values()) == {2}


@pytest.mark.parametrize("factor", [1.02, 1.1, 1.3])
def test_estimates_that_promise_too_much(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Savings are counted before a network is taken; where all candidates fail, others are looked for."""
    memory = Price.memory

    def promising(self: Price, widths: Widths) -> float:
        return factor * memory(self, widths)

    monkeypatch.setattr(Price, "memory", promising)
    result = search(replace(AIMED, memory_saved=0.6, multiplications_saved=None, tries=0))
    assert savings(result)[0] >= 0.6
    assert set(result.record["widths"]["weights"].values()) != {2}


# Options.


@pytest.mark.parametrize("name", ["memory_saved", "multiplications_saved"])
@pytest.mark.parametrize("value", [-0.01, 1.0, 50, float("nan"), float("inf")])
def test_shares_out_of_range(name: str, value: float) -> None:
    words = f"{name} must be a share from 0 to below 1, not {value}; 0.5 is 50 %"
    with pytest.raises(BadInput, match=re.escape(words)):
        LayerwiseOptions(**{name: value})


@pytest.mark.parametrize("name", ["memory_saved", "multiplications_saved"])
def test_the_paper_mode_knows_no_savings(name: str) -> None:
    words = f"{name} changes nothing here, as the mode is {LayerwiseMode.PAPER}"
    for more in ({}, {"tolerance": 0.004}):
        with pytest.raises(BadInput, match=words):
            LayerwiseOptions(mode=LayerwiseMode.PAPER, **{name: 0.4}, **more)


@pytest.mark.parametrize("more", [{"tolerance": 0.004}, {"multiplications": 1.0}])
@pytest.mark.parametrize("name", ["memory_saved", "multiplications_saved"])
def test_savings_leave_nothing_to_weigh(name: str, more: Mapping[str, float]) -> None:
    (other,) = more
    words = (
        f"{other} changes nothing here, as savings are given; leave it or memory_saved and"
        " multiplications_saved out"
    )
    with pytest.raises(BadInput, match=words):
        LayerwiseOptions(**{name: 0.4}, **more)


def test_options_are_copied_with_changes() -> None:
    assert AIMED.tolerance is None
    assert replace(AIMED, memory_saved=0.4).multiplications_saved == 0.75
    assert replace(AIMED, memory_saved=None, multiplications_saved=None).tolerance == 0.75 * 0.05
    assert LayerwiseOptions(memory_saved=0.0).aim is not None


# Scales fitted to codes.


def a_problem(seed: int, groups: int, per: int, taps: int, *, zero: bool) -> RoundingProblem:
    """A layer of ``groups * per`` channels, the first one of zeros if ``zero``."""
    generator = np.random.default_rng(seed)
    moments = []
    for _ in range(groups):
        mixed = generator.normal(size=(3 * taps, taps)) @ generator.normal(size=(taps, taps))
        moments.append(mixed.T @ mixed / (3 * taps) + 1e-2 * np.eye(taps))
    target = generator.normal(size=(groups * per, taps)) * 10 ** generator.uniform(-3, 2)
    if zero:
        target[0] = 0
    return RoundingProblem(
        shape=(groups * per, taps),
        moments=moments,
        target=target,
        mean_input=generator.normal(size=(groups, taps)),
        mean_output=generator.normal(size=groups * per),
        per_channel=True,
        power_of_two=False,
    )


def errors(problem: RoundingProblem, plan: LayerPlan) -> Floats:
    """Squared error of each channel."""
    gap = problem.target - plan.weights.reshape(problem.target.shape)
    per = len(gap) // len(problem.moments)
    return np.array([g @ problem.moments[i // per] @ g for i, g in enumerate(gap)])


def solved(problem: RoundingProblem, width: int, refits: int) -> LayerPlan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise_round, "REFITS", refits)
        return fresh(problem).solve(width, 8)


def fresh(problem: RoundingProblem) -> RoundingProblem:
    """The same problem without what it remembers."""
    return replace(problem, _solved={}, _factors={})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    per=st.integers(1, 4),
    taps=st.integers(1, 9),
    width=st.integers(2, 6),
    zero=st.booleans(),
)
def test_refitting_never_adds_to_the_error(
    seed: int, groups: int, per: int, taps: int, width: int, zero: bool
) -> None:
    problem = a_problem(seed, groups, per, taps, zero=zero)
    before = errors(problem, solved(problem, width, 0))
    for refits in (1, 2, 3):
        plan = solved(problem, width, refits)
        after = errors(problem, plan)
        assert (after <= before * (1 + 1e-9) + 1e-18).all()
        assert (np.asarray(plan.scale) > 0).all()
        assert plan.codes.min() >= -(2 ** (width - 1))
        assert plan.codes.max() <= 2 ** (width - 1) - 1
        assert np.isfinite(plan.weights).all()
        assert not (zero and plan.codes[0].any())
        before = after


def test_refitting_helps() -> None:
    problem = a_problem(4, 2, 8, 12, zero=False)
    plain, fitted = (errors(problem, solved(problem, 3, n)).sum() for n in (0, 2))
    assert fitted < 0.99 * plain


@pytest.mark.parametrize("kind", [{"power_of_two": True}, {"per_channel": False}])
def test_other_scales_are_not_refitted(kind: dict[str, bool]) -> None:
    problem = replace(a_problem(5, 1, 4, 8, zero=True), **kind)
    one, two = solved(problem, 3, 0), solved(problem, 3, 2)
    assert np.array_equal(one.codes, two.codes)
    assert np.array_equal(one.scale, two.scale)
