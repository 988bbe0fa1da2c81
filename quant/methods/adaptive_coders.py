"""Weights of a layer from genes: clip bounds of uniform levels, or boundaries of a codebook's bins."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Protocol

import numpy as np

from hwgen.ir.ops.base import Codes
from quant import graph as fg
from quant.codebooks import (
    best_step,
    bin_means,
    bins_of,
    code_range,
    covering_step,
    integer_entries,
    kmeans_exact,
    lloyd_max,
    power_of_two_step,
    spread_levels,
    uniform_codes,
)
from quant.formats import Floats
from quant.methods.adaptive_moments import LayerMoments

__all__ = ["DIRECTIONS", "Clip", "Codebook", "Coded", "Coder", "Form", "Start"]

EXACT_BITS = 6
"""Widest codes whose best bins come from exact k-means; those of wider ones from Lloyd-Max."""


DIRECTIONS = 2
"""Changes of all boundaries of a tensor together: they spread, or they shift."""


class Form(Enum):
    """What evolves."""

    CLIP = "clip"
    """The bounds of each tensor; levels are uniform, what is stored is multiplied."""
    CODEBOOK = "codebook"
    """All boundaries between the bins of each tensor; what is stored is looked up."""


class Start(Enum):
    """Quantisers that a search starts from."""

    LINEAR = "linear"
    """Uniform over the range without saturation."""
    MSE = "mse"
    """Uniform, with the bounds of the least squared error of the weights."""
    OUTPUT = "output"
    """Uniform, with the bounds of the least squared error of the layer's outputs."""
    KMEANS = "kmeans"
    """Bins of the least squared error of the weights: exact k-means, Lloyd-Max above 6 bits."""
    WEIGHTED = "weighted"
    """The same, each weight's error counted by the variance of its input."""
    DESCENT = "descent"
    """What a local search on the squared error of each layer's outputs makes of the best of the
    others: rounded biases count, the layer's inputs are those of the float network."""
    LLOYD = "lloyd"
    """Bins of Lloyd-Max from levels that follow the weights' density."""


def uniform_step(node: fg.Conv | fg.Linear, bits: int, kind: Start, seen: LayerMoments) -> float:
    """The step of a layer's weights with a uniform quantiser."""
    low, high = code_range(bits)
    if kind is Start.LINEAR:
        return covering_step(node.weight, high)
    if kind is Start.MSE:
        return best_step(node.weight, low, high)

    def error(step: float) -> float:
        return seen.variance(uniform_codes(node.weight, step, low, high) * step - node.weight)

    return best_step(node.weight, low, high, error=error)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """Integer weights: codes, what a code of 1 stands for, the codes' width, the codebook if any."""

    codes: Codes
    step: float
    width: int
    codebook: tuple[int, ...] | None = None

    @property
    def weights(self) -> Floats:
        """What the codes stand for."""
        return np.asarray(self.codes * self.step, dtype=np.float64)


