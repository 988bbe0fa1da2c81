"""Fine-tuning: what it computes, that it learns under maps and masks, repeats itself, goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.flow import load_model
from hwgen.ir import Fixed
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.config import LayerBits, QuantConfig
from quant.datasets import load_dataset
from quant.finetune import FineTuner, FinetuneRecipe, finetune, fixed_ste, ste_round, uniform_ste
from quant.formats import decode, quantize_to
from quant.graph import Conv, FloatGraph, Linear
from quant.judge import Judge
from quant.methods.result import float_accuracy
from quant.plan import LayerPlan, Plan
from quant.splits import Splits
from quant.straight import TensorMap, round_to_fixed
from tests.quant.floatgraphs import pixels, random_graph


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits.of(load_dataset("digits"), held_out=200)


def shipped(name: str) -> FloatGraph:
    model = load_model(name, data=load_dataset("digits"))
    return with_preprocessing(model.graph, model.preprocess)


@pytest.fixture(scope="module")
def tiny() -> FloatGraph:
    return shipped("digits-tiny")


def tune(graph: FloatGraph, splits: Splits, **changes: Any) -> FloatGraph:
    recipe = {"epochs": 2, "rate": 3e-3, "batch": 32}
    recipe |= {k: changes.pop(k) for k in tuple(changes) if k in FinetuneRecipe.__slots__}
    data = {"images": splits.train_images, "labels": splits.train_labels} | changes
    return finetune(graph, recipe=FinetuneRecipe(**recipe), **data)


def same(one: FloatGraph, other: FloatGraph) -> bool:
    pairs = zip(one.mac_nodes, other.mac_nodes, strict=True)
    return all(
        np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias) for a, b in pairs
    )


def maps_of(
    assembler: Assembler, plan: Plan
) -> tuple[dict[str, TensorMap], dict[str, TensorMap], dict[str, TensorMap]]:
    """Maps onto the grids of a plan: weights, biases, outputs."""
    weights, biases = {}, {}
    for name, layer in plan.layers.items():
        half, most = 2 ** (layer.width - 1), 2 ** (layer.bias_width - 1)
        weights[name] = uniform_ste(layer.scale[0], -half, half - 1)
        assert layer.bias_step is not None
        biases[name] = uniform_ste(layer.bias_step, -most, most - 1)
    outputs = {
        group.last.name: fixed_ste(plan.outputs[group.node.name])
        for group in assembler.makers
        if group.node.name in plan.outputs
    }
    return weights, biases, outputs


def planned(plan: Plan, graph: FloatGraph) -> Plan:
    """The plan with the weights and biases of a graph on its grids."""

    def layer(node: Conv | Linear) -> LayerPlan:
        old = plan.layer(node.name)
        half = 2 ** (old.width - 1)
        codes = np.clip(np.floor(node.weight / old.scale[0] + 0.5), -half, half - 1)
        return replace(old, codes=codes.astype(np.int64), bias=node.bias)

    return plan.with_layers(**{node.name: layer(node) for node in graph.mac_nodes})


# --- what it computes


@pytest.mark.parametrize("seed", range(12))
def test_forward_is_the_graph(seed: int) -> None:
    graph = random_graph(seed)
    images = pixels(graph, 20, seed)
    labels = np.zeros(len(images), dtype=np.int64)
    recipe = FinetuneRecipe(epochs=0)
    tuner = FineTuner(graph, images=images, labels=labels, recipe=recipe)
    wanted = graph.evaluate(images).reshape(len(images), -1)
    with torch.no_grad():
        found = tuner.forward(torch.tensor(images)).numpy()
    limit = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * limit)
    np.testing.assert_allclose(
        tuner.graph().evaluate(images).reshape(len(images), -1), wanted, rtol=0, atol=1e-4 * limit
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["lenet5", "digits-tiny"])
def test_forward_is_the_integer_network(name: str, bits: int, splits: Splits) -> None:
    graph = shipped(name)
    assembler = Assembler(graph)
    config = QuantConfig(bits=LayerBits(weights=bits, biases=12, activations=bits))
    plan = linear_plan(assembler, observe_graph(graph, splits.search_images[:100]), config)
    weights, biases, outputs = maps_of(assembler, plan)
    trained = tune(
        graph, splits, weights=weights, biases=biases, outputs=outputs, epochs=1, rate=1e-3
    )
    network = assembler.assemble(planned(plan, trained))
    images = splits.test_images[:200]
    tuner = FineTuner(
        trained,
        images=splits.train_images,
        labels=splits.train_labels,
        recipe=FinetuneRecipe(epochs=0),
        weights=weights,
        biases=biases,
        outputs=outputs,
    )
    with torch.no_grad():
        found = tuner.forward(torch.tensor(images)).double().numpy()
    # Sums of products of such codes are exact in float32.
    assert np.array_equal(found / network.output_type.scale, network.evaluate(images))


def test_straight_through() -> None:
    x = torch.tensor([-9.0, -2.3, -0.25, 0.3, 0.5, 1.76, 5.0], requires_grad=True)
    form = Fixed(width=4, frac=1, signed=True)  # -4 to 3.5 in halves
    y = fixed_ste(form)(x)
    assert y.tolist() == [-4.0, -2.5, 0.0, 0.5, 0.5, 2.0, 3.5]
    shifted = Fixed(width=4, frac=1, signed=False, zero=5)  # -2.5 to 5 in halves
    assert fixed_ste(shifted)(x.detach()).tolist() == [-2.5, -2.5, 0.0, 0.5, 0.5, 2.0, 5.0]
    (y * torch.arange(7)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 2, 3, 4, 5, 0]
    x.grad = None
    z = ste_round(x * 2)
    assert z.tolist() == [-18, -5, 0, 1, 1, 4, 10]
    z.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2] * 7
    scales = np.array([[1.0], [0.5]])
    assert uniform_ste(scales, 0, 3)(torch.tensor([[1.6, 9], [0.7, -1]])).tolist() == [
        [2.0, 3.0],
        [0.5, 0.0],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "form",
    [
        Fixed(width=4, frac=1, signed=True),
        Fixed(width=6, frac=9, signed=False),
        Fixed(width=8, frac=-3, signed=False, zero=100),
        Fixed(width=1, frac=0, signed=True),
    ],
)
def test_round_to_fixed(form: Fixed, dtype: torch.dtype) -> None:
    """As a tensor's codes are made, and as fine-tuning sees them; ties included."""
    steps = np.arange(4 * form.low - 40, 4 * form.high + 40) / 4
    noise = np.random.default_rng(1).normal(0, 1 << form.width, 200).round(3)
    x = torch.tensor(np.append(steps, noise) * form.scale, dtype=dtype)
    before = x.clone()
    found = round_to_fixed(x, form)
    assert found.dtype == dtype
    assert torch.equal(x, before)
    expected = decode(quantize_to(x.double().numpy(), form), form)
    np.testing.assert_array_equal(found.double().numpy(), expected)
    assert torch.equal(found, fixed_ste(form)(x))


