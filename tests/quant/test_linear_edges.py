"""Uniform post-training quantisation: preprocessing, odd networks, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hwgen.errors import BadInput, BadNetwork, UnsupportedLayer
from hwgen.ir import INPUT, Rescale
from hwgen.ir import Concat as IntegerConcat
from hwgen.ir import Conv as IntegerConv
from hwgen.ir import Linear as IntegerLinear
from quant.baseline import quantize_linear
from quant.config import LayerBits, QuantConfig
from quant.formats import Calibration
from quant.graph import (
    Add,
    ChannelAffine,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
    Relu,
)
from quant.models import Preprocess
from tests.quant.floatgraphs import (
    RAW,
    Maker,
    floats,
    pixels,
    plain,
    preprocessing,
    quantise,
    random_graph,
    real,
    widths,
)

# --- preprocessing ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8, 10])
def test_preprocessing_folds_unless_the_first_layer_is_padded(bits: int) -> None:
    maker = Maker((2, 6, 6), np.random.default_rng(0))
    weight, bias = maker.rng.normal(size=(3, 2, 3, 3)), np.ones(3)
    folded, _ = quantise(
        maker.graph(maker.put(Conv, INPUT, weight=weight, bias=bias)), bits=widths(bits)
    )
    assert [type(op) for op in folded.ops] == [IntegerConv]
    assert folded.ops[0].input_types == (folded.input,)
    maker = Maker((2, 6, 6), np.random.default_rng(0))
    conv = maker.put(Conv, INPUT, weight=weight, bias=bias, padding=(1, 1, 1, 1))
    graph = maker.graph(conv)
    network, _ = quantise(graph, bits=widths(bits))
    assert [type(op) for op in network.ops] == [Rescale, IntegerConv]
    assert network.ops[0].name == "normalise"
    assert network.ops[0].output.width == max(bits, 8)  # pixels stay pixels
    named, _ = quantise(graph, bits=widths(8), layers={"normalise": LayerBits(activations=5)})
    assert named.ops[0].output.width == 5
    images = pixels(graph, 8)
    expected = preprocessing(graph, 0).apply(images).double().numpy()
    made = real(network.ops[0].output, network.values(images)["normalise"])
    assert np.abs(made - expected).max() <= network.ops[0].output.scale * 0.6


def test_raw_pixels_may_be_concatenated() -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    branch = maker.conv(INPUT, 2, same=True)
    pool = maker.put(MaxPool, INPUT, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    pixel = maker.put(Concat, INPUT, pool)
    x = maker.put(Concat, INPUT, branch, INPUT, pixel)
    graph = maker.graph(maker.linear(maker.put(Flatten, x), 2))
    network = quantize_linear(graph, preprocess=RAW, calibration=pixels(graph, 9))
    joined = [op for op in network.ops if isinstance(op, IntegerConcat)]
    assert all(len({(t.width, t.signed, t.scale) for t in op.types}) == 1 for op in joined)
    only = Maker((1, 6, 6), np.random.default_rng(0))
    x = only.put(Concat, INPUT, INPUT)
    graph = only.graph(only.linear(only.put(Flatten, x), 2))
    network = quantize_linear(graph, preprocess=RAW, calibration=pixels(graph, 9))
    assert [type(op).__name__ for op in network.ops] == ["Concat", "Flatten", "Linear"]


# --- calibration images ---------------------------------------------------------------------


def test_equal_inputs_give_equal_networks() -> None:
    for seed in range(4):
        graph = random_graph(seed)
        assert quantise(graph, seed)[0].same(quantise(graph, seed)[0])


def test_one_image_is_enough() -> None:
    graph = plain()
    network = quantize_linear(
        graph, preprocess=preprocessing(graph, 0), calibration=pixels(graph, 1)
    )
    assert network.evaluate(pixels(graph, 3)).shape == (3, 4)


# --- numbers at the edge ----------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-12, 1e-5, 1e4])
@pytest.mark.parametrize("bias", [0.0, 1e-30, 1e5])
def test_dead_and_huge_layers(scale: float, bias: float) -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    weight = maker.rng.normal(0, 1, (2, 1, 3, 3)) * scale
    x = maker.put(Conv, INPUT, weight=weight, bias=np.array([bias, -bias]))
    x = maker.norm(maker.put(Relu, x))
    x = maker.conv(x, 2, same=True)
    x = maker.put(Add, x, maker.conv(x, 2, same=True))
    graph = maker.graph(maker.linear(maker.put(Flatten, x), 2))
    for bits in (1, 8, 16):
        network, _ = quantise(graph, bits=LayerBits(weights=bits, activations=bits, biases=bits))
        network.values(pixels(graph, 4))


@pytest.mark.parametrize("dead", [1e-20, 1e-38])
def test_a_dead_branch_may_be_added(dead: float) -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    weight = maker.rng.normal(0, 1, (2, 1, 3, 3))
    live = maker.put(Conv, INPUT, weight=weight, bias=np.zeros(2))
    faint = maker.put(Conv, INPUT, weight=weight * dead, bias=np.zeros(2))
    total = maker.put(Relu, maker.put(Add, live, faint))
    network, whole = quantise(maker.graph(maker.linear(maker.put(Flatten, total), 2)))
    images = pixels(whole, 8)
    expected = floats(whole, images)[whole.output]
    assert np.abs(real(network.output_type, network.evaluate(images)) - expected).max() < 1.0


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e6])
def test_batch_norms_of_any_scale(scale: float) -> None:
    """Products of wide accumulators and multipliers, and faint factors, fit 62 bits."""
    maker = Maker((64, 6, 6), np.random.default_rng(0))
    x = maker.put(Relu, maker.conv(INPUT, 4, same=True))
    gains = np.array([scale, -scale, scale / 3, 0.0])
    x = maker.put(ChannelAffine, x, scale=gains, offset=np.array([1.0, -50.0, 0.3, 0.0]))
    graph = maker.graph(maker.conv(x, 2, same=True))
    for bits in (2, 16):
        network, _ = quantise(graph, bits=widths(bits), scale_bits=24, activations=Calibration.MAX)
        images = pixels(graph, 4)
        assert np.array_equal(network.evaluate(images), network.reference(images))


# --- vectors of global pools ------------------------------------------------------------------


def test_point_convolutions_behind_a_global_pool_are_linear_layers() -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    x = maker.put(GlobalAvgPool, maker.put(Relu, maker.conv(INPUT, 4)))
    x = maker.put(Relu, maker.conv(x, 5, same=True, kernel=1))
    x = maker.put(Flatten, maker.conv(x, 3, same=True, kernel=1))
    graph = maker.graph(x)
    network, whole = quantise(graph, bits=widths(12))
    kinds = [type(op) for op in network.ops[-2:]]
    assert kinds == [IntegerLinear, IntegerLinear]
    images = pixels(graph, 24)
    expected = floats(whole, images)[whole.output]
    made = real(network.output_type, network.evaluate(images))
    assert np.abs(made - expected).max() < 0.02 * np.ptp(expected)


def test_all_layers_that_cannot_take_a_global_pool_are_named() -> None:
    maker = Maker((1, 6, 6), np.random.default_rng(0))
    x = maker.put(GlobalMaxPool, maker.put(Relu, maker.conv(INPUT, 4)))
    grouped = maker.conv(x, 4, same=True, kernel=1, groups=2)
    pool = maker.put(MaxPool, x, kernel=(1, 1), stride=(1, 1))
    graph = maker.graph(maker.put(Flatten, maker.put(Add, grouped, pool)))
    with pytest.raises(UnsupportedLayer) as caught:
        quantise(graph)
    assert f"Conv '{grouped}'" in str(caught.value)
    assert f"MaxPool '{pool}'" in str(caught.value)
    assert "flatten it" in str(caught.value)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "biases", "activations"])
@pytest.mark.parametrize("width", [0, 17, -3, 8.5, "8", None, True])
def test_bad_widths(kind: str, width: Any) -> None:
    with pytest.raises(BadInput, match=f"width of {kind} must be a whole number from 1 to 16"):
        LayerBits(**{kind: width})


def test_integers_of_numpy_are_widths() -> None:
    assert LayerBits(weights=np.int64(5)) == LayerBits(weights=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [1, 25])
def test_bad_scale_bits(bits: int) -> None:
    with pytest.raises(BadInput, match="scale_bits must be 2 to 24"):
        QuantConfig(scale_bits=bits)


def test_widths_of_unknown_layers() -> None:
    with pytest.raises(
        BadInput, match="given for conv9, pool, but the layers with widths are conv1"
    ):
        quantise(plain(), layers={"conv9": LayerBits(), "pool": LayerBits()})
    with pytest.raises(BadInput, match="must be a LayerBits, not 8"):
        quantise(plain(), layers={"conv1": 8})


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 1, 12, 12), np.uint8),
        np.zeros((4, 3, 12, 12), np.uint8),
        np.zeros((1, 12, 12), np.uint8),
        np.zeros((4, 1, 12, 12), np.float32),
        np.full((4, 1, 12, 12), np.nan),
    ],
    ids=["none", "channels", "axes", "floats", "nan"],
)
def test_bad_calibration(images: NDArray[Any]) -> None:
    with pytest.raises(BadInput, match=r"raw images, uint8 of shape \(N, 1, 12, 12\)"):
        quantize_linear(plain(), preprocess=RAW, calibration=images)


def test_preprocessing_that_does_not_fit() -> None:
    graph = plain()
    with pytest.raises(BadInput, match="preprocessing must have 1 channels"):
        quantize_linear(graph, preprocess=Preprocess.standard(3), calibration=pixels(graph, 2))
    maker = Maker((1, 4, 4), np.random.default_rng(0))
    maker.nodes.append(
        ChannelAffine(name="normalise", inputs=(INPUT,), scale=np.ones(1), offset=np.ones(1))
    )
    maker.shapes["normalise"] = (1, 4, 4)
    graph = maker.graph(maker.conv("normalise", 2, same=True))
    with pytest.raises(BadInput, match="rename it"):
        quantize_linear(graph, preprocess=RAW, calibration=pixels(graph, 2))


def test_weights_that_are_not_finite() -> None:
    maker = Maker((1, 4, 4), np.random.default_rng(0))
    weight = np.ones((1, 1, 3, 3))
    weight[0, 0, 1, 2] = np.nan
    with pytest.raises(BadNetwork, match=r"finite and holds nan at \(0, 0, 1, 2\)"):
        maker.put(Conv, INPUT, weight=weight, bias=np.zeros(1))
