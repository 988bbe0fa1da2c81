"""The most accurate widths that save as much as is asked for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import Network
from quant.cost import network_cost
from quant.judge import Score
from quant.methods.layerwise_search import (
    CENTRE,
    Evaluations,
    Table,
    added_loss,
    cheapest,
    moves,
)
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
        Of the sum over layers of weight width times the layer's own output width times
        multiply-accumulates.
    """

    memory: float
    multiplications: float


@dataclass(kw_only=True, eq=False)
class AimedSearch:
    """Makes the loss small while the network saves enough.

    The loss that each width adds is measured, one at a time. Of the widths that save enough, those of
    the least added loss are fitted and judged whole with the first half of the tries, neighbours of the
    best so far with the second. Networks are compared by the cross-entropy on the images that choose
    and those that confirm together, as accuracies tell networks so much alike less well.

    Savings are estimated from the widths to find candidates, and counted on the assembled network
    before it is judged.

    Parameters
    ----------
    evaluations : Evaluations
    price : Price
        For estimates; its weight of multiplications is not used.
    aim : Aim
    tries : int
        Networks that are judged; one where it is 0.
    history : list
        Receives what was the best so far: the number of the try, what is saved, the loss.
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
            If the narrowest widths do not save as much.
        """
        centre = self.evaluations.space.uniform(CENTRE)
        # Not through the journal: savings that are refused leave no file of a search behind.
        self._apart = self._gap(centre, _savings(self.evaluations.network(centre)[0]))
        self._refuse_beyond()
        self._table = self.evaluations.losses(centre)
        self._fill()
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
        assert best is not None  # the pool holds widths that save enough
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

    def _refuse_beyond(self) -> None:
        """Refuse savings that the narrowest widths miss, before the work and without the journal.

        Raises
        ------
        BadInput
        """
        narrowest = self.evaluations.space.uniform(NARROWEST)
        if not self._likely(narrowest):
            self._check(_savings(self.evaluations.network(narrowest)[0]))

    def _check(self, most: tuple[float, float]) -> None:
        """Refuse the aim where the savings of the narrowest widths are not enough.

        Raises
        ------
        BadInput
        """
        if not self._enough(most):
            raise BadInput(
                f"the savings asked for, {self.aim.memory:.1%} of memory and"
                f" {self.aim.multiplications:.1%} of multiplications, are beyond {NARROWEST} bits"
                f" everywhere, which save {most[0]:.1%} and {most[1]:.1%}; ask for less"
            )

    def _fill(self) -> None:
        """Fill the pool; some of it saves enough when counted, and not only by the estimate.

        Raises
        ------
        BadInput
            If the narrowest widths do not save as much.
        """
        self._pool = self._explore(WIDE * self.total)
        while self._first(self._pool, {}) is None:
            self._check(self._saved(self.evaluations.space.uniform(NARROWEST)))
            gaps = [self._gap(widths, self._saved(widths)) for widths in self._pool]
            self._apart = min(g[0] for g in gaps), min(g[1] for g in gaps)
            self._pool = self._explore(WIDE * self.total)

    def _cost(self, weight: float, share: float, widths: Widths) -> float:
        """What widths cost, of which multiplications have a share."""
        work = self.price.work(widths, own=True)
        return weight * ((1 - share) * self.price.memory(widths) + share * work)

    def _enough(self, saved: tuple[float, float]) -> bool:
        return saved[0] >= self.aim.memory and saved[1] >= self.aim.multiplications

    def _saved(self, widths: Widths) -> tuple[float, float]:
        """What the network of these widths saves, all constants counted."""
        key = f"saved {self.evaluations.space.key(widths)}"
        journal = self.evaluations.journal
        if key not in journal:
            journal[key] = list(_savings(self.evaluations.network(widths)[0]))
            self.evaluations.save()
        memory, work = journal[key]
        return float(memory), float(work)

    def _gap(self, widths: Widths, saved: tuple[float, float]) -> tuple[float, float]:
        """What the network of these widths saves beyond what their price says, as a rule below 0:
        prices know neither biases, requantisers nor the accumulators that the last layer hands out."""
        return (
            saved[0] - (1 - self.price.memory(widths)),
            saved[1] - (1 - self.price.work(widths, own=True)),
        )

    def _likely(self, widths: Widths) -> bool:
        """Whether widths save enough by estimate: everything else being as in the centre."""
        memory, work = self.price.memory(widths), self.price.work(widths, own=True)
        return self._enough((1 - memory + self._apart[0], 1 - work + self._apart[1]))

    def _loss(self, widths: Widths) -> float:
        """Mean cross-entropy on all images that choose or confirm."""
        scores = self.evaluations.whole(widths, 0), self.evaluations.confirmed(widths)
        total = sum(score.loss * score.images for score in scores)
        return total / sum(score.images for score in scores)

    def _next(self, judged: dict[Widths, float], best: Widths | None, number: int) -> Widths | None:
        """Widths to judge: of the least added loss, or, in the second half, near the best.

        None where there are no more.
        """
        if best is not None and 2 * number > self.total:
            near = sorted(
                (added_loss(w, self._table), w) for w in _neighbours(best) if self._likely(w)
            )
            found = self._first([w for _, w in near], judged)
            if found is not None:
                return found
        return self._first(self._pool, judged)

    def _first(self, candidates: list[Widths], judged: Mapping[Widths, float]) -> Widths | None:
        """The first that is not judged yet and saves enough."""
        for widths in candidates:
            if widths not in judged and self._enough(self._saved(widths)):
                return widths
        return None

    def _explore(self, count: int) -> list[Widths]:
        """So many widths that are likely to save enough, by rising added loss.

        Found by steps from the best start, always from the widths of the least added loss so far.
        """
        start = min(self._starts(), key=lambda w: (added_loss(w, self._table), w))
        queue, known = [(added_loss(start, self._table), start)], {start}
        found: list[tuple[float, Widths]] = []
        while queue and len(found) < count:
            added, widths = heapq.heappop(queue)
            found.append((added, widths))
            for other in _neighbours(widths):
                if other not in known and self._likely(other):
                    known.add(other)
                    heapq.heappush(queue, (added_loss(other, self._table), other))
        return [widths for _, widths in sorted(found)]

    def _starts(self) -> Iterator[Widths]:
        """The narrowest widths, and some that are likely to save enough: those of the least added
        loss plus weighted costs."""
        yield self.evaluations.space.uniform(NARROWEST)
        for share in SHARES:
            widths = self.evaluations.space.uniform(WIDEST)
            for weight in np.geomspace(1e-4, 1e2, WEIGHTS):
                widths = cheapest(widths, self._table, partial(self._cost, weight, share))
                if self._likely(widths):
                    yield widths
                    break


def _savings(network: Network) -> tuple[float, float]:
    """Of memory and of multiplications."""
    cost = network_cost(network)
    return cost.memory_saved, cost.output_product_saved


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
