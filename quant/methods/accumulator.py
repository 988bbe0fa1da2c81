"""Formats for a given accumulator; re-implemented from the published abstract, and taken further.

B. de Bruin, Z. Zivkovic, H. Corporaal: "Quantization of deep neural networks for accumulator-
constrained processors", Microprocessors and Microsystems 72, 2020: for accumulators of P bits the
pairs of data and weight widths that fill them, layer by layer, and a search for the most accurate
ones. Then weights are fitted to the bound themselves: see :mod:`quant.methods.accumulator_fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import INPUT, MacOp, Network
from quant import graph as fg
from quant.assemble import Assembler
from quant.baseline import with_preprocessing
from quant.finetune import FineTuner, FinetuneRecipe
from quant.graph import FloatGraph
from quant.judge import Judge, Score, score_outputs
from quant.methods.accumulator_bounds import Bound, count_wraps
from quant.methods.accumulator_design import (
    PIXELS,
    PIXELS_LOG2,
    Designer,
    Rules,
    Setting,
    with_pixels,
)
from quant.methods.accumulator_refine import refined
from quant.methods.accumulator_samples import Samples, collect
from quant.methods.accumulator_scales import Scales
from quant.methods.accumulator_search import (
    Book,
    allowed,
    beam_search,
    fill_moves,
    filling,
    near_moves,
    uniform,
)
from quant.methods.accumulator_tune import prepare, tuned_plan
from quant.methods.result import Result, compare
from quant.models import Preprocess
from quant.plan import Plan
from quant.progress import Progress, Silent
from quant.splits import Splits
from quant.state import SearchState, graph_digest

__all__ = ["AccumulatorOptions", "Bound", "Scales", "accumulator"]

TUNED = "tuned"
"""Name of the stage after fine-tuning."""

PATIENCE = 4
"""Rounds in which the steps of layers that wrapped on calibration images are made coarser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulatorOptions:
    """What is asked of :func:`accumulator`.

    Parameters
    ----------
    bits : int
        Width P of every layer's accumulator, 12 to 32.
    bound : Bound
    project : bool
        Whether to go on after the search over pairs: fit and project weights, measure channels in
        units of their own, search widths and ranges anew.
    scales : Scales
        Of the fitted weights' channels.
    rescale : bool
        Whether raw pixels may be rescaled to fewer bits in front of the first layer.
    widest : int
        Most bits of data and of weights, 3 to 8.
    evaluations : int
        Scores that each of the two searches may ask for, about; at least 1.
    beam : int
        Settings that a search keeps, at least 1.
    images : int, optional
        Search images that judge, the first ones; all by default.
    calibration : int
        Search images that calibrate, the first ones; at least 10, those there are if fewer.
    epochs : int
        Of fine-tuning; 0 is none.
    rate : float
        Largest learning rate of fine-tuning.
    mirror : bool
        Whether fine-tuning mirrors half of its images.
    distill : float
        See :class:`.FinetuneRecipe`.

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    bits: int = 16
    bound: Bound = Bound.WEIGHTS
    project: bool = True
    scales: Scales = Scales.SHIFT
    rescale: bool = True
    widest: int = 8
    evaluations: int = 150
    beam: int = 2
    images: int | None = None
    calibration: int = 1000
    epochs: int = 0
    rate: float = 1e-3
    mirror: bool = False
    distill: float = 0.7

    def __post_init__(self) -> None:
        ranges = {
            "bits": (12, 32),
            "widest": (3, 8),
            "evaluations": (1, None),
            "beam": (1, None),
            "calibration": (10, None),
            "epochs": (0, None),
        }
        if self.images is not None:
            ranges["images"] = (10, None)
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < low or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                what = "the width of accumulators" if name == "bits" else name
                raise BadInput(f"{what} must be a whole number, {limits}, not {value!r}")
        self.recipe  # noqa: B018 - checks its values

    @property
    def recipe(self) -> FinetuneRecipe:
        """How to fine-tune."""
        return FinetuneRecipe(
            epochs=self.epochs, rate=self.rate, mirror=self.mirror, distill=self.distill
        )

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        return {k: v.value if isinstance(v, Enum) else v for k, v in found.items()}


@dataclass(kw_only=True, eq=False)
class _Stage:
    """A network that a stage gave, with what is reported of it."""

    name: str
    plan: Plan
    network: Network
    score: Score
    setting: Setting
    designer: Designer = field(repr=False)


class _Run:
    """A run of the method."""

    def __init__(
        self,
        graph: FloatGraph,
        splits: Splits,
        options: AccumulatorOptions,
        seed: int,
        name: str,
        state: SearchState,
        advance: Callable[[str], object],
    ) -> None:
        self.raw, self.splits, self.options, self.seed = graph, splits, options, seed
        self.name, self.state, self.advance = name, state, advance
        rescaled = options.rescale and _reads_pixels_alone(graph)
        self.graph = with_pixels(graph) if rescaled else graph
        count = options.images or len(splits.search_images)
        self.images = splits.search_images[:count]
        self.labels = splits.search_labels[:count]
        self.calibration = splits.search_images[: options.calibration]
        self.tuner: dict[str, np.ndarray[Any, Any]] = {}
        self.book = Book(judge=Judge(self.images, self.labels), images=len(self.images))
        self.book.save = self.save
        found = state.load()
        if found is not None:
            record, self.tuner = found
            self.book.scores = dict(record["scores"])
            self.book.history = list(record["history"])
        self.samples: Samples = collect(self.graph, self.calibration, seed)
        self.stages: list[_Stage] = []
        self.pairs: dict[str, list[dict[str, int]]] = {}

    def save(self) -> None:
        """Keep all scores, and the fine-tuning."""
        record = {"scores": self.book.scores, "history": self.book.history}
        self.state.save(record, self.tuner)

    def rules(self, **changes: Any) -> Rules:
        """The rules of the options."""
        o = self.options
        rules = Rules(bits=o.bits, widest=o.widest, bound=o.bound, scales=o.scales)
        return replace(rules, **changes)

    def add(self, stage: str, designer: Designer, setting: Setting, plan: Plan) -> None:
        """Measure and note what a stage gave."""
        network = self.assemble(designer, plan)
        score = self.book.measure(f"{stage}.", lambda: network)
        self.stages.append(
            _Stage(
                name=stage,
                plan=plan,
                network=network,
                score=score,
                setting=setting,
                designer=designer,
            )
        )
        self.advance(f"{stage} {100 * score.accuracy:.2f}%")
        self.save()

    def assemble(self, designer: Designer, plan: Plan) -> Network:
        """The network of a plan; pixels of 8 bits need no rescaling."""
        form = plan.outputs.get(PIXELS)
        if designer.graph is self.raw or form is None or form.width < 8:
            return designer.assembler.assemble(plan, self.name)
        return _without_pixels(self.raw, designer.graph, plan, self.name)

    def search_pairs(self) -> None:
        """The usual quantiser: at one width everywhere, then the pairs that fill accumulators."""
        designer = Designer(self.graph, self.samples, self.rules(), plain=True)
        widths = allowed(designer)
        for node in self.graph.mac_nodes:
            self.pairs[node.name] = [asdict(pair) for pair in designer.pairs(node)]
        fill = filling(designer, widths)
        flat = list(
            dict.fromkeys(
                uniform(designer, widths, bits) for bits in range(1, self.options.widest + 1)
            )
        )
        scores = [self.book.score("control", designer, setting) for setting in flat]
        best = max(range(len(flat)), key=lambda i: scores[i])
        self.add("control", designer, flat[best], designer.plan(flat[best]))
        order = sorted(range(len(flat)), key=lambda i: scores[i], reverse=True)
        keys = list(fill)
        setting = beam_search(
            self.book,
            "pairs",
            designer,
            [flat[i] for i in order[: self.options.beam]],
            fill_moves(fill),
            keys,
            beam=self.options.beam,
            budget=self.options.evaluations,
            advance=self.advance,
        )
        self.add("pairs", designer, setting, designer.plan(setting))

    def search_fitted(self) -> None:
        """Widths and ranges of data for weights that are fitted to the bound."""
        designer = Designer(self.graph, self.samples, self.rules(), plain=False)
        widths = allowed(designer)
        start = self.stages[-1].setting
        flat = [uniform(designer, widths, bits) for bits in range(2, self.options.widest + 1)]
        setting = beam_search(
            self.book,
            "fitted",
            designer,
            list(dict.fromkeys([start, *flat])),
            near_moves(designer, widths),
            list(widths),
            beam=self.options.beam,
            budget=self.options.evaluations,
            advance=self.advance,
        )
        self.add("fitted", designer, setting, designer.plan(setting))

    def refine(self) -> None:
        """Fit every layer again, to the inputs that the integer network gives it."""
        last = self.stages[-1]
        plan = refined(last.designer, last.setting, last.plan)
        self.add("refined", last.designer, last.setting, plan)

    def widen_steps(self) -> None:
        """Under the calibrated bound: coarser steps where calibration images still wrap."""
        margins: dict[str, int] = {}
        last = self.best()
        for patience in range(PATIENCE):
            wraps, _ = count_wraps(last.network, self.calibration, self.options.bits)
            if wraps.total == 0:
                return
            for layer, count in wraps.layers.items():
                margins[layer] = margins.get(layer, 0) + int(count > 0)
            rules = self.rules(margins=dict(margins))
            designer = Designer(self.graph, self.samples, rules, plain=False)
            self.stages = [s for s in self.stages if s.designer.plain]
            self.add(f"coarser{patience}", designer, last.setting, designer.plan(last.setting))
            last = self.stages[-1]

    def best(self) -> _Stage:
        """The best stage on the search set; a later one if equal. Controls count too.

        A float network that was trained on the search images knows them better than what was
        fine-tuned without them: training images, which both know, then say whether that is better.
        """
        if not (self.splits.search_seen and self.stages[-1].name == TUNED):
            return max(reversed(self.stages), key=lambda stage: stage.score)
        tuned = self.stages[-1]
        other = max(reversed(self.stages[:-1]), key=lambda stage: stage.score)
        count = len(self.images)
        judge = Judge(self.splits.train_images[:count], self.splits.train_labels[:count])
        return max(tuned, other, key=lambda stage: judge.score(stage.network))

    def tune(self) -> None:
        """Fine-tune the best fitted network."""
        start = max(
            (s for s in self.stages if not s.designer.plain or not self.options.project),
            key=lambda s: s.score,
        )
        tuning = prepare(start.designer, start.setting, start.plan)
        tuner = FineTuner(
            tuning.graph,
            images=self.splits.train_images,
            labels=self.splits.train_labels,
            recipe=self.options.recipe,
            seed=self.seed,
            weights=tuning.weights,
            biases=tuning.biases,
            outputs=tuning.outputs,
            teacher=self.graph,
        )
        if self.tuner:
            tuner.restore(self.tuner)
        while tuner.epoch < self.options.epochs:
            loss = tuner.run_epoch()
            self.tuner = tuner.arrays()
            self.advance(f"epoch {tuner.epoch}: loss {loss:.4f}")
            self.save()
        plan = tuned_plan(start.designer, start.setting, start.plan, tuner.graph())
        self.add(TUNED, start.designer, start.setting, plan)


def accumulator(
    graph: FloatGraph,
    *,
    preprocess: Preprocess,
    splits: Splits,
    options: AccumulatorOptions,
    seed: int = 0,
    name: str = "network",
    progress: Progress | None = None,
    state: Path | None = None,
) -> Result:
    """Quantise so that every layer's accumulator fits P bits, as accurately as can be.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
    splits : Splits
        Search images calibrate and judge; training images are for fine-tuning only.
    options : AccumulatorOptions
    seed : int
        Of the samples of calibration images and of fine-tuning.
    name : str
        Of the integer network.
    progress : Progress, optional
    state : Path, optional
        File that keeps how far the search is; a later run with the same arguments goes on from it.

    Returns
    -------
    Result
        Under :attr:`Bound.FORMATS` and :attr:`Bound.WEIGHTS` every accumulator of the network has
        at most P bits. Under :attr:`Bound.CALIBRATED` accumulators stay as wide as the weights
        need, and the record says how many on the search and test images P bits would not hold, and
        what the network would reach if they wrapped around.

    Raises
    ------
    BadInput
        If no widths make a layer fit, naming the layer, the channel and the narrowest accumulator;
        or a state of another search.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    whole = with_preprocessing(graph, preprocess)
    identity = {
        "method": "accumulator",
        "options": options.json(),
        "seed": seed,
        "network": graph_digest(whole),
        "search": splits.digest(),
    }
    total = 2 * options.evaluations + options.epochs
    with (progress or Silent()).steps(f"fit {options.bits}-bit accumulators", total) as advance:
        run: _Run

        def tell(text: str) -> None:
            done = run.book.asked + int(run.tuner.get("epoch", 0))
            advance(min(done, total), total, text)

        run = _Run(
            whole,
            splits,
            options,
            seed,
            name,
            SearchState(path=state, identity=identity),
            tell,
        )
        if options.epochs and len(splits.train_images) == 0:
            raise BadInput(
                "fine-tuning needs training images, and there are none; ask for 0 epochs"
            )
        run.search_pairs()
        if options.project:
            run.search_fitted()
            run.refine()
            if options.bound is Bound.CALIBRATED:
                run.widen_steps()
        if options.epochs:
            run.tune()
    return _result(run, whole)


