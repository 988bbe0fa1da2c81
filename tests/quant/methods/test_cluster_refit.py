"""Clusters fitted to the outputs of layers: the error, its descent, layers, the whole method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hwgen.ir import INPUT
from quant import graph as fg
from quant.assemble import Assembler
from quant.baseline import observe_graph
from quant.judge import Judge, Score
from quant.methods.cluster_layers import (
    ClusteredLayer,
    Compensated,
    cluster_layer,
    layer_plan,
    tuned_plan,
    tuning_map,
)
from quant.methods.cluster_refit import OutputError, refit_layer
from quant.methods.cluster_seeds import Seeding
from quant.methods.layerwise_round import Calibrator, RoundingProblem
from quant.plan import LayerPlan
from tests.quant.methods.test_cluster import pruned, run, splits


def example(groups: int = 2, per: int = 3, taps: int = 7) -> OutputError:
    rng = np.random.default_rng(groups)
    rows = [rng.normal(size=(40, taps)) @ rng.normal(size=(taps, taps)) for _ in range(groups)]
    return OutputError(
        target=rng.normal(size=(groups * per, taps)), moments=[r.T @ r / len(r) for r in rows]
    )


def test_the_error_is_quadratic_in_the_levels() -> None:
    error, rng = example(), np.random.default_rng(1)
    places = rng.integers(-1, 4, error.target.shape)
    matrix, vector = error.of_levels(places, 5)  # the last level has no weights
    for _ in range(3):
        levels = rng.normal(size=5)
        weights = np.where(places < 0, 0.0, levels[places])
        found = levels @ matrix @ levels - 2 * vector @ levels + error(np.zeros_like(weights))
        assert found == pytest.approx(error(weights))


def test_weights_move_to_better_levels_and_zeros_stay() -> None:
    error, rng = example(), np.random.default_rng(2)
    levels = np.sort(rng.normal(size=5))
    places = rng.integers(-1, 5, error.target.shape)

    def weights(at: np.ndarray) -> np.ndarray:
        return np.where(at < 0, 0.0, levels[at])

    moved = error.nearest(places, levels)
    assert ((moved < 0) == (places < 0)).all()
    assert error(weights(moved)) < error(weights(places))
    settled = moved
    for _ in range(20):
        settled = error.nearest(settled, levels)
    least = error(weights(settled))  # no single move is better
    for row, tap in np.argwhere(settled >= 0):
        for other in range(len(levels)):
            tried = settled.copy()
            tried[row, tap] = other
            assert error(weights(tried)) >= least - 1e-9


def layer_of(
    node: fg.Conv, *, bits: int, entries: int | None, power_of_two: bool = False
) -> tuple[RoundingProblem, LayerPlan]:
    graph = fg.FloatGraph(
        nodes=(
            fg.Input(name=INPUT, inputs=(), size=(4, 6, 6)),
            replace(node, inputs=(INPUT,)),
            fg.Flatten(name="flat", inputs=(node.name,)),
        ),
        output="flat",
    )
    images = np.random.default_rng(3).integers(0, 256, (30, 4, 6, 6)).astype(np.uint8)
    layer = cluster_layer(node.weight, bits, Seeding.EXACT, np.random.default_rng(0))
    plan = layer_plan(
        node,
        layer,
        observe_graph(graph, images).layers[node.name],
        bits=bits,
        entry_bits=entries,
        bias_bits=16,
        power_of_two=power_of_two,
    )
    found: list[RoundingProblem] = []

    def solve(group: object, problem: RoundingProblem) -> LayerPlan:
        found.append(problem)
        return plan

    Calibrator(Assembler(graph), images, 0, multipliers=True).walk({}, solve)
    return found[0], plan


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("entries", [None, 8])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_layer_errs_less(groups: int, entries: int | None, power_of_two: bool) -> None:
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(6, 4 // groups, 3, 3)) * (rng.random((6, 4 // groups, 3, 3)) > 0.3)
    node = fg.Conv(
        name="conv",
        inputs=("none",),
        weight=weight,
        bias=rng.normal(size=6),
        stride=(1, 1),
        padding=(1, 1, 1, 1),
        groups=groups,
    )
    problem, plan = layer_of(node, bits=3, entries=entries, power_of_two=power_of_two)
    layer = cluster_layer(weight, 3, Seeding.EXACT, np.random.default_rng(0))
    error = OutputError(target=problem.target, moments=problem.moments)
    before = error(plan.weights.reshape(6, -1))
    fitted, found = refit_layer(problem, layer, plan, keep_levels=False, power_of_two=power_of_two)
    assert error(found.weights.reshape(6, -1)) < before
    assert np.array_equal(fitted.weights, found.weights)
    assert (found.codes[weight == 0] == 0).all()
    assert len(np.unique(found.codes[weight != 0])) <= 7
    if entries:
        assert found.codebook is not None
        assert set(np.unique(found.codes)) | {0} == set(found.codebook)
    else:
        assert found.codebook is None
        assert found.codes.min() >= -4
        assert found.codes.max() <= 3
    if power_of_two:
        assert np.frexp(found.scale)[0].tolist() == [0.5]
    if not entries:  # all codes are levels: no cluster is in the way
        _, free = refit_layer(problem, layer, plan, keep_levels=True, power_of_two=power_of_two)
        assert error(free.weights.reshape(6, -1)) < before
        assert (free.codes[weight == 0] == 0).all()


def test_a_layer_of_zeros() -> None:
    node = fg.Conv(
        name="conv",
        inputs=("none",),
        weight=np.zeros((2, 4, 1, 1)),
        bias=np.array([1.0, -2.0]),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        groups=1,
    )
    problem, plan = layer_of(node, bits=3, entries=None)
    layer = cluster_layer(node.weight, 3, Seeding.EXACT, np.random.default_rng(0))
    _, found = refit_layer(problem, layer, plan, keep_levels=False, power_of_two=False)
    assert not found.codes.any()
    assert found.bias == pytest.approx(node.bias)


@pytest.mark.parametrize("codebook", [False, True])
def test_biases_of_training_are_those_of_the_result(codebook: bool) -> None:
    sparse = pruned()
    node = sparse.mac_nodes[1]
    inputs = observe_graph(sparse, splits().search_images[:20]).layers[node.name]
    seeding, entries = (Seeding.EXACT, 12) if codebook else (Seeding.NONE, None)
    layer = cluster_layer(node.weight, 3, seeding, np.random.default_rng(0))
    plan = layer_plan(
        node, layer, inputs, bits=3, entry_bits=entries, bias_bits=16, power_of_two=False
    )
    made = Compensated(tuning_map(layer, plan), inputs)
    weights = made.weights(torch.tensor(node.weight, dtype=torch.float32))
    biases = made.biases(torch.tensor(node.bias, dtype=torch.float32))
    found = tuned_plan(node, layer, plan, inputs, compensated=True)
    # The centroids of a codebook are rounded afterwards, the mean of which goes to the biases too.
    rounding = found.weights - weights.numpy()
    assert np.abs(rounding).max() < (found.scale[0] if codebook else 1e-6)
    trained = biases.numpy() - inputs.mean_error(rounding)
    assert found.bias == pytest.approx(trained, abs=1e-5)
    assert np.abs(trained - node.bias).max() > 1e-3
    plain = tuned_plan(node, layer, plan, inputs).bias + inputs.mean_error(rounding)
    assert plain == pytest.approx(node.bias, abs=1e-5)


@pytest.mark.parametrize("codebook", [False, True])
def test_better_than_the_published_steps(codebook: bool) -> None:
    def score(refit: bool, seeding: Seeding) -> Score:
        given = {"bits": 2, "codebook": codebook, "refit": refit, "seeding": seeding}
        result = run("lenet5", pruned=pruned("lenet5"), **given)
        return Judge(splits().search_images, splits().search_labels).score(result.network)

    for seeding in (Seeding.PSO, Seeding.EXACT):
        assert score(True, seeding) > score(False, seeding)


@pytest.mark.parametrize("codebook", [False, True])
def test_without_a_fit_the_levels_are_the_clusters(codebook: bool) -> None:
    sparse = pruned()
    result = run(pruned=sparse, refit=False, codebook=codebook, seeding=Seeding.EXACT)
    assert result.plan is not None
    seen = observe_graph(sparse, splits().search_images[:500])
    for node in sparse.mac_nodes:
        layer: ClusteredLayer = cluster_layer(
            node.weight, 4, Seeding.EXACT, np.random.default_rng(0)
        )
        wanted = layer_plan(
            node,
            layer,
            seen.layers[node.name],
            bits=4,
            entry_bits=8 if codebook else None,
            bias_bits=16,
            power_of_two=False,
        )
        found = result.plan.layer(node.name)
        assert np.array_equal(found.codes, wanted.codes)
        assert np.array_equal(found.scale, wanted.scale)
        assert np.array_equal(found.bias, wanted.bias)
