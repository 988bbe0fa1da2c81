"""The three disjoint sets of images that every method works with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from quant.data.dataset import Dataset

__all__ = ["Splits"]

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

FEWEST = 10
"""Images that a search needs at least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """Training, search and test images, raw pixels of the size that the network takes.

    Training fits weights (fine-tuning only), the search set calibrates and chooses, the test set is
    looked at once, when all is chosen.

    Parameters
    ----------
    train_images, search_images, test_images : uint8 arrays
        ``(N, C, H, W)``.
    train_labels, search_labels, test_labels : int64 arrays
        ``(N,)``.
    search_seen : bool
        Whether the float network was trained on the search images (or may have been: where its
        file does not say). Its accuracy on them is then too good, and results say so.
    tuned_on_test : bool
        Whether the search set is the test set: only to reproduce papers that did so.

    Raises
    ------
    BadInput
        If a set is too small, of another shape than the others, has wrong labels or not as many as
        images, or shares an image with another.
    """

    train_images: Images = field(repr=False)
    train_labels: Labels = field(repr=False)
    search_images: Images = field(repr=False)
    search_labels: Labels = field(repr=False)
    test_images: Images = field(repr=False)
    test_labels: Labels = field(repr=False)
    search_seen: bool = False
    tuned_on_test: bool = False

    def __post_init__(self) -> None:
        for kind in ("train", "search", "test"):
            self._check(kind, getattr(self, f"{kind}_images"), getattr(self, f"{kind}_labels"))
        pairs = [("train", "search"), ("train", "test"), ("search", "test")]
        for one, other in pairs[: 2 if self.tuned_on_test else 3]:
            shared = _common(getattr(self, f"{one}_images"), getattr(self, f"{other}_images"))
            if shared:
                raise BadInput(
                    f"the {one} and the {other} images must have none in common, but share"
                    f" {shared}; take other {one} images"
                )

    def _check(self, kind: str, images: Any, labels: Any) -> None:
        good = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
        if not good or images.shape[1:] != self.test_images.shape[1:]:
            raise BadInput(
                f"the {kind} images must be uint8 of shape (N, C, H, W) like the test images, not"
                f" {getattr(images, 'dtype', type(images))} of shape {getattr(images, 'shape', '')}"
            )
        whole = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"
        if not whole or labels.shape != (len(images),) or labels.min(initial=0) < 0:
            raise BadInput(
                f"there must be one label, an integer of at least 0, for each of the {len(images)}"
                f" {kind} images, not {getattr(labels, 'dtype', type(labels))} of shape"
                f" {getattr(labels, 'shape', '')}"
            )
        if len(images) < FEWEST and kind != "train":
            raise BadInput(
                f"the {kind} set must have at least {FEWEST} images, not {len(images)}; give more"
            )

    @classmethod
    def of(
        cls,
        data: Dataset,
        *,
        held_out: int | None,
        search: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Splits:
        """The splits of a data set.

        Parameters
        ----------
        data : Dataset
        held_out : int or None
            Last training images that the float network never saw; None where that is not known.
        search : int, optional
            Use only the first so many of the data set's search images.
        size : tuple of int, optional
            Rows and columns that the network takes: images are cropped to their centre.

        Raises
        ------
        BadInput
        """
        if not data.held_out:
            raise BadInput(
                f"{data.name} holds out no training images, so that there is nothing to search"
                " with; hold out some"
            )
        if search is not None and search > data.held_out:
            raise BadInput(
                f"the search set can have at most the {data.held_out} held-out images of"
                f" {data.name}, not {search}"
            )

        def crop(images: Images) -> Images:
            if size is None:
                return images
            top, left = (
                (have - want) // 2 for have, want in zip(images.shape[2:], size, strict=True)
            )
            return np.ascontiguousarray(images[:, :, top : top + size[0], left : left + size[1]])

        return cls(
            train_images=crop(data.fit_images),
            train_labels=data.fit_labels,
            search_images=crop(data.search_images[:search]),
            search_labels=data.search_labels[:search],
            test_images=crop(data.test_images),
            test_labels=data.test_labels,
            search_seen=held_out is None or held_out < data.held_out,
        )

    def searched(self, images: int | None) -> int:
        """How many search images a search looks at: ``images``, or all where that is None.

        Raises
        ------
        BadInput
            If there are not as many.
        """
        have = len(self.search_images)
        if images is not None and images > have:
            raise BadInput(
                f"images must be at most the {have} images of the search set, not {images};"
                f" give images={have} or hold out more training images"
            )
        return images or have

    def digest(self) -> str:
        """sha256 of the search set: part of what a resumed search must agree on."""
        return _digest(self.search_images, self.search_labels)

    def training_digest(self) -> str:
        """sha256 of the training set: what a resumed search must agree on where it trains."""
        return _digest(self.train_images, self.train_labels)


def _digest(images: Images, labels: Labels) -> str:
    """sha256 of the shapes and values of images and labels."""
    total = hashlib.sha256()
    for array in (images, labels):
        total.update(str(array.shape).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _common(one: Images, other: Images) -> int:
    """How many images of ``other`` are in ``one``, byte for byte."""

    def keys(images: Images) -> set[bytes]:
        return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images}

    return len(keys(one) & keys(other))
