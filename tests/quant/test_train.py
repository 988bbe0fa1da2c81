"""Training: reproducible, resumable, held-out images unseen, accurate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwgen.errors import BadInput, BadNetwork
from quant import train as module
from quant.checkpoints import Checkpoint, load_checkpoint, load_model
from quant.datasets import Dataset, load_dataset
from quant.models import Preprocess, create_model
from quant.recipe import Augmenter, Recipe, learning_rate, recipe_for
from quant.train import evaluate, resume_path, train


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def part(data: Dataset, fit: int, held_out: int) -> Dataset:
    """The first ``fit`` images and the first held-out ones."""
    keep = np.r_[0:fit, len(data.fit_images) : len(data.fit_images) + held_out]
    return replace(
        data,
        train_images=data.train_images[keep],
        train_labels=data.train_labels[keep],
        test_images=data.test_images[:50],
        test_labels=data.test_labels[:50],
        held_out=held_out,
    )


@pytest.fixture
def few(digits: Dataset) -> Dataset:
    return part(digits, 100, 40)


def run(data: Dataset, out: Path, **options: object) -> Checkpoint:
    values: dict[str, object] = {"epochs": 4, "threads": 1, "progress": False}
    return train("digits-tiny", data, out=out, **(values | options))  # type: ignore[arg-type]


def test_learns_digits(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "a.safetensors"
    found = run(digits, out, epochs=30)
    assert found.accuracy is not None
    assert found.accuracy >= 0.9
    loaded = load_checkpoint(out)
    assert (loaded.dataset, loaded.held_out, loaded.epochs, loaded.seed) == ("digits", 200, 30, 0)
    assert loaded.extra["trained_on"] == 1097
    assert loaded.accuracy == evaluate(
        load_model(loaded), digits.test_images, digits.test_labels, loaded.preprocess
    )
    assert loaded.extra["held_out_accuracy"] == evaluate(
        load_model(loaded), digits.search_images, digits.search_labels, loaded.preprocess
    )
    assert list(out.parent.iterdir()) == [out], "the state of the finished run is deleted"


def test_same_seed_same_bytes(few: Dataset, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        torch.manual_seed(seed * 7)  # the surrounding program's state must not matter
        run(few, path, seed=seed)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes() != paths[2].read_bytes()


def test_neither_held_out_nor_test_images_change_the_weights(few: Dataset, tmp_path: Path) -> None:
    images = few.train_images.copy()
    images[-few.held_out :] = 255 - images[-few.held_out :]
    other = replace(few, train_images=images, test_images=255 - few.test_images)
    first, second = run(few, tmp_path / "a"), run(other, tmp_path / "b")
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.accuracy != second.accuracy


def test_resume_ends_in_the_same_weights(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(few, whole)
    # Stopped by the clock after each epoch, and once by Ctrl-C in the middle of one.
    unfinished = run(few, stopped, max_seconds=0)
    assert (unfinished.epochs, unfinished.accuracy) == (1, None)
    assert unfinished.extra["planned_epochs"] == 4
    assert not stopped.exists()  # a finished checkpoint of that name would have stayed
    with monkeypatch.context() as patch:
        patch.setattr(module, "learning_rate", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(few, stopped)
    assert run(few, stopped, max_seconds=0).epochs == 2
    run(few, stopped)
    assert stopped.read_bytes() == whole.read_bytes()
    assert not resume_path(stopped).exists()


def _interrupt(recipe: Recipe, step: int, total: int) -> float:
    if step % 3 == 2:
        raise KeyboardInterrupt
    return 0.1


def test_resume_refuses_another_run(few: Dataset, digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "a"
    run(few, out, max_seconds=0)
    with pytest.raises(BadInput, match=r"a\.resume is of another run \(seed 0 instead of 1\)"):
        run(few, out, seed=1)
    with pytest.raises(BadInput, match=r"\(epochs \d+ instead of 5\)"):
        run(few, out, epochs=5)
    with pytest.raises(BadInput, match="other data sha256"):
        run(part(digits, 99, 40), out)
    assert run(few, out, epochs=1, resume=False).epochs == 1
    assert not resume_path(out).exists()


def test_damaged_resume_file(few: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "a"
    run(few, out, max_seconds=0)
    state = resume_path(out).read_bytes()
    resume_path(out).write_bytes(state[:-9])
    with pytest.raises(BadNetwork, match=r"a\.resume: not a whole safetensors file"):
        run(few, out)
    resume_path(out).write_bytes(state[:-4] + b"\xff\xff\xff\x7f")
    with pytest.raises(BadNetwork, match="of the unfinished run is not as written"):
        run(few, out)
    run(few, tmp_path / "b", epochs=1)
    resume_path(out).write_bytes((tmp_path / "b").read_bytes())
    with pytest.raises(BadNetwork, match="not the state of an unfinished run"):
        run(few, out)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "epochs must be at least 1, and is 0"),
        ({"seed": -1}, "seed must be at least 0, and is -1"),
        ({"threads": 0}, "threads must be at least 1, and is 0"),
    ],
)
def test_bad_options(few: Dataset, tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(few, tmp_path / "a", **options)
    with pytest.raises(BadInput, match="is a folder; give the path"):
        run(few, tmp_path)


def test_unfit_images(few: Dataset, tmp_path: Path) -> None:
    small = replace(
        few, train_images=few.train_images[..., :28], test_images=few.test_images[..., :28]
    )
    with pytest.raises(BadInput, match="takes 32x32 images, and digits has 32x28"):
        run(small, tmp_path / "a")
    colour = replace(
        few,
        train_images=few.train_images.repeat(3, axis=1),
        test_images=few.test_images.repeat(3, axis=1),
    )
    with pytest.raises(BadInput, match="digits-tiny takes 1 input channels, not 3"):
        run(colour, tmp_path / "a")
    with pytest.raises(BadInput, match="10 outputs, and digits has 11 classes"):
        run(replace(few, classes=tuple("0123456789x")), tmp_path / "a")


def test_divergence_is_told(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recipe_for", lambda *_: Recipe(epochs=9, peak_rate=1e38))
    with pytest.raises(BadInput, match="training diverged in epoch"):
        run(few, tmp_path / "a", epochs=9)


def test_progress_names_held_out_accuracy(
    few: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(few, tmp_path / "a", epochs=2, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "epoch 2/2" in lines[2]
    assert "held-out" in lines[2]


def test_without_held_out_images(digits: Dataset, tmp_path: Path) -> None:
    found = run(part(digits, 20, 0), tmp_path / "a", epochs=1)
    assert "held_out_accuracy" not in found.extra
    assert found.held_out == 0


@pytest.mark.parametrize("mirror", [False, True])
def test_augmentation_is_a_crop_of_the_padded_image(mirror: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (10, 2, 8, 6), dtype=np.uint8)
    recipe = Recipe(epochs=1, peak_rate=1.0, crop=2, mirror=mirror, batch=3)
    augmenter = Augmenter(images, recipe)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    seen, flips, shifts = [], 0, set()
    for epoch in range(20):
        for index, pixels in augmenter.epoch(np.random.default_rng(epoch)):
            for i, got in zip(index, pixels.numpy(), strict=True):
                crops = {
                    (dy, dx, flip): padded[i][:, dy : dy + 8, dx : dx + 6][..., :: 1 - 2 * flip]
                    for dy in range(5)
                    for dx in range(5)
                    for flip in range(2)
                }
                matches = [key for key, crop in crops.items() if np.array_equal(crop, got)]
                assert len(matches) == 1
                flips += matches[0][2]
                shifts.add(matches[0][:2])
            seen.extend(index.tolist())
    assert len(seen) == 20 * 9, "three whole batches of three of ten images"
    assert set(seen) == set(range(10))
    assert len(shifts) == 25
    assert (60 < flips < 120) if mirror else flips == 0


def test_learning_rate() -> None:
    recipe = Recipe(epochs=1, peak_rate=0.5)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[9] == max(rates) == 0.5
    assert rates[0] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(recipe, 0, 1) == 0.5
    assert recipe_for("lenet5", "cifar10").mirror
    assert not recipe_for("lenet5", "mnist").mirror


def test_evaluate(few: Dataset) -> None:
    model = create_model("digits-tiny", 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    preprocess = Preprocess.standard(1)
    zeros = float((few.test_labels == 0).mean())
    assert evaluate(model, few.test_images, few.test_labels, preprocess, batch=7) == zeros
    assert model.training, "the mode is put back"
    with pytest.raises(BadInput, match="50 images, 49 labels"):
        evaluate(model, few.test_images, few.test_labels[:49], preprocess)
    with pytest.raises(BadInput, match="0 images"):
        evaluate(model, few.test_images[:0], few.test_labels[:0], preprocess)
