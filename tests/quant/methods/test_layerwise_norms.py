"""Layer-wise search of networks with batch norms behind ReLUs: asymmetric formats, moved offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwgen.ir import INPUT, Conv, Fixed, MacOp
from quant.assemble import Assembler
from quant.baseline import observe_graph, with_preprocessing
from quant.datasets import load_dataset
from quant.graph import ChannelAffine, Flatten, FloatGraph, MaxPool, Relu
from quant.graph import Linear as FloatLinear
from quant.judge import Judge
from quant.methods.layerwise import LayerwiseOptions, layerwise
from quant.methods.layerwise_equalise import channel_groups, equalise
from quant.methods.layerwise_grids import Norm, find_norms
from quant.methods.layerwise_round import Calibrator
from quant.methods.layerwise_search import Evaluations
from quant.methods.layerwise_space import Space, Widths
from quant.methods.result import Result
from quant.models import Preprocess
from quant.splits import Splits
from tests.quant.floatgraphs import Maker
from tests.quant.methods.cosim import check_hardware

PIXELS = Preprocess(scale=(1 / 128,), offset=(-1.0,))


@cache
def splits() -> Splits:
    return Splits.of(load_dataset("digits"), held_out=None, search=200)


@cache
def network() -> FloatGraph:
    """Random features of digits, each with mean 0 and variance 1, and a linear layer fitted to them."""
    data = splits()
    images = (data.train_images / 128 - 1)[:600]
    m = Maker(data.train_images.shape[1:], np.random.default_rng(5))

    def values(x: str) -> NDArray[np.float64]:
        return m.graph(x).evaluate(images)

    def layer(x: str, out: int) -> str:
        x = m.put(Relu, m.conv(x, out, same=True))
        found = values(x).swapaxes(0, 1).reshape(out, -1)
        scale = 1 / np.maximum(found.std(1), 1e-3)
        return m.put(ChannelAffine, x, scale=scale, offset=-found.mean(1) * scale)

    x = m.put(MaxPool, layer(layer(INPUT, 6), 6), kernel=(4, 4), stride=(4, 4))
    x = m.put(Flatten, m.put(MaxPool, layer(x, 10), kernel=(2, 2), stride=(2, 2)))
    given = np.column_stack([values(x), np.ones(len(images))])
    wanted = np.eye(10)[data.train_labels[:600]]
    fit = np.linalg.solve(given.T @ given + 30 * np.eye(given.shape[1]), given.T @ wanted).T
    return m.graph(m.put(FloatLinear, x, weight=10 * fit[:, :-1], bias=10 * fit[:, -1]))


@cache
def whole() -> FloatGraph:
    return with_preprocessing(network(), PIXELS)


@cache
def norms() -> Mapping[str, Norm]:
    return find_norms(whole(), splits().train_images[:60])


@pytest.fixture(scope="module")
def result() -> Result:
    options = LayerwiseOptions(tolerance=0.02, max_drop=0.03, tries=8, images=200)
    return layerwise(network(), preprocess=PIXELS, splits=splits(), options=options)


def test_it_saves_within_the_limit(result: Result) -> None:
    assert result.search.exact > 0.9
    assert result.record["limit_met"]
    assert result.record["cost"]["memory_saved"] > 0.45
    assert result.record["cost"]["output_product_saved"] > 0.65


def test_formats_are_asymmetric(result: Result) -> None:
    convs = [op for op in result.network.ops if isinstance(op, Conv)]
    assert len(convs) == 3
    for op in convs[:2]:  # the last batch norm becomes part of the linear layer
        assert not op.output.signed
        assert 0 < op.output.zero <= 1 << (op.output.width - 1)
    padded = [op for op in convs[1:] if op.input.zero]
    assert len(padded) == 2


def test_hardware(result: Result) -> None:
    check_hardware(result.network, splits().test_images)


def test_what_a_relu_stops_has_a_code_of_its_own(result: Result) -> None:
    """Offsets are whole steps, but for what the width of a multiplier's product takes from them."""
    for op in result.network.ops:
        if isinstance(op, MacOp) and op.requant is not None:
            rule = op.requant.common_shift()
            assert all(add % (1 << rule.shift[0]) == 0 for add in rule.add)


