"""The stages of the method for a given accumulator, one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import INPUT, Network
from quant import graph as fg
from quant.assemble import Assembler
from quant.finetune import FineTuner
from quant.graph import FloatGraph
from quant.judge import Judge, Score
from quant.methods.accumulator_bounds import Bound, count_wraps
from quant.methods.accumulator_design import Designer
from quant.methods.accumulator_options import AccumulatorOptions
from quant.methods.accumulator_refine import refined
from quant.methods.accumulator_samples import Samples, collect
from quant.methods.accumulator_search import (
    Book,
    allowed,
    beam_search,
    fill_moves,
    filling,
    near_moves,
    uniform,
)
from quant.methods.accumulator_setting import PIXELS, PIXELS_LOG2, Rules, Setting, with_pixels
from quant.methods.accumulator_tune import prepare, tuned_plan
from quant.plan import Plan
from quant.splits import Splits
from quant.state import SearchState

__all__ = ["TUNED", "Run", "Stage"]

TUNED = "tuned"
"""Name of the stage after fine-tuning."""

PATIENCE = 4
"""Rounds in which the steps of layers that wrapped on calibration images are made coarser."""


@dataclass(kw_only=True, eq=False)
class Stage:
    """A network that a stage gave, with what is reported of it."""

    name: str
    plan: Plan
    network: Network
    score: Score
    setting: Setting
    designer: Designer = field(repr=False)


class Run:
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
        self.stages: list[Stage] = []
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
            Stage(
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
        projected = self.options.project and self.options.bound is Bound.WEIGHTS
        for node in self.graph.mac_nodes:
            try:
                self.pairs[node.name] = [asdict(pair) for pair in designer.pairs(node)]
            except BadInput:
                if not projected:
                    raise
                self.pairs[node.name] = []
        if not all(self.pairs.values()):
            return  # nearest integers cannot fit, weights that are projected can
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
        start = [stage.setting for stage in self.stages[-1:]]
        flat = [uniform(designer, widths, bits) for bits in range(2, self.options.widest + 1)]
        setting = beam_search(
            self.book,
            "fitted",
            designer,
            list(dict.fromkeys([*start, *flat])),
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
        last = max((s for s in self.stages if not s.designer.plain), key=lambda s: s.score)
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

    def best(self) -> Stage:
        """The best stage on the search set; a later one if equal. Controls count too.

        A float network that was trained on the search images knows them better than what was
        fine-tuned without them: training images, which both know, then say whether that is better.
        """
        stages = self.stages
        if self.options.bound is Bound.CALIBRATED:  # what wraps there is no result if one does not
            stages = [stage for stage in stages if self._holds(stage)] or stages
        if not (self.splits.search_seen and stages[-1].name == TUNED and len(stages) > 1):
            return max(reversed(stages), key=lambda stage: stage.score)
        tuned = stages[-1]
        other = max(reversed(stages[:-1]), key=lambda stage: stage.score)
        count = len(self.images)
        judge = Judge(self.splits.train_images[:count], self.splits.train_labels[:count])
        return max(tuned, other, key=lambda stage: judge.score(stage.network))

    def _holds(self, stage: Stage) -> bool:
        """Whether no accumulator wraps on the calibration images."""
        wraps, _ = count_wraps(stage.network, self.calibration, self.options.bits)
        return wraps.total == 0

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