class Coder(Protocol):
    """Weights of one layer from genes.

    Attributes
    ----------
    BEST : tuple of Start
        What a local search starts from.
    ROUNDS : int
        Its steps in a small layer.
    """

    BEST: ClassVar[tuple[Start, ...]]
    ROUNDS: ClassVar[int]

    @property
    def size(self) -> int:
        """Number of genes."""

    @property
    def directions(self) -> Floats:
        """Changes ``(DIRECTIONS, size)`` of all genes together, of root mean square 1 or none."""

    def start(self, kind: Start) -> Floats:
        """Genes ``(size,)`` of a known quantiser."""

    def weights(self, genes: Floats) -> Coded:
        """The integer weights of genes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Bounds of a tensor of uniform levels, as three genes.

    They are: log2 of the step, relative to that of the range without saturation; what is added
    before rounding, in steps (both bounds move by it, exact zero stays a code); log2 of the gain,
    what a code stands for relative to the step. A unit of a gene is :attr:`UNITS` of these.
    """

    node: fg.Conv | fg.Linear
    bits: int
    seen: LayerMoments
    size: int = 3

    UNITS: ClassVar[Floats] = np.array([0.25, 0.125, 0.0625])
    BEST: ClassVar[tuple[Start, ...]] = (Start.OUTPUT, Start.MSE)
    ROUNDS: ClassVar[int] = 1200

    @property
    def directions(self) -> Floats:
        return np.zeros((DIRECTIONS, self.size))  # few genes, none of which needs the others

    def start(self, kind: Start) -> Floats:
        step = uniform_step(self.node, self.bits, kind, self.seen)
        widest = covering_step(self.node.weight, code_range(self.bits)[1])
        genes: Floats = np.array([np.log2(step / widest), 0.0, 0.0]) / self.UNITS
        return genes

    def weights(self, genes: Floats) -> Coded:
        low, high = code_range(self.bits)
        log_step, offset, log_gain = (genes * self.UNITS).tolist()
        step = covering_step(self.node.weight, high) * 2.0**log_step
        codes = uniform_codes(self.node.weight + offset * step, step, low, high)
        return Coded(codes=codes, step=step * 2.0**log_gain, width=self.bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """All boundaries of a tensor's bins; a bin stands for the mean of its weights.

    A gene is a boundary, in units of the distance between the neighbouring levels of the best
    bins; genes in any order stand for the boundaries in rising order. Entries are integers of
    ``entry_bits`` bits of a power-of-two step, so that no multiplier is needed behind the
    accumulator; bins of the same entry and empty bins leave the codebook shorter. With as many
    bits for an entry as for a code there is nothing to look up: entries are stored.
    """

    node: fg.Conv | fg.Linear
    bits: int
    entry_bits: int
    fitted: bool
    seen: LayerMoments
    units: Floats = field(init=False, repr=False)
    step: float = field(init=False)
    _levels: Floats = field(init=False, repr=False)

    BEST: ClassVar[tuple[Start, ...]] = (Start.OUTPUT, Start.LLOYD, Start.KMEANS, Start.WEIGHTED)
    ROUNDS: ClassVar[int] = 480

    def __post_init__(self) -> None:
        weight = self.node.weight
        top = covering_step(weight, 1)
        levels = _full(best_bins(weight, 1 << self.bits), 1 << self.bits, top)
        object.__setattr__(self, "_levels", levels)
        gaps = np.maximum(np.diff(levels), top / (4 << self.bits))
        object.__setattr__(self, "units", gaps)
        # Entries are means, so that none is beyond the largest weight.
        step = power_of_two_step(covering_step(weight, code_range(self.entry_bits)[1]))
        object.__setattr__(self, "step", step)

    @property
    def size(self) -> int:
        return (1 << self.bits) - 1

    @property
    def directions(self) -> Floats:
        """Boundaries in proportion to themselves, and all alike, but for those beyond the weights."""
        boundaries = (self._levels[1:] + self._levels[:-1]) / 2
        within = np.abs(boundaries) <= np.abs(self.node.weight).max()
        rows = np.where(within, [boundaries, np.ones(self.size)], 0.0) / self.units
        size = np.sqrt(np.square(rows).mean(1, keepdims=True))
        return np.asarray(rows / np.where(size > 0, size, 1.0), dtype=np.float64)

    def start(self, kind: Start) -> Floats:
        weight, count = self.node.weight, 1 << self.bits
        top = covering_step(weight, 1)
        if kind is Start.KMEANS:
            levels = self._levels
        elif kind is Start.WEIGHTED:
            levels = _full(best_bins(weight, count, self.seen.importance), count, top)
        elif kind is Start.LLOYD:
            levels = _full(lloyd_max(weight, spread_levels(weight, count)).levels, count, top)
        else:
            low, high = code_range(self.bits)
            step = uniform_step(self.node, self.bits, kind, self.seen)
            # Ties go up in the uniform quantiser, as values on a boundary do here.
            return (np.arange(low, high) + 0.5) * step / self.units
        return (levels[1:] + levels[:-1]) / 2 / self.units

    def weights(self, genes: Floats) -> Coded:
        boundaries = np.sort(genes * self.units)
        bins = bins_of(self.node.weight, boundaries)
        levels = bin_means(self.node.weight, bins, 1 << self.bits)
        if self.fitted:
            levels = self.seen.fit_levels(self.node.weight, bins, levels)
        codes = integer_entries(levels, self.step, self.entry_bits)[bins]
        codebook = None
        if self.entry_bits > self.bits:
            codebook = tuple(np.unique(codes).tolist())
        return Coded(codes=codes, step=self.step, width=self.entry_bits, codebook=codebook)


def best_bins(values: Floats, count: int, weights: Floats | None = None) -> Floats:
    """Levels of the least (weighted) squared error, ``(at most count,)``."""
    if count <= 1 << EXACT_BITS:
        return kmeans_exact(values, count, weights=weights).levels
    return lloyd_max(values, spread_levels(values, count), weights=weights).levels


def _full(levels: Floats, count: int, top: float) -> Floats:
    """``count`` levels: what is missing lies above the largest weight, where bins are empty."""
    missing = count - len(levels)
    return np.concatenate([levels, top * (2 + np.arange(missing))])
