"""Networks for a given accumulator: bounds kept, pairs maximal, wraps told, resumed, as hardware."""

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

from hwgen.errors import BadInput
from hwgen.flow.model import Model, load_model
from hwgen.ir import INPUT, MacOp, Network
from quant import graph as fg
from quant.baseline import with_preprocessing
from quant.datasets import load_dataset
from quant.judge import Judge
from quant.methods.accumulator import AccumulatorOptions, Bound, Scales, accumulator
from quant.methods.accumulator_bounds import count_wraps, formats_width, worst_inputs
from quant.methods.accumulator_design import Designer
from quant.methods.accumulator_samples import collect
from quant.methods.accumulator_setting import PIXELS, Rules, with_pixels
from quant.methods.result import Result
from quant.models import Preprocess
from quant.progress import Advance
from quant.splits import Splits
from tests.quant.methods.cosim import check_hardware

SMALL = AccumulatorOptions(bits=12, evaluations=15, beam=1, images=100, calibration=100)


@cache
def case(network: str = "digits-tiny") -> tuple[Model, Splits]:
    data = load_dataset("digits")
    model = load_model(network, data=data)
    return model, Splits.of(data, held_out=model.held_out, search=200)


def search(options: AccumulatorOptions, network: str = "digits-tiny", **given: Any) -> Result:
    model, splits = case(network)
    given = {"splits": splits, **given}
    return accumulator(model.graph, preprocess=model.preprocess, options=options, **given)


def macs(network: Network) -> list[MacOp]:
    return [op for op in network.ops if isinstance(op, MacOp)]


@pytest.fixture(scope="module")
def fitted() -> Result:
    return search(replace(SMALL, epochs=1, distill=0.0))


def test_every_accumulator_fits_and_is_used(fitted: Result) -> None:
    widths = [op.accumulator_width for op in macs(fitted.network)]
    assert max(widths) == 12
    assert min(widths) >= 11, "an accumulator that is half empty could hold finer weights"
    assert fitted.record["accumulators"] == 12
    for op in macs(fitted.network):
        lowest, highest = worst_inputs(op)
        axes = tuple(range(1, lowest.ndim))
        bias = 0 if op.bias is None else op.bias.values
        low, high = ((op.weights.codes * x).sum(axis=axes) + bias for x in (lowest, highest))
        assert -2048 <= low.min() <= high.max() <= 2047
        np.testing.assert_array_equal((low, high), op.accumulator_interval())
    assert fitted.test.drop <= 0.03


def test_the_record_tells_every_stage(fitted: Result) -> None:
    record = fitted.record
    stages = {stage["stage"]: stage for stage in record["stages"]}
    assert list(stages) == ["control", "pairs", "fitted", "refined", "tuned"]
    searched = {
        name: (stage["search"]["accuracy"], -stage["search"]["loss"])
        for name, stage in stages.items()
    }
    assert searched["pairs"] >= searched["control"], "the search starts from the control"
    assert searched["fitted"] > searched["control"]
    assert searched[record["chosen"]] == max(searched.values())
    assert all(layer["accumulator"] <= 12 for s in stages.values() for layer in s["layers"])
    assert record["evaluations"] > 20
    assert stages[record["chosen"]]["test"] == fitted.test.integer
    json.dumps(fitted.table(), allow_nan=False)


def test_its_hardware_computes_the_same_and_has_these_accumulators(fitted: Result) -> None:
    _, splits = case()
    check_hardware(fitted.network, splits.test_images)  # audits the accumulators' widths too


