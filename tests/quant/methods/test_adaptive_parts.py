"""What candidates are made of: corrected biases, moments of inputs, levels of codebooks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from hwgen.flow.model import load_model
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.calibrate import LayerInputs
from quant.codebooks import bin_means, bins_of, code_range, covering_step, uniform_codes
from quant.config import LayerBits, QuantConfig
from quant.datasets import load_dataset
from quant.formats import Floats
from quant.graph import Conv, FloatGraph, Linear
from quant.methods.adaptive_coders import Clip, Codebook, Start
from quant.methods.adaptive_forward import Forward
from quant.methods.adaptive_genes import Layer
from quant.methods.adaptive_moments import moments


@cache
def graph() -> FloatGraph:
    model = load_model("digits-tiny", data=load_dataset("digits"))
    return with_preprocessing(model.graph, model.preprocess)


def images(count: int = 60) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return load_dataset("digits").test_images[:count]


def test_the_float_networks_own_biases_are_asked_for_where_nothing_changed() -> None:
    forward = Forward(assembler=Assembler(graph()), images=images(), outputs={})
    asked: dict[str, Floats] = {}

    def bias_of(name: str, wanted: Floats) -> Floats:
        asked[name] = wanted
        return wanted

    forward.correct({node.name: node.weight for node in graph().mac_nodes}, bias_of)
    for node in graph().mac_nodes:
        assert asked[node.name] == pytest.approx(node.bias, abs=1e-4)


def test_biases_restore_mean_outputs_behind_coarse_layers() -> None:
    """Layer by layer: each on what the quantised layers before it give."""
    assembler = Assembler(graph())
    seen = observe_graph(graph(), images())
    outputs = dict(linear_plan(assembler, seen, QuantConfig()).outputs)
    nodes = {node.name: node for node in graph().mac_nodes}
    step = {name: covering_step(node.weight, 3) for name, node in nodes.items()}
    coarse = {
        name: uniform_codes(node.weight, step[name], *code_range(3)) * step[name]
        for name, node in nodes.items()
    }
    forward = Forward(assembler=assembler, images=images(), outputs=outputs)
    found: dict[str, Floats] = {}

    def bias_of(name: str, wanted: Floats) -> Floats:
        found[name] = wanted
        return wanted

    forward.correct(coarse, bias_of)
    first = graph().mac_nodes[0]
    source = torch.tensor(images(), dtype=torch.float64)
    exact = first.evaluate(source)
    axes = [0, *range(2, exact.ndim)]
    given = replace(first, weight=coarse[first.name], bias=found[first.name]).evaluate(source)
    assert given.mean(axes).numpy() == pytest.approx(exact.mean(axes).numpy(), abs=1e-3)
    last = graph().mac_nodes[-1].name
    assert np.abs(found[last] - nodes[last].bias).max() > 1e-3, "errors before it are made up for"


def _inputs(node: Conv | Linear, values: torch.Tensor) -> LayerInputs:
    inputs = LayerInputs(node=node, every=1)
    inputs.add(values)
    return inputs


@pytest.mark.parametrize("groups", [1, 2])
def test_the_variance_is_that_of_the_outputs(groups: int) -> None:
    rng = np.random.default_rng(groups)
    node = Conv(
        name="c",
        inputs=("input",),
        weight=rng.standard_normal((4, 4 // groups, 3, 3)),
        bias=np.zeros(4),
        stride=(2, 1),
        padding=(1, 0, 1, 2),
        groups=groups,
    )
    values = torch.tensor(rng.standard_normal((5, 4, 8, 7)))
    seen = moments(_inputs(node, values))
    one = np.zeros(node.weight.shape)  # one weight a channel: nothing varies together
    one[[0, 1, 2, 3], [1, 0, 1, 1], [0, 2, 1, 1], [0, 1, 2, 0]] = [1.0, -2.0, 0.5, 3.0]
    out = replace(node, weight=one).evaluate(values).transpose(0, 1).reshape(4, -1)
    assert seen.variance(one) == pytest.approx(float(out.var(1, correction=0).sum()))
    assert seen.mean_output(one) == pytest.approx(out.mean(1).numpy())
    full = node.evaluate(values).transpose(0, 1).reshape(4, -1)
    assert seen.mean_output(node.weight) == pytest.approx(full.mean(1).numpy())
    assert seen.variance(node.weight) == pytest.approx(
        float(full.var(1, correction=0).sum()), rel=0.5
    )
    assert seen.importance.shape == node.weight.shape
    assert (seen.importance > 0).all()


def _linear() -> tuple[Linear, torch.Tensor]:
    rng = np.random.default_rng(2)
    mix = rng.standard_normal((12, 12))  # inputs that vary together
    values = torch.tensor(rng.standard_normal((300, 12)) @ mix)
    node = Linear(name="l", inputs=("input",), weight=rng.standard_normal((9, 12)), bias=np.ones(9))
    return node, values


def test_fitted_levels_have_the_least_error_of_the_outputs() -> None:
    node, values = _linear()
    seen = moments(_inputs(node, values))
    bins = bins_of(node.weight, np.array([-1.0, 0.0, 1.0, 50.0]))
    means = bin_means(node.weight, bins, 5)
    levels = seen.fit_levels(node.weight, bins, means)
    least = seen.variance(levels[bins] - node.weight)
    assert least < seen.variance(np.nan_to_num(means)[bins] - node.weight)
    for level in range(4):
        for change in (-0.05, 0.05):
            other = levels.copy()
            other[level] += change
            assert seen.variance(other[bins] - node.weight) > least


def test_starts_are_the_quantisers_they_are_named_after() -> None:
    node, values = _linear()
    seen = moments(_inputs(node, values))
    clip = Clip(node=node, bits=4, seen=seen)
    linear = clip.weights(clip.start(Start.LINEAR))
    assert np.abs(linear.codes).max() == 7
    assert linear.step == pytest.approx(np.abs(node.weight).max() / 7)
    error = {
        kind: np.square(clip.weights(clip.start(kind)).weights - node.weight).sum()
        for kind in (Start.LINEAR, Start.MSE)
    }
    assert error[Start.MSE] <= error[Start.LINEAR]
    output = clip.weights(clip.start(Start.OUTPUT)).weights - node.weight
    mse = clip.weights(clip.start(Start.MSE)).weights - node.weight
    assert seen.variance(output) <= seen.variance(mse)
    book = Codebook(node=node, bits=3, entry_bits=8, fitted=False, seen=seen)
    coded = book.weights(book.start(Start.KMEANS))
    assert coded.codebook is not None
    assert len(coded.codebook) <= 8
    assert np.isin(coded.codes, coded.codebook).all()
    best = np.square(coded.weights - node.weight).sum()
    for kind in (Start.LINEAR, Start.MSE, Start.LLOYD):
        other = book.weights(book.start(kind)).weights
        assert np.square(other - node.weight).sum() >= 0.98 * best, "but for entries' rounding"


def test_genes_in_any_order_are_boundaries_and_empty_bins_drop_out() -> None:
    node, values = _linear()
    book = Codebook(
        node=node, bits=3, entry_bits=6, fitted=True, seen=moments(_inputs(node, values))
    )
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 30.0):
        genes = book.start(Start.KMEANS) + spread * rng.standard_normal(book.size)
        coded = book.weights(genes)
        assert coded.codebook is not None
        assert list(coded.codebook) == sorted(set(coded.codes.reshape(-1).tolist()))
        low, high = code_range(6)
        assert low <= coded.codebook[0] <= coded.codebook[-1] <= high


def test_a_forward_run_rounds_like_the_formats() -> None:
    """A network with 2-bit activations asks for other biases than one with 8-bit ones."""
    weights = {node.name: node.weight for node in graph().mac_nodes}
    asked = []
    seen = observe_graph(graph(), images())
    for bits in (8, 2):
        config = QuantConfig(bits=LayerBits(activations=bits))
        outputs = linear_plan(Assembler(graph()), seen, config).outputs
        forward = Forward(assembler=Assembler(graph()), images=images(), outputs=outputs)
        wanted: list[Floats] = []

        def bias_of(name: str, values: Floats, wanted: list[Floats] = wanted) -> Floats:
            wanted.append(values)
            return values

        forward.correct(weights, bias_of)
        asked.append(wanted)
    nodes = graph().mac_nodes
    drift = [np.abs(wanted[-1] - nodes[-1].bias).max() for wanted in asked]
    assert drift[1] > 3 * drift[0]


def test_a_local_search_lessens_the_error_of_outputs() -> None:
    node, values = _linear()
    seen = moments(_inputs(node, values))
    for coder in (
        Clip(node=node, bits=3, seen=seen),
        Codebook(node=node, bits=3, entry_bits=8, fitted=True, seen=seen),
    ):
        layer = Layer(coder=coder, node=node, seen=seen, bits=3, source_frac=2)
        found = layer.error(layer.descend())
        starts = [layer.error(np.append(coder.start(kind), 0.0)) for kind in coder.BEST]
        assert found < 0.99 * min(starts)
        assert np.array_equal(layer.descend(), layer.descend())