# --- that it learns


def test_a_damaged_network_recovers(tiny: FloatGraph, splits: Splits) -> None:
    rng = np.random.default_rng(0)

    def damaged(node: Any) -> Any:
        if not isinstance(node, Conv | Linear):
            return node
        noise = rng.normal(0, 0.5 * node.weight.std(), node.weight.shape)
        return replace(node, weight=node.weight + noise)

    bad = replace(tiny, nodes=tuple(damaged(node) for node in tiny.nodes))

    def accuracy(graph: FloatGraph) -> float:
        return float_accuracy(graph, splits.test_images, splits.test_labels)

    before, after = accuracy(bad), accuracy(tune(bad, splits, epochs=6, rate=1e-2))
    assert before < 0.88
    assert after > 0.92


def test_quantisation_aware(tiny: FloatGraph, splits: Splits) -> None:
    assembler = Assembler(tiny)
    config = QuantConfig(bits=LayerBits(weights=2, activations=4))
    plan = linear_plan(assembler, observe_graph(tiny, splits.search_images), config)
    judge = Judge(splits.test_images, splits.test_labels)
    weights, biases, outputs = maps_of(assembler, plan)
    for distill in (0.0, 0.5):
        trained = tune(
            tiny,
            splits,
            epochs=5,
            distill=distill,
            weights=weights,
            biases=biases,
            outputs=outputs,
        )
        found = judge.score(assembler.assemble(planned(plan, trained)))
        assert found.accuracy > judge.score(assembler.assemble(plan)).accuracy + 0.02


