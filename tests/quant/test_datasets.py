"""Data sets: what they hold, where they are found, and what is said of bad files."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hwgen.errors import BadDataset, BadInput
from quant import datasets
from quant.data import cifar10, mnist
from quant.data.dataset import Dataset
from quant.data.fetch import Remote, default_cache, fetch
from quant.datasets import load_dataset
from tests.support import shared_path

TRAIN, TEST = 12, 7
RECORDS = 6


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape)
    return header + values.tobytes()


@pytest.fixture
def idx_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for images, labels, count in ((*mnist.FILES[:2], TRAIN), (*mnist.FILES[2:], TEST)):
        arrays[images] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[labels] = rng.integers(0, 10, (count,), dtype=np.uint8)
    return arrays


def write_idx(
    folder: Path, arrays: dict[str, np.ndarray], rename: Callable[[str], str] = lambda n: n
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        data, name = idx_bytes(values), rename(name)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def write_batches(folder: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {}
    for name in cifar10.FILES:
        table = rng.integers(0, 256, (RECORDS, 3073), dtype=np.uint8)
        table[:, 0] = rng.integers(0, 10, RECORDS)
        contents[name] = table.tobytes()
        (folder / name).write_bytes(contents[name])
    return contents


# ---- what a data set holds


def small(**changes: object) -> Dataset:
    values: dict[str, object] = {
        "name": "small",
        "train_images": np.zeros((6, 1, 4, 5), np.uint8),
        "train_labels": np.arange(6, dtype=np.int64) % 3,
        "test_images": np.ones((2, 1, 4, 5), np.uint8),
        "test_labels": np.array([0, 2]),
        "held_out": 2,
        "classes": ("a", "b", "c"),
    }
    return Dataset(**(values | changes))  # type: ignore[arg-type]


def test_split_is_the_last_images() -> None:
    data = small()
    assert data.shape == (1, 4, 5)
    assert len(data.fit_images) == len(data.fit_labels) == 4
    assert data.search_labels.tolist() == data.train_labels[4:].tolist()
    assert np.array_equal(np.concatenate([data.fit_labels, data.search_labels]), data.train_labels)
    assert len(small(held_out=0).search_images) == 0
    assert len(small(held_out=0).fit_images) == 6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_images": np.zeros((6, 1, 4, 5))}, "training part: images must be uint8"),
        ({"test_images": np.zeros((0, 1, 4, 5), np.uint8)}, "test part: images must be"),
        ({"test_images": np.zeros((2, 3, 4, 5), np.uint8)}, "must have one shape"),
        ({"test_labels": np.array([0, 1, 2])}, r"labels must be int64 of shape \(2,\)"),
        ({"test_labels": np.array([0, 3])}, "label 1 must be from 0 to 2, and is 3"),
        ({"test_labels": np.array([-1, 0])}, "label 0 must be from 0 to 2, and is -1"),
        ({"held_out": 6}, "fewer than the 6 training images, and are 6"),
    ],
)
def test_dataset_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadDataset, match=message):
        small(**changes)


def test_unknown_name() -> None:
    with pytest.raises(BadInput, match=r"digits, mnist, cifar10, not 'imagenet'"):
        load_dataset("imagenet")


# ---- digits


def test_digits() -> None:
    data = load_dataset("digits", data_dir=Path("/nonexistent"))
    assert data.train_images.shape == (1297, 1, 32, 32)
    assert data.test_images.shape == (500, 1, 32, 32)
    assert (len(data.fit_images), len(data.search_images)) == (1097, 200)
    assert data.train_images.min() == 0
    assert data.train_images.max() == 255
    blocks = data.test_images.reshape(500, 8, 4, 8, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    everything = np.concatenate([data.train_images, data.test_images])
    assert np.bincount(np.concatenate([data.train_labels, data.test_labels])).min() > 170
    # The split is part of what the shipped weights mean: it must never change.
    assert hashlib.sha256(everything.tobytes()).hexdigest()[:16] == "a84af11a1793d52e"


# ---- MNIST from files


@pytest.mark.parametrize(
    "sub, rename",
    [
        (".", lambda n: n),
        (".", lambda n: f"{n}.gz"),
        ("MNIST/raw", lambda n: n.replace("-idx", ".idx")),
    ],
)
def test_mnist_files(
    tmp_path: Path, idx_arrays: dict[str, np.ndarray], sub: str, rename: Callable[[str], str]
) -> None:
    write_idx(tmp_path / sub, idx_arrays, rename)
    folder = mnist.find_idx_folder(tmp_path)
    assert folder is not None
    data = mnist.load_mnist(folder, train=TRAIN, test=TEST, held_out=3)
    assert data.train_images.shape == (TRAIN, 1, 32, 32)
    pixels = idx_arrays["train-images-idx3-ubyte"]
    assert np.array_equal(data.train_images[:, 0, 2:30, 2:30], pixels)
    assert data.train_images.sum(dtype=np.int64) == pixels.sum(dtype=np.int64)
    assert np.array_equal(data.test_labels, idx_arrays["t10k-labels-idx1-ubyte"])


def test_mnist_missing_file(tmp_path: Path, idx_arrays: dict[str, np.ndarray]) -> None:
    del idx_arrays["t10k-labels-idx1-ubyte"]
    write_idx(tmp_path, idx_arrays)
    with pytest.raises(BadDataset, match=r"missing: t10k-labels-idx1-ubyte$"):
        load_dataset("mnist", data_dir=tmp_path)


def _truncate(data: bytes) -> bytes:
    return data[:-5]


def _lengthen(data: bytes) -> bytes:
    return data + b"x"


def _flip_last(data: bytes) -> bytes:
    return data[:-10] + bytes([data[-10] ^ 255]) + data[-9:]


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("train-images-idx3-ubyte", _truncate, r"must hold 9424 bytes .*holds 9419: it is trunc"),
        ("train-images-idx3-ubyte", _lengthen, "must hold 9424 bytes .*holds more"),
        ("train-images-idx3-ubyte", lambda d: d[:9], "header has 16 bytes, and the file has 9"),
        ("t10k-images-idx3-ubyte", lambda d: b"\0" * 20, "must be 0x00000803.* is 0x00000000"),
        ("train-labels-idx1-ubyte", lambda d: d[:-1] + b"\x0a", "label 11 must be .* and is 10"),
        (
            "t10k-labels-idx1-ubyte",
            lambda d: idx_bytes(np.zeros(8, np.uint8)),
            r"shape must be \(7,\), and the header says \(8,\)",
        ),
    ],
)
def test_mnist_damaged_files(
    tmp_path: Path,
    idx_arrays: dict[str, np.ndarray],
    name: str,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    write_idx(tmp_path, idx_arrays)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadDataset, match=message) as caught:
        mnist.load_mnist(tmp_path, train=TRAIN, test=TEST, held_out=3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [_truncate, _flip_last, lambda d: b"no gzip at all"])
def test_mnist_damaged_gzip(
    tmp_path: Path, idx_arrays: dict[str, np.ndarray], damage: Callable[[bytes], bytes]
) -> None:
    write_idx(tmp_path, idx_arrays, lambda n: f"{n}.gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadDataset, match=r"train-images-idx3-ubyte\.gz: not a whole gzip file"):
        mnist.load_mnist(tmp_path, train=TRAIN, test=TEST, held_out=3)


# ---- CIFAR-10 from files


@pytest.mark.parametrize("sub", [".", "cifar-10-batches-bin"])
def test_cifar10_files(tmp_path: Path, sub: str) -> None:
    contents = write_batches(tmp_path / sub)
    folder = cifar10.find_batches_folder(tmp_path)
    assert folder is not None
    data = cifar10.load_cifar10(folder, records=RECORDS, held_out=4)
    assert data.train_images.shape == (5 * RECORDS, 3, 32, 32)
    assert data.test_images.shape == (RECORDS, 3, 32, 32)
    record = contents["data_batch_2.bin"][3073 : 2 * 3073]
    assert data.train_labels[RECORDS + 1] == record[0]
    assert data.train_images[RECORDS + 1, 2, 5, 7] == record[1 + 2 * 1024 + 5 * 32 + 7]
    assert data.classes[9] == "truck"


@pytest.mark.parametrize(
    "damage, message",
    [
        (_truncate, "must hold 18438 bytes .*holds 18433: it is truncated"),
        (lambda d: d[:-3073], "must hold 18438 bytes .*holds 15365: it is truncated"),
        (_lengthen, "must hold 18438 bytes .*holds more"),
        (lambda d: d[:3073] + b"\x0a" + d[3074:], "record 1 must be from 0 to 9, and is 10"),
    ],
)
def test_cifar10_damaged_files(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    write_batches(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadDataset, match=message) as caught:
        cifar10.load_cifar10(tmp_path, records=RECORDS, held_out=4)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_wrong_data_dir(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadDataset, match=r"does not exist; for .* give a folder with"):
        load_dataset(name, data_dir=tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(BadDataset, match="is a file, not a folder"):
        load_dataset(name, data_dir=tmp_path / "file")
    with pytest.raises(BadDataset, match=r"holds no .* file; give a folder with"):
        load_dataset(name, data_dir=tmp_path)


def test_data_dir_of_a_bad_name(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="File name too long"):
        load_dataset("mnist", data_dir=tmp_path / ("a" * 300))


def test_cifar10_missing_and_python_version(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(BadDataset, match="Python version is pickles, which are never read"):
        load_dataset("cifar10", data_dir=tmp_path)
    write_batches(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(BadDataset, match=r"missing: test_batch\.bin$"):
        load_dataset("cifar10", data_dir=tmp_path)


# ---- downloads, from a server on this machine


class Server:
    """Serves ``files``; one whose name starts with ``cut`` breaks off half-way."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.requests.append(name)
                data = outer.files.get(name)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if name.startswith("cut") else data)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def offer(self, name: str, data: bytes) -> Remote:
        self.files[name] = data
        digest = hashlib.sha256(data).hexdigest()
        return Remote(url=f"{self.address}/{name}", size=len(data), sha256=digest)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    yield running
    running.close()