def test_norms_behind_a_relu_are_found() -> None:
    convs = [node.name for node in whole().mac_nodes[:2]]
    assert list(norms()) == convs
    readers = [[r.name for r in norm.readers] for norm in norms().values()]
    assert readers == [[node.name] for node in whole().mac_nodes[1:3]]
    second = norms()[convs[1]]
    assert second.group.affine is not None
    assert second.values.min(1) == pytest.approx(second.group.affine.offset, abs=1e-5)
    assert (norms()[convs[0]].values == norms()[convs[0]].values.min()).mean() < 0.5


def test_others_are_left_alone() -> None:
    m = Maker((1, 8, 8), np.random.default_rng(0))
    x = m.norm(m.put(Relu, m.conv(INPUT, 4, same=True)))
    y = m.conv(x, 4, same=True)
    graph = m.graph(m.linear(m.put(Flatten, m.put(Relu, y)), 3))
    images = np.random.default_rng(1).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    assert list(find_norms(graph, images)) == [graph.mac_nodes[0].name]
    first, second, last = graph.mac_nodes
    found = [(group.node, readers) for group, readers in channel_groups(graph)]
    assert found == [(first, [second]), (second, [last])]
    result = replace(graph, nodes=graph.nodes[:4], output=x)  # its norm is the network's result
    assert not find_norms(result, images)
    assert not list(channel_groups(result))


