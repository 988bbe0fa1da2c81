"""Where the search looks: genes and their values, the points it starts from, what it reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import FrozenTrial, Trial, TrialState

from quant import graph as fg
from quant.assemble import Assembler
from quant.expand import resizable
from quant.methods.evolve_individual import Genes, LayerGenes

__all__ = [
    "Reseeded",
    "Space",
    "hypervolume",
    "hypervolumes",
    "place_of",
    "seed_of",
    "starting_points",
    "uniform_points",
]

Params = dict[str, Any]

RETRY_OF = "failed_trial"
"""Optuna's attribute of a trial that is tried again: the number of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Genes of a network: for each layer widths and, where it can be resized, a channel factor.

    Parameters
    ----------
    layers : tuple of str
        Convolutions and linear layers, in order.
    dense : frozenset of str
        Those of them that are linear.
    largest : str
        The one with most weights.
    resizable : frozenset of str
    formatted : frozenset of str
        Those whose outputs have a width of their own.
    widths : tuple of int
        The least and the greatest width of weights.
    activations : tuple of int
        Of activations.
    factors : tuple of float
    """

    layers: tuple[str, ...]
    dense: frozenset[str]
    largest: str
    resizable: frozenset[str]
    formatted: frozenset[str]
    widths: tuple[int, int]
    activations: tuple[int, int]
    factors: tuple[float, ...]

    @classmethod
    def of(
        cls,
        graph: fg.FloatGraph,
        *,
        widths: tuple[int, int],
        activations: tuple[int, int],
        factors: tuple[float, ...],
    ) -> Space:
        """The space of a network of raw pixels."""
        assembler = Assembler(graph)
        formatted = {
            group.node.name
            for group in assembler.makers
            if not assembler.hands_out_accumulators(group)
        }
        layers = tuple(node.name for node in graph.mac_nodes)
        return cls(
            layers=layers,
            dense=frozenset(n.name for n in graph.mac_nodes if isinstance(n, fg.Linear)),
            largest=max(graph.mac_nodes, key=lambda node: node.weight.size).name,
            resizable=frozenset(resizable(graph)),
            formatted=frozenset(formatted & set(layers)),
            widths=widths,
            activations=activations,
            factors=factors,
        )

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every gene's values by its name."""
        found: dict[str, BaseDistribution] = {}
        for layer in self.layers:
            found[f"{layer}.weights"] = IntDistribution(*self.widths)
            if layer in self.formatted:
                found[f"{layer}.activations"] = IntDistribution(*self.activations)
            if layer in self.resizable and len(self.factors) > 1:
                found[f"{layer}.factor"] = CategoricalDistribution(self.factors)
        return found

    def suggest(self, trial: Trial) -> None:
        """Let a trial choose all genes."""
        for name, values in self.distributions().items():
            if isinstance(values, IntDistribution):
                trial.suggest_int(name, values.low, values.high)
            elif isinstance(values, CategoricalDistribution):
                trial.suggest_categorical(name, values.choices)

    def genes(self, params: Mapping[str, Any]) -> Genes:
        """The genes that a trial chose."""
        alone = self.factors[0] if len(self.factors) == 1 else 1.0
        return {
            layer: LayerGenes(
                weights=int(params[f"{layer}.weights"]),
                activations=int(params.get(f"{layer}.activations", self.activations[1])),
                factor=float(
                    params.get(f"{layer}.factor", alone if layer in self.resizable else 1.0)
                ),
            )
            for layer in self.layers
        }

    def point(
        self, weights: int, activations: int, *, convs: float = 1.0, dense: float = 1.0
    ) -> Params:
        """Genes of one width, or of wider convolutions before a first linear layer of ``dense``.

        Wider networks get two bits more at both ends and one less in their largest layer. All are
        as near to that as the space allows.
        """
        found: Params = {}
        first = next((layer for layer in self.layers if layer in self.dense), None)
        for layer in self.layers:
            bits, factor = weights, 1.0
            if convs != 1.0:
                bits += 2 * (layer in (self.layers[0], self.layers[-1])) - (layer == self.largest)
                factor = dense if layer == first else 1.0 if layer in self.dense else convs
            found[f"{layer}.weights"] = int(np.clip(bits, *self.widths))
            found[f"{layer}.activations"] = int(np.clip(activations, *self.activations))
            found[f"{layer}.factor"] = min(self.factors, key=lambda have: abs(have - factor))
        return {name: found[name] for name in self.distributions()}


