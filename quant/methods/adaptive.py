"""Adaptive integer quantisation: an evolution strategy moves clip bounds or bin boundaries.

Re-implemented from the published abstract of a method that evolves the quantisation of weights and
biases of LeNet-5 at a fixed width. What is added to it: levels of codebooks and biases follow from the
genes by least squares, so that the search has only the nonlinear part to find; and the search also
starts from what a local search on the error of each layer's outputs finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import INPUT, Fixed
from quant.assemble import PIXEL, Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.checks import check_options, check_seed
from quant.config import LayerBits, QuantConfig
from quant.formats import Floats
from quant.graph import FloatGraph
from quant.judge import Judge, Score
from quant.methods.adaptive_coders import Form, Start
from quant.methods.adaptive_forward import Forward, one_thread
from quant.methods.adaptive_genes import Genome
from quant.methods.adaptive_options import ALONE, STARTS, AdaptiveOptions, Control, Ranking
from quant.methods.adaptive_strategy import RandomSearch, Strategy
from quant.methods.linear import CALIBRATION_IMAGES
from quant.methods.result import Result, compare
from quant.models import Preprocess
from quant.plan import Plan
from quant.progress import Progress, Silent
from quant.splits import Splits
from quant.state import SearchState, graph_digest

__all__ = ["AdaptiveOptions", "Control", "Form", "Ranking", "adaptive"]


FINALISTS = 8
"""Best networks of a search that are compared on all search images at its end."""

CORRECTION_IMAGES = 100
"""Calibration images whose mean errors the biases make up for, in every candidate."""


class Search(Protocol):
    """Proposes genes; a generation at a time."""

    def ask(self, rng: np.random.Generator) -> list[Floats]:
        """The next generation."""

    def tell(self, order: Sequence[int]) -> None:
        """How the last generation ranks: places, best first."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs between generations."""

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on where another left off."""


@dataclass(kw_only=True, eq=False)
class _Run:
    """A search under way.

    ``kept`` holds the best networks so far with their genes, best first; ``history`` the best so
    far whenever it changed: evaluations, accuracy and loss. ``ranking`` says what is best.
    """

    ranking: Ranking
    genome: Genome
    assembler: Assembler
    judge: Judge
    evaluations: int = 0
    kept: list[tuple[Score, Floats]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def score(self) -> Score:
        """Of the best network so far."""
        return self.kept[0][0]

    def rank(self, generation: Sequence[Floats]) -> tuple[list[int], list[Score]]:
        """Evaluate genes: their places, best first, and their scores; the best are kept."""
        scores = []
        for genes in generation:
            score = self.judge.score(self.assembler.assemble(self.genome.plan(genes)))
            scores.append(score)
            self.evaluations += 1
            if not self.kept or self._key(score) > self._key(self.score):
                self.history.append({"evaluations": self.evaluations, **_score(score)})
            if all(score != other for other, _ in self.kept):  # else most likely the same network
                self.kept.append((score, genes.copy()))
                self.kept.sort(key=lambda entry: self._key(entry[0]), reverse=True)
                del self.kept[FINALISTS:]
        # Of equals the earlier one is first.
        order = sorted(range(len(scores)), key=lambda i: self._key(scores[i]), reverse=True)
        return order, scores

    def _key(self, score: Score) -> tuple[float, float]:
        """What is greater for a better score."""
        if self.ranking is Ranking.LOSS:
            return -score.loss, score.correct
        return score.correct, -score.loss

    def choose(self, judge: Judge) -> tuple[Floats, Score]:
        """The most accurate of the kept ones on more images, and its score there."""
        scored = [
            (judge.score(self.assembler.assemble(self.genome.plan(genes))), genes)
            for _, genes in self.kept
        ]
        score, genes = max(scored, key=lambda entry: entry[0])  # of equals the earlier one
        return genes, score

    def record(self) -> dict[str, Any]:
        """What :meth:`restore` needs besides the genes of the best, as JSON values."""
        scores = [{"images": s.images, "correct": s.correct, "loss": s.loss} for s, _ in self.kept]
        return {"evaluations": self.evaluations, "history": self.history, "scores": scores}

    def restore(self, record: Mapping[str, Any], kept: Floats) -> None:
        """Go on where another left off."""
        self.evaluations, self.history = record["evaluations"], list(record["history"])
        self.kept = [(Score(**s), g) for s, g in zip(record["scores"], kept, strict=True)]


def _score(score: Score) -> dict[str, float]:
    return {"accuracy": score.accuracy, "loss": score.loss}


def adaptive(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: AdaptiveOptions | None = None,
    seed: int = 0,
    name: str = "network",
    progress: Progress | None = None,
    state: Path | None = None,
) -> Result:
    """Quantise weights and biases to a fixed width by an evolution strategy, or by a control.

    The search starts from known quantisers, which are evaluated first. Candidates are ranked by
    their cross-entropy on the search images, or a part of them: accuracy alone is coarse, and
    choosing by it chooses chance. The eight best networks of all are compared on the whole search
    set, and the most accurate of them, equals by cross-entropy, is the result.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        The first 500 search images calibrate; the test images are looked at once, at the end.
    options : AdaptiveOptions, optional
    seed : int
        Decides all chance, 0 to ``2**32 - 1``.
    name : str
        Of the integer network.
    progress : Progress, optional
    state : Path, optional
        File that holds how far the search is, written after every generation. A search that finds
        its file goes on where it was, to the same result.

    Returns
    -------
    Result
        Its record holds the options, the seed, the evaluations, the scores of the starts, and the
        history of the best so far.

    Raises
    ------
    BadInput
        If the seed is out of range, there are too few search images, or ``state`` is the file of another search.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    options, seed = check_options(options, AdaptiveOptions), check_seed(seed)
    whole = with_preprocessing(graph, preprocess)
    images = splits.searched(options.images)
    assembler = Assembler(whole)
    genome = _genome(assembler, splits, options)
    run = _Run(
        ranking=options.ranking,
        genome=genome,
        assembler=assembler,
        judge=Judge(splits.search_images[:images], splits.search_labels[:images]),
    )
    saved = SearchState(
        path=state,
        identity={
            "method": "adaptive",
            "options": options.record(),
            "seed": seed,
            "network": graph_digest(whole),
            "search set": splits.digest(),
        },
    )
    record = _search(run, options, seed, saved, progress or Silent())
    genes, chosen = run.choose(Judge(splits.search_images, splits.search_labels))
    plan = genome.plan(genes)
    network = assembler.assemble(plan, name)
    record |= {
        "options": options.record(),
        "seed": seed,
        "searched_images": images,
        "evaluations": run.evaluations,
        "best": _score(run.score),
        "finalists": len(run.kept),
        "chosen": _score(chosen),
        "history": run.history,
        "genes": len(genes),
        "layers": _layers(plan),
    }
    return compare("adaptive", whole, network, splits, record, plan=plan)