@pytest.mark.parametrize("width", [2, 3, 4, 6, 8])
def test_no_other_format_errs_less(width: int) -> None:
    for norm in norms().values():
        best = norm.best(width)
        least = norm._error(best)
        half = 1 << (width - 1)
        for frac in range(best.frac - 2, best.frac + 3):
            for zero in range(0, half + 1, max(1, half // 8)):
                form = Fixed(width=width, frac=frac, signed=False, zero=zero)
                assert norm._error(form) >= least * (1 - 1e-12)
        signed = [Fixed(width=width, frac=frac, signed=True) for frac in range(-4, 12)]
        assert least <= min(norm._error(form) for form in signed)


def test_a_coarser_format_has_twice_the_step() -> None:
    for norm in norms().values():
        assert norm.best(4, coarser=1).frac == norm.best(4).frac - 1


def test_biases_take_back_moved_offsets() -> None:
    """Away from padding, and from codes at the end of their range, nothing changes."""
    graph = whole()
    first, second = graph.mac_nodes[0], graph.mac_nodes[1]
    norm, form = norms()[first.name], Fixed(width=12, frac=1, signed=False, zero=512)
    fine = replace(form, width=16, frac=10, zero=1 << 13)
    calibrator = _calibrator(graph)
    widths = {node.name: 8 for node in graph.mac_nodes}
    outputs = _outputs(16) | dict.fromkeys(norms(), fine)
    plan, _ = calibrator.fit(widths, outputs, 16)
    moved = plan.with_layers(**norm.moved(plan, fine, form))
    assert set(norm.moved(plan, fine, form)) == {first.name, second.name}
    change = norm.offset(form) - norm.offset(fine)
    np.testing.assert_array_equal(moved.layers[first.name].offset, norm.offset(form))
    assert np.abs(change).max() > 0.05
    took = plan.layers[second.name].bias - moved.layers[second.name].bias
    sums = plan.layers[second.name].weights.sum((2, 3))
    drift = (norm.rounded(form) - norm.rounded(fine)).mean(1)
    np.testing.assert_allclose(took, sums @ drift, rtol=1e-9, atol=1e-12)
    assert drift == pytest.approx(change, abs=0.1)  # rounding itself adds little


def _outputs(width: int) -> dict[str, Fixed]:
    """The formats of all outputs."""
    graph = whole()
    assembler, seen = Assembler(graph), observe_graph(graph, splits().train_images[:60])
    space = Space(assembler, seen, norms())
    return space.formats(Widths((8,) * len(space.layers), (width,) * len(space.tensors)))


def _calibrator(graph: FloatGraph) -> Calibrator:
    return Calibrator(
        Assembler(graph), splits().train_images[:60], 0, multipliers=True, norms=norms()
    )


def test_asymmetric_formats_beat_symmetric_ones() -> None:
    data = splits()
    level = equalise(whole(), data.train_images[:60])
    images = data.search_images
    wanted = level.evaluate(images)
    errors = []
    for found in (find_norms(level, data.train_images[:60]), {}):
        assembler = Assembler(level)
        space = Space(assembler, observe_graph(level, data.train_images[:60]), found)
        calibrator = Calibrator(assembler, data.train_images[:60], 0, multipliers=True, norms=found)
        outputs = tuple(4 if name in norms() else 8 for (name,) in space.tensors)
        widths = Widths((8,) * len(space.layers), outputs)
        bits = dict(zip(space.layers, widths.weights, strict=True))
        plan, _ = calibrator.fit(bits, space.formats(widths), 8)
        net = assembler.assemble(plan)
        out = net.evaluate(images.astype(np.int64)) * net.output_type.scale
        errors.append(float(np.square(out - wanted).mean()))
    assert errors[0] < 0.7 * errors[1]


def test_divergences_are_those_of_the_changed_networks() -> None:
    graph, data = whole(), splits()
    space = Space(Assembler(graph), observe_graph(graph, data.train_images[:60]), norms())
    images, labels = data.search_images[:100], data.search_labels[:100]
    journal: dict[str, list[Any]] = {}
    given: dict[str, Any] = {
        "space": space,
        "calibrator": _calibrator(graph),
        "judge": Judge(images, labels),
        "control": Judge(images, labels),
        "journal": journal,
        "save": lambda: None,
    }
    evaluations = Evaluations(probe=Judge(images, labels), **given)
    centre = space.uniform(6)

    def log_chances(place: int, width: int) -> NDArray[np.float64]:
        network = evaluations._changed(centre, place, width)
        values = network.evaluate(images.astype(np.int64)) * network.output_type.scale
        return np.asarray(torch.log_softmax(torch.tensor(values), 1).numpy())

    before = log_chances(0, 6)
    for place in range(centre.places):
        found = [evaluations.divergence(centre, place, width) for width in (2, 3, 6)]
        after = log_chances(place, 2)
        exact = (np.exp(before) * (before - after)).sum(1).mean()
        assert found[0] == pytest.approx(exact, rel=1e-9)
        assert found[0] > 0
        assert found[0] > found[1] / 2  # about four times, but these are few images
        assert found[2] == 0
    again = Evaluations(probe=None, **given)  # type: ignore[arg-type]
    assert again.divergence(centre, 0, 2) == evaluations.divergence(centre, 0, 2)


def test_the_fit_sees_what_the_network_computes() -> None:
    """Tensors that weights are fitted to are those of the integer network, but for its biases."""
    graph, data = whole(), splits()
    calibrator = _calibrator(graph)
    first = graph.mac_nodes[0].name
    form = norms()[first].best(4)
    outputs = _outputs(4)
    plan, problems = calibrator.fit({n.name: 6 for n in graph.mac_nodes}, outputs, 16)
    net = calibrator.assembler.assemble(plan)
    group = norms()[first].group
    images = data.train_images[:60]
    node = replace(group.node, weight=plan.layers[first].weights, bias=plan.layers[first].bias)  # type: ignore[call-arg]
    made = node.evaluate(torch.tensor(images, dtype=torch.float64)).float()
    seen = calibrator._output(group, made, outputs).numpy()
    (op,) = [op for op in net.ops if op.name == first]
    assert isinstance(op, MacOp)
    codes = op.evaluate(images.astype(np.int64))
    real = (codes - form.zero) * form.scale
    assert np.mean(np.abs(seen - real) > 1e-6) < 0.02  # a few fall on the other side of a half
    assert problems[first].offset is not None
