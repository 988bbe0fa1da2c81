"""Quantised networks equal their fake-quantised float networks, and keep the accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwgen.ir import Network, Rounding
from quant.baseline import quantize_linear, with_preprocessing
from quant.checkpoints import load_checkpoint, load_model, shipped_checkpoint
from quant.config import LayerBits, QuantConfig
from quant.datasets import Dataset, load_dataset
from quant.formats import Calibration
from quant.graph import FloatGraph
from quant.importers import fold, import_onnx, import_torch
from quant.models import Preprocess
from tests.quant.fakequant import fake_quantised
from tests.quant.floatgraphs import pixels, preprocessing, random_graph
from tests.support import shared_path


def shipped(arch: str, data: str) -> tuple[FloatGraph, Preprocess]:
    """A float network of the project's own weights."""
    checkpoint = load_checkpoint(shipped_checkpoint(arch, data))
    shape = (checkpoint.in_channels, 32, 32)
    return fold(import_torch(load_model(checkpoint), shape)), checkpoint.preprocess


def check_equal(graph: FloatGraph, network: Network, images: NDArray[np.uint8]) -> None:
    """Every tensor, and the fast evaluation."""
    fake, codes = fake_quantised(graph, network, images), network.values(images)
    assert network.output in fake
    for name, made in fake.items():
        np.testing.assert_array_equal(made, codes[name], err_msg=name)
    np.testing.assert_array_equal(network.evaluate(images), fake[network.output])


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_random_graphs_equal_their_fake_quantised_form(start: int) -> None:
    for seed in range(start, start + 20):
        rng = np.random.default_rng(seed)
        graph = random_graph(seed)
        preprocess = preprocessing(graph, seed)
        weights, biases, activations = (int(v) for v in rng.integers(1, 17, 3))
        config = QuantConfig(
            bits=LayerBits(weights=weights, biases=biases, activations=activations),
            weights=list(Calibration)[rng.integers(3)],
            activations=list(Calibration)[rng.integers(3)],
            scale_bits=int(rng.integers(2, 25)),
        )
        network = quantize_linear(
            graph, preprocess=preprocess, calibration=pixels(graph, 12, seed), config=config
        )
        check_equal(with_preprocessing(graph, preprocess), network, pixels(graph, 12, seed + 1))


@pytest.mark.parametrize("arch", ["lenet5", "digits-tiny"])
@pytest.mark.parametrize("bits", [2, 8])
def test_digits_equal_their_fake_quantised_form(arch: str, bits: int) -> None:
    data = load_dataset("digits")
    graph, preprocess = shipped(arch, "digits")
    network = quantize_linear(
        graph,
        preprocess=preprocess,
        calibration=data.search_images[:200],
        config=QuantConfig(bits=LayerBits(weights=bits, activations=bits)),
    )
    check_equal(with_preprocessing(graph, preprocess), network, data.test_images)
    accuracy = float(np.mean(network.classify(data.test_images) == data.test_labels))
    exact = classify(graph, preprocess, data.test_images)
    if bits == 8:
        assert accuracy >= float(np.mean(exact == data.test_labels)) - 0.005


def test_the_integer_network_rounds_as_asked() -> None:
    data = load_dataset("digits")
    graph, preprocess = shipped("lenet5", "digits")
    made = [
        quantize_linear(
            graph,
            preprocess=preprocess,
            calibration=data.search_images[:50],
            config=QuantConfig(rounding=rounding),
        )
        for rounding in Rounding
    ]
    for network, rounding in zip(made, Rounding, strict=True):
        rules = [rule for op in network.ops if (rule := getattr(op, "requant", None)) is not None]
        assert rules
        assert {rule.rounding for rule in rules} == {rounding}


# --- trained networks -------------------------------------------------------------------------


def classify(
    graph: FloatGraph, preprocess: Preprocess, images: NDArray[np.uint8]
) -> NDArray[np.int64]:
    logits = graph.evaluate(preprocess.apply(images), dtype=torch.float32, batch_size=250)
    classes: NDArray[np.int64] = np.argmax(logits.reshape(len(images), -1), axis=1)
    return classes


def dataset(name: str, cifar10_dir: Path) -> Dataset:
    folder = cifar10_dir if name == "cifar10" else shared_path("data/mnist")
    return load_dataset(name, data_dir=folder)


LENETS = ("lenet5_cifar10", "lenet5_mnist", "shipped cifar10", "shipped mnist")


@pytest.mark.parametrize("model", LENETS)
def test_lenet_loses_at_most_half_a_point(model: str, cifar10_dir: Path) -> None:
    name = model.removeprefix("lenet5_").removeprefix("shipped ")
    if model.startswith("shipped"):
        graph, preprocess = shipped("lenet5", name)
    else:
        graph = fold(import_onnx(shared_path(f"models/{model}.onnx")))
        preprocess = Preprocess.standard(graph.input_shape[0])
    data = dataset(name, cifar10_dir)
    network = quantize_linear(graph, preprocess=preprocess, calibration=data.search_images[:500])
    exact = classify(graph, preprocess, data.test_images) == data.test_labels
    made = network.classify(data.test_images) == data.test_labels
    assert len(made) == 10_000
    assert float(np.mean(made)) >= float(np.mean(exact)) - 0.005
    check_equal(with_preprocessing(graph, preprocess), network, data.test_images[:200])


@pytest.mark.parametrize("bits, least", [(6, 0.70), (4, 0.62)])
def test_fewer_bits_lose_little(bits: int, least: float, cifar10_dir: Path) -> None:
    """A brightness-dependent error of the first layer's weights once cost 7 and 25 points."""
    graph, preprocess = shipped("lenet5", "cifar10")
    data = dataset("cifar10", cifar10_dir)
    network = quantize_linear(
        graph,
        preprocess=preprocess,
        calibration=data.search_images[:500],
        config=QuantConfig(bits=LayerBits(weights=bits, activations=bits)),
    )
    images, labels = data.search_images[500:], data.search_labels[500:]
    assert float(np.mean(network.classify(images) == labels)) >= least


@pytest.mark.parametrize("model", ["resnet8_cifar10", "goyal-seq-cifar10", "goyal-seq-mnist"])
def test_deep_networks_lose_little(model: str, cifar10_dir: Path) -> None:
    """Residual additions; batch norms behind ReLUs in front of zero padding, which stay affines."""
    graph = fold(import_onnx(shared_path(f"models/{model}.onnx")))
    channels, height, _ = graph.input_shape
    preprocess = Preprocess.standard(channels)
    if model.startswith("goyal"):
        preprocess = Preprocess(scale=(1 / 255,) * channels, offset=(0.0,) * channels)
    data = dataset(model.rpartition("-" if "-" in model else "_")[2], cifar10_dir)
    border = (32 - height) // 2
    inner = slice(border, 32 - border)
    images = data.test_images[:300, :, inner, inner]
    network = quantize_linear(
        graph, preprocess=preprocess, calibration=data.search_images[:64, :, inner, inner]
    )
    exact, made = classify(graph, preprocess, images), network.classify(images)
    assert float(np.mean(exact == made)) >= 0.95
    labels = data.test_labels[:300]
    assert float(np.mean(made == labels)) >= float(np.mean(exact == labels)) - 0.02
    check_equal(with_preprocessing(graph, preprocess), network, images[:8])
