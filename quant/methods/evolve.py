"""Multi-objective evolution of mixed precision and channel counts, with training in the loop.

Re-implemented from the published abstract of MOGAQNN: NSGA-II over the widths of every layer's
weights and activations and over its number of channels. A candidate starts from the trained
network, widened so that it computes the same or thinned (:mod:`quant.expand`), and is fine-tuned on
its own integer grids for a short time. Optuna holds the study: in a file or in a database that many
workers share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from hwgen.errors import BadInput
from quant import graph as fg
from quant.baseline import with_preprocessing
from quant.checks import check_options, check_seed
from quant.cost import model_bits, network_cost
from quant.judge import Judge
from quant.methods.evolve_finals import Finals
from quant.methods.evolve_individual import (
    Diverged,
    Genes,
    Individual,
    Trainer,
    train_individual,
)
from quant.methods.evolve_options import EvolveOptions, Sampler
from quant.methods.evolve_search import (
    Reseeded,
    Space,
    hypervolumes,
    place_of,
    seed_of,
    starting_points,
    uniform_points,
)
from quant.methods.evolve_storage import open_study
from quant.methods.evolve_worker import WORKER, bury_dead, retry, worker_name
from quant.methods.result import Result, compare, float_accuracy
from quant.models import Preprocess
from quant.progress import Advance, Progress, Silent
from quant.splits import Splits
from quant.state import graph_digest

__all__ = ["OBJECTIVES", "EvolveOptions", "Objective", "Sampler", "evolve"]

Objective = Callable[[Individual], float]
"""What is to be made small, of a trained candidate; the same for the same candidate."""

FLOAT_BITS = 32
POLL = 0.5
"""Seconds between looks at what other workers still do."""


OBJECTIVES: Mapping[str, Objective] = {
    "error": lambda candidate: 1.0 - candidate.score.accuracy,
    "bits": lambda candidate: float(model_bits(candidate.network)),
}
"""The default: top-1 error on the search set, and the size of the model."""


def evolve(
    graph: fg.FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: EvolveOptions | None = None,
    seed: int = 0,
    name: str = "network",
    progress: Progress | None = None,
    state: Path | None = None,
    storage: str | None = None,
    objectives: Mapping[str, Objective] | None = None,
) -> Result:
    """Search widths and channel counts together, and train what is found.

    The network that is chosen is the most accurate one on the search set that is small enough, when
    the best of the last population and the most accurate ones of other channel counts were trained
    for longer. The test set is looked at once.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
    options : EvolveOptions, optional
    seed : int
        One worker on one machine gives the same study again. Every candidate draws from a stream of
        its own, by this seed and its number.
    name : str
        Of the integer network and of the study.
    progress : Progress, optional
    state : Path, optional
        The study's file. More workers are more calls with the same file. A search that was stopped
        in any way goes on from it; what is lost is at most what was being trained.
    storage : str, optional
        A SQLAlchemy URL of a database instead, such as ``postgresql+psycopg://user@host/studies``.
    objectives : mapping of str to callable, optional
        Instead of :data:`OBJECTIVES`; at least two, and the study knows them by name.

    Returns
    -------
    Result
        ``graph`` is the float network that was trained; ``record`` has all candidates, the front,
        the hypervolume after every candidate, and whether the limit of the size was met.

    Raises
    ------
    BadInput
        If an option does not suit the network, the study is of another search, or the database does
        not answer for a minute.
    MissingTool
        If the database needs a package that is not installed.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    search = _Search(
        with_preprocessing(graph, preprocess),
        splits,
        check_options(options, EvolveOptions),
        seed,
        name,
        dict(objectives or OBJECTIVES),
    )
    progress = progress or Silent()
    study = search.open(storage or state)
    with progress.steps("evolve", search.target) as advance:
        search.run(study, advance)
    best, record = search.finish(study, progress)
    return compare(
        "evolve", search.whole, best.network, splits, record, plan=best.plan, trained=best.graph
    )


