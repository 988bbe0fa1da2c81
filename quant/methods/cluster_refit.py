"""Clusters fitted to the outputs of their layers, from the first layer to the last.

K-means minimises the error of the weights. What counts is the error at the layer's outputs on the
inputs that it gets in the quantised network: with weights ``W``, the least-squares map ``V`` from
those inputs to the float network's outputs, and second moments ``M`` of the inputs, that is
``(W - V) M (W - V)^T`` plus a constant. For fixed clusters it is quadratic in their levels, so that
the best levels solve a system of as many equations, and the best integers are found by coordinate
descent on it, for each step that is tried. Then each weight moves to the level that leaves the least
error, one after another, and both repeat. Pruned weights stay 0; biases make up for the mean error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.ops.base import Codes
from quant.assemble import Assembler
from quant.codebooks import code_range, midpoints
from quant.formats import Floats
from quant.grouping import Group
from quant.methods.cluster_layers import ClusteredLayer, grid_steps
from quant.methods.cluster_options import ClusterOptions
from quant.methods.cluster_seeds import Seeding
from quant.methods.layerwise_round import Calibrator, RoundingProblem
from quant.plan import LayerPlan, Plan, tensor_scale

__all__ = ["OutputError", "refit", "refit_layer"]

ROUNDS = 2
"""Times that levels are fitted and weights move."""

RIDGE = 1e-3
"""Pull of levels to where they were, as a fraction of the mean diagonal entry of their equations."""

SWEEPS = 2
"""Visits to each weight in a round; and ten times as many at most to each integer level."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputError:
    """The squared error at a layer's outputs as a function of its weights ``(out, taps)``.

    Parameters
    ----------
    target : float64 array
        ``V``, ``(out, taps)``.
    moments : list of float64 arrays
        ``M``, ``(taps, taps)``, of each group of channels; positive definite.
    """

    target: Floats = field(repr=False)
    moments: list[Floats] = field(repr=False)

    @property
    def parts(self) -> list[tuple[slice, Floats]]:
        """The channels of each group, and the moments of their inputs."""
        per = len(self.target) // len(self.moments)
        return [(slice(i * per, (i + 1) * per), m) for i, m in enumerate(self.moments)]

    def __call__(self, weights: Floats) -> float:
        error = self.target - weights
        return sum(float(np.vdot(error[part] @ m, error[part])) for part, m in self.parts)

    def of_levels(self, places: Codes, count: int) -> tuple[Floats, Floats]:
        """``A (k, k)`` and ``b (k,)`` of the error ``c A c - 2 b c`` of levels ``c``, less that of 0.

        Parameters
        ----------
        places : int64 array
            Level of each weight, ``(out, taps)``; -1 for those that are 0.
        count : int
            Levels.
        """
        matrix, vector = np.zeros((count, count)), np.zeros(count)
        numbers = np.arange(count)[:, None]
        for part, moments in self.parts:
            for place, pull in zip(places[part], self.target[part] @ moments, strict=True):
                chosen = (place == numbers).astype(np.float64)
                matrix += chosen @ moments @ chosen.T
                vector += chosen @ pull
        return matrix, vector

    def nearest(self, places: Codes, levels: Floats) -> Codes:
        """Places after each weight has moved to the best of rising ``levels``, one after another."""
        weights, found = _placed(places, levels), places.copy()
        between = midpoints(levels)
        for part, moments in self.parts:
            pull = (self.target[part] - weights[part]) @ moments  # minus half the gradient
            for tap in np.tile(np.argsort(-np.diag(moments), kind="stable"), SWEEPS):
                wanted = weights[part, tap] + pull[:, tap] / moments[tap, tap]
                place = np.searchsorted(between, wanted)
                place[places[part, tap] < 0] = -1
                new = _placed(place, levels)
                change = new - weights[part, tap]
                if change.any():
                    pull -= np.outer(change, moments[tap])
                    weights[part, tap], found[part, tap] = new, place
        return found


def _placed(places: Codes, levels: NDArray[np.generic]) -> Floats:
    """The level of each place; 0 where that is -1."""
    return np.append(levels, 0)[places].astype(np.float64)


def _fitted(error: OutputError, places: Codes, levels: Floats) -> Floats:
    """The levels with the least error; those that no weight has stay."""
    matrix, vector = error.of_levels(places, len(levels))
    used = np.diag(matrix) > 0
    vector = (vector - matrix @ levels)[used]
    matrix = matrix[np.ix_(used, used)]
    matrix[np.diag_indices_from(matrix)] += RIDGE * float(np.diag(matrix).mean())
    found = levels.copy()
    found[used] += np.linalg.solve(matrix, vector)
    return found


def _integers(
    matrix: Floats, vector: Floats, levels: Floats, step: float, width: int
) -> NDArray[np.float64]:
    """Integers that are, times ``step``, levels of little error: coordinate descent from the nearest."""
    low, high = code_range(width)
    found = np.clip(np.rint(levels / step), low, high)
    used = np.flatnonzero(np.diag(matrix) > 0)
    for _ in range(10 * SWEEPS):
        before = found.copy()
        for i in used:
            rest = vector[i] / step - matrix[i] @ found + matrix[i, i] * found[i]
            found[i] = np.clip(np.rint(rest / matrix[i, i]), low, high)
        if np.array_equal(found, before):
            break
    return found