def starting_points(space: Space) -> list[Params]:
    """Points to warm-start from: uniform widths, and wide convolutions before lean dense layers."""
    points = [
        space.point(8, 8),
        space.point(4, 8, convs=2, dense=0.75),
        space.point(5, 8),
        space.point(4, 8, convs=1.5),
        space.point(4, 6),
        space.point(4, 6, convs=2, dense=0.5),
        space.point(3, 5),
        space.point(3, 5, convs=1.5, dense=0.75),
    ]
    return _distinct(points)


def uniform_points(space: Space) -> list[Params]:
    """The control: one width for all weights and one for all activations, channels as they are.

    First activations at their greatest width, then at the weights' width, then in between.
    """
    (low, high), top = space.widths, space.activations[1]
    points = [space.point(bits, top) for bits in range(high, low - 1, -1)]
    points += [space.point(bits, bits) for bits in range(high, low - 1, -1)]
    points += [space.point(bits, other) for bits in range(high, low - 1, -1) for other in (6, 5, 4)]
    return _distinct(points)


def _distinct(points: Sequence[Params]) -> list[Params]:
    found: list[Params] = []
    for point in points:
        if point not in found:
            found.append(point)
    return found


def place_of(study: Study, number: int) -> int:
    """How many candidates came before a trial; one that is tried again keeps its place.

    A killed worker so changes nothing of what the others, and its successor, draw.
    """
    retries = {
        trial.number: int(trial.system_attrs[RETRY_OF])
        for trial in study.get_trials(deepcopy=False)
        if RETRY_OF in trial.system_attrs
    }
    while number in retries:
        number = retries[number]
    return number - sum(other < number for other in retries)


def seed_of(seed: int, place: int) -> int:
    """The seed of a candidate."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


class Reseeded(BaseSampler):
    """A sampler that is made anew, with a seed of its own, for every trial.

    Parameters
    ----------
    make : callable
        Gives Optuna's sampler for a seed.
    seed : int
    space : Space
    points : sequence of dict
        What the first candidates are.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        *,
        seed: int,
        space: Space,
        points: Sequence[Params],
    ) -> None:
        self._make, self._seed, self._points = make, seed, points
        self._space = space.distributions()
        self._inner = make(seed)
        self._place = 0

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._place = place_of(study, trial.number)
        self._inner = self._make(seed_of(self._seed, self._place))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Params:
        found = self._inner.sample_relative(study, trial, search_space)  # notes the generation too
        return self._points[self._place] if self._place < len(self._points) else found

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._inner.after_trial(study, trial, state, values)

    def last_population(self, study: Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The population that the next generation would descend from; all without generations."""
        if not isinstance(self._inner, NSGAIISampler):
            return list(trials)
        generations = 0
        while self._inner.get_population(study, generations):
            generations += 1
        return self._inner.select_parent(study, generations)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that points to be minimised dominate, as a share of the box from 0 to ``reference``.

    Source: Zitzler and Thiele (1998), exact in two dimensions by a sweep.
    """
    area, height = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return area / (reference[0] * reference[1])


def hypervolumes(
    points: Sequence[tuple[float, float]], reference: tuple[float, float]
) -> list[float]:
    """:func:`hypervolume` of the first, the first two, ... points."""
    return [hypervolume(points[: count + 1], reference) for count in range(len(points))]
