"""Model files, checkpoints, data sets and networks with one fault each, by name."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from quant.checkpoints import shipped_checkpoint
from tests.quant.onnx_models import const, model, node

__all__ = ["CHECKPOINTS", "DATA", "MODELS", "NETWORKS", "linear_onnx"]


def linear_onnx(folder: Path, *, features: int = 1024, poison: float | None = None) -> Path:
    """A linear layer over images of 1 x 32 x 32; with a weight that is no number, if asked for."""
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(10, features)) / 32
    if poison is not None:
        weights[3, 7] = poison
    nodes = [
        node("Flatten", ["x"], ["f"], "flatten"),
        node("Gemm", ["f", "w", "b"], ["y"], "fc", transB=1),
    ]
    made = model(nodes, [const("w", weights), const("b", rng.normal(size=10))], ("n", 1, 32, 32))
    path = folder / "net.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def _written(folder: Path, data: bytes, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _operators(folder: Path) -> Path:
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv"),
        node("Tanh", ["c"], ["t"], "squash"),
        node("Flatten", ["t"], ["f"], "flatten"),
        node("Gelu", ["f"], ["y"], "bend"),
    ]
    made = model(nodes, [const("w", np.ones((3, 1, 3, 3)))], ("n", 1, 32, 32), opset=20)
    return _written(folder, made.SerializeToString())


def _no_mac(folder: Path) -> Path:
    nodes = [
        node("MaxPool", ["x"], ["p"], "pool", kernel_shape=[8, 8], strides=[8, 8]),
        node("Flatten", ["p"], ["y"], "flatten"),
    ]
    return _written(folder, model(nodes, [], ("n", 1, 32, 32)).SerializeToString())


def _large_images(folder: Path) -> Path:
    nodes = [
        node("Flatten", ["x"], ["f"], "flatten"),
        node("Gemm", ["f", "w"], ["y"], "fc", transB=1),
    ]
    made = model(nodes, [const("w", np.ones((10, 4096)))], ("n", 1, 64, 64))
    return _written(folder, made.SerializeToString())


def _truncated(folder: Path) -> Path:
    path = linear_onnx(folder)
    return _written(folder, path.read_bytes()[:20_000])


MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "corrupt": (lambda f: _written(f, b"\x0a\xffjunk" * 50), "no ONNX file, or is truncated"),
    "truncated": (_truncated, "truncated or corrupt"),
    "empty": (lambda f: _written(f, b""), "holds no network"),
    "wrong shape": (lambda f: linear_onnx(f, features=1000), "'fc'.* 1000 features.*1024"),
    "nan": (lambda f: linear_onnx(f, poison=np.nan), r"'w'.* finite.*\(3, 7\): nan"),
    "infinite": (lambda f: linear_onnx(f, poison=-np.inf), r"'w'.* finite.*\(3, 7\): -inf"),
    "no MAC layer": (_no_mac, "at least one convolution or linear layer"),
    "operators": (_operators, "(?s)2 problems.*'squash' .Tanh.*'bend' .Gelu"),
    "larger images": (_large_images, r"\(64, 64\).*\(32, 32\)"),
    "absent": (lambda f: f / "none.onnx", "there is no file .*none.onnx"),
    "folder": (lambda f: f, "there is no file"),
    "unknown name": (lambda f: Path("lenet6"), "one of lenet5, digits-tiny, allcnn or an .onnx"),
}
"""ONNX files: how each is made, and what must be said of it."""

SHIPPED = shipped_checkpoint("digits-tiny", "digits")


def _changed(folder: Path, change: Callable[[dict[str, Any]], None], *, pt: bool = False) -> Path:
    state = safetensors.torch.load(SHIPPED.read_bytes())
    change(state)
    if pt:
        torch.save(state, folder / "net.pt")
        return folder / "net.pt"
    return _written(folder, safetensors.torch.save(state), "net.safetensors")


def _narrow(state: dict[str, Any]) -> None:
    state["conv1.weight"] = state["conv1.weight"][:, :, :3].contiguous()


def _poison(state: dict[str, Any]) -> None:
    state["fc.bias"][4] = float("nan")


def _less(state: dict[str, Any]) -> None:
    del state["fc.bias"]


CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "corrupt": (lambda f: _written(f, b"junk" * 9, "net.safetensors"), "safetensors file"),
    "truncated": (
        lambda f: _written(f, SHIPPED.read_bytes()[:-99], "net.safetensors"),
        "not a whole safetensors file",
    ),
    "wrong shape": (
        lambda f: _changed(f, _narrow),
        r"conv1.weight must have shape \(4, 1, 5, 5\), and has \(4, 1, 3, 5\)",
    ),
    "nan": (lambda f: _changed(f, _poison), r"finite, and fc.bias\[4\] is nan"),
    "tensor missing": (
        lambda f: _changed(f, _less),
        "no network of lenet5, digits-tiny, allcnn has these tensors",
    ),
    "nan in .pt": (lambda f: _changed(f, _poison, pt=True), r"finite, and fc.bias\[4\] is nan"),
    "corrupt .pt": (lambda f: _written(f, b"junk" * 9, "net.pt"), "a state_dict saved by"),
}
"""Checkpoints: how each is made, and what must be said of it."""


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
HEADER = struct.pack(">4I", 0x803, 60_000, 28, 28)


def _mnist(folder: Path, images: bytes, suffix: str = "") -> Path:
    """MNIST's files, of which the first that is read has the fault."""
    for name in (IMAGES + suffix, LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        _written(folder, images, name)
    return folder


def _bad_gzip(folder: Path) -> Path:
    data = bytearray(gzip.compress(HEADER + bytes(60_000 * 784), 1, mtime=0))
    data[-6] ^= 1  # in the checksum
    return _mnist(folder, bytes(data), ".gz")


DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (lambda f: _mnist(f, HEADER + bytes(784)), f"{IMAGES}: .*47040016"),
    "cut in the header": (lambda f: _mnist(f, HEADER[:9]), f"{IMAGES}: "),
    "wrong shape": (
        lambda f: _mnist(f, struct.pack(">4I", 0x803, 60_000, 14, 56) + bytes(784)),
        rf"{IMAGES}: the shape must be \(60000, 28, 28\), and the header says \(60000, 14, 56\)",
    ),
    "corrupt": (lambda f: _mnist(f, b"junk" * 99), f"{IMAGES}: "),
    "corrupt gzip": (_bad_gzip, f"{IMAGES}.gz: "),
    "file missing": (lambda f: _written(f, b"", IMAGES).parent, LABELS),
    "no folder": (lambda f: f / "none", "--data-dir .*none does not exist"),
    "file for a folder": (lambda f: _written(f, b"x", "file"), "is a file, not a folder"),
    "empty folder": (lambda f: f, "holds no MNIST file"),
}
"""Folders for --data mnist: how each is made, and what must be said of it."""


