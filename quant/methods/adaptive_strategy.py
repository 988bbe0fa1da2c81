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

NARROWEST, WIDEST = 0.01, 4.0
"""Limits of a step, as multiples of the first one, so that none dies out or runs away."""


@dataclass(kw_only=True, eq=False)
class Strategy:
    """Steps of an evolution strategy over real genes: ask for a generation, tell its ranks.

    Each offspring draws steps of its own, one for each set of genes, and then its genes with them;
    the next mean and the next steps are those of the best offspring, weighted by the logarithm of
    their rank, so that steps which lead to good offspring stay (Schwefel 1977, Beyer and Schwefel
    2002; the weights of Hansen and Ostermeier 2001). The first offspring is the mean itself: it is
    often better than any of those it was made of, and would else never be looked at.

    Parameters
    ----------
    mean : float64 array
        ``(n,)``: where the search starts.
    sets : int64 array
        ``(n,)``: the set of each gene, from 0; genes of a set share a step.
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
    logs: Floats = field(init=False)
    _asked: list[tuple[Floats, Floats]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.logs = np.zeros(int(self.sets.max(initial=0)) + 1)

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """The genes of the next generation, ``offspring`` arrays ``(n,)``."""
        count, sets = len(self.mean), len(self.logs)
        # The usual learning rates: one for all steps together, one for each.
        common, single = 1 / sqrt(2 * count), 1 / sqrt(2 * sqrt(count))
        low, high = log(NARROWEST), log(WIDEST)
        self._asked = [(self.mean.copy(), self.logs.copy())]
        for _ in range(self.offspring - 1):
            change = common * rng.standard_normal() + single * rng.standard_normal(sets)
            logs = np.clip(self.logs + change, low, high)
            steps = self.step * np.exp(logs)[self.sets]
            self._asked.append((self.mean + steps * rng.standard_normal(count), logs))
        return [genes for genes, _ in self._asked]

    def tell(self, order: Sequence[int]) -> None:
        """Take over the best of the generation.

        Parameters
        ----------
        order : sequence of int
            Places of the offspring in what :meth:`ask` gave, best first; at least one. A last
            generation may be cut short.
        """
        chosen = [self._asked[place] for place in order[: self.parents]]
        weights = np.log(len(chosen) + 0.5) - np.log(np.arange(1, len(chosen) + 1))
        weights /= weights.sum()
        self.mean = sum(w * genes for w, (genes, _) in zip(weights, chosen, strict=True))
        self.logs = sum(w * logs for w, (_, logs) in zip(weights, chosen, strict=True))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs between generations."""
        return {"mean": self.mean, "logs": self.logs}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on where another left off."""
        self.mean, self.logs = arrays["mean"], arrays["logs"]


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