def _starts(options: AdaptiveOptions) -> tuple[Start, ...]:
    """The quantisers that the search begins with."""
    if options.control is not None and options.control in ALONE:
        return (ALONE[options.control][1],)
    return STARTS[options.searched_form]


@one_thread()
def _genome(assembler: Assembler, splits: Splits, options: AdaptiveOptions) -> Genome:
    """The genes of the network of raw pixels, its activations as in the baseline."""
    seen = observe_graph(assembler.graph, splits.search_images[:CALIBRATION_IMAGES])
    bits = LayerBits(activations=options.activation_bits)
    base = linear_plan(assembler, seen, QuantConfig(bits=bits))
    formats: dict[str, Fixed] = {}
    for group in assembler.makers:
        if group.node.name in base.outputs:
            formats[assembler.joint[group.last.name]] = base.outputs[group.node.name]
    formats[assembler.joint[INPUT]] = PIXEL
    sources = {
        node.name: formats[assembler.joint[node.inputs[0]]] for node in assembler.graph.mac_nodes
    }
    forward = Forward(
        assembler=assembler,
        images=splits.search_images[:CORRECTION_IMAGES],
        outputs=base.outputs,
    )
    return Genome.of(
        forward,
        sources,
        seen.layers,
        form=options.searched_form,
        bits=options.bits,
        entry_bits=options.entries,
        correct=options.correct_biases,
        fitted=options.control is not Control.LLOYD,
    )


def _search(
    run: _Run, options: AdaptiveOptions, seed: int, saved: SearchState, progress: Progress
) -> dict[str, Any]:
    """Evaluate the starts, then generation by generation until the budget is spent."""
    budget = options.evaluations
    rng = np.random.default_rng(seed)
    with progress.steps("adaptive quantisation", budget) as advance:
        found = saved.load()
        if found is None:
            starts = _starts(options)[:budget]
            _, scores = run.rank([run.genome.start(kind) for kind in starts])
            reached = {k.value: _score(s) for k, s in zip(starts, scores, strict=True)}
            search = _searcher(run, options)
        else:
            record, arrays = found
            run.restore(record["run"], arrays.pop("kept"))
            search = _searcher(run, options)
            search.restore(arrays)
            reached, rng.bit_generator.state = record["starts"], record["rng"]
        while True:
            state = {"starts": reached, "run": run.record(), "rng": rng.bit_generator.state}
            kept = np.array([genes for _, genes in run.kept])
            saved.save(state, {"kept": kept, **search.arrays()})
            text = f"{run.score.accuracy:.2%}, loss {run.score.loss:.4f}"
            advance(run.evaluations, budget, text)
            if run.evaluations >= budget:
                break
            order, _ = run.rank(search.ask(rng)[: budget - run.evaluations])
            search.tell(order)
    return {"starts": reached}


def _searcher(run: _Run, options: AdaptiveOptions) -> Search:
    """What proposes candidates, from the best starts."""
    sets, directions = run.genome.sets, run.genome.directions
    if options.control is not None:
        return RandomSearch(
            mean=run.kept[0][1],
            sets=sets,
            directions=directions,
            offspring=options.offspring,
            step=options.first_step,
        )
    return Strategy(
        starts=np.array([genes for _, genes in run.kept]),
        sets=sets,
        directions=directions,
        parents=options.mu,
        offspring=options.offspring,
        step=options.first_step,
    )


def _layers(plan: Plan) -> dict[str, Any]:
    """What each layer came to."""
    return {
        name: {
            "scale": float(layer.scale[0]),
            "width": layer.width,
            "entries": None if layer.codebook is None else len(layer.codebook),
        }
        for name, layer in plan.layers.items()
    }