def _network(source: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(source, folder / "net")
    change(folder / "net")
    return folder / "net"


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "network.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return edit


def _shorten(name: str) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return shorten


def _flip(folder: Path) -> None:
    data = bytearray((folder / "weights.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "weights.npz").write_bytes(data)


def _set(*keys: Any, value: Any) -> Callable[[Path], None]:
    def change(network: Any) -> None:
        for key in keys[:-1]:
            network = network[key]
        network[keys[-1]] = value

    return _edit(change)


NETWORKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated network.json": (_shorten("network.json"), "no valid JSON"),
    "truncated weights.npz": (_shorten("weights.npz"), "weights.npz is not the file"),
    "corrupt weights.npz": (_flip, "weights.npz is not the file"),
    "no weights.npz": (lambda f: (f / "weights.npz").unlink(), "weights.npz"),
    "no network.json": (lambda f: (f / "network.json").unlink(), "cannot read .*network.json"),
    "another schema": (_set("schema", value=99), "schema must be 2, not 99"),
    "unknown key": (_set("layers", 0, "colour", value="red"), "unknown key 'colour'"),
    "unknown layer": (_set("layers", 0, "op", value="Dense"), "Dense"),
    "wrong shape": (_set("input", "shape", value=[1, 30, 32]), "conv1"),
    "not a network": (lambda f: (f / "network.json").write_text("[1, 2]"), "network.json"),
}
"""Changes of a saved network, and what must be said of it."""


def broken_network(source: Path, folder: Path, name: str) -> Path:
    """A copy of ``source`` in ``folder`` with the fault of that name."""
    return _network(source, folder, NETWORKS[name][0])
