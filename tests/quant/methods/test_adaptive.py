"""Adaptive quantisation: what it keeps, its controls, its record; its networks as hardware."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwgen.errors import BadInput
from hwgen.flow.model import Model, load_model
from hwgen.ir import MacOp, Network
from quant.datasets import load_dataset
from quant.judge import Judge
from quant.methods.adaptive import AdaptiveOptions, Control, Form, Ranking, adaptive
from quant.methods.adaptive_options import ALONE, STARTS
from quant.methods.adaptive_strategy import RandomSearch, Strategy, noise
from quant.methods.result import Result
from quant.progress import Advance
from quant.splits import Splits
from tests.quant.methods.cosim import check_hardware

SMALL = AdaptiveOptions(bits=3, evaluations=40, offspring=8, images=150)
CODEBOOK = replace(SMALL, form=Form.CODEBOOK)


@cache
def case() -> tuple[Model, Splits]:
    data = load_dataset("digits")
    model = load_model("digits-tiny", data=data)
    return model, Splits.of(data, held_out=model.held_out, search=200)


def search(options: AdaptiveOptions, **given: Any) -> Result:
    model, splits = case()
    return adaptive(
        model.graph, preprocess=model.preprocess, splits=splits, options=options, **given
    )


@pytest.fixture(scope="module")
def clipped() -> Result:
    return search(SMALL)


@pytest.fixture(scope="module")
def coded() -> Result:
    return search(CODEBOOK)


def macs(network: Network) -> list[MacOp]:
    return [op for op in network.ops if isinstance(op, MacOp)]


def test_the_best_of_all_is_kept(clipped: Result, coded: Result) -> None:
    _, splits = case()
    for result, form in ((clipped, Form.CLIP), (coded, Form.CODEBOOK)):
        record = result.record
        assert set(record["starts"]) == {start.value for start in STARTS[form]}
        score = Judge(splits.search_images, splits.search_labels).score(result.network)
        assert record["chosen"] == {"accuracy": score.accuracy, "loss": score.loss}
        assert record["finalists"] == 8
        part = Judge(splits.search_images[:150], splits.search_labels[:150]).score(result.network)
        assert part.loss >= record["best"]["loss"]
        reached = [p["loss"] for p in record["history"]]
        assert reached == sorted(set(reached), reverse=True)
        assert reached[-1] <= min(p["loss"] for p in record["starts"].values())
        assert record["evaluations"] == 40
        assert record["searched_images"] == 150
        assert result.search.images == 200
        json.dumps(result.table(), allow_nan=False)


def test_forty_evaluations_improve_two_bits() -> None:
    record = search(replace(SMALL, bits=2)).record
    assert record["best"]["loss"] < min(p["loss"] for p in record["starts"].values())


def test_accuracy_may_rank() -> None:
    record = search(replace(SMALL, bits=2, ranking=Ranking.ACCURACY)).record
    reached = [(p["accuracy"], -p["loss"]) for p in record["history"]]
    assert reached == sorted(set(reached))
    assert reached[-1] == max(
        (p["accuracy"], -p["loss"]) for p in [record["best"], *record["starts"].values()]
    )


def test_widths_are_what_was_asked_for(clipped: Result, coded: Result) -> None:
    for op in macs(clipped.network):
        assert (op.weights.width, op.weights.codebook) == (3, None)
        assert op.bias is not None
        assert op.bias.width == 3
    for op in macs(coded.network):
        book = op.weights.codebook
        assert book is not None
        assert len(book) <= 8
        assert op.weights.stored_width == 3 or len(book) <= 4
        assert op.weights.width == 8
        assert np.log2(op.weights.scale[0]).is_integer()
        assert op.bias is not None
        assert op.bias.width == 3


def test_a_clip_network_is_hardware(clipped: Result) -> None:
    check_hardware(clipped.network, case()[1].test_images)


def test_a_codebook_network_is_hardware(coded: Result) -> None:
    check_hardware(coded.network, case()[1].test_images)


def test_a_seed_decides_all(clipped: Result) -> None:
    again = search(SMALL)
    assert again.network.same(clipped.network)
    assert again.record == clipped.record
    assert search(SMALL, seed=1).record["history"] != clipped.record["history"]


def test_threads_change_nothing() -> None:
    options, before = replace(CODEBOOK, evaluations=6), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(search(options))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert found[0].network.same(found[1].network)
    assert found[0].record == found[1].record


class Cut(Exception):
    """Ends a search."""


class Cutting:
    """Progress that ends the search after so many evaluations."""

    def __init__(self, after: int) -> None:
        self.after = after

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Advance]:
        def advance(done: int, total: int, text: str) -> None:
            assert done <= total
            if done >= self.after:
                raise Cut

        yield advance


@pytest.mark.parametrize("options", [CODEBOOK, replace(SMALL, control=Control.RANDOM)])
def test_a_search_goes_on_where_it_was(options: AdaptiveOptions, tmp_path: Path) -> None:
    state = tmp_path / "search.npz"
    whole = search(options)
    for after in (1, 20):
        with pytest.raises(Cut):
            search(options, state=state, progress=Cutting(after))
        assert state.exists()
    resumed = search(options, state=state)
    assert resumed.network.same(whole.network)
    assert resumed.record == whole.record
    before = state.read_bytes()
    with pytest.raises(BadInput, match=r"of another search \(seed 0 instead of 5"):
        search(options, state=state, seed=5)
    assert state.read_bytes() == before


def test_controls_have_the_same_budget_and_begin_with_their_quantiser(clipped: Result) -> None:
    first: dict[Control, dict[str, float]] = {}
    for control in Control:
        result = search(replace(SMALL, control=control))
        assert result.record["evaluations"] == clipped.record["evaluations"]
        assert result.record["options"]["parents"] is None
        assert result.record["best"]["accuracy"] <= 1
        plain = search(replace(SMALL, control=control, evaluations=1))
        first[control] = plain.record["best"]
        books = [op.weights.codebook for op in macs(plain.network)]
        assert all((book is not None) == (control is Control.LLOYD) for book in books)
        if control in ALONE:
            assert list(plain.record["starts"]) == [control.value]
    starts = clipped.record["starts"]
    assert first[Control.LINEAR] == starts["linear"]
    assert first[Control.MSE] == starts["mse"]
    best = clipped.record["best"]
    for score in starts.values():
        assert best["loss"] <= score["loss"]


def test_eight_bits_lose_nothing_and_need_no_codebook() -> None:
    result = search(replace(CODEBOOK, bits=8, evaluations=8))
    assert result.test.drop < 0.01
    assert all(op.weights.codebook is None for op in macs(result.network))
    wide = search(replace(CODEBOOK, bits=5, entry_bits=12, evaluations=8))
    assert all(op.weights.width == 12 for op in macs(wide.network))
    assert wide.test.drop < 0.02


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"bits": 1}, "bits must be a whole number from 2 to 8"),
        ({"bits": 4.5}, "bits must be a whole number"),
        ({"form": Form.CODEBOOK, "bits": 8, "entry_bits": 6}, "give entry_bits=8"),
        ({"entry_bits": 8}, "entry_bits=8 changes nothing without a codebook"),
        ({"control": Control.MSE, "entry_bits": 8}, "entry_bits=8 changes nothing"),
        (
            {"control": Control.LINEAR, "form": Form.CODEBOOK},
            "the control linear is of the form clip",
        ),
        (
            {"control": Control.LLOYD, "form": Form.CLIP},
            "the control lloyd is of the form codebook",
        ),
        (
            {"control": Control.RANDOM, "parents": 2},
            "parents=2 changes nothing with the control random",
        ),
        ({"ranking": "loss"}, "Ranking.LOSS"),
        ({"evaluations": 0}, "evaluations must be a whole number at least 1"),
        ({"activation_bits": 20}, "activation_bits"),
        ({"parents": 12}, "fewer parents than offspring"),
        ({"step": 0.0}, "step must be above 0"),
        ({"images": 3}, "images must be a whole number at least 10"),
        ({"form": "clip"}, "Form.CLIP"),
        ({"control": "linear"}, "Control.LINEAR"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(BadInput, match=part):
        AdaptiveOptions(**change)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(BadInput, match="at most the 200 images"):
        search(replace(SMALL, images=500))


def minimise(strategy: Strategy | RandomSearch, generations: int) -> float:
    """The least value found of a badly scaled sum of squares."""
    rng = np.random.default_rng(0)
    scales = np.array([1.0] * 5 + [30.0] * 5)
    least = np.inf
    for _ in range(generations):
        values = [float(np.square(scales * genes).sum()) for genes in strategy.ask(rng)]
        order = sorted(range(len(values)), key=lambda i: values[i])
        strategy.tell(order)
        least = min(least, values[order[0]])
    return least


def test_the_strategy_beats_its_start_and_random_search_on_a_quadratic() -> None:
    mean, sets = np.full(10, 1.0), np.array([0] * 5 + [1] * 5)
    start = 5 * (1 + 30.0**2)
    given = {"sets": sets, "directions": np.zeros((0, 10)), "offspring": 12, "step": 0.3}
    strategy = Strategy(starts=mean[None], parents=4, **given)
    found = minimise(strategy, 80)
    assert found < start / 1000
    assert found < minimise(RandomSearch(mean=mean, **given), 80) / 100
    assert strategy.logs[:, 1].mean() < strategy.logs[:, 0].mean(), (
        "the steep genes' steps shrink more"
    )


def test_a_strategy_restored_goes_on_alike() -> None:
    starts, sets = np.array([np.ones(4), np.zeros(4)]), np.zeros(4, dtype=np.int64)
    one, other = (
        Strategy(
            starts=starts, sets=sets, directions=sets[None] + 1.0, parents=2, offspring=6, step=0.1
        )
        for _ in range(2)
    )
    rng = np.random.default_rng(1)
    one.ask(rng)
    one.tell([3, 1, 0])
    other.restore(one.arrays())
    asked = zip(one.ask(np.random.default_rng(2)), other.ask(np.random.default_rng(2)), strict=True)
    assert all(np.array_equal(a, b) for a, b in asked)
    again = one.ask(rng)[0]
    assert np.array_equal(again, one.genes[0]), "the best parent is the first offspring"


def test_the_first_parents_are_all_starts_and_their_layers_mix() -> None:
    starts, sets = np.repeat(np.arange(5.0)[:, None] * 100, 20, axis=1), np.arange(20) // 2
    strategy = Strategy(
        starts=starts, sets=sets, directions=np.zeros((1, 20)), parents=4, offspring=9, step=0.1
    )
    asked = strategy.ask(np.random.default_rng(0))
    assert np.array_equal(asked[0], starts[0])
    sources = np.round(np.array(asked[1:]) / 100)
    assert set(sources.reshape(-1)) == {0.0, 1.0, 2.0, 3.0}, "the four best"
    assert (sources[:, ::2] == sources[:, 1::2]).all(), "sets are taken whole"
    assert (sources == 0).sum() > (sources == 3).sum(), "the better the more often"


def test_a_direction_moves_a_set_as_a_whole() -> None:
    sets = np.array([0] * 50 + [1] * 50)
    direction = np.concatenate([np.ones(50), np.zeros(50)])
    rng = np.random.default_rng(0)
    found = np.array([noise(rng, sets, 10 * direction[None]) for _ in range(50)])
    means = found[:, :50].mean(1)
    assert means.std() > 5
    assert (found[:, :50] - means[:, None]).std() == pytest.approx(1, abs=0.1)
    assert found[:, 50:].mean(1).std() < 0.5
