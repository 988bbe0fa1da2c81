"""Prune, cluster, quantise: clusters and zeros, the whole method on digits, resumption, hardware."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwgen.errors import BadInput
from hwgen.flow import load_model
from hwgen.flow.model import Model
from hwgen.ir import Network
from hwgen.ir.ops.mac import MacOp
from quant.baseline import observe_graph
from quant.codebooks import kmeans_exact
from quant.datasets import load_dataset
from quant.finetune import FineTuner
from quant.graph import FloatGraph
from quant.methods.cluster import ClusterOptions, Scope, Seeding, cluster, prune
from quant.methods.cluster_layers import cluster_layer, layer_plan, tuned_plan
from quant.methods.cluster_options import Schedule
from quant.methods.cluster_prune import cubic, masks_at, sparsity_of
from quant.methods.cluster_seeds import Swarm, clustered, swarm_levels
from quant.methods.result import Result
from quant.splits import Splits
from quant.state import SearchState
from tests.quant.methods.cosim import check_hardware

QUICK: dict[str, Any] = {"epochs": 6, "rate": 1e-2, "batch": 32, "tune_epochs": 0}


@cache
def splits() -> Splits:
    return Splits.of(load_dataset("digits"), held_out=200)


@cache
def model(name: str) -> Model:
    return load_model(name, data=load_dataset("digits"))


def run(name: str = "digits-tiny", *, seed: int = 0, **given: Any) -> Result:
    apart = {key: given.pop(key) for key in ("pruned", "state") if key in given}
    found = model(name)
    return cluster(
        found.graph,
        preprocess=found.preprocess,
        splits=splits(),
        options=ClusterOptions(**(QUICK | given)),
        seed=seed,
        **apart,
    )


@cache
def pruned(name: str = "digits-tiny") -> FloatGraph:
    found = model(name)
    return prune(
        found.graph,
        preprocess=found.preprocess,
        splits=splits(),
        options=ClusterOptions(**QUICK),
    )


def macs(network: Network) -> list[MacOp]:
    return [op for op in network.ops if isinstance(op, MacOp)]


def equal(one: Network, other: Network) -> bool:
    images = splits().test_images[:50]
    same = all(
        np.array_equal(a.weights.codes, b.weights.codes) and a.weights == b.weights
        for a, b in zip(macs(one), macs(other), strict=True)
    )
    return same and np.array_equal(one.evaluate(images), other.evaluate(images))


# --- pruning


def test_cubic_schedule() -> None:
    assert cubic(0.0, 0.8) == 0.0
    assert cubic(0.5, 0.8) == pytest.approx(0.8 * (1 - 0.125))
    assert cubic(1.0, 0.8) == cubic(2.0, 0.8) == 0.8


@pytest.mark.parametrize("scope", Scope)
def test_masks_keep_the_largest(scope: Scope) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "wide": rng.normal(0, 0.1, (40, 25)).astype(np.float32),
        "narrow": rng.normal(0, 3, (4, 2, 3, 3)).astype(np.float32),
    }
    masks = masks_at(weights, 0.75, scope)
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.75 * 1072)
    for name, mask in masks.items():
        size = np.abs(weights[name])
        assert mask.shape == size.shape
        assert size[mask].min() >= size[~mask].max(initial=0)
    if scope is Scope.LAYER:
        assert [int((~mask).sum()) for mask in masks.values()] == [750, 54]
    else:  # scores do not depend on a layer's scale
        scaled = masks_at(weights | {"wide": weights["wide"] * 1000}, 0.75, scope)
        assert all(np.array_equal(masks[name], scaled[name]) for name in masks)
    assert all(mask.any() for mask in masks_at(weights, 0.9999, scope).values())


def test_pruning_trains_in_between() -> None:
    sparse = pruned()
    assert sparsity_of(sparse) == pytest.approx(0.8, abs=1 / 700)
    at_once = prune(
        model("digits-tiny").graph,
        preprocess=model("digits-tiny").preprocess,
        splits=splits(),
        options=ClusterOptions(epochs=0),
    )
    assert sparsity_of(at_once) == sparsity_of(sparse)

    def right(graph: FloatGraph) -> int:
        found = graph.evaluate(splits().test_images)
        return int((found.argmax(1) == splits().test_labels).sum())

    assert right(sparse) > right(at_once) + 25  # of 500


# --- clusters


@pytest.mark.parametrize("count", [3, 7, 15])
def test_no_start_beats_exact_clusters(count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.normal(0, 1, 500)
    values = np.sign(values) * (np.abs(values) + 0.3)
    least = kmeans_exact(values, count)
    for seeding in Seeding:
        if seeding is Seeding.NONE:
            continue
        found = clustered(values, count, seeding, np.random.default_rng(1))
        again = clustered(values, count, seeding, np.random.default_rng(1))
        assert np.array_equal(found.levels, again.levels)
        assert found.error >= least.error * (1 - 1e-9)
        assert (found.error <= least.error * 1.5) or seeding is Seeding.UNIFORM
        nearest = np.abs(values[:, None] - found.levels).min(1)
        assert found.error == pytest.approx(float(np.square(nearest).sum()))


def test_the_swarm_improves() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)

    def squares(rounds: int) -> float:
        levels = swarm_levels(values, 7, np.random.default_rng(2), Swarm(rounds=rounds))
        assert levels.shape == (7,)
        assert (np.diff(levels) >= 0).all()
        return float(np.square(np.abs(values[:, None] - levels).min(1)).sum())

    found = [squares(rounds) for rounds in (0, 20, 300)]
    assert found == sorted(found, reverse=True)
    assert found[2] < kmeans_exact(values, 7).error * 1.05 < found[0]


def test_few_distinct_values_are_their_own_clusters() -> None:
    values = np.array([0.5, -1.0, 0.5, 2.0])
    for seeding in Seeding:
        if seeding is not Seeding.NONE:
            found = clustered(values, 7, seeding, np.random.default_rng(0))
            assert found.levels.tolist() == [-1.0, 0.5, 2.0]


# --- the whole method


@pytest.mark.parametrize("codebook", [False, True])
@pytest.mark.parametrize("tune", [0, 2])
def test_zeros_stay_zero_and_codes_are_few(codebook: bool, tune: int) -> None:
    result = run(pruned=pruned(), codebook=codebook, tune_epochs=tune)
    assert result.plan is not None
    for node in pruned().mac_nodes:
        plan = result.plan.layer(node.name)
        assert (plan.codes[node.weight == 0] == 0).all()
        if codebook:
            assert plan.codebook is not None
            assert plan.width == 8
            assert 0 in plan.codebook
            assert len(plan.codebook) <= 16
        else:
            assert plan.width == 4
            assert plan.codebook is None
            assert plan.codes.min() >= -8
            assert plan.codes.max() <= 7
    for op in macs(result.network):
        assert op.weights.stored_width == 4
    record = result.table()
    assert record["sparsity"] == pytest.approx(0.8, abs=1 / 700)
    storage = record["storage"]
    assert storage["bitmap"] < storage["dense"] < storage["float32"] / 6


@pytest.mark.parametrize("bits, most", [(5, 0.03), (4, 0.06)])
def test_close_to_eight_bits(bits: int, most: float) -> None:
    wide = run("lenet5", pruned=pruned("lenet5"), bits=8, seeding=Seeding.NONE).test.integer
    assert wide > 0.93
    for codebook in (False, True):
        narrow = run("lenet5", pruned=pruned("lenet5"), bits=bits, codebook=codebook)
        assert narrow.test.integer > wide - most


def test_steps_of_powers_of_two() -> None:
    result = run(pruned=pruned(), power_of_two=True)
    assert result.plan is not None
    for layer in result.plan.layers.values():
        assert np.frexp(layer.scale)[0].tolist() == [0.5]


def test_nothing_pruned() -> None:
    result = run(sparsity=0.0, epochs=0, bits=8, seeding=Seeding.EXACT)
    assert result.table()["sparsity"] == 0.0
    assert abs(result.test.drop) < 0.02


def test_same_seed_same_network() -> None:
    options: dict[str, Any] = {"epochs": 1, "tune_epochs": 1}
    first = run(seed=1, **options)
    again = run(seed=1, **options)
    assert equal(first.network, again.network)
    assert first.table() == again.table()
    assert not equal(first.network, run(seed=2, **options).network)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 4])
def test_resumes_to_the_same_network(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"epochs": 3, "tune_epochs": 2}
    state = tmp_path / "search.state"
    whole = run(**options)
    save, saved = SearchState.save, []

    def counting(self: SearchState, *args: Any) -> None:
        save(self, *args)
        saved.append(1)
        if len(saved) == at:
            raise Interrupted

    monkeypatch.setattr(SearchState, "save", counting)
    with pytest.raises(Interrupted):
        run(state=state, **options)
    monkeypatch.setattr(SearchState, "save", save)
    epochs = []
    work = FineTuner.run_epoch
    monkeypatch.setattr(FineTuner, "run_epoch", lambda self, *a: epochs.append(1) or work(self, *a))
    resumed = run(state=state, **options)
    assert len(epochs) == 5 - at
    assert equal(whole.network, resumed.network)
    assert whole.table() == resumed.table()
    before = state.read_bytes()
    with pytest.raises(BadInput, match=r"another search \(\w+ 4 instead of 5\)"):
        run(state=state, **options, bits=5)
    assert state.read_bytes() == before


@pytest.mark.parametrize("codebook", [False, True])
def test_hardware(codebook: bool) -> None:
    result = run(pruned=pruned(), codebook=codebook)
    check_hardware(result.network, splits().test_images)


# --- bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, not 1.0"),
        ({"sparsity": -0.1}, "sparsity must be at least 0"),
        ({"bits": 1}, "bits must be a whole number from 2 to 8, not 1"),
        ({"bits": 9}, "bits must be a whole number from 2 to 8, not 9"),
        ({"bits": 6, "entry_bits": 5}, "entry_bits must be a whole number from 6 to 12, not 5"),
        ({"activation_bits": 1}, "activation_bits must be a whole number from 2 to 16"),
        ({"epochs": -1}, "epochs must be a whole number at least 0"),
        ({"tune_epochs": -1}, "tune_epochs must be a whole number at least 0"),
        ({"ramp": 0.0}, "ramp"),
        ({"images": 0}, "images must be a whole number at least 1"),
        ({"bits": 4.5}, "bits must be a whole number from 2 to 8, not 4.5"),
        ({"epochs": 1.5}, "epochs must be a whole number at least 0, not 1.5"),
        ({"seeding": "pso"}, "seeding must be one of Seeding.PSO.*not 'pso'"),
        ({"scope": "layer"}, "scope must be one of Scope.LAYER, Scope.ADAPTIVE, not 'layer'"),
        ({"codebook": True, "seeding": Seeding.NONE}, "a codebook needs clusters"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ClusterOptions(**changes)


@pytest.mark.parametrize(
    "images, found",
    [
        (0, Schedule(epochs=10, tune_epochs=2, batch=16)),
        (1_097, Schedule(epochs=30, tune_epochs=6, batch=16)),
        (2_048, Schedule(epochs=32, tune_epochs=7, batch=32)),
        (10_000, Schedule(epochs=26, tune_epochs=6, batch=128)),
        (45_000, Schedule(epochs=10, tune_epochs=2, batch=128)),
        (60_000, Schedule(epochs=10, tune_epochs=2, batch=128)),
    ],
)
def test_few_images_are_seen_more_often(images: int, found: Schedule) -> None:
    assert ClusterOptions().schedule(images) == found
    given = {"epochs": 1, "tune_epochs": 0, "batch": 200}
    assert ClusterOptions(**given).schedule(images) == Schedule(**given)


def test_the_record_tells_the_schedule() -> None:
    """And not None."""
    quick = ClusterOptions(images=80, epochs=1)
    found = model("digits-tiny")
    result = cluster(found.graph, preprocess=found.preprocess, splits=splits(), options=quick)
    told = {name: result.record["options"][name] for name in ("epochs", "tune_epochs", "batch")}
    assert told == {"epochs": 1, "tune_epochs": 80, "batch": 16}
    assert len(result.record["losses"]["tune"]) == 80


def test_swarms_too_small() -> None:
    with pytest.raises(BadInput, match="at least 3 particles"):
        Swarm(particles=2)


def test_no_training_images() -> None:
    data = splits()
    empty = replace(data, train_images=data.train_images[:0], train_labels=data.train_labels[:0])
    found = model("digits-tiny")
    with pytest.raises(BadInput, match="at least a batch of 16 training images, not 0"):
        cluster(found.graph, preprocess=found.preprocess, splits=empty)
    cluster(
        found.graph,
        preprocess=found.preprocess,
        splits=empty,
        options=ClusterOptions(epochs=0, tune_epochs=0, sparsity=0.5),
    )


def test_centroids_that_pass_each_other_keep_their_weights() -> None:
    sparse = pruned()
    node = sparse.mac_nodes[-1]
    inputs = observe_graph(sparse, splits().search_images[:20]).layers[node.name]
    layer = cluster_layer(node.weight, 3, Seeding.EXACT, np.random.default_rng(0))
    plan = layer_plan(node, layer, inputs, bits=3, entry_bits=12, bias_bits=16, power_of_two=False)
    moved = layer.levels.copy()
    moved[[0, -1]] = moved[[-1, 0]]  # the lowest and the highest trade places
    trained = replace(node, weight=np.concatenate([[0.0], moved])[layer.bins])
    found = tuned_plan(trained, layer, plan, inputs)
    assert found.weights == pytest.approx(trained.weight, abs=0.6 * float(found.scale[0]))
    assert (found.codes[layer.bins == 0] == 0).all()