def _reads_pixels_alone(graph: FloatGraph) -> bool:
    """Whether nothing but layers reads the raw pixels."""
    return all(isinstance(node, fg.Conv | fg.Linear) for node in graph.consumers(INPUT))


def _without_pixels(raw: FloatGraph, rescaled: FloatGraph, plan: Plan, name: str) -> Network:
    """The same network on raw pixels, where rescaling them keeps their 8 bits."""
    factor = 2.0 ** (PIXELS_LOG2 - 8)
    layers = {
        node.name: replace(plan.layer(node.name), scale=plan.layer(node.name).scale * factor)
        for node in rescaled.consumers(PIXELS)
    }
    outputs = {layer: form for layer, form in plan.outputs.items() if layer != PIXELS}
    return Assembler(raw).assemble(Plan(layers={**plan.layers, **layers}, outputs=outputs), name)


def _result(run: _Run, whole: FloatGraph) -> Result:
    """The best network, and the record."""
    options, splits, chosen = run.options, run.splits, run.best()
    if options.bound is not Bound.CALIBRATED:
        wide = [op.name for op in _macs(chosen.network) if op.accumulator_width > options.bits]
        assert not wide, f"accumulators of {wide} exceed {options.bits} bits"
    judge = Judge(splits.test_images, splits.test_labels)
    stages = [
        {
            "stage": stage.name,
            "search": {"accuracy": stage.score.accuracy, "loss": stage.score.loss},
            "test": judge.score(stage.network).accuracy,
            "layers": _layers(stage.network),
        }
        for stage in run.stages
    ]
    record: dict[str, Any] = {
        "options": options.json(),
        "seed": run.seed,
        "judged_images": len(run.images),
        "evaluations": len(run.book.scores),
        "history": run.book.history,
        "pairs": run.pairs,
        "stages": stages,
        "chosen": chosen.name,
        "accumulators": max(op.accumulator_width for op in _macs(chosen.network)),
    }
    if options.bound is Bound.CALIBRATED:
        record["wraps"] = _wraps(run, chosen.network)
    return compare("accumulator", whole, chosen.network, splits, record, plan=chosen.plan)


