"""MNIST from its four idx files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadDataset
from quant.data.dataset import Dataset
from quant.data.files import read_exactly, read_up_to

__all__ = ["FILES", "find_file", "find_idx_folder", "load_mnist", "read_idx"]

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FOLDERS = (".", "MNIST/raw", "mnist/raw", "raw", "MNIST", "mnist")
HELD_OUT = 5000
SIDE = 28
BORDER = 2


def find_file(folder: Path, name: str) -> Path | None:
    """Return the idx file of that official name, plain or ``.gz``, dash or dot before ``idx``."""
    for stem in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


def find_idx_folder(root: Path) -> Path | None:
    """Return ``root`` or the usual folder under it that holds any of the four files."""
    for sub in FOLDERS:
        if any(find_file(root / sub, name) for name in FILES):
            return root / sub
    return None


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the unsigned bytes of an idx file that must have this shape.

    Raises
    ------
    BadDataset
        If the magic number, the shape or the length differs, or the file cannot be read.
    """
    magic = 0x0800 + len(shape)
    header_bytes = 4 + 4 * len(shape)
    header = read_up_to(path, header_bytes)
    if len(header) < header_bytes:
        raise BadDataset(
            f"{path}: an idx header has {header_bytes} bytes, and the file has {len(header)}; "
            "delete it and fetch it again"
        )
    words = np.frombuffer(header, dtype=">u4").tolist()
    if words[0] != magic:
        raise BadDataset(
            f"{path}: the magic number must be 0x{magic:08x} (unsigned bytes, {len(shape)} "
            f"dimensions), and is 0x{words[0]:08x}; it is not an idx file of this kind"
        )
    if tuple(words[1:]) != shape:
        raise BadDataset(
            f"{path}: the shape must be {shape}, and the header says {tuple(words[1:])}"
        )
    size = header_bytes + int(np.prod(shape))
    what = f"header and {' x '.join(map(str, shape))} values"
    data = read_exactly(path, size, what)
    return np.frombuffer(data, dtype=np.uint8, offset=header_bytes).reshape(shape)


def _labels(path: Path, count: int) -> NDArray[np.int64]:
    labels = read_idx(path, (count,))
    wrong = np.flatnonzero(labels > 9)
    if wrong.size:
        raise BadDataset(f"{path}: label {wrong[0]} must be from 0 to 9, and is {labels[wrong[0]]}")
    return labels.astype(np.int64)


def _images(path: Path, count: int) -> NDArray[np.uint8]:
    pixels = read_idx(path, (count, SIDE, SIDE))
    return np.pad(pixels, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))[:, np.newaxis]


def load_mnist(
    folder: Path, *, train: int = 60_000, test: int = 10_000, held_out: int = HELD_OUT
) -> Dataset:
    """Read the four idx files in ``folder``; images get a border of 2 zeros, so are 1x32x32.

    Raises
    ------
    BadDataset
        If a file is missing, truncated, corrupt, or not of ``train`` or ``test`` records.
    """
    paths = [find_file(folder, name) for name in FILES]
    missing = [name for name, path in zip(FILES, paths, strict=True) if path is None]
    if missing:
        raise BadDataset(
            f"{folder}: must hold the four MNIST files {', '.join(FILES)} (plain or .gz); "
            f"missing: {', '.join(missing)}"
        )
    train_images, train_labels, test_images, test_labels = (p for p in paths if p is not None)
    return Dataset(
        name="mnist",
        train_images=_images(train_images, train),
        train_labels=_labels(train_labels, train),
        test_images=_images(test_images, test),
        test_labels=_labels(test_labels, test),
        held_out=held_out,
        classes=tuple(str(i) for i in range(10)),
    )
