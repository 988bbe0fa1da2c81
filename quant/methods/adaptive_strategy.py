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

CHANGED = 0.3
"""Chance of each set of genes to change in an offspring; one at least does."""

NARROWEST, WIDEST = 0.01, 4.0
"""Limits of a step, as multiples of the first one, so that none dies out or runs away."""


@dataclass(kw_only=True, eq=False)
class Strategy:
    """Steps of an evolution strategy over real genes: ask for a generation, tell its ranks.

    The genes are in sets. An offspring takes each set, and the step that goes with it, from one of
    the parents, the better ones more often: weights fall with the logarithm of the rank (those of
    Hansen and Ostermeier 2001). It then changes some of its sets: first their steps, then their
    genes with the new steps, so that steps which lead to good offspring stay (Schwefel 1977, Beyer
    and Schwefel 2002). The best offspring are the next parents.

    Sets are taken whole, not averaged, because rounding makes the error of a layer as rugged as it
    is: the mean of two good layers is rounded anew and is most often neither. The first offspring is
    the best parent itself, which costs nothing where the judge remembers it.

    Parameters
    ----------
    mean : float64 array
        ``(n,)``: where the search starts.
    sets : int64 array
        ``(n,)``: the set of each gene, from 0.
    parents, offspring : int
        mu and lambda, ``1 <= mu < lambda``.
    step : float
        First standard deviation of every gene.
    """

    mean: Floats
    sets: NDArray[np.int64]
    parents: int
    offspring: int
    step: float
    genes: Floats = field(init=False)
    logs: Floats = field(init=False)
    _asked: list[tuple[Floats, Floats]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.genes = self.mean[None].copy()
        self.logs = np.zeros((1, int(self.sets.max(initial=0)) + 1))

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
        logs = np.where(changed, np.clip(logs + change, log(NARROWEST), log(WIDEST)), logs)
        steps = np.where(changed, self.step * np.exp(logs), 0.0)[self.sets]
        return genes + steps * rng.standard_normal(len(genes)), logs

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

    The parameters are those of :class:`Strategy`; a generation only sets how often the search is
    saved.
    """

    mean: Floats
    offspring: int
    step: float

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """Independent samples, the spread of each drawn too: up to three times the first step."""
        spreads = self.step * np.exp(rng.uniform(log(0.1), log(3.0), self.offspring))
        return [self.mean + s * rng.standard_normal(len(self.mean)) for s in spreads]

    def tell(self, order: Sequence[int]) -> None:
        """Learn nothing."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs."""
        return {"mean": self.mean}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on where another left off."""
        self.mean = arrays["mean"]
