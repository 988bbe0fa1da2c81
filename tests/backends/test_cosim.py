"""Whole designs under cocotb: every kind of stage in Icarus, two in Verilator, cycles as predicted."""

from __future__ import annotations

import pytest

from hwgen.backends.rtl.components import COMPONENTS
from hwgen.backends.rtl.top import generate
from hwgen.ir import WindowMode
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stages import Window
from sim.tools import Simulator
from sim.verify import verify
from tests.backends.test_design import buildable, random_dataflow
from tests.strategies import random_codes

SEEDS = (2, 8, 20, 35, 36, 44, 54)
"""Networks of :func:`tests.strategies.random_network`; together they have every stage and window mode."""


@pytest.fixture(scope="module")
def dataflows() -> dict[int, Dataflow]:
    out = {}
    for seed in SEEDS:
        network = buildable(seed)
        assert network is not None
        out[seed] = random_dataflow(network, seed)
    return out


def test_the_designs_have_every_stage(dataflows: dict[int, Dataflow]) -> None:
    stages = [stage for dataflow in dataflows.values() for stage in dataflow.stages]
    assert {type(stage) for stage in stages} == set(COMPONENTS)
    assert {s.walk.mode for s in stages if isinstance(s, Window)} == set(WindowMode)


@pytest.mark.parametrize("seed", SEEDS)
def test_icarus(dataflows: dict[int, Dataflow], seed: int) -> None:
    check(dataflows[seed], Simulator.ICARUS, seed)


@pytest.mark.parametrize("seed", [20, 36])
def test_verilator(dataflows: dict[int, Dataflow], seed: int) -> None:
    check(dataflows[seed], Simulator.VERILATOR, seed)


def check(dataflow: Dataflow, simulator: Simulator, seed: int) -> None:
    frames = dataflow.schedule.frames
    codes = random_codes(dataflow.network, frames, seed)
    (outcome,) = verify(
        generate(dataflow),
        dataflow.network,
        codes,
        images={simulator: frames},
        expected=dataflow.expected(codes),
        interval=dataflow.interval,
        gaps=0.4,
        stalls=0.4,
        seed=seed,
    )
    outcome.check()
    assert outcome.images == frames
    assert outcome.mismatches == 0
    assert outcome.axi is not None
    assert outcome.bulk.interval == dataflow.interval
    assert outcome.bulk.latency == dataflow.latency
