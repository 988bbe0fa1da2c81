"""Uniform post-training quantisation: error bounds, formats, widths, calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwgen.ir import INPUT, Bias, MacOp, Network, Op, Requant, Rescale, Rounding
from hwgen.ir import Conv as IntegerConv
from quant.baseline import quantize_linear
from quant.config import LayerBits, QuantConfig
from quant.formats import Calibration
from quant.graph import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    FloatGraph,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Relu,
)
from quant.grouping import Group, group_nodes
from tests.quant.floatgraphs import (
    RAW,
    Maker,
    floats,
    pixels,
    plain,
    quantise,
    random_graph,
    real,
    widths,
)

# --- the error of each layer ------------------------------------------------------------------


def requant_error(rule: Requant, acc: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bound, in output steps, of rounding multipliers, offsets and the result."""
    whole = rule.scaled and (rule.mult != (1,) or rule.add != (0,))
    rounded = (np.abs(acc) + 1) * 2.0 ** -(rule.shift[0] + 1) * whole
    return rounded + 0.5


def allowed_error(group: Group, op: Op, inputs: list[NDArray[np.int64]]) -> Any:
    """Bound on ``|layer in floats - integer layer|`` for the same inputs, in real units.

    Weights and biases that nothing saturates are wrong by half a step at most.
    """
    if not isinstance(op, MacOp):
        rule = getattr(op, "requant", None)
        return 0.0 if rule is None else requant_error(rule, op.acc(*inputs)) * op.output.scale  # type: ignore[attr-defined]
    node = group.node
    ones = replace(node, weight=np.ones_like(node.weight), bias=np.zeros(op.out_channels))  # type: ignore[call-arg,attr-defined]
    x = torch.tensor(np.abs(real(op.input, inputs[0])))
    if isinstance(node, Conv) and x.ndim == 2:
        x = x[:, :, None, None]
    spread = ones.evaluate(x).numpy().reshape(len(x), *op.output.shape)
    step = op.input.scale * op.weights.scale[0]
    bound = op.weights.scale[0] / 2 * spread
    if op.bias is not None:
        bound = bound + step * (1 << op.bias.shift) / 2
    if group.affine is not None:
        view = (-1,) + (1,) * (bound.ndim - 2)
        bound = bound * np.abs(group.affine.scale).reshape(view)
    if op.requant is None:
        return bound
    return bound + requant_error(op.requant, op.acc(inputs[0])) * op.output.scale


