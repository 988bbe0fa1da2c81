"""A (mu, lambda) evolution strategy: rank-weighted recombination, self-adapted steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import Floats

__all__ = ["RandomSearch", "Strategy"]

CHANGED = 0.1
"""Chance of each set of genes to change in an offspring besides the one that always does: few
changes at a time tell which of them was good."""

FIRST = (0.1, 3.0)
"""Range of the first steps, as multiples of the one asked for: layers bear very different ones."""

NARROWEST, WIDEST = 0.1, 4.0
"""Limits of a step, as multiples of the one asked for, so that none changes nothing or runs away."""


def noise(rng: np.random.Generator, sets: NDArray[np.int64], directions: Floats) -> Floats:
    """A change ``(n,)`` of all genes: each its own, and sets along their directions as a whole.

    Parameters
    ----------
    rng : numpy.random.Generator
    sets : int64 array
        ``(n,)``: the set of each gene.
    directions : float64 array
        ``(d, n)``: changes of all genes of a set together, each set along each by a normal amount.
    """
    change = rng.standard_normal(len(sets))
    for direction in directions:
        change += rng.standard_normal(int(sets.max(initial=0)) + 1)[sets] * direction
    return change


@dataclass(kw_only=True, eq=False)
class Strategy:
    """Steps of an evolution strategy over real genes: ask for a generation, tell its ranks.

    The genes are in sets. An offspring takes each set, and the step that goes with it, from one of
    the parents, the better ones more often: weights fall with the logarithm of the rank (those of
    Hansen and Ostermeier 2001). It then changes some of its sets: first their steps, then their
    genes with the new steps, so that steps which lead to good offspring stay (Schwefel 1977, Beyer
    and Schwefel 2002). A set's first step is drawn from a wide range. The best offspring are the next
    parents.

    The first parents are the best of the known quantisers, so that the first generations also try
    layers of one with layers of another. Sets are taken whole, not averaged, because rounding makes
    the error of a layer as rugged as it is: the mean of two good layers is rounded anew and is most
    often neither. The first offspring is the best parent itself, which costs nothing where the judge
    remembers it.

    Parameters
    ----------
    starts : float64 array
        ``(k, n)``: genes of the first parents, best first, at least one.
    sets : int64 array
        ``(n,)``: the set of each gene, from 0.
    directions : float64 array
        ``(d, n)``: see :func:`noise`.
    parents, offspring : int
        mu and lambda, ``1 <= mu < lambda``.
    step : float
        About the first standard deviation of a gene: up to ten times less, three times more.
    """

    starts: Floats
    sets: NDArray[np.int64]
    directions: Floats
    parents: int
    offspring: int
    step: float
    genes: Floats = field(init=False)
    logs: Floats = field(init=False)
    _asked: list[tuple[Floats, Floats]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.genes = self.starts[: self.parents].copy()
        # Not a number until the set changes for the first time.
        self.logs = np.full((len(self.genes), int(self.sets.max(initial=0)) + 1), np.nan)

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """The genes of the next generation, ``offspring`` arrays ``(n,)``."""
        self._asked = [(self.genes[0], self.logs[0])]
        self._asked += [self._offspring(rng) for _ in range(self.offspring - 1)]
        return [genes for genes, _ in self._asked]

    def _offspring(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Genes and logarithms of the steps of one offspring."""
        count, sets = self.logs.shape
        weights = np.log(count + 0.5) - np.log(np.arange(1, count + 1))
        source = np.asarray(rng.choice(count, size=sets, p=weights / weights.sum()))
        logs = self.logs[source, np.arange(sets)]
        genes = self.genes[source[self.sets], np.arange(len(self.sets))]
        changed: NDArray[np.bool_] = np.asarray(rng.random(sets) < CHANGED)
        changed[rng.integers(sets)] = True
        # The usual learning rates: one for all steps together, one for each.
        common, single = 1 / sqrt(2 * sets), 1 / sqrt(2 * sqrt(sets))
        change = common * rng.standard_normal() + single * rng.standard_normal(sets)
        first = rng.uniform(log(FIRST[0]), log(FIRST[1]), sets)
        varied = np.where(np.isnan(logs), first, logs + change)
        logs = np.where(changed, np.clip(varied, log(NARROWEST), log(WIDEST)), logs)
        steps = np.where(changed, self.step * np.exp(logs), 0.0)[self.sets]
        return genes + steps * noise(rng, self.sets, self.directions), logs

    def tell(self, order: Sequence[int]) -> None:
        """Take over the best of the generation.

        Parameters
        ----------
        order : sequence of int
            Places of the offspring in what :meth:`ask` gave, best first; at least one. A last
            generation may be cut short.
        """
        chosen = [self._asked[place] for place in order[: self.parents]]
        self.genes = np.array([genes for genes, _ in chosen])
        self.logs = np.array([logs for _, logs in chosen])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs between generations."""
        return {"genes": self.genes, "logs": self.logs}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on where another left off."""
        self.genes, self.logs = arrays["genes"], arrays["logs"]


@dataclass(kw_only=True, eq=False)
class RandomSearch:
    """Samples around one point, nothing learned: what a strategy must beat.

    The parameters are those of :class:`Strategy`, ``mean`` ``(n,)`` being the best start; a
    generation only sets how often the search is saved.
    """

    mean: Floats
    sets: NDArray[np.int64]
    directions: Floats
    offspring: int
    step: float

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """Independent samples, the spread of each drawn from the range of the strategy's first."""
        spreads = self.step * np.exp(rng.uniform(log(FIRST[0]), log(FIRST[1]), self.offspring))
        return [self.mean + s * noise(rng, self.sets, self.directions) for s in spreads]

    def tell(self, order: Sequence[int]) -> None:
        """Learn nothing."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs."""
        return {"mean": self.mean}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on where another left off."""
        self.mean = arrays["mean"]
