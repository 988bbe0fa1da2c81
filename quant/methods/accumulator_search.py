"""The joint search over widths and clips: a beam through the tensors, again until nothing is won."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hwgen.ir import Network
from quant.judge import Judge, Score
from quant.methods.accumulator_bounds import Bound
from quant.methods.accumulator_design import Designer
from quant.methods.accumulator_setting import Setting

__all__ = ["Book", "allowed", "beam_search", "fill_moves", "near_moves", "uniform"]

Moves = Callable[[Setting, str], list[Setting]]


@dataclass(kw_only=True)
class Book:
    """Scores by stage and setting, and how the best rose.

    Parameters
    ----------
    judge : Judge
    scores : dict
        Correct images and loss by stage and setting: those of an interrupted search are not
        computed again.
    history : list
        Entries ``[evaluations, stage, accuracy]`` whenever a stage's best rose.
    save : callable
        Told after every step.
    """

    judge: Judge
    images: int
    scores: dict[str, list[float]] = field(default_factory=dict)
    history: list[list[Any]] = field(default_factory=list)
    save: Callable[[], object] = lambda: None
    asked: int = 0

    def score(self, stage: str, designer: Designer, setting: Setting) -> Score:
        """The score of a setting, remembered."""
        self.asked += 1
        key = json.dumps([stage, setting.bits, setting.clips])
        if key not in self.scores:
            network = designer.assembler.assemble(designer.plan(setting))
            found = self.judge.score(network)
            self.scores[key] = [found.correct, found.loss]
            self._note(stage, found)
        correct, loss = self.scores[key]
        return Score(images=self.images, correct=int(correct), loss=loss)

    def measure(self, stage: str, make: Callable[[], Network]) -> Score:
        """The score of a network of a stage that searches nothing, remembered."""
        if stage not in self.scores:
            found = self.judge.score(make())
            self.scores[stage] = [found.correct, found.loss]
            self._note(stage, found)
        correct, loss = self.scores[stage]
        return Score(images=self.images, correct=int(correct), loss=loss)

    def _note(self, stage: str, found: Score) -> None:
        before = [entry[2] for entry in self.history if entry[1] == stage]
        if not before or found.accuracy > max(before):
            self.history.append([len(self.scores), stage, found.accuracy])


def allowed(designer: Designer) -> dict[str, list[int]]:
    """Widths of data that some width of weights fits, for every set of tensors that layers read.

    Under a bound that weights are projected onto, any width.
    """
    rules = designer.rules
    free = not designer.plain and rules.bound is not Bound.FORMATS
    found: dict[str, list[int]] = {}
    for key in designer.keys:
        if not designer.feeds(key):
            continue
        nodes = [
            n for n in designer.graph.mac_nodes if designer.assembler.joint[n.inputs[0]] == key
        ]
        widths = range(1 + designer.signed(key), rules.widest + 1)
        found[key] = [
            bits
            for bits in widths
            if free or all(_fits(designer, node, key, bits) for node in nodes)
        ]
    return found


def _fits(designer: Designer, node: Any, key: str, bits: int) -> bool:
    source = designer.source(node, designer.start().changed(key, bits=bits))
    return designer.weight_bits(node, source) > 0


def filling(designer: Designer, widths: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Of these widths those at which some layer's pair fills its accumulator."""
    found: dict[str, list[int]] = {}
    for node in designer.graph.mac_nodes:
        pairs = designer.pairs(node)
        key = designer.assembler.joint[node.inputs[0]]
        if key in widths:
            found[key] = sorted({*found.get(key, []), *(pair.data for pair in pairs)})
    return {key: [b for b in found[key] if b in widths[key]] or list(widths[key]) for key in widths}


def uniform(designer: Designer, widths: Mapping[str, Sequence[int]], bits: int) -> Setting:
    """All tensors at one width, or the nearest one that they may have."""
    setting = designer.start(designer.rules.widest)
    for key, can in widths.items():
        setting = setting.changed(key, bits=min(can, key=lambda b: (abs(b - bits), b)))
    return setting


def fill_moves(widths: Mapping[str, Sequence[int]]) -> Moves:
    """Any of a tensor's widths."""

    def moves(setting: Setting, key: str) -> list[Setting]:
        return [setting.changed(key, bits=bits) for bits in widths[key]]

    return moves


def near_moves(designer: Designer, widths: Mapping[str, Sequence[int]]) -> Moves:
    """The next widths of a tensor, and the next clips."""

    def moves(setting: Setting, key: str) -> list[Setting]:
        bits, clip = dict(setting.bits)[key], dict(setting.clips)[key]
        found = [setting.changed(key, bits=b) for b in (bits + 1, bits - 1) if b in widths[key]]
        step = designer.clip_step(key)
        if step:
            found += [setting.changed(key, clip=c) for c in (clip + step, clip - step)]
        return found

    return moves


def beam_search(
    book: Book,
    stage: str,
    designer: Designer,
    starts: Sequence[Setting],
    moves: Moves,
    keys: Sequence[str],
    *,
    beam: int,
    budget: int,
    advance: Callable[[str], object],
) -> Setting:
    """Vary one tensor after another, keeping the best few settings, until a pass wins nothing.

    Parameters
    ----------
    book : Book
    stage : str
    designer : Designer
    starts : sequence of Setting
    moves : callable
        Other settings of a tensor.
    keys : sequence of str
        Tensors, in the order in which they are varied.
    beam : int
        Settings kept.
    budget : int
        Scores asked for after which no further tensor is begun.
    advance : callable
        Told what was reached, step by step.
    """

    def ranked(settings: Sequence[Setting]) -> list[Setting]:
        distinct = list(dict.fromkeys(settings))
        found = [book.score(stage, designer, setting) for setting in distinct]
        order = sorted(range(len(distinct)), key=lambda i: found[i], reverse=True)
        best = found[order[0]]
        advance(f"{stage} {100 * best.accuracy:.2f}%")
        book.save()
        return [distinct[i] for i in order[:beam]]

    first = book.asked
    kept = ranked(starts)
    while True:
        before = kept[0]
        for key in keys:
            if book.asked - first >= budget:
                return kept[0]
            kept = ranked([*kept, *(new for old in kept for new in moves(old, key))])
        if kept[0] == before:
            return before
