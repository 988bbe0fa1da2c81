"""The rescaling stage against ``Requant.apply``, with its exact delay and credits."""

from __future__ import annotations

import random

import numpy as np
import pytest
from amaranth.hdl import signed, unsigned

from hwgen.ir.requant import Requant
from rtl.requant import shape_interval
from rtl.rescale import Rescale
from tests.rtl.bench import run_stream
from tests.rtl.test_buffer import PipeModel
from tests.rtl.test_requant import random_requant


@pytest.mark.parametrize("scaled", [False, True])
def test_random_sweep(scaled: bool) -> None:
    rng = random.Random(21 + scaled)
    for _ in range(60):
        channels, pixels = rng.randint(1, 9), 6
        lanes = rng.randint(1, channels)
        groups = -(-channels // lanes)
        acc, out = rng.choice([signed(14), unsigned(8)]), rng.choice([signed(8), unsigned(5)])
        requant = random_requant(rng, channels, out, scaled=scaled)
        low, high = shape_interval(acc)
        codes = np.array(
            [[rng.choice([low, high, rng.randint(low, high)]) for _ in range(channels)]
             for _ in range(2 * pixels)]
        )  # fmt: skip
        expected = requant.apply(codes)
        full = np.zeros((2 * pixels, groups * lanes), dtype=np.int64)
        full[:, :channels] = codes
        beats = [tuple(beat) for beat in full.reshape(-1, lanes).tolist()]
        depth = rng.randint(1, 7)
        dut = Rescale(acc, lanes, groups, requant, out, depth)
        assert dut.latency == (4 if requant.scaled else 2)
        run = run_stream(
            dut, beats, gaps=rng.choice([None, 0.4]), stalls=rng.choice([None, 0.4]), seed=depth,
            count=len(beats), reference=PipeModel(depth, dut.latency),
        )  # fmt: skip
        got = np.array(run.outputs).reshape(2 * pixels, groups * lanes)[:, :channels]
        assert (got == expected).all(), requant


def test_one_beat_a_cycle() -> None:
    requant = Requant(mult=(3,), shift=(2,), low=(0,), high=(255,))
    dut = Rescale(unsigned(8), 2, 1, requant, unsigned(8), 6)
    run = run_stream(dut, [(k, 2 * k) for k in range(50)], count=50)
    assert run.output_cycles == list(range(5, 55))