def test_masked_weights_stay_zero(tiny: FloatGraph, splits: Splits) -> None:
    rng = np.random.default_rng(1)
    masks = {node.name: rng.random(node.weight.shape) < 0.5 for node in tiny.mac_nodes}
    trained = tune(tiny, splits, masks=masks, weight_decay=0.01)
    for node in trained.mac_nodes:
        assert np.array_equal(node.weight != 0, masks[node.name])


# --- that it repeats itself and goes on


def test_same_seed_same_bits(tiny: FloatGraph, splits: Splits) -> None:
    first = tune(tiny, splits, seed=3, mirror=True)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert same(first, tune(tiny, splits, seed=3, mirror=True))
    assert not same(first, tune(tiny, splits, seed=4, mirror=True))


def test_goes_on_after_an_epoch(tiny: FloatGraph, splits: Splits) -> None:
    recipe = FinetuneRecipe(epochs=3, rate=3e-3, batch=32)
    mask = {"conv2": np.arange(288).reshape(8, 4, 3, 3) % 3 > 0}
    kept: dict[str, NDArray[Any]] = {}

    def after(tuner: FineTuner) -> None:
        if tuner.epoch == 2:
            tuner.set_masks(mask)
            kept.update(tuner.arrays())

    data = {"images": splits.train_images, "labels": splits.train_labels}
    whole = finetune(tiny, recipe=recipe, seed=5, after_epoch=after, **data)
    tuner = FineTuner(tiny, recipe=recipe, seed=5, **data)
    tuner.restore(kept)
    assert tuner.step == 2 * tuner.steps_per_epoch
    tuner.run_epoch()
    assert same(tuner.graph(), whole)


# --- bad input


def test_refusals(tiny: FloatGraph, splits: Splits) -> None:
    images, labels = splits.train_images, splits.train_labels
    for changes, message in (
        ({"images": images[:0], "labels": labels[:0]}, "at least 1"),
        ({"images": images[:, :, :16]}, r"shape \(N, 1, 32, 32\)"),
        ({"images": images.astype(np.float32)}, "uint8"),
        ({"labels": labels[:5]}, "a label of 0 to 9"),
        ({"labels": labels + 1}, "a label of 0 to 9"),
        ({"weights": {"conv9": ste_round}}, "weights of fine-tuning are given for conv9"),
        ({"outputs": {"relu9": ste_round}}, "outputs of fine-tuning are given for relu9"),
        ({"masks": {"fc": np.ones((2, 2), dtype=bool)}}, r"mask of layer fc .* \(10, 32\)"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"rate": 1e30}, "diverged"),
        ({"epochs": -1}, "epochs of fine-tuning must be at least 0"),
        ({"rate": 0.0}, "rate of fine-tuning must be above 0"),
        ({"distill": 1.5}, "distill of fine-tuning must be 0 to 1"),
    ):
        with pytest.raises(BadInput, match=message):
            tune(tiny, splits, **changes)
    other = FineTuner(
        random_graph(0),
        images=pixels(random_graph(0), 4),
        labels=np.zeros(4, dtype=np.int64),
        recipe=FinetuneRecipe(epochs=1),
    )
    tuner = FineTuner(tiny, images=images, labels=labels, recipe=FinetuneRecipe(epochs=1))
    with pytest.raises(BadInput, match="another network"):
        tuner.restore(other.arrays())
