"""Adaptive integer quantisation: an evolution strategy moves clip bounds or bin boundaries.

Re-implemented from the published abstract of a method that evolves the quantisation of weights and
biases of LeNet-5 at a fixed width. What is added to it: levels of codebooks and biases that follow
from the genes by least squares, so that the search has only the nonlinear part to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from operator import index
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import INPUT, Fixed
from quant.assemble import PIXEL, Assembler
from quant.baseline import linear_plan, observe_graph, with_preprocessing
from quant.config import LayerBits, QuantConfig
from quant.formats import Floats
from quant.graph import FloatGraph
from quant.judge import Judge, Score
from quant.methods.adaptive_genes import Form, Genome, Start
from quant.methods.adaptive_strategy import RandomSearch, Strategy
from quant.methods.linear import CALIBRATION_IMAGES
from quant.methods.result import Result, compare
from quant.models import Preprocess
from quant.plan import Plan
from quant.progress import Progress, Silent
from quant.splits import FEWEST, Splits
from quant.state import SearchState, graph_digest

__all__ = ["AdaptiveOptions", "Control", "Form", "Start", "adaptive"]


class Control(Enum):
    """What the evolution strategy is measured against, at the same number of evaluations.

    The first evaluation of all but :attr:`RANDOM` is the quantiser of that name, the others are
    samples around it: with ``evaluations=1`` it is the plain quantiser.
    """

    LINEAR = "linear"
    """Uniform levels over the range without saturation."""
    MSE = "mse"
    """Uniform levels, the clip bounds of the least squared error of weights and of biases."""
    LLOYD = "lloyd"
    """A codebook of Lloyd-Max levels."""
    RANDOM = "random"
    """Samples around the best of the strategy's own starts, with the strategy's first steps."""


STARTS: Mapping[Form, tuple[Start, ...]] = {
    Form.CLIP: (Start.OUTPUT, Start.MSE, Start.LINEAR),
    Form.CODEBOOK: (
        *(Start.OUTPUT, Start.LLOYD, Start.KMEANS, Start.WEIGHTED, Start.MSE),
        Start.LINEAR,
    ),
}
"""What the search begins with, by form; all are evaluated."""

ALONE: Mapping[Control, tuple[Form, Start]] = {
    Control.LINEAR: (Form.CLIP, Start.LINEAR),
    Control.MSE: (Form.CLIP, Start.MSE),
    Control.LLOYD: (Form.CODEBOOK, Start.LLOYD),
}
"""Controls that begin with one quantiser: its form and itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveOptions:
    """What adaptive quantisation is asked to do.

    Parameters
    ----------
    bits : int
        Width of all weights as they are stored and of all biases, 2 to 8.
    form : Form
        What evolves. Controls of one form only go their own way.
    entry_bits : int
        Width of a codebook's entries, ``bits`` to 16.
    evaluations : int
        Networks that are tried on the search set, the known quantisers at the start included.
    activation_bits : int
        Width of the activations, 2 to 16: of the baseline's formats, which stay.
    parents, offspring : int
        mu and lambda of the evolution strategy, ``1 <= mu < lambda``.
    step : float
        First standard deviation of a gene; 1 is about the width of a bin.
    images : int, optional
        Search images that the search looks at, the first ones; all by default.
    correct_biases : bool
        Whether biases make up for the mean error that the weights cause on calibration images, in
        the candidates and in all controls.
    control : Control, optional
        Instead of the evolution strategy.

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    bits: int = 4
    form: Form = Form.CLIP
    entry_bits: int = 8
    evaluations: int = 400
    activation_bits: int = 8
    parents: int = 4
    offspring: int = 12
    step: float = 0.15
    images: int | None = None
    correct_biases: bool = True
    control: Control | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("bits", 2, 8),
            ("entry_bits", 2, 16),
            ("activation_bits", 2, 16),
            ("evaluations", 1, None),
            ("parents", 1, None),
            ("offspring", 2, None),
        ):
            object.__setattr__(self, name, _whole(name, getattr(self, name), low, high))
        if self.images is not None:
            object.__setattr__(self, "images", _whole("images", self.images, FEWEST, None))
        if self.entry_bits < self.bits:
            raise BadInput(
                f"entry_bits must be at least bits, {self.bits}, not {self.entry_bits}: a codebook's"
                f" entries must not be narrower than what is stored; give entry_bits={self.bits}"
            )
        if self.parents >= self.offspring:
            raise BadInput(
                f"there must be fewer parents than offspring, {self.offspring}, not {self.parents};"
                f" give parents={max(1, self.offspring // 3)}"
            )
        if not 0 < self.step <= 10:
            raise BadInput(f"step must be above 0 and at most 10, not {self.step}; try 0.15")
        for name, kind in (("form", Form), ("control", Control)):
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "control" and value is None):
                known = ", ".join(f"{kind.__name__}.{k.name}" for k in kind)
                raise BadInput(f"{name} must be one of {known}, not {value!r}")

    def record(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = asdict(self)
        return {k: v.value if isinstance(v, Enum) else v for k, v in values.items()}


def _whole(name: str, value: object, low: int, high: int | None) -> int:
    """A whole number in range.

    Raises
    ------
    BadInput
        If it is none.
    """
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise BadInput(f"{name} must be a whole number {wanted}, not {value!r}; change it")
    return number


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

    ``history`` holds the best so far whenever it changed: evaluations, accuracy and loss.
    """

    genome: Genome
    assembler: Assembler
    judge: Judge
    evaluations: int = 0
    score: Score | None = None
    best: Floats = field(default_factory=lambda: np.zeros(0))
    history: list[dict[str, float]] = field(default_factory=list)

    def rank(self, generation: Sequence[Floats]) -> tuple[list[int], list[Score]]:
        """Evaluate genes: their places, best first, and their scores; the best is kept."""
        scores = []
        for genes in generation:
            network = self.assembler.assemble(self.genome.plan(genes))
            score = self.judge.score(network)
            scores.append(score)
            self.evaluations += 1
            if self.score is None or score > self.score:
                self.score, self.best = score, genes.copy()
                self.history.append({"evaluations": self.evaluations, **_score(score)})
        # Of equals the earlier one is first.
        order = sorted(range(len(scores)), key=lambda i: scores[i], reverse=True)
        return order, scores

    def record(self) -> dict[str, Any]:
        """What :meth:`restore` needs besides the best genes, as JSON values."""
        assert self.score is not None
        score = {
            "images": self.score.images,
            "correct": self.score.correct,
            "loss": self.score.loss,
        }
        return {"evaluations": self.evaluations, "history": self.history, "score": score}

    def restore(self, record: Mapping[str, Any], best: Floats) -> None:
        """Go on where another left off."""
        self.evaluations, self.history = record["evaluations"], list(record["history"])
        self.score, self.best = Score(**record["score"]), best


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

    Candidates are ranked by their accuracy on the search set, equals by cross-entropy. The search
    starts from known quantisers, which are evaluated first; the best network of all is the result.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        The first 500 search images calibrate; the test images are looked at once, at the end.
    options : AdaptiveOptions, optional
    seed : int
        Decides all chance, at least 0.
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
        If there are too few search images, or ``state`` is the file of another search.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    options = options or AdaptiveOptions()
    whole = with_preprocessing(graph, preprocess)
    images = _images(options, splits)
    assembler = Assembler(whole)
    genome = _genome(assembler, splits, options)
    run = _Run(
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
    plan = genome.plan(run.best)
    network = assembler.assemble(plan, name)
    record |= {
        "options": options.record(),
        "seed": seed,
        "searched_images": images,
        "evaluations": run.evaluations,
        "best": _score(run.score) if run.score else None,
        "history": run.history,
        "genes": len(run.best),
        "layers": _layers(plan),
    }
    return compare("adaptive", whole, network, splits, record, plan=plan)


def _images(options: AdaptiveOptions, splits: Splits) -> int:
    """How many search images the search looks at.

    Raises
    ------
    BadInput
        If there are not as many as were asked for.
    """
    have = len(splits.search_images)
    if options.images is not None and options.images > have:
        raise BadInput(
            f"images must be at most the {have} images of the search set, not {options.images};"
            f" give images={have} or hold out more training images"
        )
    return options.images or have


def _begin(options: AdaptiveOptions) -> tuple[Form, tuple[Start, ...]]:
    """The form of the candidates, and the quantisers that the search begins with."""
    if options.control is not None and options.control in ALONE:
        form, start = ALONE[options.control]
        return form, (start,)
    return options.form, STARTS[options.form]


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
    return Genome.of(
        base,
        sources,
        seen.layers,
        form=_begin(options)[0],
        bits=options.bits,
        entry_bits=options.entry_bits,
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
            starts = _begin(options)[1][:budget]
            _, scores = run.rank([run.genome.start(kind) for kind in starts])
            reached = {k.value: _score(s) for k, s in zip(starts, scores, strict=True)}
            search = _searcher(run, options)
        else:
            record, arrays = found
            run.restore(record["run"], arrays.pop("best"))
            search = _searcher(run, options)
            search.restore(arrays)
            reached, rng.bit_generator.state = record["starts"], record["rng"]
        while True:
            state = {"starts": reached, "run": run.record(), "rng": rng.bit_generator.state}
            saved.save(state, {"best": run.best, **search.arrays()})
            best = run.score
            assert best is not None
            advance(run.evaluations, budget, f"{best.accuracy:.2%}, loss {best.loss:.4f}")
            if run.evaluations >= budget:
                break
            order, _ = run.rank(search.ask(rng)[: budget - run.evaluations])
            search.tell(order)
    return {"starts": reached}


def _searcher(run: _Run, options: AdaptiveOptions) -> Search:
    """What proposes candidates, from the best start."""
    if options.control is not None:
        return RandomSearch(mean=run.best, offspring=options.offspring, step=options.step)
    return Strategy(
        mean=run.best,
        sets=run.genome.sets,
        parents=options.parents,
        offspring=options.offspring,
        step=options.step,
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
