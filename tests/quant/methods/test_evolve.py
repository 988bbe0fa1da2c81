"""What the search finds, its controls, its record; the network it ends in as hardware."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hwgen.errors import BadInput
from hwgen.ir import MacOp, Network
from quant.baseline import with_preprocessing
from quant.cost import model_bits, network_cost
from quant.judge import Judge
from quant.methods.evolve import OBJECTIVES, EvolveOptions, Sampler
from quant.methods.evolve_individual import Individual, Trainer, train_individual
from quant.methods.evolve_search import (
    Space,
    hypervolume,
    hypervolumes,
    starting_points,
    uniform_points,
)
from quant.methods.result import Result
from tests.quant.methods.cosim import check_hardware
from tests.quant.methods.evolve_case import OPTIONS, case, search


@pytest.fixture(scope="module")
def found() -> Result:
    """The small search, done once."""
    return search()


def widths(network: Network) -> dict[str, int]:
    return {op.name: op.weights.width for op in network.ops if isinstance(op, MacOp)}


def test_the_network_is_what_the_record_says(found: Result) -> None:
    record = found.record
    chosen = record["chosen"]["genes"]
    assert widths(found.network) == {layer: genes[0] for layer, genes in chosen.items()}
    for layer, (_, activations, _) in chosen.items():
        op = found.network.op(layer)
        if layer != "fc":  # hands out accumulators
            assert op.output.width == activations
            assert not op.output.signed
    assert record["bits"] == model_bits(found.network) <= record["limit"]["max_bits"]
    assert record["float_bits"] == 730 * 32
    assert record["ratio"] == record["float_bits"] / record["bits"] >= 2.5
    assert record["limit"]["met"]
    assert record["limit"]["binding_layer"] is None
    assert found.search.integer == 1 - record["chosen"]["final_error"]
    assert found.search.images == 200
    assert found.test.images == 500
    assert not found.search_seen


def test_the_record_is_json_and_complete(found: Result) -> None:
    table = json.loads(json.dumps(found.table(), allow_nan=False))
    assert table["method"] == "evolve"
    assert table["evaluations"] == OPTIONS["trials"] == len(table["trials"])
    assert [trial["place"] for trial in table["trials"]] == list(range(OPTIONS["trials"]))
    volumes, history = table["hypervolume"], table["history"]
    assert volumes == sorted(volumes)
    assert 0 < volumes[-1] < 1
    known = [error for error in history if error is not None]
    assert known == sorted(known, reverse=True)
    errors = {trial["place"]: trial["error"] for trial in table["trials"]}
    assert len(table["last_population"]) == OPTIONS["population"]
    limit = table["limit"]["max_bits"]
    best = min(
        (
            t
            for t in table["trials"]
            if t["place"] in table["last_population"] and t["bits"] <= limit
        ),
        key=lambda trial: (trial["error"], trial["bits"]),
    )
    first, last = table["rounds"][0], table["rounds"][-1]
    assert len(first["errors"]) == OPTIONS["finalists"]
    ranked = sorted(table["trials"], key=lambda t: (t["error"], t["bits"], t["place"]))
    channels = {tuple(gene[2] for gene in best["genes"].values()): best}
    for trial in ranked:
        if trial["bits"] <= limit:
            channels.setdefault(tuple(gene[2] for gene in trial["genes"].values()), trial)
    places = [str(trial["place"]) for trial in channels.values()]
    assert set(first["errors"]) == set(places[: OPTIONS["finalists"]])
    assert first["epochs"] * len(first["errors"]) == OPTIONS["final_epochs"] == last["epochs"]
    assert list(last["errors"]) == [str(table["chosen"]["place"])]
    assert min(first["errors"], key=lambda place: first["errors"][place]) in last["errors"]
    assert table["chosen"]["final_error"] <= errors[table["chosen"]["place"]]


def test_nothing_on_the_front_is_dominated(found: Result) -> None:
    trials = {trial["place"]: trial for trial in found.record["trials"]}
    values = [tuple(trial["values"]) for trial in trials.values()]
    front = [tuple(trials[place]["values"]) for place in found.record["front"]]
    for point in front:
        assert not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            for other in values
        )


def test_one_worker_is_reproducible(found: Result) -> None:
    again = search()
    assert again.network.same(found.network)
    assert again.record == found.record


def test_another_seed_is_another_search(found: Result) -> None:
    other = search(seed=4, trials=5, final_epochs=0)
    assert other.record["trials"] != found.record["trials"][:5]


@pytest.mark.slow
def test_hardware_of_the_result_computes_the_same(found: Result) -> None:
    check_hardware(found.network, case()[2].search_images)


def test_the_trained_network_is_what_the_integers_stand_for(found: Result) -> None:
    """The float network that was trained, its weights quantised as the plan says."""
    assert found.graph is not None
    assert found.plan is not None
    for node in found.graph.mac_nodes:
        layer = found.plan.layer(node.name)
        steps = layer.scale.reshape(-1, *[1] * (node.weight.ndim - 1))
        inside = np.abs(layer.codes) < 2 ** (layer.width - 1) - 1
        assert np.abs(layer.weights - node.weight)[inside].max() <= steps.max() / 2
        assert (np.frexp(layer.scale)[0] == 0.5).all()


@pytest.mark.parametrize("sampler", [Sampler.RANDOM, Sampler.UNIFORM])
def test_controls_run_the_same_way(sampler: Sampler) -> None:
    found = search(sampler=sampler, trials=4, epochs=0.05, final_epochs=0)
    assert found.record["evaluations"] == 4
    assert found.record["last_population"] == [0, 1, 2, 3]
    if sampler is Sampler.UNIFORM:
        for place, trial in enumerate(found.record["trials"]):
            for weights, _, factor in trial["genes"].values():
                assert (weights, factor) == (8 - place, 1.0)


def test_a_control_of_one_set_of_channels_has_as_many_finalists() -> None:
    """Uniform widths: the most accurate ones that are small enough are trained for longer."""
    found = search(sampler=Sampler.UNIFORM, trials=5, epochs=0.05, final_epochs=0.2, finalists=3)
    record = found.record
    fit = [t for t in record["trials"] if t["bits"] <= record["limit"]["max_bits"]]
    assert len(fit) >= 2
    fit.sort(key=lambda t: (t["error"], t["bits"]))
    wanted = {str(trial["place"]) for trial in fit[:3]}
    assert set(record["rounds"][0]["errors"]) == wanted
    assert record["rounds"][0]["epochs"] * len(wanted) == pytest.approx(0.2)


def test_a_third_objective() -> None:
    wanted = {
        **OBJECTIVES,
        "products": lambda candidate: float(network_cost(candidate.network).input_product),
    }
    found = search(objectives=wanted, trials=3, epochs=0.05, final_epochs=0)
    assert found.record["objectives"] == ["error", "bits", "products"]
    assert all(len(trial["values"]) == 3 for trial in found.record["trials"])


def test_a_limit_that_cannot_be_met_keeps_the_smallest() -> None:
    found = search(max_bits=100, trials=3, epochs=0.05, final_epochs=0)
    limit = found.record["limit"]
    assert not limit["met"]
    assert limit["reached"] == min(trial["bits"] for trial in found.record["trials"])
    assert limit["binding_layer"] in widths(found.network)


def test_expansion_starts_from_the_trained_network() -> None:
    """Without training, twice the channels lose no more than the same widths do."""
    graph, preprocess, splits = case()
    whole = with_preprocessing(graph, preprocess)
    trainer = Trainer(
        graph=whole,
        images=splits.train_images,
        labels=splits.train_labels,
        calibration=splits.search_images,
        judge=Judge(splits.search_images, splits.search_labels),
        recipe=EvolveOptions().recipe(),
        bias_width=16,
        per_channel=True,
    )
    space = Space.of(whole, widths=(2, 8), activations=(2, 8), factors=(1.0, 2.0))
    made: list[Individual] = [
        train_individual(
            trainer, space.genes(space.point(8, 8, convs=f)), epochs=0, seed=1, name="n", rate=1e-3
        )
        for f in (1.0, 2.0)
    ]
    assert made[1].network.op("conv2").output.channels == 16
    assert made[0].score.accuracy >= 0.96
    assert made[1].score.accuracy >= made[0].score.accuracy - 0.01


def test_points_to_start_from() -> None:
    whole = with_preprocessing(*case()[:2])
    space = Space.of(whole, widths=(3, 6), activations=(4, 8), factors=(0.5, 1.0, 2.0))
    assert set(space.distributions()) == {
        *("conv1.weights", "conv1.activations", "conv1.factor"),
        *("conv2.weights", "conv2.activations", "conv2.factor", "fc.weights"),
    }
    for points in (starting_points(space), uniform_points(space)):
        assert len(points) >= 4
        for point in points:
            for name, values in space.distributions().items():
                assert values._contains(values.to_internal_repr(point[name]))
    one = Space.of(whole, widths=(4, 4), activations=(8, 8), factors=(1.0,))
    assert len(starting_points(one)) == len(uniform_points(one)) == 1
    alone = Space.of(whole, widths=(4, 4), activations=(8, 8), factors=(2.0,))
    genes = alone.genes(alone.point(4, 8))
    assert [genes[layer].factor for layer in ("conv1", "conv2", "fc")] == [2.0, 2.0, 1.0]


def test_hypervolume() -> None:
    points = [(0.5, 0.5), (0.25, 0.75), (0.6, 0.6), (2.0, 0.0)]
    assert hypervolume(points, (1.0, 1.0)) == 0.25 + 0.25 * 0.25
    assert hypervolumes(points, (1.0, 1.0)) == [0.25, 0.3125, 0.3125, 0.3125]
    assert hypervolume([], (1.0, 1.0)) == 0
    assert hypervolume([(1.0, 1.0)], (2.0, 4.0)) == 0.375


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"trials": 0}, "trials must be a whole number at least 1"),
        ({"population": 1}, "population must be a whole number at least 2"),
        ({"finalists": 0}, "finalists must be a whole number at least 1"),
        ({"mutation": 1.5}, "mutation must be 0 to 1"),
        ({"epochs": -1.0}, "epochs must be at least 0"),
        ({"final_epochs": float("nan")}, "final_epochs must be at least 0"),
        ({"widths": (8, 2)}, "widths must be the least and the greatest"),
        ({"activations": (0, 8)}, "activations must be the least"),
        ({"bias_width": 1}, "bias_width must be a whole number from 2 to 16"),
        ({"factors": ()}, "factors must be numbers"),
        ({"factors": (2.0, 1.0)}, "each once and rising"),
        ({"ratio": 0}, "ratio must be above 0"),
        ({"max_bits": 0}, "max_bits must be a whole number at least 1"),
        ({"max_bits": "9"}, "max_bits must be a whole number"),
        ({"trials": 2.5}, "trials must be a whole number at least 1, not 2.5"),
        ({"widths": (2.5, 8)}, "widths must be the least and the greatest"),
        ({"widths": None}, "widths must be the least and the greatest"),
        ({"sampler": "nsga2"}, "sampler must be one of Sampler.NSGA2.*not 'nsga2'"),
        ({"rate": 0}, "rate of fine-tuning must be above 0"),
    ],
)
def test_bad_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        EvolveOptions(**wrong)  # type: ignore[arg-type]


def test_one_objective_is_refused() -> None:
    with pytest.raises(BadInput, match="two objectives at least"):
        search(objectives={"error": OBJECTIVES["error"]})
