"""How each network is trained: the recipe, its learning rates and its augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Augmenter", "Recipe", "learning_rate", "recipe_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train: AdamW, a warm-up over the first tenth, then a cosine to zero.

    Parameters
    ----------
    epochs : int
    peak_rate : float
        Learning rate at the end of the warm-up.
    weight_decay : float
        On weights, not on biases.
    crop : int
        Each image is shifted by up to so many pixels each way, zeros coming in.
    mirror : bool
        Whether half of the images are mirrored left to right.
    batch : int
        Images in a step; the last few images of an epoch that fill none are left out of it.
    """

    epochs: int
    peak_rate: float
    weight_decay: float = 0.01
    crop: int = 2
    mirror: bool = False
    batch: int = 128


def recipe_for(arch: str, dataset: str) -> Recipe:
    """Return the recipe for a network on a data set, chosen on held-out images.

    That of ``allcnn`` is customary rather than chosen.
    """
    if arch == "allcnn":
        mirror = dataset == "cifar10"
        return Recipe(epochs=150, peak_rate=1e-3, weight_decay=0.05, crop=4, mirror=mirror)
    if dataset == "cifar10":
        return Recipe(epochs=100, peak_rate=5e-3, mirror=True)
    if dataset == "mnist":
        return Recipe(epochs=20, peak_rate=2e-3 if arch == "lenet5" else 1e-2)
    return Recipe(epochs=120, peak_rate=3e-3 if arch == "lenet5" else 2e-2, batch=32)


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Return the rate of a step, 0 to ``total - 1``: linear to the peak, then a cosine to 0."""
    warm = max(1, total // 10)
    if step < warm:
        return recipe.peak_rate * (step + 1) / warm
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


class Augmenter:
    """Random crops and mirroring, on uint8."""

    def __init__(self, images: NDArray[np.uint8], recipe: Recipe) -> None:
        border = recipe.crop
        padded = np.pad(images, ((0, 0), (0, 0), (border, border), (border, border)))
        # Shape (N, dy, dx, C, H, W): a view, from which one gather takes any batch of crops.
        view = sliding_window_view(padded, images.shape[2:], axis=(2, 3))
        self._crops = view.transpose(0, 2, 3, 1, 4, 5)
        self._recipe = recipe

    def epoch(self, generator: np.random.Generator) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """Yield the indices and pixels of each batch of a shuffled epoch."""
        count = len(self._crops)
        batch = min(self._recipe.batch, count)
        order = generator.permutation(count)
        shifts = generator.integers(0, 2 * self._recipe.crop + 1, size=(2, count))
        mirrored = generator.random(count) < 0.5
        for start in range(0, count - batch + 1, batch):
            part = slice(start, start + batch)
            pixels = self._crops[order[part], shifts[0, part], shifts[1, part]]
            if self._recipe.mirror:
                flip = mirrored[part]
                pixels[flip] = pixels[flip, ..., ::-1]
            yield order[part], torch.from_numpy(pixels)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self._crops) // self._recipe.batch)