def _points(space: Space, sampler: Sampler) -> list[dict[str, Any]]:
    """What the first candidates are."""
    if sampler is Sampler.RANDOM:
        return []
    return starting_points(space) if sampler is Sampler.NSGA2 else uniform_points(space)


class _Search:
    """A search, all but its study."""

    def __init__(
        self,
        whole: fg.FloatGraph,
        splits: Splits,
        options: EvolveOptions,
        seed: int,
        name: str,
        objectives: Mapping[str, Objective],
    ) -> None:
        if len(objectives) < 2:
            raise BadInput(f"there must be two objectives at least, not {list(objectives)}")
        self.whole, self.splits, self.options = whole, splits, options
        self.seed, self.name, self.objectives = check_seed(seed), name, objectives
        self.space = Space.of(
            whole,
            widths=options.widths,
            activations=options.activations,
            factors=options.factors,
        )
        self.points = _points(self.space, options.sampler)
        self.target = options.trials
        if options.sampler is Sampler.UNIFORM:
            self.target = min(options.trials, len(self.points))
        self.float_bits = FLOAT_BITS * sum(n.weight.size + n.bias.size for n in whole.mac_nodes)
        self.limit = options.max_bits or int(self.float_bits / options.ratio)
        self.trainer = Trainer(
            graph=whole,
            images=splits.train_images,
            labels=splits.train_labels,
            calibration=splits.search_images,
            judge=Judge(splits.search_images, splits.search_labels),
            recipe=options.recipe(),
            bias_width=options.bias_width,
            per_channel=options.per_channel,
        )
        if not len(splits.train_images):
            raise BadInput("the search needs training images, and there are none; give some")

    def _sampler(self, seed: int) -> BaseSampler:
        """Optuna's sampler of a candidate."""
        if self.options.sampler is not Sampler.NSGA2:
            return RandomSampler(seed=seed)
        return NSGAIISampler(
            population_size=self.options.population,
            mutation_prob=self.options.mutation,
            seed=seed,
        )

    def open(self, storage: Path | str | None) -> optuna.Study:
        """The study."""
        self.sampler = Reseeded(self._sampler, seed=self.seed, space=self.space, points=self.points)
        return open_study(
            storage,
            name=f"evolve {self.name}",
            identity={
                "method": "evolve",
                "options": self.options.identity(),
                "objectives": list(self.objectives),
                "seed": self.seed,
                "network": graph_digest(self.whole),
                "search images": self.splits.digest(),
                "training images": self.splits.training_digest(),
            },
            objectives=len(self.objectives),
            sampler=self.sampler,
        )

    def run(self, study: optuna.Study, advance: Advance) -> None:
        """Train candidates until all workers together have trained enough."""
        while True:
            running = bury_dead(study)
            done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            advance(min(len(done), self.target), self.target, self._reached(done))
            if len(done) >= self.target and not running:
                return
            if len(done) + running >= self.target:
                time.sleep(POLL)  # others train the last ones, or die
                continue
            self._candidate(study)

    def _candidate(self, study: optuna.Study) -> None:
        """Train one candidate; where that is interrupted, it is queued again."""
        begun: list[int] = []

        def train(trial: Trial) -> tuple[float, ...]:
            begun.append(trial.number)
            trial.set_user_attr(WORKER, worker_name())
            self.space.suggest(trial)
            return self._train(study, trial)

        try:
            study.optimize(train, n_trials=1)
        except BaseException:
            for number in begun:
                trial = study.get_trials(deepcopy=False)[number]
                if trial.state is TrialState.FAIL:
                    retry(study, trial)
            raise

    def _train(self, study: optuna.Study, trial: Trial) -> tuple[float, ...]:
        place = place_of(study, trial.number)
        try:
            candidate = self.individual(
                self.space.genes(trial.params), self.options.epochs, seed_of(self.seed, place)
            )
        except Diverged:  # as bad as a network can be
            worst = {"correct": 0, "bits": self.float_bits, "place": place}
            for key, value in worst.items():
                trial.set_user_attr(key, value)
            values = {"error": 1.0, "bits": float(self.float_bits)}
            return tuple(values.get(name, float(2**62)) for name in self.objectives)
        found = {
            "correct": candidate.score.correct,
            "bits": model_bits(candidate.network),
            "place": place,
        }
        for key, value in found.items():
            trial.set_user_attr(key, value)
        return tuple(float(measure(candidate)) for measure in self.objectives.values())

    def individual(
        self, genes: Genes, epochs: float, seed: int, rate: float | None = None
    ) -> Individual:
        """A trained candidate; the rate is that of the search by default."""
        return train_individual(
            self.trainer,
            genes,
            epochs=epochs,
            seed=seed,
            name=self.name,
            rate=rate or self.options.rate,
        )

    def _error(self, trial: FrozenTrial) -> float:
        correct: int = trial.user_attrs["correct"]
        return 1.0 - correct / len(self.splits.search_images)

    def _reached(self, trials: list[FrozenTrial]) -> str:
        fit = [self._error(t) for t in trials if t.user_attrs["bits"] <= self.limit]
        return f"best {1 - min(fit):.2%} within {self.limit} bits" if fit else ""

    def finish(self, study: optuna.Study, progress: Progress) -> tuple[Individual, dict[str, Any]]:
        """The network chosen, trained to the end, and the record."""
        trials = sorted(
            study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)),
            key=lambda trial: int(trial.user_attrs["place"]),
        )
        population = self.sampler.last_population(study, trials)
        finals = Finals(
            options=self.options,
            space=self.space,
            limit=self.limit,
            seed=self.seed,
            images=len(self.splits.search_images),
            search_seen=self.splits.search_seen,
            train=self.individual,
        )
        left = finals.finalists(population, trials)
        chosen, best, rounds = finals.choose(study, left, progress)
        return best, {
            "options": self.options.record(),
            "objectives": list(self.objectives),
            "seed": self.seed,
            "evaluations": len(trials),
            "trials": [self._described(trial) for trial in trials],
            "last_population": sorted(t.user_attrs["place"] for t in population),
            "front": sorted(t.user_attrs["place"] for t in study.best_trials),
            **self._volumes(trials),
            "history": self._history(trials),
            "rounds": rounds,
            "chosen": {**self._described(chosen), "final_error": 1 - best.score.accuracy},
            "bits": model_bits(best.network),
            "float_bits": self.float_bits,
            "ratio": self.float_bits / model_bits(best.network),
            "limit": self._limit(best),
        }

    def _described(self, trial: FrozenTrial) -> dict[str, Any]:
        return {
            "place": trial.user_attrs["place"],
            "genes": {
                layer: [genes.weights, genes.activations, genes.factor]
                for layer, genes in self.space.genes(trial.params).items()
            },
            "error": self._error(trial),
            "bits": trial.user_attrs["bits"],
            "values": list(trial.values),
        }

    def _volumes(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        """Hypervolumes of error and size: the reference is twice the float network's error (at
        least 10 %) and half of its size in float32."""
        images, labels = self.splits.search_images, self.splits.search_labels
        error = 1.0 - float_accuracy(self.whole, images, labels)
        reference = (min(1.0, max(2 * error, 0.1)), self.float_bits / 2)
        points = [(self._error(t), float(t.user_attrs["bits"])) for t in trials]
        return {"reference": list(reference), "hypervolume": hypervolumes(points, reference)}

    def _history(self, trials: list[FrozenTrial]) -> list[float | None]:
        """The least error so far of a network that is small enough, after every candidate."""
        best: float | None = None
        found = []
        for trial in trials:
            if trial.user_attrs["bits"] <= self.limit:
                best = min(self._error(trial), 1.0 if best is None else best)
            found.append(best)
        return found

    def _limit(self, best: Individual) -> dict[str, Any]:
        """Whether the limit was met; if not, which layer stores most."""
        reached = model_bits(best.network)
        layers = network_cost(best.network).layers
        largest = max(layers, key=lambda layer: layer.constants).name
        met = reached <= self.limit
        return {
            "max_bits": self.limit,
            "reached": reached,
            "met": met,
            "binding_layer": None if met else largest,
        }