def float_layer(group: Group, op: Op, inputs: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The group in floats, saturated as the integer layer's codes are."""
    tensors = [torch.tensor(x) for x in inputs]
    if isinstance(group.node, Conv) and tensors[0].ndim == 2:
        tensors = [t[:, :, None, None] for t in tensors]
    value = group.node.evaluate(*tensors)
    for node in (group.relu, group.affine):
        if node is not None and node is not group.node:
            value = node.evaluate(value)
    low, high = op.output.minimum * op.output.scale, op.output.maximum * op.output.scale
    return value.numpy().reshape(-1, *op.output.shape).clip(low, high)


@pytest.mark.parametrize("seed", range(60))
def test_every_layer_keeps_its_error_bound(seed: int) -> None:
    graph = random_graph(seed)
    bits = LayerBits(weights=2 + seed % 15, biases=4 + seed % 13, activations=1 + seed % 16)
    network, whole = quantise(
        graph,
        seed,
        bits=bits,
        weights=Calibration.MAX,
        activations=Calibration.MAX,
        correct_biases=False,
    )
    images = pixels(graph, 16, seed + 1)  # others than it was calibrated with
    codes = network.values(images)
    groups = {group.node.name: group for group in group_nodes(whole)}
    for op in network.ops:
        inputs = [codes[name] for name in op.inputs]
        group = groups.get(op.name)
        if group is None:
            assert isinstance(op, Rescale)  # brings pixels to the format of a concatenation
            continue
        types = op.input_types
        reals = [real(kind, x) for kind, x in zip(types, inputs, strict=True)]
        error = np.abs(float_layer(group, op, reals) - real(op.output, codes[op.name]))
        allowed = allowed_error(group, op, inputs) * (1 + 1e-9) + 1e-12
        assert (error <= allowed).all(), f"{op.name}: {error.max()}"


@pytest.mark.parametrize("seed", range(40))
def test_sixteen_bits_follow_the_float_network(seed: int) -> None:
    graph = random_graph(seed)
    network, whole = quantise(
        graph, seed, bits=widths(16), activations=Calibration.MAX, scale_bits=20
    )
    images = pixels(graph, 24, seed)
    expected = floats(whole, images)[whole.output]
    made = real(network.output_type, network.evaluate(images)).reshape(expected.shape)
    span = max(float(np.ptp(expected)), 0.01)
    assert np.abs(made - expected).max() < 2e-3 * span


def test_more_bits_come_closer() -> None:
    errors = []
    for bits in (2, 3, 4, 6, 8, 10, 12, 14, 16):
        relative = []
        for seed in range(30):
            graph = random_graph(seed)
            network, whole = quantise(graph, seed, bits=widths(bits))
            images = pixels(graph, 16, seed + 1)
            expected = floats(whole, images)[whole.output]
            made = real(network.output_type, network.evaluate(images)).reshape(expected.shape)
            spread = max(float(expected.std()), 1e-3)
            relative.append(float(np.sqrt(np.mean((made - expected) ** 2))) / spread)
        errors.append(float(np.mean(relative)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[4] < 0.06  # 8 bits
    assert errors[-1] < 0.002


def exact_graph() -> FloatGraph:
    """Every kind of layer, with parameters in quarters, whose values all fit 16 bits."""
    rng = np.random.default_rng(1)
    maker = Maker((1, 8, 8), rng)

    def quarters(*shape: int) -> NDArray[np.float64]:
        return rng.integers(-2, 3, shape) / 4

    x = maker.put(Conv, INPUT, weight=quarters(4, 1, 3, 3), bias=quarters(4), padding=(1, 1, 1, 1))
    y = maker.put(Relu, x)
    z = maker.put(Conv, y, weight=quarters(4, 2, 1, 1), bias=quarters(4), groups=2)
    total = maker.put(Relu, maker.put(Add, y, z), max=255.0)
    both = maker.put(
        Concat,
        total,
        maker.put(Relu, maker.put(Conv, total, weight=quarters(2, 4, 1, 1), bias=quarters(2))),
    )
    pooled = maker.put(AvgPool, both, kernel=(2, 2), stride=(2, 2))
    pooled = maker.put(MaxPool, pooled, kernel=(2, 2), stride=(2, 2), padding=(1, 1, 1, 1))
    average = maker.put(GlobalAvgPool, maker.put(AvgPool, total, kernel=(1, 2), stride=(2, 2)))
    top = maker.put(GlobalMaxPool, pooled)
    joined = maker.put(Concat, maker.put(Flatten, pooled), maker.put(Flatten, top))
    first = maker.put(Linear, joined, weight=quarters(3, 60), bias=quarters(3))
    second = maker.put(Linear, maker.put(Flatten, average), weight=quarters(3, 4), bias=quarters(3))
    return maker.graph(maker.put(Add, first, second))


@pytest.mark.parametrize("rounding", Rounding)
def test_exact_where_the_arithmetic_is_exact(rounding: Rounding) -> None:
    graph = exact_graph()
    images = np.random.default_rng(0).integers(0, 16, (20, 1, 8, 8)).astype(np.uint8)
    config = QuantConfig(
        bits=LayerBits(weights=8, biases=16, activations=16),
        rounding=rounding,
        weights=Calibration.MAX,
        activations=Calibration.MAX,
    )
    network = quantize_linear(graph, preprocess=RAW, calibration=images, config=config)
    expected = floats(graph, images)
    for name, codes in network.values(images).items():
        made = real(network.tensor(name), codes)
        group = {g.node.name: g.last.name for g in group_nodes(graph)}
        wanted = expected[group.get(name, name)].reshape(made.shape)
        np.testing.assert_array_equal(made, wanted, err_msg=name)


# --- widths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("kind", ["weights", "biases", "activations"])
def test_every_width_of_every_kind(bits: int, kind: str) -> None:
    for seed in (3, 4, 5, 8):
        graph = random_graph(seed)
        network, whole = quantise(graph, seed, bits=replace(LayerBits(), **{kind: bits}))
        layers = {group.node.name for group in group_nodes(whole)} - {"normalise"}
        activations = bits if kind == "activations" else 8
        # What is concatenated with pixels shares their format.
        joined = max(activations, 8) if any(op.name == "normalise" for op in network.ops) else None
        for op in network.ops:
            if isinstance(op, MacOp):
                assert op.weights.width == (bits if kind == "weights" else 8)
                assert op.bias is None or op.bias.width == (bits if kind == "biases" else 16)
            if getattr(op, "requant", None) is not None and op.name in layers:
                assert op.output.width in (activations, joined)
        images = pixels(graph, 8, seed)
        for name, codes in network.values(images).items():
            kind_of = network.tensor(name)
            assert kind_of.minimum <= codes.min() <= codes.max() <= kind_of.maximum
        assert network.evaluate(images).shape[0] == 8
        assert whole.output_shape[0] == network.output_type.channels


def test_widths_by_layer() -> None:
    graph = plain()
    convs = [node.name for node in graph.mac_nodes]
    layers = {
        convs[1]: LayerBits(weights=3, biases=7, activations=5),
        convs[2]: LayerBits(weights=11, biases=4, activations=2),
    }
    network, _ = quantise(graph, bits=LayerBits(weights=6, biases=10, activations=7), layers=layers)
    ops = [op for op in network.ops if isinstance(op, MacOp)]
    assert [op.weights.width for op in ops] == [6, 3, 11, 6]
    assert [op.bias.width for op in ops if op.bias is not None] == [10, 7, 4, 10]
    assert [op.output.width for op in ops[:3]] == [7, 5, 2]
    assert ops[3].requant is None
    assert ops[3].output.width == ops[3].accumulator_width


def test_concatenated_layers_share_the_widest() -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    first, second = maker.conv(INPUT, 2, same=True), maker.conv(INPUT, 3, same=True, kernel=1)
    graph = maker.graph(maker.linear(maker.put(Flatten, maker.put(Concat, first, second)), 2))
    narrow = {first: LayerBits(activations=5), second: LayerBits(activations=3)}
    network, _ = quantise(graph, layers=narrow)
    assert [network.op(name).output.width for name in (first, second)] == [5, 5]


def test_last_layer_hands_out_accumulators_through_selection() -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    x = maker.put(GlobalMaxPool, maker.conv(maker.put(Relu, maker.conv(INPUT, 3)), 4, same=True))
    network, _ = quantise(maker.graph(maker.put(Flatten, x)))
    convs = [op for op in network.ops if isinstance(op, IntegerConv)]
    assert convs[0].requant is not None
    assert convs[1].requant is None
    assert network.output_type.width == convs[1].accumulator_width


def test_a_result_that_others_read_too_is_requantised() -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    x = maker.conv(INPUT, 3, same=True)
    graph = maker.graph(maker.put(Add, x, maker.conv(x, 3, same=True)))
    network, _ = quantise(graph)
    assert all(op.output.width == 8 for op in network.ops)


# --- formats ----------------------------------------------------------------------------------


def test_unsigned_where_nothing_is_negative() -> None:
    maker = Maker((1, 8, 8), np.random.default_rng(2))
    a = maker.put(Relu, maker.conv(INPUT, 3, same=True))
    b = maker.put(AvgPool, a, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    c = maker.put(Add, a, b)
    d = maker.norm(maker.put(Relu, maker.conv(c, 3, same=True)))
    e = maker.conv(d, 3, same=True)
    f = maker.put(Concat, c, e)
    network, whole = quantise(maker.graph(maker.linear(maker.put(Flatten, f), 2)))
    signed = {op.name: op.output.signed for op in network.ops}
    conv1, conv2, conv3 = (node.name for node in whole.mac_nodes[:3])
    assert not signed[conv1]
    assert not signed[b]
    assert signed[conv2]  # the batch norm behind its ReLU
    assert signed[conv3]
    assert signed[c]  # shares the format of what it is joined with
    assert network.op(c).output.scale == network.op(conv3).output.scale


def test_relu6_is_a_bound() -> None:
    maker = Maker((1, 4, 4), np.random.default_rng(0))
    weight, bias = np.full((2, 1, 1, 1), 1 / 16), np.zeros(2)
    x = maker.put(Relu, maker.put(Conv, INPUT, weight=weight, bias=bias), max=6.0)
    graph = maker.graph(maker.linear(maker.put(Flatten, x), 2))
    images = np.arange(0, 256, dtype=np.uint8).reshape(16, 1, 4, 4)
    network = quantize_linear(graph, preprocess=RAW, calibration=images)
    op = network.ops[0]
    assert isinstance(op, IntegerConv)
    assert op.requant is not None
    assert (op.requant.low, op.requant.high) == ((0,), (6 * 32,))
    made = real(op.output, network.values(images)[op.name])[:, 0].reshape(-1)
    expected = np.minimum(np.arange(256) / 16, 6.0)
    assert np.abs(made - expected).max() <= op.output.scale / 2


def test_biases_at_the_accumulators_scale() -> None:
    graph = plain()
    for bits, most in ((16, 2), (5, 12)):
        network, whole = quantise(
            graph,
            bits=LayerBits(biases=bits),
            weights=Calibration.MAX,
            correct_biases=False,
        )
        layers = [op for op in network.ops if isinstance(op, MacOp)]
        for node, op in zip(whole.mac_nodes, layers, strict=True):
            assert isinstance(op.bias, Bias)
            assert op.bias.width == bits
            assert 0 <= op.bias.shift <= most
            assert (op.bias.shift > 0) or bits == 16
            step = op.input.scale * op.weights.scale[0]
            error = np.abs(op.bias.values * step - node.bias).max()
            assert error <= step * 2**op.bias.shift / 2


def test_no_bias_without_need() -> None:
    maker = Maker((1, 4, 4), np.random.default_rng(0))
    weight = np.full((1, 1, 3, 3), 0.5)
    graph = maker.graph(maker.put(Conv, INPUT, weight=weight, bias=np.zeros(1)))
    network = quantize_linear(graph, preprocess=RAW, calibration=pixels(graph, 4))
    assert [op.bias for op in network.ops if isinstance(op, MacOp)] == [None]


# --- calibration ------------------------------------------------------------------------------


def mean_square(network: Network, whole: FloatGraph, images: NDArray[np.uint8]) -> float:
    """Error of the first layer's output, whose input is exact."""
    expected = floats(whole, images)[whole.mac_nodes[0].name]
    op = network.ops[0]
    assert isinstance(op, MacOp)
    step = op.input.scale * op.weights.scale[0]
    return float(np.mean((op.acc(images.astype(np.int64)) * step - expected) ** 2))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("corrected", [False, True])
def test_least_squares_weights_are_never_worse_than_max(bits: int, corrected: bool) -> None:
    for seed in range(6):
        maker = Maker((2, 8, 8), np.random.default_rng(seed))
        weight = maker.rng.laplace(0, 0.2, (4, 2, 3, 3))
        x = maker.put(Relu, maker.put(Conv, INPUT, weight=weight, bias=np.ones(4)))
        graph = maker.graph(maker.linear(maker.put(Flatten, x), 3))
        errors = []
        for calibration in (Calibration.MSE, Calibration.MAX):
            network, whole = quantise(
                graph,
                bits=LayerBits(weights=bits, biases=16),
                weights=calibration,
                correct_biases=corrected,
            )
            errors.append(mean_square(network, whole, pixels(graph, 24)))
        assert errors[0] <= errors[1] * (1 + 1e-3)  # biases round


def test_corrected_biases_take_the_mean_error_away() -> None:
    graph = plain()
    images = pixels(graph, 24)
    means = []
    for corrected in (True, False):
        network, whole = quantise(
            graph, bits=LayerBits(weights=3), weights=Calibration.MAX, correct_biases=corrected
        )
        expected = floats(whole, images)[whole.mac_nodes[0].name]
        op = network.ops[0]
        assert isinstance(op, MacOp)
        step = op.input.scale * op.weights.scale[0]
        error = op.acc(images.astype(np.int64)) * step - expected
        means.append(np.abs(error.mean((0, 2, 3))).max())
        if corrected:
            assert op.bias is not None
            assert means[0] <= step * 2**op.bias.shift
    assert means[1] > 10 * means[0]


@pytest.mark.parametrize("weights", Calibration)
@pytest.mark.parametrize("activations", Calibration)
def test_every_calibration(weights: Calibration, activations: Calibration) -> None:
    for seed in range(6):
        graph = random_graph(seed)
        network, whole = quantise(graph, seed, weights=weights, activations=activations)
        images = pixels(graph, 24, seed)
        expected = floats(whole, images)[whole.output]
        made = real(network.output_type, network.evaluate(images)).reshape(expected.shape)
        assert np.abs(made - expected).mean() < 0.1 * max(np.ptp(expected), 0.05)
