"""The schedule's actors against the cycle-exact models that the components are tested with."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwgen.ir.walk import WindowMode
from hwgen.lower import stages
from hwgen.lower.schedule import Actor, Need, shifted, solve
from tests.rtl.models import MacModel, TakeModel, WindowModel
from tests.rtl.test_window import random_walk

CODE = stages.Beat(width=4, signed=False, lanes=1)


def scheduled(stage: stages.Stage) -> tuple[int, list[int], list[int]]:
    """Frames, cycles of input and of output beats of a stage, fed and drained without waiting."""
    actors = list(stage.actors())
    makes = actors[-1].makes
    assert makes is not None
    beats, steps = len(makes), actors[-1].steps
    every = np.arange(beats)
    out = Need(source=actors[-1].name, index=makes, lag=stage.latency + 1)
    made = np.searchsorted(makes, np.arange(steps), side="right") - 1
    credit = Need(
        source="output", index=shifted(made - stage.out_depth, every, beats, beats), lag=1
    )
    actors[-1] = replace(actors[-1], needs=(*actors[-1].needs, credit))
    sink = Actor(name="output", steps=beats, takes=every, makes=every, needs=(out,))
    found = solve((*actors, sink))
    takes = found.times[actors[0].name].reshape(-1).tolist()
    return found.frames, takes, found.times["output"].reshape(-1).tolist()


def modelled(model: Any, accepts: int, delivers: int) -> tuple[list[int], list[int]]:
    accepted: list[int] = []
    delivered: list[int] = []
    cycle = 0
    while len(accepted) < accepts or len(delivered) < delivers:
        beat = (0,) if model.ready() and len(accepted) < accepts else None
        taken = model.valid()
        if beat is not None:
            accepted.append(cycle)
        if taken:
            delivered.append(cycle)
        model.tick(beat, taken)
        cycle += 1
        assert cycle < 100_000
    return accepted, delivered


def compare(stage: stages.Stage, model: Any) -> None:
    frames, takes, outputs = scheduled(stage)
    assert modelled(model, frames * stage.frame, len(outputs)) == (takes, outputs)


@pytest.mark.parametrize("seed", range(60))
def test_window(seed: int) -> None:
    rng = random.Random(1000 + seed)
    walk = random_walk(rng)
    g = walk.geometry
    unit = 1 if walk.mode is WindowMode.TAP else g.kernel[0]
    stage = stages.Window(
        name="window",
        layer="layer",
        i=CODE,
        o=CODE,
        frame=g.height * g.width * walk.groups,
        out_depth=rng.choice([1, 2, 3, 4]),
        walk=walk,
        depth=walk.minimum_depth() + rng.choice([0, 0, 1, 2, 5]) * unit,
        pad_code=0,
        group_major=False,
    )
    compare(stage, WindowModel(walk, stage.words, stage.out_depth))


@pytest.mark.parametrize("seed", range(40))
def test_mac(seed: int) -> None:
    rng = random.Random(seed)
    words, folds, in_lanes = rng.choice([1, 2, 3, 5]), rng.choice([1, 2, 3]), rng.randint(1, 7)
    stage = stages.Mac(
        name="mac",
        layer="layer",
        i=replace(CODE, lanes=in_lanes),
        o=CODE,
        frame=4 * words,
        out_depth=rng.choice([1, 2, 5, 9]),
        vectors=4,
        elements=words * in_lanes,
        outputs=folds,
        capacity=(1 if folds == 1 else words) + rng.choice([0, 1, 2, words]),
        weights=np.zeros((folds, words, 1, in_lanes), dtype=np.int64),
        weight_width=4,
        weight_signed=True,
        bias=np.zeros((folds, 1), dtype=np.int64),
        accumulator_width=10,
        requant=None,
    )
    model = MacModel(in_lanes, words, folds, stage.capacity, None, stage.out_depth)
    compare(stage, model)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("out_depth", [1, 3])
def test_reduce(steps: int, out_depth: int) -> None:
    stage = stages.Reduce(
        name="reduce",
        layer="layer",
        i=replace(CODE, lanes=3),
        o=CODE,
        frame=6 * steps,
        out_depth=out_depth,
        rows=3,
        steps=steps,
        groups=2,
        maximum=True,
        accumulator_width=4,
        accumulator_signed=False,
        requant=None,
    )
    compare(stage, TakeModel(steps, 2 + 1, out_depth))
