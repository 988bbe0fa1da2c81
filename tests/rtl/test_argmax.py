"""Argmax against ``numpy.argmax``, with its exact delay and credits."""

from __future__ import annotations

import random

import numpy as np
import pytest
from amaranth.hdl import Shape, signed, unsigned

from hwgen.ir.timing import tree_latency
from rtl.argmax import Argmax
from rtl.requant import shape_interval
from tests.rtl.bench import run_stream
from tests.rtl.models import TakeModel


def check(
    shape: Shape, lanes: int, vector: int, depth: int, rng: random.Random,
    gaps: float | None, stalls: float | None,
) -> None:  # fmt: skip
    low, high = shape_interval(shape)
    beats = -(-vector // lanes)
    # Few different values, so that ties are common, and the lowest code among them.
    pool = [low, high, rng.randint(low, high), rng.randint(low, high)]
    frames = [[rng.choice(pool[: rng.randint(1, 4)]) for _ in range(vector)] for _ in range(8)]
    stream = []
    for frame in frames:
        # Free lanes hold the highest code: the stage must not look at them.
        full = frame + [high] * (beats * lanes - vector)
        stream += [tuple(full[k : k + lanes]) for k in range(0, len(full), lanes)]
    dut = Argmax(shape, lanes, vector, depth)
    assert dut.latency == tree_latency(lanes) + 1
    assert dut.o.payload.shape().elem_shape == unsigned(max(1, (vector - 1).bit_length()))
    run = run_stream(
        dut, stream, gaps=gaps, stalls=stalls, seed=rng.randrange(1 << 30), count=len(frames),
        reference=TakeModel(beats, dut.latency, depth),
    )  # fmt: skip
    assert run.outputs == [(int(np.argmax(frame)),) for frame in frames]


@pytest.mark.parametrize(
    "lanes, vector", [(1, 10), (10, 10), (3, 10), (4, 10), (1, 1), (7, 5), (2, 9)]
)
def test_finds_the_lowest_index(lanes: int, vector: int) -> None:
    rng = random.Random(lanes)
    for gaps, stalls in ((None, None), (0.4, None), (None, 0.6), (0.3, 0.3)):
        for shape in (signed(9), unsigned(4)):
            check(shape, lanes, vector, 2, rng, gaps, stalls)


def test_random_sweep() -> None:
    rng = random.Random(4)
    for _ in range(100):
        shape = rng.choice([signed(1), signed(21), unsigned(1), unsigned(8)])
        gaps, stalls = rng.choice([None, 0.4]), rng.choice([None, 0.4])
        check(shape, rng.randint(1, 9), rng.randint(1, 20), rng.randint(1, 4), rng, gaps, stalls)


def test_only_the_last_beat_waits_for_a_credit() -> None:
    """With no room for an index, the beats before the last are taken all the same."""
    dut = Argmax(unsigned(4), 1, 4, 1)
    run = run_stream(dut, [(code,) for code in (1, 3, 2, 0) * 3], count=3)
    assert run.outputs == [(1,)] * 3
    # A beat a cycle: an index comes out, and its credit back, before the next vector ends.
    assert run.accept_cycles == list(range(12))
    assert run.output_cycles == [5, 9, 13]
    late = run_stream(dut, [(0,)] * 12, stalls=0.9, seed=1, reference=TakeModel(4, 1, 1), count=3)
    assert late.accept_cycles[:7] == list(range(7))
    assert late.output_cycles[0] > 7
    assert late.accept_cycles[7] == late.output_cycles[0] + 1
