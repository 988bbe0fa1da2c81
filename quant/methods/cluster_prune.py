"""Gradual magnitude pruning (Zhu and Gupta 2017): fine-tuning while weights are masked out."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from quant.finetune import FineTuner
from quant.graph import FloatGraph

__all__ = ["Pruner", "Scope", "cubic", "masks_at", "sparsity_of"]

Masks = dict[str, NDArray[np.bool_]]

UPDATES = 20
"""Times an epoch that weights are masked out while the sparsity rises."""


class Scope(Enum):
    """Among which weights the smallest are found."""

    LAYER = "layer"
    """Each layer's own: every layer has the same sparsity."""
    ADAPTIVE = "adaptive"
    """All layers', each weight's square over the sum of those of its layer that are no smaller
    (LAMP: Lee, Park, Mo, Ahn, Shin 2021): layers of few weights keep more."""


def cubic(progress: float, target: float) -> float:
    """The sparsity when ``progress``, 0 to 1, of the ramp is done: steep first, then flat."""
    left = 1.0 - min(max(progress, 0.0), 1.0)
    return target * (1.0 - left**3)


def masks_at(weights: Mapping[str, NDArray[np.float32]], sparsity: float, scope: Scope) -> Masks:
    """Masks that keep the largest weights, false where a weight goes.

    Parameters
    ----------
    weights : mapping of str to float32 array
        By layer.
    sparsity : float
        Fraction of the weights that go, below 1. No layer loses all.
    scope : Scope
    """
    if scope is Scope.LAYER:
        return {name: _largest(np.abs(values), sparsity) for name, values in weights.items()}
    scores = {name: _adaptive_scores(values) for name, values in weights.items()}
    joined = np.concatenate([part.reshape(-1) for part in scores.values()])
    kept = _largest(joined, sparsity, stay=len(scores))
    masks, start = {}, 0
    for name, part in scores.items():
        masks[name] = kept[start : start + part.size].reshape(part.shape)
        start += part.size
    return masks


def _largest(scores: NDArray[np.floating], sparsity: float, *, stay: int = 1) -> NDArray[np.bool_]:
    """False for the first ``sparsity`` of the entries in rising order; ``stay`` stay at least."""
    gone = min(round(sparsity * scores.size), scores.size - stay)
    mask = np.ones(scores.size, dtype=bool)
    mask[np.argsort(scores, axis=None, kind="stable")[:gone]] = False
    return mask.reshape(scores.shape)


def _adaptive_scores(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    squares = np.square(weights.astype(np.float64)).reshape(-1)
    order = np.argsort(squares, kind="stable")
    above = np.cumsum(squares[order][::-1])[::-1]  # the largest weight of a layer scores 1
    scores = np.zeros(squares.size)
    np.divide(squares[order], above, out=above, where=above > 0)
    scores[order] = above
    return scores.reshape(weights.shape)


class Pruner:
    """Raises the sparsity while a :class:`.FineTuner` works: call it after every step.

    Parameters
    ----------
    sparsity : float
        The target.
    scope : Scope
    ramp : float
        Fraction of the steps after which it is reached; the others recover.
    """

    def __init__(self, sparsity: float, scope: Scope, ramp: float) -> None:
        self._sparsity, self._scope, self._ramp = sparsity, scope, ramp

    def __call__(self, tuner: FineTuner) -> None:
        """Mask out weights where it is time."""
        end = max(1, round(self._ramp * tuner.steps))
        every = max(1, tuner.steps_per_epoch // UPDATES)
        if tuner.step == end or (tuner.step < end and tuner.step % every == 0):
            self._mask(tuner, cubic(tuner.step / end, self._sparsity))

    def finish(self, tuner: FineTuner) -> None:
        """Mask out all that has to go at once."""
        self._mask(tuner, self._sparsity)

    def _mask(self, tuner: FineTuner, sparsity: float) -> None:
        weights = {name: tuner.weight(name) for name in tuner.layers}
        tuner.set_masks(masks_at(weights, sparsity, self._scope))


def sparsity_of(graph: FloatGraph) -> float:
    """Fraction of the weights that are exactly 0."""
    zeros = sum(int((node.weight == 0).sum()) for node in graph.mac_nodes)
    return zeros / sum(node.weight.size for node in graph.mac_nodes)
