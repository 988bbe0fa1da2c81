"""More channels compute the same; fewer keep the strongest; what cannot be resized is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwgen.errors import BadInput, UnsupportedLayer
from quant import graph as fg
from quant.expand import channels_after, obstacle, resizable, resize
from tests.quant.floatgraphs import Maker, floats, pixels, plain, random_graph

FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0)


def results(graph: fg.FloatGraph, images: np.ndarray) -> np.ndarray:
    """The network's outputs in float64."""
    return floats(graph, images)[graph.output]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.data())
def test_more_channels_compute_the_same(seed: int, data: st.DataObject) -> None:
    graph = random_graph(seed)
    factors = {name: data.draw(st.sampled_from(FACTORS)) for name in resizable(graph)}
    wider = resize(graph, factors, seed=seed)
    images = pixels(graph, 3, seed)
    np.testing.assert_allclose(results(wider, images), results(graph, images), rtol=1e-9, atol=1e-9)
    for node in graph.mac_nodes:
        after = wider.node(node.name)
        assert isinstance(after, fg.Conv | fg.Linear)
        assert len(after.bias) == channels_after(len(node.bias), factors.get(node.name, 1))


def sequential() -> fg.FloatGraph:
    """Convolutions with pools, a batch norm behind a ReLU, flattening, linear layers."""
    maker = Maker((3, 12, 12), np.random.default_rng(5))
    x = maker.conv("input", 4, same=True)
    x = maker.norm(maker.relu(x))
    x = maker.put(fg.MaxPool, x, kernel=(2, 2), stride=(2, 2))
    x = maker.relu(maker.conv(x, 6, same=True))
    x = maker.put(fg.AvgPool, x, kernel=(2, 2), stride=(1, 1))
    x = maker.put(fg.Flatten, x)
    return maker.graph(maker.linear(maker.relu(maker.linear(x, 8)), 5))


@pytest.mark.parametrize("factor", FACTORS)
def test_every_inner_layer_of_a_sequential_network_can_be_widened(factor: float) -> None:
    graph = sequential()
    inner = resizable(graph)
    assert inner == tuple(node.name for node in graph.mac_nodes)[:-1]
    images = pixels(graph, 4)
    before = results(graph, images)
    for chosen in [*[(name,) for name in inner], inner]:
        wider = resize(graph, dict.fromkeys(chosen, factor), seed=3)
        np.testing.assert_allclose(results(wider, images), before, rtol=1e-9, atol=1e-9)


def test_copies_differ_in_what_follows_them() -> None:
    graph = sequential()
    first, second = graph.mac_nodes[:2]
    wider = resize(graph, {first.name: 2}, seed=1)
    after, reader = wider.mac_nodes[:2]
    pairs = [
        (a, b) for a in range(8) for b in range(a) if (after.weight[a] == after.weight[b]).all()
    ]
    assert len(pairs) == 4
    for a, b in pairs:
        assert not np.allclose(reader.weight[:, a], reader.weight[:, b])
        shared = [c for c in range(4) if (first.weight[c] == after.weight[a]).all()]
        both = reader.weight[:, a] + reader.weight[:, b]
        np.testing.assert_allclose(both, second.weight[:, shared[0]], atol=1e-12)


def test_the_seed_decides_the_copies() -> None:
    graph = sequential()
    name = resizable(graph)[0]
    one, same, other = (resize(graph, {name: 1.5}, seed=seed) for seed in (1, 1, 2))
    assert one.same_up_to_names(same)
    assert not one.same_up_to_names(other)
    assert resize(graph, {name: 1.0}).same_up_to_names(graph)


def test_fewer_channels_are_the_strongest() -> None:
    graph = sequential()
    first = graph.mac_nodes[0]
    weight = first.weight.copy()
    weight[[0, 2]] *= 1e-6
    bias = first.bias.copy()
    bias[[0, 2]] = 0
    quiet = replace(first, weight=weight, bias=bias)
    nodes = tuple(quiet if node.name == first.name else node for node in graph.nodes)
    graph = fg.FloatGraph(nodes=nodes, output=graph.output)
    thinner = resize(graph, {first.name: 0.5})
    np.testing.assert_array_equal(thinner.mac_nodes[0].weight, weight[[1, 3]])
    assert thinner.mac_nodes[1].weight.shape[1] == 2
    one = resize(graph, dict.fromkeys(resizable(graph), 0.01))
    assert [len(node.bias) for node in one.mac_nodes] == [1, 1, 1, 5]


@pytest.mark.parametrize(
    "channels, factor, after",
    [(6, 1.25, 8), (6, 0.75, 5), (4, 0.5, 2), (3, 0.1, 1), (10, 1.25, 13)],
)
def test_channels_round_to_the_nearest(channels: int, factor: float, after: int) -> None:
    assert channels_after(channels, factor) == after


def joined(kind: type[fg.Node]) -> tuple[fg.FloatGraph, str]:
    """A network whose first layer is joined with its input, added or concatenated."""
    maker = Maker((3, 8, 8), np.random.default_rng(1))
    x = maker.conv("input", 3, same=True)
    y = maker.put(kind, maker.relu(x), "input")
    return maker.graph(maker.conv(y, 2, same=True)), x


@pytest.mark.parametrize("kind", [fg.Add, fg.Concat])
def test_joined_layers_are_refused_by_name(kind: type[fg.Node]) -> None:
    graph, name = joined(kind)
    assert resizable(graph) == ()
    assert name in (obstacle(graph, name) or "")
    with pytest.raises(
        UnsupportedLayer, match=f"{kind.__name__} '.*' joins the channels of {name}"
    ):
        resize(graph, {name: 2})
    assert resize(graph, {name: 1}).same_up_to_names(graph)


def test_the_result_and_groups_are_refused_by_name() -> None:
    maker = Maker((4, 8, 8), np.random.default_rng(1))
    before = maker.relu(maker.conv("input", 4, same=True))
    grouped = maker.depthwise(before)
    graph = maker.graph(maker.conv(maker.relu(grouped), 2, same=True))
    first, deep, last = (node.name for node in graph.mac_nodes)
    with pytest.raises(UnsupportedLayer, match=f"channels of {last} are the network's result"):
        resize(graph, {last: 0.5})
    with pytest.raises(UnsupportedLayer, match=f"{deep} is a convolution in 4 groups"):
        resize(graph, {deep: 2})
    with pytest.raises(UnsupportedLayer, match=f"{deep}, a convolution in 4 groups, reads {first}"):
        resize(graph, {first: 2})
    assert "no convolution" in (obstacle(graph, before) or "")


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 17])
def test_bad_factors_are_refused(factor: float) -> None:
    graph = plain()
    with pytest.raises(BadInput, match="above 0 and at most 16"):
        resize(graph, {graph.mac_nodes[0].name: factor})


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(BadInput, match="given for nothing, but the layers are"):
        resize(plain(), {"nothing": 2})
