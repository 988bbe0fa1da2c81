"""Checkpoints: round trip, bare state_dicts, the ones that ship, and damaged files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hwgen.errors import BadInput, BadNetwork
from quant.checkpoints import (
    WEIGHTS,
    Checkpoint,
    load_checkpoint,
    load_model,
    save_checkpoint,
    shipped_checkpoint,
)
from quant.datasets import load_dataset
from quant.models import LeNet5, Preprocess, create_model
from quant.train import evaluate
from tests.support import shared_path


def checkpoint(arch: str = "digits-tiny", in_channels: int = 1, **changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    if "state" not in changes:
        changes["state"] = create_model(arch, in_channels).state_dict()
    values: dict[str, Any] = {
        "arch": arch,
        "in_channels": in_channels,
        "dataset": "digits",
        "preprocess": Preprocess.standard(in_channels),
        "held_out": 200,
        "accuracy": 0.5,
        "seed": 3,
        "epochs": 2,
        "extra": {"threads": 1, "a": [1, 2]},
    }
    return Checkpoint(**(values | changes))


@pytest.mark.parametrize("arch, channels", [("lenet5", 1), ("lenet5", 3), ("digits-tiny", 1)])
def test_round_trip(tmp_path: Path, arch: str, channels: int) -> None:
    before = checkpoint(arch, channels)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, before)
    after = load_checkpoint(path)
    for name in ("arch", "in_channels", "dataset", "preprocess", "held_out", "accuracy"):
        assert getattr(after, name) == getattr(before, name)
    assert (after.seed, after.epochs, after.extra) == (3, 2, before.extra)
    assert all(torch.equal(after.state[name], before.state[name]) for name in before.state)
    save_checkpoint(tmp_path / "b.safetensors", after)
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    model = load_model(after)
    assert not model.training
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 10)


def test_lenet_parameter_names() -> None:
    names = [
        f"{n}.{k}" for n in ("conv1", "conv2", "fc1", "fc2", "fc3") for k in ("weight", "bias")
    ]
    model = LeNet5(3)
    assert list(model.state_dict()) == names
    assert sum(p.numel() for p in model.parameters()) == 62006
    assert sum(p.numel() for p in create_model("digits-tiny", 1).parameters()) == 730


@pytest.mark.parametrize("arch, channels", [("resnet", 1), ("lenet5", 2), ("digits-tiny", 3)])
def test_no_such_model(arch: str, channels: int) -> None:
    with pytest.raises(BadInput, match=r"must be one of|input channels, not"):
        create_model(arch, channels)
    with pytest.raises(BadNetwork):
        checkpoint(arch, channels, state={})


def test_preprocess() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = Preprocess.standard(1).apply(images)
    assert x.dtype == torch.float32
    assert (x.min().item(), x.max().item()) == (-2.0, 2.0)
    values = (np.arange(256, dtype=np.float32) / 255 - 0.5) / 0.25
    assert np.abs(x.numpy().ravel() - values).max() < 1e-6
    two = Preprocess(scale=(1.0, 2.0), offset=(0.0, -1.0))
    assert two.apply(np.full((1, 2, 1, 1), 3, np.uint8)).flatten().tolist() == [3.0, 5.0]
    with pytest.raises(BadInput, match=r"uint8 of shape \(N, 2, H, W\)"):
        two.apply(images)
    for scale, offset in (((1.0,), ()), ((0.0,), (0.0,)), ((math.inf,), (0.0,)), ((), ())):
        with pytest.raises(BadInput, match="preprocessing"):
            Preprocess(scale=scale, offset=offset)


def _changed(name: str, change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    state = dict(checkpoint().state)
    return {"state": state | {name: change(state[name].clone())}}


def _put(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1, 0, 2, 1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    "changes, message",
    [
        (_changed("conv2.weight", _put(math.nan)), r"conv2.weight\[1, 0, 2, 1\] is nan \(1 such"),
        (_changed("conv2.weight", _put(-math.inf)), r"conv2.weight\[1, 0, 2, 1\] is -inf"),
        (_changed("fc.bias", lambda t: t[:9]), r"fc.bias must have shape \(10,\), and has \(9,\)"),
        (_changed("fc.bias", lambda t: t.double()), r"fc.bias must be float32"),
        ({"state": {}}, "missing conv1.weight, conv1.bias"),
        ({"state": dict(checkpoint().state) | {"fc9.bias": torch.zeros(1)}}, "unknown fc9.bias"),
        ({"preprocess": Preprocess.standard(3)}, "must have 1 channels"),
        ({"held_out": -1}, "held_out must be at least 0"),
        ({"accuracy": 99.2}, "fraction from 0 to 1, and is 99.2"),
    ],
)
def test_checkpoint_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        checkpoint(**changes)


def test_bare_state_dicts(tmp_path: Path) -> None:
    for arch, channels in (("lenet5", 1), ("lenet5", 3), ("digits-tiny", 1)):
        state = create_model(arch, channels).state_dict()
        torch.save(state, tmp_path / "a.pt")
        torch.save(state, tmp_path / "no-suffix")
        safetensors.torch.save_file(state, tmp_path / "a.safetensors")
        half = {name: tensor.double() for name, tensor in state.items()}
        torch.save(half, tmp_path / "double.pth")
        for name in ("a.pt", "no-suffix", "a.safetensors", "double.pth"):
            found = load_checkpoint(tmp_path / name)
            assert (found.arch, found.in_channels) == (arch, channels)
            assert (found.dataset, found.held_out, found.accuracy) == (None, 0, None)
            assert all(torch.equal(found.state[key], state[key]) for key in state)


def test_bare_state_dict_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = create_model("lenet5", 1).state_dict()
    torch.save(state | {"fc1.weight": torch.zeros(120, 256)}, path)
    with pytest.raises(BadNetwork, match=r"a\.pt: .*fc1.weight must have shape \(120, 400\)"):
        load_checkpoint(path)
    torch.save(state | {"fc2.bias": torch.full((84,), math.nan)}, path)
    with pytest.raises(BadNetwork, match=r"a\.pt: .*fc2.bias\[0\] is nan \(84 such"):
        load_checkpoint(path)
    torch.save(state | {"conv1.weight": torch.zeros(6, 4, 5, 5)}, path)
    with pytest.raises(BadNetwork, match=r"conv1.weight has shape \(6, 4, 5, 5\)"):
        load_checkpoint(path)
    torch.save(state | {"fc3.bias": torch.zeros(10, dtype=torch.int64)}, path)
    with pytest.raises(BadNetwork, match=r"fc3.bias must be of floats, and is torch.int64"):
        load_checkpoint(path)
    torch.save({}, path)
    with pytest.raises(BadNetwork, match="has these tensors: none"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(BadNetwork, match=r"must hold a state_dict .* and holds a list"):
        load_checkpoint(path)


class Evil:
    """A pickle of this would run a function when read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle ran",))