def _macs(network: Network) -> list[MacOp]:
    return [op for op in network.ops if isinstance(op, MacOp)]


def _layers(network: Network) -> list[dict[str, Any]]:
    """Widths of every layer."""
    return [
        {
            "layer": op.name,
            "data": op.input.width,
            "weights": op.weights.width,
            "accumulator": op.accumulator_width,
        }
        for op in _macs(network)
    ]


def _wraps(run: _Run, network: Network) -> dict[str, Any]:
    """What P-bit accumulators would do to a network that only calibration images are known to fit."""
    bits, splits = run.options.bits, run.splits
    found: dict[str, Any] = {}
    sets = {
        "calibration": (run.calibration, splits.search_labels[: len(run.calibration)]),
        "search": (splits.search_images, splits.search_labels),
        "test": (splits.test_images, splits.test_labels),
    }
    for kind, (images, labels) in sets.items():
        exact, _ = count_wraps(network, images, bits)
        outputs = count_wraps(network, images, bits, wrap=True)[1]
        score = score_outputs(outputs, labels, network.output_type.scale)
        found[kind] = {
            "images": exact.images,
            "accumulators": exact.total,
            "images_touched": exact.touched,
            "layers": dict(exact.layers),
            "accuracy_if_wrapped": score.accuracy,
        }
    return found
