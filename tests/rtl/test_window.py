"""The window stage against plain loops, and its handshakes against the model of its actors."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Shape

from hwgen.errors import BadNetwork
from hwgen.ir.geometry import Geometry
from hwgen.ir.walk import Walk, WindowMode
from rtl.window import Window
from tests.rtl.bench import run_stream
from tests.rtl.models import Later, ResetInMidFrame, WindowModel, pixel_beats, window_beats

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
    reset_after: int | None = None,
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
    model: Any = WindowModel(walk, window.words, out_depth)
    dut: Any = window
    if reset_after is not None:
        dut = ResetInMidFrame(window, reset_after)
        model = Later(model, dut.start)
    run = run_stream(
        dut,
        pixel_beats(images, lanes),
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        count=len(expected),
        reference=model,
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


def square(size: int, kernel: int, mode: WindowMode, *, padding: int = 0, stride: int = 1) -> Walk:
    geometry = Geometry(
        height=size,
        width=size,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding,) * 4,
    )
    return Walk(geometry=geometry, mode=mode, groups=1)


@pytest.mark.parametrize("mode", list(WindowMode))
@pytest.mark.parametrize("reset_after", [5, 23, 40, 77])
def test_reset_in_mid_frame(mode: WindowMode, reset_after: int) -> None:
    check(square(6, 3, mode, padding=1), reset_after=reset_after, stalls=0.3, frames=1, seed=3)


@pytest.mark.parametrize("mode", list(WindowMode))
@pytest.mark.parametrize("kernel,stride", [(5, 1), (2, 2), (1, 1), (1, 3), (2, 3)])
def test_runs_without_bubbles(mode: WindowMode, kernel: int, stride: int) -> None:
    walk = square(8, kernel, mode, stride=stride)
    # Room for the next frame while this one drains.
    depth = 128 if mode is WindowMode.TAP else 16 // kernel * kernel
    cycles = check(walk, depth=depth, frames=3, out_depth=8)
    # The last pixel of the first window is accepted in cycle `need`, its step fires in the next.
    need = int(walk.need()[0, 0])
    if mode is not WindowMode.FULL:
        assert cycles[0] == need + 1 + 3
    steps, pixels = walk.rows * walk.columns * walk.steps, 64
    beats = len(cycles) // 3
    # Reading or writing is the slower actor; neither ever waits for the other once it runs.
    assert cycles[3 * beats - 1] - cycles[2 * beats - 1] == max(steps, pixels)


@pytest.mark.parametrize("shape", [Shape(1), Shape(1, True), Shape(8), Shape(16, True)])
@pytest.mark.parametrize("mode", list(WindowMode))
def test_formats(shape: Shape, mode: WindowMode) -> None:
    check(square(5, 3, mode, padding=2), shape=shape, lanes=2)


def test_minimum_depth_is_the_least() -> None:
    """One unit less and the actors wait for each other for ever."""
    rng = random.Random(1)
    for _ in range(200):
        walk = random_walk(rng)
        g = walk.geometry
        unit = 1 if walk.mode is WindowMode.TAP else g.width * walk.groups * g.kernel[0]
        least = walk.minimum_depth()
        words = least if walk.mode is WindowMode.TAP else least * g.width * walk.groups
        for ring, lives in ((words, True), (words - unit, False)):
            if ring < 1:
                continue
            model = WindowModel(walk, ring, 4)
            accepted = 0
            steps, pixels = walk.rows * walk.columns * walk.steps, g.width * g.height
            for _ in range(4 * (steps + pixels * walk.groups)):
                taken, beat = model.valid(), (0,) if model.ready() else None
                accepted += beat is not None
                model.tick(beat, taken)
            assert (accepted >= 2 * g.height * g.width * walk.groups) == lives


def test_refusals() -> None:
    walk = square(6, 3, WindowMode.COLUMN)
    with pytest.raises(ValueError, match="at least 3 image rows, a multiple of 3, not 4"):
        Window(walk, CODE, 1, 4, 0, False, 2)
    with pytest.raises(ValueError, match="depth must be at least 15 words, not 14"):
        Window(replace(walk, mode=WindowMode.TAP), CODE, 1, 14, 0, False, 2)
    with pytest.raises(ValueError, match="1 word a pixel, not 2"):
        Window(replace(walk, mode=WindowMode.FULL, groups=2), CODE, 1, 3, 0, False, 2)
    with pytest.raises(ValueError, match="pad code must fit"):
        Window(walk, CODE, 1, 3, -1, False, 2)