def _on_grid(
    error: OutputError, places: Codes, levels: Floats, width: int, *, power_of_two: bool
) -> tuple[float, Floats]:
    """The step and the integer of each level with the least error."""
    matrix, vector = error.of_levels(places, len(levels))
    best, least = (1.0, np.zeros(len(levels))), np.inf
    for tried in grid_steps(levels, code_range(width)[1], power_of_two=power_of_two):
        found = _integers(matrix, vector, levels, tried, width)
        step = tried if power_of_two else _best_step(matrix, vector, found, tried)
        cost = step * float(step * found @ matrix @ found - 2 * vector @ found)
        if cost < least:
            best, least = (step, found), cost
    return best


def _best_step(matrix: Floats, vector: Floats, found: Floats, step: float) -> float:
    """The step with the least error for given integers; ``step`` where none above 0 is better."""
    power, pull = float(found @ matrix @ found), float(vector @ found)
    return pull / power if power > 0 and pull > 0 else step


def refit_layer(
    problem: RoundingProblem,
    layer: ClusteredLayer,
    plan: LayerPlan,
    *,
    keep_levels: bool,
    power_of_two: bool,
) -> tuple[ClusteredLayer, LayerPlan]:
    """A layer's clusters and constants, fitted; never of a greater error than the plan's.

    Parameters
    ----------
    problem : RoundingProblem
        What its outputs should be.
    layer : ClusteredLayer
    plan : LayerPlan
        Where to begin.
    keep_levels : bool
        Whether all codes of the plan's width are levels, at a step that is fitted: no clusters.
    power_of_two : bool
        Whether the step must be one.
    """
    error = OutputError(target=problem.target, moments=problem.moments)
    kept = (layer.bins > 0).reshape(problem.target.shape)
    starts = plan.codes.reshape(kept.shape)
    low, high = code_range(plan.width)
    codes = np.arange(low, high + 1) if keep_levels else np.unique(starts[kept])
    places = np.where(kept, np.searchsorted(codes, starts), -1)
    step, levels, order = float(plan.scale[0]), layer.levels, layer.bins.reshape(kept.shape) - 1
    places = error.nearest(places, codes * np.float64(step))
    best, least = (step, codes, places), error(_placed(places, codes) * step)
    for _ in range(ROUNDS if kept.any() else 0):
        if not keep_levels:
            levels = _fitted(error, order, levels)
            step, found = _on_grid(error, order, levels, plan.width, power_of_two=power_of_two)
            codes, merged = np.unique(found.astype(np.int64), return_inverse=True)
            places = np.append(merged, -1)[order]
        elif not power_of_two:
            step = _best_step(*error.of_levels(places, len(codes)), codes.astype(np.float64), step)
        levels = codes * np.float64(step)
        order = places = error.nearest(places, levels)
        cost = error(_placed(places, levels))
        if cost < least:
            best, least = (step, codes, places), cost
    step, codes, places = best
    weights = _placed(places, codes)
    inputs = zip(error.parts, problem.mean_input, strict=True)
    means = np.concatenate([weights[part] @ mean * step for (part, _), mean in inputs])
    integers = weights.astype(np.int64).reshape(layer.bins.shape)
    entries = np.unique(np.append(integers, 0)).tolist()
    fitted = replace(
        layer, bins=places.reshape(layer.bins.shape) + 1, levels=codes * np.float64(step)
    )
    return fitted, replace(
        plan,
        codes=integers,
        scale=tensor_scale(step),
        bias=problem.mean_output - means,
        codebook=tuple(entries) if plan.codebook else None,
    )


def refit(
    assembler: Assembler,
    images: NDArray[np.uint8],
    clusters: Mapping[str, ClusteredLayer],
    plan: Plan,
    options: ClusterOptions,
) -> tuple[dict[str, ClusteredLayer], Plan]:
    """Clusters and constants of all layers, each fitted behind those before it.

    Parameters
    ----------
    assembler : Assembler
        Of the pruned network of raw pixels.
    images : uint8 array
        For calibration, ``(N, C, H, W)``.
    clusters : mapping of str to ClusteredLayer
    plan : Plan
        What the clusters give by themselves.
    options : ClusterOptions
    """
    found: dict[str, ClusteredLayer] = {}

    def solve(group: Group, problem: RoundingProblem) -> LayerPlan:
        name = group.node.name
        found[name], layer = refit_layer(
            problem,
            clusters[name],
            plan.layer(name),
            keep_levels=options.seeding is Seeding.NONE,
            power_of_two=options.power_of_two,
        )
        return layer

    calibrator = Calibrator(assembler, images, 0, multipliers=True)
    return found, replace(plan, layers=calibrator.walk(plan.outputs, solve))