def test_pairs_fill_the_accumulator() -> None:
    model, splits = case()
    graph = with_pixels(with_preprocessing(model.graph, model.preprocess))
    samples = collect(graph, splits.search_images[:100])
    for bound in Bound:
        rules = Rules(bits=13, widest=6, bound=bound, scales=Scales.SHIFT)
        designer = Designer(graph, samples, rules, plain=True)
        for node in graph.mac_nodes:
            key = designer.assembler.joint[node.inputs[0]]

            def needs(data: int, bits: int, designer: Designer = designer, node: Any = node) -> int:
                source_key = designer.assembler.joint[node.inputs[0]]
                setting = designer.start().changed(source_key, bits=data)
                source = designer.source(node, setting)
                low, high = designer.intervals(node, source, bits)
                if designer.rules.bound is Bound.FORMATS:
                    return formats_width(node.weight[0].size, source.form, bits)
                half = max(-int(low.min()), int(high.max()) + 1)
                return (half - 1).bit_length() + 1

            pairs = designer.pairs(node)
            assert key in designer.keys
            assert pairs
            assert len({pair.data for pair in pairs}) == len(pairs)
            for pair in pairs:
                assert needs(pair.data, pair.weights) == pair.accumulator <= 13
                assert pair.data == 6 or needs(pair.data + 1, pair.weights) > 13
                assert pair.weights == 6 or needs(pair.data, pair.weights + 1) > 13


def test_formats_alone_bound_any_weights() -> None:
    result = search(replace(SMALL, bits=16, bound=Bound.FORMATS))
    for op in macs(result.network):
        form_width = formats_width(
            op.weights.codes[0].size,
            with_form(op),
            op.weights.width,
        )
        assert form_width <= 16
        assert op.bias is None or int(np.abs(op.bias.values).max()) < 1 << 15
        assert op.accumulator_width <= 16


def with_form(op: MacOp) -> Any:
    from hwgen.ir import Fixed

    return Fixed(width=op.input.width, frac=0, signed=op.input.signed)


def test_what_calibration_lets_through_is_counted() -> None:
    options = replace(SMALL, bound=Bound.CALIBRATED)
    result = search(options)
    _, splits = case()
    found = result.record["wraps"]
    assert found["calibration"]["accumulators"] == 0
    assert max(op.accumulator_width for op in macs(result.network)) > 12
    wraps, _ = count_wraps(result.network, splits.test_images, 12)
    assert found["test"]["accumulators"] == wraps.total
    assert found["test"]["images_touched"] == wraps.touched
    assert found["test"]["layers"] == dict(wraps.layers)
    if wraps.total == 0:
        assert found["test"]["accuracy_if_wrapped"] == result.test.integer
    narrow, outputs = count_wraps(result.network, splits.test_images, 9, wrap=True)
    assert narrow.total > 0
    assert np.abs(outputs).max() <= 256


class Interrupted(Exception):
    pass


