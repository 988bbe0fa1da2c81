"""CIFAR-10 from its official binary files."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadDataset
from hwgen.files import ensure_folder, write_bytes
from quant.data.dataset import Dataset
from quant.data.files import read_exactly

__all__ = ["FILES", "FOLDER", "find_batches_folder", "load_cifar10", "unpack_archive"]

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
HELD_OUT = 5000
SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32


def find_batches_folder(root: Path) -> Path | None:
    """Return ``root/cifar-10-batches-bin`` or ``root`` itself, whichever holds any batch file."""
    for folder in (root / FOLDER, root):
        if any((folder / name).is_file() for name in FILES):
            return folder
    return None


def _batch(path: Path, records: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = read_exactly(
        path,
        records * RECORD_BYTES,
        f"{records} records of {RECORD_BYTES}: a label, 3x32x32 pixels",
    )
    table = np.frombuffer(data, dtype=np.uint8).reshape(records, RECORD_BYTES)
    labels = table[:, 0].astype(np.int64)
    wrong = np.flatnonzero(labels >= len(CLASSES))
    if wrong.size:
        raise BadDataset(
            f"{path}: the label of record {wrong[0]} must be from 0 to 9, and is "
            f"{labels[wrong[0]]}; the file is not CIFAR-10 or is corrupt"
        )
    return table[:, 1:].reshape(records, *SHAPE), labels


def load_cifar10(folder: Path, *, records: int = 10_000, held_out: int = HELD_OUT) -> Dataset:
    """Read the six batch files in ``folder``, of ``records`` images each.

    Raises
    ------
    BadDataset
        If a file is missing, truncated, too long, or has a label above 9.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise BadDataset(
            f"{folder}: must hold the six CIFAR-10 files {', '.join(FILES)}; "
            f"missing: {', '.join(missing)}"
        )
    batches = [_batch(folder / name, records) for name in TRAIN_FILES]
    test_images, test_labels = _batch(folder / TEST_FILE, records)
    return Dataset(
        name="cifar10",
        train_images=np.concatenate([images for images, _ in batches]),
        train_labels=np.concatenate([labels for _, labels in batches]),
        test_images=np.ascontiguousarray(test_images),
        test_labels=test_labels,
        held_out=held_out,
        classes=CLASSES,
    )


def unpack_archive(archive: Path, root: Path, *, records: int = 10_000) -> Path:
    """Write the six batch files of the official archive to ``root/cifar-10-batches-bin``.

    Only members of the six names are read, each to its own name and one by one whole, so nothing
    in the archive decides where anything is written.

    Raises
    ------
    BadDataset
        If the archive is corrupt or lacks a file.
    """
    folder = ensure_folder(root / FOLDER)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in FILES:
                member = tar.extractfile(f"{FOLDER}/{name}")
                if member is None:
                    raise BadDataset(f"{archive}: {FOLDER}/{name} is not a plain file")
                data = member.read(records * RECORD_BYTES + 1)
                write_bytes(folder / name, data)
    except KeyError as error:
        raise BadDataset(f"{archive}: must hold {', '.join(FILES)}; {error.args[0]}") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BadDataset(
            f"{archive}: not a whole .tar.gz archive ({error}); delete it and fetch it again"
        ) from error
    return folder
