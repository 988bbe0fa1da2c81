"""What calibration tells adaptive quantisation of a layer's inputs: how they vary together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.ir.ops.base import Codes
from quant import graph as fg
from quant.calibrate import LayerInputs
from quant.formats import Floats

__all__ = ["LayerMoments", "moments"]

ROWS = 4000
"""About as many output positions give the covariance."""

RANK = 32
"""Directions of the covariance that the fit of levels keeps; of the rest only the diagonal."""

RIDGE = 1e-3
"""Pull of fitted levels towards the weighted means, as a fraction of the mean diagonal entry."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerMoments:
    """Moments of what each weight of a layer is multiplied with, over images and positions.

    Parameters
    ----------
    mean : float64 array
        ``(groups, 1, taps)``, taps being ``in / groups * rows * columns``.
    covariance : float64 array
        ``(groups, taps, taps)``.
    importance : float64 array
        Diagonal of the covariance, positive, in the shape of the weights.
    basis : float32 array
        ``(groups, taps, rank)``: the covariance is about ``basis @ basis.T`` plus the diagonal
        ``rest``.
    rest : float64 array
        In the shape of the weights, not negative.
    """

    mean: Floats = field(repr=False)
    covariance: Floats = field(repr=False)
    importance: Floats = field(repr=False)
    basis: NDArray[np.float32] = field(repr=False)
    rest: Floats = field(repr=False)

    def _grouped(self, weights: NDArray[Any]) -> NDArray[Any]:
        return weights.reshape(len(self.covariance), -1, self.covariance.shape[2])

    def mean_output(self, weights: Floats) -> Floats:
        """Mean output ``(out,)`` of a layer of these weights without its biases."""
        mean: Floats = (self._grouped(weights) * self.mean).sum(2).reshape(-1)
        return mean

    def variance(self, weights: Floats) -> float:
        """Variance of the outputs of a layer of these weights, summed over channels."""
        grouped = self._grouped(weights)
        return float(np.vdot(grouped @ self.covariance, grouped))

    def fit_levels(self, weights: Floats, bins: Codes, means: Floats) -> Floats:
        """Levels with the least squared error of the outputs, biases making up for its mean.

        Parameters
        ----------
        weights : float64 array
        bins : int64 array
            The level of each weight, 0 to k - 1.
        means : float64 array
            ``(k,)``: where levels stay that the outputs do not tell; NaN where a bin is empty.

        Returns
        -------
        float64 array
            ``(k,)``. They need not rise.
        """
        used = np.flatnonzero(~np.isnan(means))
        base = np.nan_to_num(means)
        place = self._grouped(bins)
        error = self._grouped(weights - base[bins]).astype(np.float32)
        chosen = (place[..., None, :] == used[:, None]).astype(np.float32)
        # (groups, out, levels, rank): the outputs' share of each level in each direction.
        shares = chosen @ self.basis[:, None]
        wanted = (error[:, :, None] @ self.basis[:, None])[:, :, 0]
        flat = np.moveaxis(shares, 2, -1).reshape(-1, len(used)).astype(np.float64)
        matrix = flat.T @ flat
        vector = flat.T @ wanted.reshape(-1)
        rest = np.bincount(bins.reshape(-1), weights=self.rest.reshape(-1), minlength=len(means))
        off = np.bincount(
            bins.reshape(-1),
            weights=(self.rest * (weights - base[bins])).reshape(-1),
            minlength=len(means),
        )
        matrix[np.diag_indices(len(used))] += rest[used]
        matrix[np.diag_indices(len(used))] += RIDGE * np.trace(matrix) / len(used)
        levels = base.copy()
        levels[used] += np.linalg.solve(matrix, vector + off[used])
        return levels


def moments(inputs: LayerInputs) -> LayerMoments:
    """The moments of a layer's inputs, from a sample."""
    node = inputs.node
    groups = getattr(node, "groups", 1)
    rows = _patches(node, torch.cat(inputs.kept)).permute(1, 2, 0, 3)
    sample = rows.reshape(groups, rows.shape[1], -1)
    sample = sample[:, :, :: max(1, sample.shape[2] // ROWS)]
    mean = sample.mean(2, keepdim=True)
    centred = (sample - mean).numpy()
    covariance = centred @ centred.transpose(0, 2, 1) / centred.shape[2]
    power = np.einsum("gkk->gk", covariance).copy()
    # Few positions tell little of how many inputs vary together: what they tell is shrunk.
    covariance *= centred.shape[2] / (centred.shape[2] + centred.shape[1])
    diagonal = np.arange(covariance.shape[1])
    covariance[:, diagonal, diagonal] = power
    # An input that never changed still costs something, so that its weight has a best bin.
    floor = 1e-3 * float(power.mean()) or 1.0
    values, vectors = np.linalg.eigh(covariance)
    basis = vectors[:, :, -RANK:] * np.sqrt(np.maximum(values[:, None, -RANK:], 0.0))
    rest = np.maximum(power - np.square(basis).sum(2), 0.0)

    def spread(per_tap: Floats) -> Floats:
        shape = (groups, len(node.weight) // groups, per_tap.shape[1])
        full: Floats = np.broadcast_to(per_tap[:, None], shape).reshape(node.weight.shape)
        return full

    return LayerMoments(
        mean=mean.transpose(1, 2).numpy(),
        covariance=covariance,
        importance=spread(power + floor),
        basis=basis.astype(np.float32),
        rest=spread(rest),
    )


def _patches(node: fg.Conv | fg.Linear, values: torch.Tensor) -> torch.Tensor:
    """What the weights meet, ``(n, groups, taps, positions)``, of inputs ``(n, *shape)``."""
    if isinstance(node, fg.Linear):
        return values.reshape(len(values), 1, -1, 1)
    channels, window = node.weight.shape[1] * node.groups, node.weight.shape[2:]
    taps = int(np.prod(window))
    probe = replace(
        node,
        weight=np.tile(np.eye(taps).reshape(taps, 1, *window), (channels, 1, 1, 1)),
        bias=np.zeros(channels * taps),
        groups=channels,
    )
    found = probe.evaluate(values)
    return found.reshape(len(values), node.groups, -1, found[0, 0].numel())