class Interrupting:
    """Progress that fails after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.texts: list[str] = []

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Advance]:
        def advance(done: int, total: int, text: str) -> None:
            assert 0 <= done <= total
            self.texts.append(text)
            self.left -= 1
            if self.left == 0:
                raise Interrupted

        yield advance


@pytest.mark.parametrize("steps", [2, 6, -1])
def test_an_interrupted_search_goes_on(fitted: Result, tmp_path: Path, steps: int) -> None:
    options, path = replace(SMALL, epochs=1, distill=0.0), tmp_path / "state.npz"
    whole = Interrupting(0)
    if steps < 0:
        search(options, progress=whole)
        steps = len(whole.texts) - 1  # in the middle of the end: fine-tuned, not yet measured
    with pytest.raises(Interrupted):
        search(options, state=path, progress=Interrupting(steps))
    assert path.exists()
    again = search(options, state=path)
    assert again.network.same(fitted.network)
    assert again.table() == fitted.table()
    with pytest.raises(BadInput, match="bits 12 instead of 13"):
        search(replace(options, bits=13), state=path)
    _, splits = case()
    fewer = replace(
        splits, train_images=splits.train_images[:-1], train_labels=splits.train_labels[:-1]
    )
    with pytest.raises(BadInput, match=r"another search \(other training images\)"):
        search(options, splits=fewer, state=path)


def test_other_scales_and_raw_pixels() -> None:
    options = replace(SMALL, bits=20, scales=Scales.MULTIPLY, rescale=False, evaluations=3)
    result = search(options)
    assert result.network.ops[0].name == "conv1"
    assert result.record["accumulators"] <= 20
    assert result.test.drop <= 0.02


def test_pixels_of_eight_bits_are_not_rescaled() -> None:
    model, splits = case()
    result = search(replace(SMALL, bits=28, evaluations=3))
    widths = result.record["stages"][-1]["layers"][0]
    rescaled = any(op.name == PIXELS for op in result.network.ops)
    assert rescaled == (result.network.ops[0].name == PIXELS)
    assert widths["data"] == 8 or rescaled
    score = Judge(splits.search_images[:100], splits.search_labels[:100]).score(result.network)
    stage = next(s for s in result.record["stages"] if s["stage"] == result.record["chosen"])
    assert score.accuracy == stage["search"]["accuracy"]
    assert model.graph.mac_nodes[0].name == "conv1"


def test_an_impossible_width_names_the_layer_and_the_narrowest() -> None:
    options = replace(SMALL, bound=Bound.FORMATS, rescale=False)
    with pytest.raises(BadInput, match=r"conv1.* 12 bits.*narrowest.* is 15 .*at least 15"):
        search(options)
    model, splits = case()
    graph = with_preprocessing(model.graph, model.preprocess)
    samples = collect(graph, splits.search_images[:50])
    weights = Rules(bits=10, widest=8, bound=Bound.WEIGHTS, scales=Scales.SHIFT)
    with pytest.raises(BadInput, match=r"channel \d+ of layer conv1") as told:
        Designer(graph, samples, weights, plain=True).pairs(graph.mac_nodes[0])
    least = int(str(told.value).split("give at least ")[1].split()[0].rstrip(",;"))
    wide = Designer(graph, samples, replace(weights, bits=least), plain=True)
    assert wide.pairs(graph.mac_nodes[0])
    narrow = Designer(graph, samples, replace(weights, bits=least - 1), plain=True)
    with pytest.raises(BadInput, match="conv1"):
        narrow.pairs(graph.mac_nodes[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 11}, "width of accumulators must be a whole number from 12 to 32, not 11"),
        ({"bits": 33}, "from 12 to 32, not 33"),
        ({"bits": 16.0}, "whole number"),
        ({"widest": 9}, "widest"),
        ({"beam": 0}, "beam"),
        ({"images": 1}, "images"),
        ({"epochs": -1}, "epochs"),
        ({"rate": 0.0}, "rate"),
        ({"bound": "weights"}, "bound must be one of Bound.FORMATS.*not 'weights'"),
        ({"scales": "shift"}, "scales must be one of Scales.SHIFT.*not 'shift'"),
    ],
)
def test_bad_options_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        AccumulatorOptions(**change)


def test_fine_tuning_needs_training_images() -> None:
    _, splits = case()
    bare = replace(
        splits, train_images=splits.train_images[:0], train_labels=splits.train_labels[:0]
    )
    with pytest.raises(BadInput, match="training images"):
        search(replace(SMALL, epochs=1), splits=bare)


def test_more_images_than_there_are_are_refused() -> None:
    have = len(case()[1].search_images)
    with pytest.raises(BadInput, match=f"at most the {have} images of the search set"):
        search(replace(SMALL, images=have + 1))


def test_projection_fits_what_no_pair_does() -> None:
    _, splits = case()
    rng = np.random.default_rng(0)
    nodes = (
        fg.Input(name=INPUT, inputs=(), size=(1, 32, 32)),
        fg.Flatten(name="flat", inputs=(INPUT,)),
        fg.Linear(
            name="fc", inputs=("flat",), weight=rng.normal(size=(10, 1024)), bias=np.ones(10)
        ),
    )
    graph = fg.FloatGraph(nodes=nodes, output="fc")
    plain = Preprocess(scale=(1 / 255,), offset=(0.0,))
    options = replace(SMALL, rescale=False, evaluations=1)
    given: dict[str, Any] = {"preprocess": plain, "splits": splits}
    with pytest.raises(BadInput, match=r"channel \d of layer fc"):
        accumulator(graph, options=replace(options, project=False), **given)
    result = accumulator(graph, options=options, **given)
    assert result.record["pairs"] == {"fc": []}
    assert [stage["stage"] for stage in result.record["stages"]] == ["fitted", "refined"]
    assert result.record["accumulators"] == 12
