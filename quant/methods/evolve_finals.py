"""The end of the search: the most promising candidates are trained for longer, and one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from quant.methods.evolve_individual import Diverged, Genes, Individual
from quant.methods.evolve_options import EvolveOptions
from quant.methods.evolve_search import Space, seed_of
from quant.progress import Progress

__all__ = ["Finals"]

CORRECT = "finalist"
"""Begins the attributes of a study that say what a finalist reached: its place, epochs and rate."""


def _survivors(count: int) -> int:
    """How many of a round are in the next."""
    return max(1, round(count / 3))


def _total(count: int) -> int:
    """Trainings of all rounds that begin with so many."""
    return count if count == 1 else count + _total(_survivors(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """Successive halving (Jamieson, Talwalkar 2016) by a factor of 3.

    What a finalist of an early round reached is kept in the study: a search that is stopped here
    loses the training of one finalist.

    Parameters
    ----------
    options : EvolveOptions
    space : Space
    limit : int
        Greatest size in bits.
    seed : int
    images : int
        Of the search set.
    search_seen : bool
        Whether the given network was trained on the search images.
    train : callable
        Gives a trained candidate for genes, epochs, a seed, and a rate, None for the search's.
    """

    options: EvolveOptions
    space: Space
    limit: int
    seed: int
    images: int
    search_seen: bool
    train: Callable[[Genes, float, int, float | None], Individual]

    def finalists(
        self, population: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]
    ) -> list[FrozenTrial]:
        """The most accurate ones that are small enough, first the best of the last population.

        Of those with the same channels only the first: what short training says of widths holds for
        long training, what it says of channels holds less. Where there are too few channels, the
        most accurate ones that are left join.
        """

        def rank(trial: FrozenTrial) -> tuple[int, int, int]:
            found = trial.user_attrs
            return -found["correct"], found["bits"], found["place"]

        def fit(group: Sequence[FrozenTrial]) -> list[FrozenTrial]:
            return sorted((t for t in group if t.user_attrs["bits"] <= self.limit), key=rank)

        firsts: dict[tuple[float, ...], FrozenTrial] = {}
        others: list[FrozenTrial] = []
        for trial in [*fit(population)[:1], *fit(trials)]:
            genes = self.space.genes(trial.params)
            channels = tuple(layer.factor for layer in genes.values())
            if firsts.setdefault(channels, trial).number != trial.number:
                others.append(trial)
        least = min(trials, key=lambda t: (t.user_attrs["bits"], t.user_attrs["place"]))
        return [*firsts.values(), *others][: self.options.finalists] or [least]

    def choose(
        self, study: Study, left: list[FrozenTrial], progress: Progress
    ) -> tuple[FrozenTrial, Individual, list[dict[str, Any]]]:
        """Train the finalists for longer, fewer in every round; the last one, and all rounds."""
        epochs = self.options.final_epochs
        done, total = 0, _total(len(left)) if epochs else 1
        rounds: list[dict[str, Any]] = []
        found: Individual | None = None
        with progress.steps("train the best", total) as advance:
            while epochs and found is None:
                reached: dict[int, int] = {}
                for trial in left:
                    if len(left) == 1:
                        found = self._again(trial, epochs)
                        reached[trial.number] = found.score.correct
                    else:
                        reached[trial.number] = self._reached(study, trial, epochs / len(left))
                    done += 1
                    advance(done, total, f"{reached[trial.number] / self.images:.2%}")
                left = sorted(left, key=lambda t: -reached[t.number])
                errors = {
                    str(t.user_attrs["place"]): 1 - reached[t.number] / self.images for t in left
                }
                rounds.append({"epochs": epochs / len(left), "errors": errors})
                left = left[: _survivors(len(left))]
            chosen = left[0]
            # Images that the given network was trained on flatter what was trained for less long.
            worse = found is not None and found.score.correct < chosen.user_attrs["correct"]
            if found is None or (worse and not self.search_seen):
                found = self._again(chosen, None)
            advance(total, total, f"{found.score.accuracy:.2%}")
        return chosen, found, rounds

    def _reached(self, study: Study, trial: FrozenTrial, epochs: float) -> int:
        """Search images that a finalist of an early round classifies right; known where it was
        trained before."""
        place, rate = trial.user_attrs["place"], self.options.final_rate
        key = f"{CORRECT} {place}, {epochs!r} epochs at {rate!r}"
        known = study.user_attrs.get(key)
        if not isinstance(known, int):
            known = self._again(trial, epochs).score.correct
            study.set_user_attr(key, known)
        return known

    def _again(self, trial: FrozenTrial, epochs: float | None) -> Individual:
        """A candidate again, trained for so long from the start; as in the search where that is
        None or diverges."""
        seed = seed_of(self.seed, int(trial.user_attrs["place"]))
        genes = self.space.genes(trial.params)
        if epochs is not None:
            with suppress(Diverged):
                return self.train(genes, epochs, seed, self.options.final_rate)
        return self.train(genes, self.options.epochs, seed, None)