def test_pickles_are_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Evil()}, tmp_path / "a.pt")
    with pytest.raises(BadNetwork, match="must be a whole file of tensors only"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    ours, torchs = tmp_path / "a.safetensors", tmp_path / "a.pt"
    save_checkpoint(ours, checkpoint())
    torch.save(dict(checkpoint().state), torchs)
    for path in (ours, torchs):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(BadNetwork, match=rf"{path}.* whole") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(BadNetwork, match="no such checkpoint file"):
            load_checkpoint(path)
    with pytest.raises(BadNetwork, match=r"cannot be read \(File name too long\)"):
        load_checkpoint(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema": 99}, "must have schema 1, and has 99"),
        ({"arch": "vgg"}, "the model must be one of"),
        ({"arch": 5}, "record's arch must not be 5"),
        ({"in_channels": True}, "record's in_channels must not be True"),
        ({"in_channels": 3}, "digits-tiny takes 1 input channels, not 3"),
        ({"scale": ["x"]}, "must be finite numbers"),
        ({"scale": [0]}, "scales not 0"),
        ({"scale": []}, "one offset per channel"),
        ({"more": 1}, "missing or unknown keys: more"),
        ({"held_out": None}, "record's held_out must not be None"),
    ],
)
def test_damaged_record(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint())
    with safetensors.safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["hwgen"]) | change
    tensors = dict(checkpoint().state)
    safetensors.torch.save_file(tensors, path, metadata={"hwgen": json.dumps(record)})
    with pytest.raises(BadNetwork, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    safetensors.torch.save_file(tensors, path, metadata={"hwgen": "{"})
    with pytest.raises(BadNetwork, match="is not JSON"):
        load_checkpoint(path)


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write"):
        save_checkpoint(tmp_path / "none" / "a.safetensors", checkpoint())


# ---- the weights that ship


def test_shipped_files() -> None:
    found = {path.stem for path in WEIGHTS.glob("*.safetensors")}
    assert found == {"lenet5-digits", "lenet5-mnist", "lenet5-cifar10", "digits-tiny-digits"}
    for stem in found:
        shipped = load_checkpoint(WEIGHTS / f"{stem}.safetensors")
        assert stem == f"{shipped.arch}-{shipped.dataset}"
        assert shipped_checkpoint(shipped.arch, str(shipped.dataset)).stem == stem
        assert shipped.held_out == (200 if shipped.dataset == "digits" else 5000)
        assert shipped.epochs == shipped.extra["planned_epochs"]
    with pytest.raises(BadInput, match=r"ship for digits-tiny on cifar10 .*lenet5-mnist"):
        shipped_checkpoint("digits-tiny", "cifar10")


def measured(found: Checkpoint, data_dir: Path | None, dataset: str) -> float:
    data = load_dataset(dataset, data_dir=data_dir)
    return evaluate(load_model(found), data.test_images, data.test_labels, found.preprocess)


@pytest.mark.parametrize("arch, least", [("lenet5", 0.975), ("digits-tiny", 0.95)])
def test_shipped_digits(arch: str, least: float) -> None:
    found = load_checkpoint(shipped_checkpoint(arch, "digits"))
    accuracy = measured(found, None, "digits")
    assert accuracy >= least
    # Another processor may round a tie the other way: one image.
    assert found.accuracy == pytest.approx(accuracy, abs=1 / 500)


def test_mnist_weights() -> None:
    mnist_dir = shared_path("data/mnist")
    found = load_checkpoint(shipped_checkpoint("lenet5", "mnist"))
    accuracy = measured(found, mnist_dir, "mnist")
    assert accuracy >= 0.992
    assert found.accuracy == pytest.approx(accuracy, abs=2 / 10_000)
    reference = load_checkpoint(shared_path("models/lenet5_mnist.pt"))
    assert measured(reference, mnist_dir, "mnist") == pytest.approx(0.9937, abs=2 / 10_000)


def test_cifar10_weights(cifar10_dir: Path) -> None:
    found = load_checkpoint(shipped_checkpoint("lenet5", "cifar10"))
    accuracy = measured(found, cifar10_dir, "cifar10")
    assert accuracy >= 0.71
    assert found.accuracy == pytest.approx(accuracy, abs=3 / 10_000)
    reference = load_checkpoint(shared_path("models/lenet5_cifar10.pt"))
    assert measured(reference, cifar10_dir, "cifar10") == pytest.approx(0.7348, abs=3 / 10_000)
