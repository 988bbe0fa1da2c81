"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import hashlib

import numpy as np

from quant.data.dataset import Dataset

__all__ = ["load_digits"]

TEST_IMAGES = 500
HELD_OUT = 200
ENLARGE = 4


def _order(count: int) -> list[int]:
    """A fixed shuffle, by the SHA-256 of each index: no library version can change it."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"digits:{i}".encode()).digest())


def load_digits() -> Dataset:
    """Return the 1,797 digits as 1x32x32 images: 1,297 to train (200 held out), 500 to test.

    The 8x8 values 0 to 16 become pixels 0 to 255 (rounded), each a block of 4x4.
    """
    # Imported here because it is slow and only this needs it.
    from sklearn.datasets import load_digits as load

    bunch = load()
    values = np.rint(np.asarray(bunch.images, dtype=np.float64) * (255 / 16)).astype(np.uint8)
    images = values.repeat(ENLARGE, axis=1).repeat(ENLARGE, axis=2)[:, np.newaxis]
    order = np.array(_order(len(images)))
    images = np.ascontiguousarray(images[order])
    labels = np.asarray(bunch.target, dtype=np.int64)[order]
    train = len(images) - TEST_IMAGES
    return Dataset(
        name="digits",
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        held_out=HELD_OUT,
        classes=tuple(str(i) for i in range(10)),
    )
