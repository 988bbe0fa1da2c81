"""The window stage against plain loops, and its handshakes against the model of its actors."""

from __future__ import annotations

import random

import numpy as np
import pytest
from amaranth.hdl import Shape

from hwgen.errors import BadNetwork
from hwgen.ir.geometry import Geometry
from hwgen.ir.walk import Walk, WindowMode
from rtl.window import Window
from tests.rtl.bench import run_stream
from tests.rtl.models import WindowModel, pixel_beats, window_beats

CODE = Shape(4)


def check(
    walk: Walk,
    *,
    shape: Shape = CODE,
    lanes: int = 1,
    depth: int | None = None,
    group_major: bool = False,
    out_depth: int = 4,
    frames: int = 2,
    gaps: float | None = None,
    stalls: float | None = None,
    seed: int = 0,
) -> list[int]:
    """Run frames back to back; every handshake in its cycle, every beat equal.

    Returns the cycles in which the output beats were taken.
    """
    rng = np.random.default_rng(seed)
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    g = walk.geometry
    images = rng.integers(
        low, low + (1 << shape.width), (frames, walk.groups * lanes, g.height, g.width)
    )
    pad = int(rng.integers(low, low + (1 << shape.width)))
    depth = walk.minimum_depth() if depth is None else depth
    window = Window(walk, shape, lanes, depth, pad, group_major, out_depth)
    expected = window_beats(images, walk, lanes, pad, group_major)
    run = run_stream(
        window,
        pixel_beats(images, lanes),
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        count=len(expected),
        reference=WindowModel(walk, window.words, out_depth),
    )
    assert run.outputs == expected
    return run.output_cycles


def random_walk(rng: random.Random) -> Walk:
    while True:
        kernel = rng.choice([(1, 1), (2, 2), (3, 3), (rng.randint(1, 4), rng.randint(1, 4))])
        mode = rng.choice(list(WindowMode))
        try:
            geometry = Geometry(
                height=rng.randint(1, 7),
                width=rng.randint(1, 7),
                kernel=kernel,
                stride=rng.choice([(1, 1), (2, 2), (rng.randint(1, 5), rng.randint(1, 5))]),
                padding=tuple(rng.choice([0, rng.randrange(kernel[k % 2])]) for k in range(4)),
                ceil_mode=rng.random() < 0.3,
            )
        except BadNetwork:
            continue
        groups = 1 if mode is WindowMode.FULL else rng.choice([1, 1, 2, 3])
        return Walk(geometry=geometry, mode=mode, groups=groups)


@pytest.mark.parametrize("seed", range(120))
def test_random(seed: int) -> None:
    rng = random.Random(seed)
    walk = random_walk(rng)
    least = walk.minimum_depth()
    unit = 1 if walk.mode is WindowMode.TAP else walk.geometry.kernel[0]
    check(
        walk,
        shape=Shape(rng.randint(1, 5), rng.random() < 0.5),
        lanes=rng.randint(1, 3),
        depth=least + rng.choice([0, 0, 1, 2, 5]) * unit,
        group_major=rng.random() < 0.5,
        out_depth=rng.choice([1, 2, 3, 4, 5]),
        frames=rng.choice([2, 3]),
        gaps=rng.choice([None, 0.3, 0.7]),
        stalls=rng.choice([None, 0.3, 0.7]),
        seed=seed,
    )