def archive(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_download_mnist(
    tmp_path: Path,
    server: Server,
    idx_arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remotes = [
        server.offer(f"{name}.gz", gzip.compress(idx_bytes(a))) for name, a in idx_arrays.items()
    ]
    monkeypatch.setattr(datasets, "MNIST_REMOTES", tuple(remotes))
    load = mnist.load_mnist
    monkeypatch.setattr(mnist, "load_mnist", lambda f: load(f, train=TRAIN, test=TEST, held_out=3))
    data = load_dataset("mnist", cache_dir=tmp_path)
    assert len(data.train_images) == TRAIN
    assert len(server.requests) == 4
    again = load_dataset("mnist", cache_dir=tmp_path, download=False)
    assert np.array_equal(again.train_images, data.train_images)
    assert len(server.requests) == 4


def test_download_cifar10(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = write_batches(tmp_path / "source")
    remote = server.offer("cifar-10-binary.tar.gz", archive(contents))
    monkeypatch.setattr(datasets, "CIFAR10_REMOTE", remote)
    load = cifar10.load_cifar10
    monkeypatch.setattr(cifar10, "load_cifar10", lambda f: load(f, records=RECORDS, held_out=4))
    data = load_dataset("cifar10", cache_dir=tmp_path / "cache")
    assert len(data.train_images) == 5 * RECORDS
    names = sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert names == sorted(cifar10.FILES), "only the batches stay, not the archive"
    load_dataset("cifar10", cache_dir=tmp_path / "cache")
    assert len(server.requests) == 1


@pytest.mark.parametrize("change", [b"another", b"x" * 100, b""])
def test_download_of_another_file_keeps_nothing(
    tmp_path: Path, server: Server, change: bytes
) -> None:
    remote = server.offer("file", b"the file")
    server.files["file"] = change
    with pytest.raises(BadDataset, match="gave another file than expected: 8 bytes of SHA-256"):
        fetch(remote, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_download_that_breaks_off(tmp_path: Path, server: Server) -> None:
    remote = server.offer("cut", b"the whole file")
    with pytest.raises(BadDataset, match=r"7 (bytes|of 14)"):
        fetch(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_download_not_found(tmp_path: Path, server: Server) -> None:
    remote = Remote(url=f"{server.address}/none", size=1, sha256="0" * 64)
    with pytest.raises(BadDataset, match="answers 404"):
        fetch(remote, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_offline_names_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free again after this line: nobody listens
    remote = Remote(url=f"http://127.0.0.1:{port}/x.gz", size=1, sha256="0" * 64)
    monkeypatch.setattr(datasets, "MNIST_REMOTES", (remote,))
    monkeypatch.setattr(datasets, "CIFAR10_REMOTE", remote)
    for download in (True, False):
        with pytest.raises(BadDataset) as caught:
            load_dataset(name, cache_dir=tmp_path, download=download)
        message = str(caught.value)
        assert ("cannot be reached" in message) is download
        assert "give --data-dir FOLDER" in message
        assert "run once with a network connection" in message
        assert str(tmp_path / name) in message
        assert "\n" not in message


def test_archive_without_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive({"data_batch_1.bin": b"x"}))
    with pytest.raises(BadDataset, match=r"data_batch_2\.bin"):
        cifar10.unpack_archive(path, tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadDataset, match=r"not a whole \.tar\.gz archive"):
        cifar10.unpack_archive(path, tmp_path)


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "hwgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == Path.home() / ".cache" / "hwgen"


def test_whole_mnist() -> None:
    data = load_dataset("mnist", data_dir=shared_path("data/mnist"))
    assert data.train_images.shape == (60_000, 1, 32, 32)
    assert (len(data.fit_images), len(data.search_images)) == (55_000, 5000)
    inner = np.ascontiguousarray(data.test_images[:, 0, 2:30, 2:30])
    digest = hashlib.sha256(idx_bytes(inner)).hexdigest()
    assert digest == "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
