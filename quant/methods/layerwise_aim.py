"""The most accurate widths that save as much as is asked for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwgen.errors import BadInput
from quant.cost import network_cost
from quant.judge import Score
from quant.methods.layerwise_search import CENTRE, SWEEPS, Evaluations, Table, moves
from quant.methods.layerwise_space import NARROWEST, WIDEST, Price, Widths
from quant.progress import Advance

__all__ = ["Aim", "AimedSearch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Savings against 8 bits everywhere that must be reached, as fractions.

    Parameters
    ----------
    memory : float
        Of weights, biases, output activations, multipliers and shifts.
    multiplications : float
        Of the sum of weight width times output width times multiply-accumulates.
    """

    memory: float
    multiplications: float


@dataclass(kw_only=True, eq=False)
class AimedSearch:
    """Makes the loss small while the network saves enough.

    The loss that each width adds is measured, one at a time. Of the widths that save enough, those of
    the least added loss are fitted and judged whole; half of the tries then go to the neighbours of the
    best so far. Networks are compared by the cross-entropy on the images that choose and those that
    confirm together: accuracies of that many images tell networks so much alike less well.

    Parameters
    ----------
    evaluations : Evaluations
    price : Price
        Counts multiplications by output widths alone.
    aim : Aim
    tries : int
        Networks that are judged, at least one.
    history : list
        Receives what was the best so far.
    """

    evaluations: Evaluations
    price: Price
    aim: Aim
    tries: int
    history: list[dict[str, Any]] = field(default_factory=list)
    _table: Table = field(default_factory=dict, repr=False)
    _apart: tuple[float, float] = (0.0, 0.0)
    _pool: list[Widths] = field(default_factory=list, repr=False)

    @property
    def total(self) -> int:
        """So many networks are judged."""
        return max(1, self.tries)

    def run(self, advance: Advance) -> tuple[Widths, Score]:
        """Widths and their score on the images that choose.

        Raises
        ------
        BadInput
            If no widths save as much.
        """
        centre = self.evaluations.space.uniform(CENTRE)
        saved = self._saved(centre)
        self._apart = (
            saved[0] - (1 - self.price.memory(centre)),
            saved[1] - (1 - self.price.work(centre, own=True)),
        )
        if not self._likely(self.evaluations.space.uniform(NARROWEST)):
            raise self._beyond()
        self._table = self.evaluations.losses(centre)
        self._pool = self._explore(WIDE * self.total)
        judged: dict[Widths, float] = {}
        best: Widths | None = None
        for number in range(1, self.total + 1):
            widths = self._next(judged, best, number)
            if widths is None:
                break
            saved, loss = self._saved(widths), self._loss(widths)
            judged[widths] = loss
            text = f"{saved[0]:.1%} of memory and {saved[1]:.1%} of multiplication saved"
            if best is None or loss < judged[best]:
                best = widths
                self._note(number, saved, loss)
            advance(number, self.total, f"{text}, loss {loss:.4f}, best {judged[best]:.4f}")
        if best is None:
            raise self._beyond()
        return best, self.evaluations.whole(best, 0)

    def _note(self, number: int, saved: tuple[float, float], loss: float) -> None:
        self.history.append(
            {
                "evaluation": number,
                "memory_saved": saved[0],
                "multiplication_saved": saved[1],
                "loss": loss,
            }
        )

    def _beyond(self) -> BadInput:
        """The error of an aim that the narrowest widths miss."""
        saved = self._estimate(self.evaluations.space.uniform(NARROWEST))
        return BadInput(
            f"the savings asked for, {self.aim.memory:.1%} of memory and"
            f" {self.aim.multiplications:.1%} of multiplications, are beyond {NARROWEST} bits"
            f" everywhere, which save about {saved[0]:.1%} and {saved[1]:.1%}; ask for less"
        )

    def _enough(self, saved: tuple[float, float]) -> bool:
        return saved[0] >= self.aim.memory and saved[1] >= self.aim.multiplications

    def _saved(self, widths: Widths) -> tuple[float, float]:
        """What the network of these widths saves, all constants counted."""
        key = f"saved {widths.key()}"
        journal = self.evaluations.journal
        if key not in journal:
            cost = network_cost(self.evaluations.network(widths)[0])
            journal[key] = [cost.memory_saved, cost.output_product_saved]
            self.evaluations.save()
        memory, work = journal[key]
        return float(memory), float(work)

    def _estimate(self, widths: Widths) -> tuple[float, float]:
        """What widths save, other constants being as many as in the centre."""
        return (
            1 - self.price.memory(widths) + self._apart[0],
            1 - self.price.work(widths, own=True) + self._apart[1],
        )

    def _likely(self, widths: Widths) -> bool:
        return self._enough(self._estimate(widths))

    def _loss(self, widths: Widths) -> float:
        """Mean cross-entropy on all images that choose or confirm."""
        scores = self.evaluations.whole(widths, 0), self.evaluations.confirmed(widths)
        total = sum(score.loss * score.images for score in scores)
        return total / sum(score.images for score in scores)

    def _added(self, widths: Widths) -> float:
        return sum(self._table[place, widths.at(place)] for place in range(widths.places))

    def _next(self, judged: dict[Widths, float], best: Widths | None, number: int) -> Widths | None:
        """Widths to judge: of the least added loss, or, in the second half, near the best.

        None where there are no more.
        """
        if best is not None and 2 * number > self.total:
            near = sorted((self._added(w), w) for w in _neighbours(best) if self._likely(w))
            found = self._first([w for _, w in near], judged)
            if found is not None:
                return found
        return self._first(self._pool, judged)

    def _first(self, candidates: list[Widths], judged: dict[Widths, float]) -> Widths | None:
        for widths in candidates:
            if widths not in judged and self._enough(self._saved(widths)):
                return widths
        return None

    def _explore(self, count: int) -> list[Widths]:
        """So many widths that save enough, found by steps from the best of them."""
        start = min(self._starts(), key=lambda w: (self._added(w), w))
        queue, known = [(self._added(start), start)], {start}
        found: list[tuple[float, Widths]] = []
        while queue and len(found) < count:
            added, widths = heapq.heappop(queue)
            found.append((added, widths))
            for other in _neighbours(widths):
                if other not in known and self._likely(other):
                    known.add(other)
                    heapq.heappush(queue, (self._added(other), other))
        return [widths for _, widths in sorted(found)]

    def _starts(self) -> Iterator[Widths]:
        """Widths that save enough: those of the least added loss plus weighted costs."""
        yield self.evaluations.space.uniform(NARROWEST)
        for share in SHARES:
            widths = self.evaluations.space.uniform(WIDEST)
            for weight in np.geomspace(1e-4, 1e2, WEIGHTS):
                widths = self._cheapest(widths, weight * (1 - share), weight * share)
                if self._likely(widths):
                    yield widths
                    break

    def _cheapest(self, widths: Widths, memory: float, work: float) -> Widths:
        """Widths with the least added loss plus weighted costs; place after place."""
        for _ in range(SWEEPS):
            before = widths
            for place in range(widths.places):
                trials = [widths.moved(place, w) for w in range(NARROWEST, WIDEST + 1)]
                costs = [
                    self._table[place, trial.at(place)]
                    + memory * self.price.memory(trial)
                    + work * self.price.work(trial, own=True)
                    for trial in trials
                ]
                widths = trials[int(np.argmin(costs))]
            if widths == before:
                break
        return widths


def _neighbours(widths: Widths) -> list[Widths]:
    """One bit more or less in one place, or a bit moved from one place to another."""
    up = [p for p in range(widths.places) if widths.at(p) < WIDEST]
    return moves(widths) + [widths.moved(p, widths.at(p) + 1) for p in up]


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Parts of the costs' weight that multiplications have where the search for a start is tried."""

WEIGHTS = 60
"""Weights of costs that are tried in turn for a start."""

WIDE = 4
"""So many times as many widths as are judged are looked at by their added loss."""
