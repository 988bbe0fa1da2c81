"""Whole designs in Amaranth's simulator: codes equal to golden, cycles equal to the schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwgen.backends.rtl.components import COMPONENTS
from hwgen.backends.rtl.top import generate
from hwgen.errors import DoesNotFit, UnsupportedLayer
from hwgen.ir import MacOp, Network
from hwgen.lower import stages
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.lowering import check_buildable
from hwgen.lower.sizing import lower
from tests.backends.adapter import run_design
from tests.lower.test_dataflow import random_pins
from tests.strategies import random_codes, random_network


def buildable(seed: int) -> Network | None:
    network = random_network(seed, hardware_only=True)
    try:
        check_buildable(network)
    except UnsupportedLayer:
        return None
    return network


def random_dataflow(network: Network, seed: int) -> Dataflow:
    rng = np.random.default_rng(seed)
    work = sum(op.macs for op in network.ops if isinstance(op, MacOp))
    pins = random_pins(network, rng) if rng.random() < 0.5 else {}
    argmax = network.ops[-1].output.pixels == 1 and bool(rng.random() < 0.3)
    cycles = max(int(work * rng.choice([0.1, 0.3, 1, 3])), 1)
    while True:
        try:
            return lower(network, cycles=cycles, pins=pins, argmax=argmax)
        except DoesNotFit:
            cycles *= 4


@pytest.mark.parametrize("first", range(0, 48, 8))
def test_codes_and_cycles(first: int) -> None:
    for seed in range(first, first + 8):
        network = buildable(seed)
        if network is None:
            continue
        dataflow = random_dataflow(network, seed)
        frames = dataflow.schedule.frames
        codes = random_codes(network, frames, seed)
        got, run = run_design(dataflow, codes)
        assert np.array_equal(got, dataflow.expected(codes).reshape(got.shape)), seed
        beats = dataflow.output.layout.beats
        ends = np.array(run.output_cycles).reshape(frames, beats)[:, -1]
        start = run.accept_cycles[0]
        assert (ends - start).tolist() == dataflow.schedule.times["output"][:, -1].tolist(), seed
        assert ends[0] - start == dataflow.latency
        assert ends[-1] - ends[-2] == dataflow.interval


@pytest.mark.parametrize("first", range(100, 124, 6))
def test_gaps_and_stalls_change_no_code(first: int) -> None:
    for seed in range(first, first + 6):
        network = buildable(seed)
        if network is None:
            continue
        dataflow = random_dataflow(network, seed)
        codes = random_codes(network, 3, seed)
        rng = np.random.default_rng(seed)
        got, _ = run_design(
            dataflow,
            codes,
            gaps=float(rng.choice([0.0, 0.3, 0.8])),
            stalls=float(rng.choice([0.2, 0.5, 0.9])),
            seed=seed,
        )
        assert np.array_equal(got, dataflow.expected(codes).reshape(got.shape)), seed


def test_every_stage_has_a_component() -> None:
    kinds = {
        kind
        for kind in vars(stages).values()
        if isinstance(kind, type) and issubclass(kind, stages.Stage) and kind is not stages.Stage
    }
    assert set(COMPONENTS) == kinds


def test_a_network_named_like_a_keyword() -> None:
    network = buildable(3)
    assert network is not None
    design = generate(lower(replace(network, name="small"), cycles=10**6))
    assert design.top == "small_net"
    assert "\nmodule small_net (" in design.verilog


def test_the_same_dataflow_gives_the_same_text() -> None:
    network = buildable(4)
    assert network is not None
    texts = {generate(lower(network, cycles=10**5)).verilog for _ in range(2)}
    assert len(texts) == 1
    assert texts.pop().startswith("// ")
