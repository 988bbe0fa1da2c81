"""The reducing stage against plain loops, and its handshakes against the model of its actor."""

from __future__ import annotations

import random
from typing import Any, Literal

import numpy as np
import pytest
from amaranth.hdl import Shape
from numpy.typing import NDArray

from hwgen.ir.formats import width_of
from hwgen.ir.requant import Requant, Rounding
from rtl.reduce import Reduce
from rtl.requant import shape_interval
from tests.rtl.bench import run_stream
from tests.rtl.models import (
    Later,
    ResetInMidFrame,
    TakeModel,
    reduce_beats,
    requant_cycles,
    tree_cycles,
)

Kind = Literal["max", "sum"]


def check(
    beats: NDArray[np.int64],
    *,
    shape: Shape,
    lanes: int,
    steps: int,
    groups: int,
    kind: Kind,
    requant: Requant | None = None,
    shape_out: Shape | None = None,
    out_depth: int = 4,
    gaps: float | None = None,
    stalls: float | None = None,
    seed: int = 0,
    reset_after: int | None = None,
) -> list[int]:
    rows = beats.shape[1] // lanes
    low, high = shape_interval(shape)
    acc = shape if kind == "max" else Shape(*width_of(rows * steps * low, rows * steps * high))
    stage = Reduce(
        shape,
        lanes,
        rows,
        steps,
        groups,
        kind,
        acc,
        requant,
        acc if shape_out is None else shape_out,
        out_depth,
    )
    latency = tree_cycles(rows) + 1 + requant_cycles(requant)
    assert stage.latency == latency
    expected = reduce_beats(beats, lanes, steps, groups, kind, requant)
    model: Any = TakeModel(steps, latency, out_depth)
    dut: Any = stage
    if reset_after is not None:
        dut = ResetInMidFrame(stage, reset_after)
        model = Later(model, dut.start)
    run = run_stream(
        dut,
        [tuple(beat) for beat in beats.tolist()],
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        count=len(expected),
        reference=model,
    )
    assert run.outputs == expected
    return run.output_cycles


@pytest.mark.parametrize("seed", range(80))
def test_random(seed: int) -> None:
    rng, data = random.Random(seed), np.random.default_rng(seed)
    shape = Shape(rng.randint(1, 6), rng.random() < 0.5)
    lanes, rows = rng.randint(1, 3), rng.randint(1, 5)
    steps, groups = rng.choice([1, 2, 3, 9]), rng.randint(1, 3)
    low, high = shape_interval(shape)
    requant, shape_out = None, None
    if rng.random() < 0.6:
        shape_out = Shape(rng.randint(1, 6), rng.random() < 0.5)
        bounds = shape_interval(shape_out)
        channels = groups * lanes if rng.random() < 0.5 else 1
        requant = Requant(
            mult=tuple(rng.randint(1, 9) for _ in range(channels)),
            shift=(rng.randint(0, 9),),
            low=(bounds[0],),
            high=(bounds[1],),
            rounding=rng.choice(list(Rounding)),
        )
    check(
        data.integers(low, high + 1, (steps * groups * 7, rows * lanes)),
        shape=shape,
        lanes=lanes,
        steps=steps,
        groups=groups,
        kind=rng.choice(["max", "sum"]),
        requant=requant,
        shape_out=shape_out,
        out_depth=rng.choice([1, 2, 4, 8]),
        gaps=rng.choice([None, 0.3]),
        stalls=rng.choice([None, 0.3, 0.7]),
        seed=seed,
    )


@pytest.mark.parametrize("reset_after", [2, 9, 20])
def test_reset_in_mid_frame(reset_after: int) -> None:
    beats = np.random.default_rng(0).integers(0, 16, (24, 4))
    check(
        beats,
        shape=Shape(4),
        lanes=2,
        steps=3,
        groups=2,
        kind="sum",
        reset_after=reset_after,
        stalls=0.3,
    )


@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("shape", [Shape(1), Shape(1, True), Shape(8), Shape(8, True)])
def test_extremes(kind: Kind, shape: Shape) -> None:
    ends = np.array(shape_interval(shape), dtype=np.int64)
    beats = np.concatenate([np.full((3, 3), end) for end in ends])
    beats = np.concatenate([beats, np.random.default_rng(0).choice(ends, (30, 3))])
    check(beats, shape=shape, lanes=1, steps=3, groups=1, kind=kind)


def test_one_beat_a_cycle() -> None:
    beats = np.random.default_rng(0).integers(0, 16, (40, 3))
    cycles = check(beats, shape=Shape(4), lanes=1, steps=2, groups=1, kind="max")
    # Taken in cycle 1; tree 2, accumulator 1, buffer 1.
    assert cycles == [1 + 4 + 2 * k for k in range(20)]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="kind of a reduction"):
        Reduce(Shape(4), 1, 1, 1, 1, "mean", Shape(4), None, Shape(4), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accumulators go out as"):
        Reduce(Shape(4), 1, 1, 1, 1, "max", Shape(4), None, Shape(5), 2)
