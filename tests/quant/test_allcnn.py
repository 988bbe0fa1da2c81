"""All-CNN-C: its shape is the paper's, it trains by name, resumes, imports and quantises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwgen.flow import load_model
from hwgen.ir import Conv, MacOp, Requant
from quant import train as module
from quant.baseline import quantize_linear
from quant.datasets import Dataset, load_dataset
from quant.models import create_model
from quant.recipe import recipe_for
from quant.train import resume_path, train


@pytest.fixture(scope="module")
def few() -> Dataset:
    """16 images to fit, 8 held out, 4 to test."""
    data = load_dataset("digits")
    return replace(
        data,
        train_images=data.train_images[:24],
        train_labels=data.train_labels[:24],
        test_images=data.test_images[:4],
        test_labels=data.test_labels[:4],
        held_out=8,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_of_the_paper(channels: int) -> None:
    model = create_model("allcnn", channels).eval()
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 10)
    weights = [p.shape for p in model.parameters() if p.ndim == 4]
    assert [(s[0], s[2]) for s in weights] == [(96, 3)] * 3 + [(192, 3)] * 4 + [(192, 1), (10, 1)]
    if channels == 3:
        assert sum(p.numel() for p in model.parameters()) == 1_369_738


def test_recipe() -> None:
    recipe = recipe_for("allcnn", "cifar10")
    assert (recipe.mirror, recipe.crop) == (True, 4)
    assert not recipe_for("allcnn", "mnist").mirror


def test_the_loss_falls() -> None:
    """Two images each of four digits: far below the loss of ten dead outputs."""
    data = load_dataset("digits")
    picked = [int(np.flatnonzero(data.train_labels == c)[i]) for c in range(4) for i in (0, 5)]
    data = replace(
        data,
        train_images=data.train_images[picked],
        train_labels=data.train_labels[picked],
        held_out=0,
    )
    recipe = replace(recipe_for("allcnn", "digits"), epochs=12, batch=8, crop=0)
    run = module._Run("allcnn", data, recipe, 0)
    losses = []
    for _ in range(recipe.epochs):
        losses.append(run.run_epoch())
        run.history.append(losses[-1])
    assert losses[-1] < 0.9 * np.log(10), losses
    assert losses[-1] < 0.6 * losses[0], losses


def test_trains_by_name_resumes_and_quantises(few: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    options = {"epochs": 2, "threads": 1, "progress": False}
    whole = train("allcnn", few, out=out, **options)  # type: ignore[arg-type]
    again = tmp_path / "again.safetensors"
    part = train("allcnn", few, out=again, max_seconds=0, **options)  # type: ignore[arg-type]
    assert (part.epochs, resume_path(again).exists()) == (1, True)
    train("allcnn", few, out=again, **options)  # type: ignore[arg-type]
    assert again.read_bytes() == out.read_bytes()

    model = load_model(out, data=few)
    assert model.held_out == 8
    network = quantize_linear(
        model.graph, preprocess=model.preprocess, calibration=few.search_images[:4]
    )
    convs = [op for op in network.ops if isinstance(op, MacOp)]
    assert len(convs) == 9
    for op in convs:
        assert isinstance(op, Conv)
        assert isinstance(op.requant, Requant)
        assert op.requant.mult == (1,), "no batch norm: shifts alone"
    images = few.test_images[:2]
    codes = network.evaluate(images)
    np.testing.assert_array_equal(codes, network.reference(images))
    torch_model = create_model("allcnn", 1).eval()
    torch_model.load_state_dict(dict(whole.state))
    with torch.inference_mode():
        exact = torch_model(model.preprocess.apply(images)).numpy()
    step = network.output_type.scale
    assert np.abs(codes * step - exact).max() < 0.1 * max(np.abs(exact).max(), step)
