"""The one form every data set takes once it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadDataset

__all__ = ["Dataset"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Labelled images, with the split that training, searches and tests keep to.

    Training sees :attr:`fit_images` only. Choices (bit widths, ranges, epochs) are made on
    :attr:`search_images`, which the network never saw. The test images choose nothing.

    Parameters
    ----------
    name : str
        One of :data:`quant.datasets.DATASETS`, or a name of the user's.
    train_images, test_images : ndarray of uint8, shape (N, C, H, W)
        Raw pixels, 0 to 255; channels R, G, B where there are three.
    train_labels, test_labels : ndarray of int64, shape (N,)
        Class indices, 0 to ``len(classes) - 1``.
    held_out : int
        Number of last training images that training never sees, fewer than all of them.
    classes : tuple of str
        Class names in the order of their indices.

    Raises
    ------
    BadDataset
        If a type, shape or label is not as above.
    """

    name: str
    train_images: NDArray[np.uint8] = field(repr=False)
    train_labels: NDArray[np.int64] = field(repr=False)
    test_images: NDArray[np.uint8] = field(repr=False)
    test_labels: NDArray[np.int64] = field(repr=False)
    held_out: int
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            self._check_part(part, images, labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise BadDataset(
                f"{self.name}: training and test images must have one shape, but are "
                f"{self.train_images.shape[1:]} and {self.test_images.shape[1:]}"
            )
        if not 0 <= self.held_out < len(self.train_images):
            raise BadDataset(
                f"{self.name}: the held-out images must be fewer than the {len(self.train_images)} "
                f"training images, and are {self.held_out}"
            )

    def _check_part(self, part: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
        where = f"{self.name}, {part} part"
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            raise BadDataset(
                f"{where}: images must be uint8 of shape (N, C, H, W), none of them 0, and are "
                f"{images.dtype} of shape {images.shape}"
            )
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise BadDataset(
                f"{where}: labels must be int64 of shape ({len(images)},), and are "
                f"{labels.dtype} of shape {labels.shape}"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if wrong.size:
            raise BadDataset(
                f"{where}: label {wrong[0]} must be from 0 to {len(self.classes) - 1}, "
                f"and is {labels[wrong[0]]}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    @property
    def fit_images(self) -> NDArray[np.uint8]:
        """Training images without the held-out ones, shape (N - held_out, C, H, W)."""
        return self.train_images[: len(self.train_images) - self.held_out]

    @property
    def fit_labels(self) -> NDArray[np.int64]:
        """Labels of :attr:`fit_images`."""
        return self.train_labels[: len(self.train_labels) - self.held_out]

    @property
    def search_images(self) -> NDArray[np.uint8]:
        """Held-out training images, shape (held_out, C, H, W)."""
        return self.train_images[len(self.train_images) - self.held_out :]

    @property
    def search_labels(self) -> NDArray[np.int64]:
        """Labels of :attr:`search_images`."""
        return self.train_labels[len(self.train_labels) - self.held_out :]
