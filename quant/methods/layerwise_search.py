"""Widths per layer by gain per bit: sensitivities, a Lagrangian path through them, then single steps.

Every network that counts is judged whole, with all of it quantised. Its weights are fitted anew to
its formats (:mod:`quant.methods.layerwise_round`) before it is judged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hwgen.ir import Network
from quant.formats import Floats
from quant.judge import Judge, Score, log_probabilities
from quant.methods.layerwise_round import Calibrator, RoundingProblem
from quant.methods.layerwise_space import NARROWEST, WIDEST, Price, Space, Widths
from quant.plan import Plan
from quant.progress import Advance

__all__ = ["Evaluations", "Search"]

REMEMBERED = 8
"""Fitted networks kept."""


@dataclass(kw_only=True, eq=False)
class Evaluations:
    """Judges networks of given widths, and remembers.

    Parameters
    ----------
    space : Space
    calibrator : Calibrator
    judge, probe, control : Judge
        On the images that decide, on fewer for sensitivities, and on others that confirm.
    journal : dict
        Scores by key, kept between runs.
    save : callable
        Called after every entry.
    biases : int
        Bits of biases.
    """

    space: Space
    calibrator: Calibrator
    judge: Judge
    probe: Judge
    control: Judge
    journal: dict[str, list[Any]]
    save: Callable[[], object]
    biases: int = 8
    _fitted: OrderedDict[str, tuple[Plan, dict[str, RoundingProblem]]] = field(
        default_factory=OrderedDict
    )
    _centre: tuple[Widths, Floats] | None = field(default=None, repr=False)

    def fitted(self, widths: Widths) -> tuple[Plan, dict[str, RoundingProblem]]:
        """The plan of these widths with weights fitted to them."""
        key = self.space.key(widths)
        if key not in self._fitted:
            formats = self.space.formats(widths)
            bits = dict(zip(self.space.layers, widths.weights, strict=True))
            self._fitted[key] = self.calibrator.fit(bits, formats, self.biases)
            while len(self._fitted) > REMEMBERED:
                self._fitted.popitem(last=False)
        self._fitted.move_to_end(key)
        return self._fitted[key]

    def network(self, widths: Widths, name: str = "network") -> tuple[Network, Plan]:
        """The network of these widths."""
        plan = self.fitted(widths)[0]
        return self.space.assembler.assemble(plan, name), plan

    def whole(self, widths: Widths, floor: int) -> Score:
        """The score of the network of these widths, fitted to them."""
        key = f"whole {self.space.key(widths)} {floor}"
        return self._known(key, lambda: self.judge.score(self.network(widths)[0], floor=floor))

    def confirmed(self, widths: Widths) -> Score:
        """The score of the network of these widths on images that search does not look at."""
        key = f"confirm {self.space.key(widths)}"
        return self._known(key, lambda: self.control.score(self.network(widths)[0]))

    def changed(self, widths: Widths, place: int, width: int) -> Score:
        """The score on the probe images with one width changed and nothing else fitted anew."""
        key = f"probe {self.space.key(widths)} {place} {width}"
        return self._known(key, lambda: self.probe.score(self._changed(widths, place, width)))

    def divergence(self, widths: Widths, place: int, width: int, *, coarser: bool = False) -> float:
        """What the change of one width does to the class probabilities of the probe images.

        The mean Kullback-Leibler divergence from those without it. Unlike a loss by labels it is
        never negative and adds up over changes, and few images tell it well.

        ``coarser``: and twice the step, for an output.
        """
        key = f"divergence {widths.key()} {place} {width}{' coarser' if coarser else ''}"
        if key not in self.journal:
            if self._centre is None or self._centre[0] != widths:
                self._centre = widths, self._log_chances(self.network(widths)[0])
            before = self._centre[1]
            after = self._log_chances(self._changed(widths, place, width, coarser=coarser))
            found = (np.exp(before) * (before - after)).sum(1).mean()
            self.journal[key] = [max(float(found), 0.0)]
            self.save()
        return float(self.journal[key][0])

    def losses(self, centre: Widths) -> Table:
        """The loss that each width adds to all others' at the centre's.

        The power of rounding noise falls by a factor of four with each bit; wide widths, whose measured
        losses are mostly chance, follow this law from the narrower ones.
        """
        table = {}
        for place in range(centre.places):
            raw = {
                width: self._least(centre, place, width) for width in range(NARROWEST, MEASURED + 1)
            }
            law = float(np.median([raw[w] * 4.0**w for w in range(NARROWEST + 1, MEASURED + 1)]))
            law = max(law, LEAST)
            previous = 0.0
            for width in range(WIDEST, NARROWEST - 1, -1):
                found = law * 4.0**-width
                if width <= NARROWEST + 1:
                    found = max(found, raw[width], previous)
                table[place, width] = previous = found
        return table

    def _least(self, centre: Widths, place: int, width: int) -> float:
        """The loss with one width changed; an output takes the better of two steps from then on."""
        loss = self.divergence(centre, place, width)
        if place < len(centre.weights):
            return loss
        other = self.divergence(centre, place, width, coarser=True)
        if other < loss:
            self.space.coarsen(place, width)
        return min(loss, other)

    def binding(self, widths: Widths) -> str:
        """The layer whose wider formats help most."""
        best = max(
            range(widths.places),
            key=lambda place: self.changed(widths, place, widths.at(place) + 2),
        )
        return self.space.layer(best)

    def _changed(self, widths: Widths, place: int, width: int, *, coarser: bool = False) -> Network:
        """The network with one width changed and nothing else fitted anew."""
        plan, problems = self.fitted(widths)
        if place < len(widths.weights):
            layer = self.space.layers[place]
            plan = plan.with_layers(**{layer: problems[layer].solve(width, self.biases)})
            return self.space.assembler.assemble(plan)
        moved, space = widths.moved(place, width), self.space
        formats = space.coarser(moved, place) if coarser else space.formats(moved)
        layer = space.layer(place)
        if layer in space.norms:
            norm, old = space.norms[layer], plan.outputs[layer]
            plan = plan.with_layers(**norm.moved(plan, old, formats[layer]))
        return self.space.assembler.assemble(plan.with_outputs(formats))

    def _log_chances(self, network: Network) -> Floats:
        """Logarithms of the class probabilities of the probe images, ``(images, classes)``."""
        return log_probabilities(self.probe.outputs(network), network.output_type.scale)

    def _known(self, key: str, measure: Callable[[], Score]) -> Score:
        if key not in self.journal:
            score = measure()
            self.journal[key] = [score.images, score.correct, score.loss, score.complete]
            if not score.complete:
                self.journal[key][2] = None
            self.save()
        images, correct, loss, complete = self.journal[key]
        loss = float("inf") if loss is None else loss
        return Score(images=images, correct=correct, loss=loss, complete=complete)


@dataclass(kw_only=True, eq=False)
class Search:
    """Makes the price small while the network stays good enough.

    It starts at the narrowest width that is good enough everywhere. Then the loss that each width adds
    is measured, one at a time. The widths of least added loss per price form a path; on its part that
    is cheaper than the start the cheapest network that is good enough is found by bisection. From
    there single bits are taken away, or moved from one place to another, where the measured losses
    promise most; each network is judged whole.

    Parameters
    ----------
    evaluations : Evaluations
    price : Price
    floor : int
        The fewest correct images of the judge's.
    control_floor : int
        The fewest correct of the images that confirm: what the judge finds good enough is looked at
        on those too, because what a search chooses is a bit lucky on the images that choose.
    tries : int
        Networks that are tried in the end.
    history : list
        Receives what was the best so far.
    """

    evaluations: Evaluations
    price: Price
    floor: int
    control_floor: int
    tries: int
    history: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    _advance: Advance = field(default=lambda done, total, text: None, repr=False)

    @property
    def total(self) -> int:
        """About as many networks are judged."""
        return 2 + BISECTIONS + AHEAD + self.tries

    def run(self, advance: Advance) -> tuple[Widths, Score]:
        """Widths and their score, below the floor where even the widest networks are."""
        self._advance = advance
        space = self.evaluations.space
        plain = [space.uniform(width) for width in (CENTRE, WIDEST)]
        for best in plain:
            score = self._judge(best)
            if score is not None:
                break
        else:
            scores = [self.evaluations.whole(widths, 0) for widths in plain]
            score = max(scores)
            return plain[scores.index(score)], score
        for width in range(best.at(0) - 1, NARROWEST, -1):
            found = self._judge(narrower := space.uniform(width))
            if found is None:
                break
            best, score = narrower, found
        table = self.evaluations.losses(space.uniform(CENTRE))
        price = self.price.total(best)
        path = [widths for widths in self._path(table) if self.price.total(widths) < price]
        best, score = self._along(path, best, score)
        best, _ = self._steps(best, score, table)
        # Judged before the formats of its outputs were settled, the best so far may be another network.
        again = self.evaluations.whole(best, self.floor)
        return best, again if again.complete else self.evaluations.whole(best, 0)

    def _judge(self, widths: Widths) -> Score | None:
        """The score of a network that is good enough; None of others."""
        score = self.evaluations.whole(widths, self.floor)
        self.done += 1
        saved = 1 - self.price.memory(widths), 1 - self.price.work(widths, own=True)
        text = f"{saved[0]:.1%} of memory and {saved[1]:.1%} of multiplication saved"
        good = score.complete and score.correct >= self.floor
        good = good and self.evaluations.confirmed(widths).correct >= self.control_floor
        verdict = "" if good else ", too inaccurate"
        self._advance(min(self.done, self.total), self.total, text + verdict)
        if good:
            entry = {
                "evaluation": self.done,
                "price": self.price.total(widths),
                "memory_saved": saved[0],
                "multiplication_saved": saved[1],
                "accuracy": score.accuracy,
                "loss": score.loss,
            }
            if not self.history or entry["price"] < self.history[-1]["price"]:
                self.history.append(entry)
        return score if good else None

    def _path(self, table: Table) -> list[Widths]:
        """Networks of least added loss per price, from the dearest to the cheapest."""
        space = self.evaluations.space
        found: dict[Widths, float] = {}
        widths = space.uniform(WIDEST)
        for weight in np.geomspace(1e-5, 1e3, 200):
            widths = cheapest(widths, table, partial(self._cost, float(weight)))
            found[widths] = self.price.total(widths)
        return sorted(found, key=lambda w: (-found[w], w))

    def _cost(self, weight: float, widths: Widths) -> float:
        return weight * self.price.total(widths)

    def _along(self, path: list[Widths], best: Widths, score: Score) -> tuple[Widths, Score]:
        """The cheapest good network on the path: by bisection, then a few places further."""
        low, high = -1, len(path)
        while high - low > 1:
            middle = (low + high) // 2
            found = self._judge(path[middle])
            if found is not None:
                low = middle
                if self.price.total(path[middle]) < self.price.total(best):
                    best, score = path[middle], found
            else:
                high = middle
        for candidate in path[high + 1 : high + 1 + AHEAD]:
            found = self._judge(candidate)
            if found is not None and self.price.total(candidate) < self.price.total(best):
                best, score = candidate, found
        return best, score

    def _steps(self, best: Widths, score: Score, table: Table) -> tuple[Widths, Score]:
        """Take single bits away, or move them, in the order of added loss for what they save.

        What is refused counts as more harmful from then on than was measured, what is accepted as
        less. In networks of many layers several steps are tried at once, more after each success.
        """
        refused: set[Widths] = set()
        table = dict(table)
        most = max(1, best.places // STRIDE)
        stride = max(1, most // 2)
        for _ in range(self.tries):
            candidate = self._next(best, stride, table, refused)
            if candidate is None:
                break
            found = self._judge(candidate)
            lowered = [p for p in range(best.places) if candidate.at(p) < best.at(p)]
            for key in [key for key in table if key[0] in lowered]:
                table[key] *= LESSON if found is None else 1 / LESSON
            if found is not None:
                best, score, stride = candidate, found, min(most, 2 * stride)
            else:
                refused.add(candidate)
                stride = max(1, stride // 2)
        return best, score

    def _next(
        self, start: Widths, stride: int, table: Table, refused: set[Widths]
    ) -> Widths | None:
        """So many steps from widths that promise most; None where none is left."""
        widths = start
        for _ in range(stride):
            price, added = self.price.total(widths), added_loss(widths, table)
            for choose in (moves, _more_moves):
                rated = [
                    ((added_loss(w, table) - added) / (price - self.price.total(w)), w)
                    for w in choose(widths)
                    if w not in refused and self.price.total(w) < price - WORTH
                ]
                if rated:
                    break
            else:
                break
            widths = min(rated)[1]
        return None if widths == start else widths


def added_loss(widths: Widths, table: Table) -> float:
    """The losses that all widths add, summed."""
    return sum(table[place, widths.at(place)] for place in range(widths.places))


def cheapest(widths: Widths, table: Table, cost: Callable[[Widths], float]) -> Widths:
    """Widths with the least added loss plus cost; place after place, from given ones on."""
    for _ in range(SWEEPS):
        before = widths
        for place in range(widths.places):
            trials = [widths.moved(place, w) for w in range(NARROWEST, WIDEST + 1)]
            costs = [table[place, trial.at(place)] + cost(trial) for trial in trials]
            widths = trials[int(np.argmin(costs))]
        if widths == before:
            break
    return widths


def moves(widths: Widths) -> list[Widths]:
    """One bit less in a place, or that and one more in another."""
    down = [p for p in range(widths.places) if widths.at(p) > NARROWEST]
    up = [p for p in range(widths.places) if widths.at(p) < WIDEST]
    single = [widths.moved(p, widths.at(p) - 1) for p in down]
    both = [
        widths.moved(p, widths.at(p) - 1).moved(q, widths.at(q) + 1)
        for p in down
        for q in up
        if p != q
    ]
    return single + both


def _more_moves(widths: Widths) -> list[Widths]:
    """Moves of :func:`moves` with one bit more or less in one place besides."""
    found = set()
    for moved in moves(widths):
        for place in range(widths.places):
            for width in (moved.at(place) - 1, moved.at(place) + 1):
                if NARROWEST <= width <= WIDEST:
                    found.add(moved.moved(place, width))
    return sorted(found - {widths})


Table = Mapping[tuple[int, int], float]
"""Added loss by place and width."""

CENTRE = 6
"""Width of everything else where the loss that one width adds is measured."""

MEASURED = 5
"""Widest width that is measured."""

LEAST = 1e-3
"""Least factor of the law of added losses, so that no place seems free."""

WORTH = 1e-3
"""Price that a step must save."""

BISECTIONS, AHEAD = 6, 3
"""Networks judged on the path: about so many by bisection, so many beyond."""

STRIDE = 5
"""At most one step for so many places is tried at once."""

LESSON = 1.2
"""Factor on a place's losses after a step there was tried."""

SWEEPS = 10
"""Rounds over all places until the widths of a weight on the path stand still."""
