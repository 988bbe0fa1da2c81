"""Deliberate faults in the hardware that the comparison with golden must catch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hwgen.ir import INPUT, Bias, Linear, Network, Requant, TensorType, Weights
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.sizing import lower
from hwgen.lower.stages import Mac
from rtl.buffer import OutputBuffer
from tests.backends.adapter import run_design


def extreme_network() -> Network:
    """Two linear layers whose accumulators and outputs reach all their bounds."""
    source = TensorType(shape=(6,), width=4, signed=False)
    hidden = TensorType(shape=(3,), width=5, signed=True)
    codes = np.array([[7] * 6, [-8] * 6, [7, -8, 7, -8, 7, -8]])
    first = Linear(
        name="first",
        inputs=(INPUT,),
        input=source,
        weights=Weights(codes=codes, width=4),
        bias=Bias(codes=np.array([5, -3, 0]), width=4),
        requant=Requant(shift=(4,), low=(-16,), high=(15,)),
        output=hidden,
    )
    weights = Weights(codes=np.array([[1, 1, 1], [-2, 1, -1]]), width=2)
    wide = TensorType(shape=(2,), width=20, signed=True)
    probe = Linear(
        name="last",
        inputs=("first",),
        input=hidden,
        weights=weights,
        bias=None,
        requant=Requant(low=(-4,), high=(4,)),
        output=wide,
    )
    width = probe.accumulator_width
    last = replace(probe, requant=None, output=replace(wide, width=width, low=None, high=None))
    return Network(name="extreme", input=source, ops=(first, last), output="last")


def worst_codes() -> NDArray[np.int64]:
    """Inputs that drive each accumulator of ``first`` to its least and greatest value."""
    weights = np.array([[7] * 6, [-8] * 6, [7, -8, 7, -8, 7, -8]])
    highest = np.where(weights > 0, 15, 0)
    lowest = np.where(weights < 0, 15, 0)
    rng = np.random.default_rng(0)
    return np.concatenate([highest, lowest, rng.integers(0, 16, (10, 6))]).astype(np.int64)


def mutated(dataflow: Dataflow, name: str, **changes: Any) -> Dataflow:
    """The same dataflow with one stage changed."""
    stages = tuple(replace(s, **changes) if s.name == name else s for s in dataflow.stages)
    return replace(dataflow, stages=stages)


@pytest.fixture(scope="module")
def dataflow() -> Dataflow:
    return lower(extreme_network(), cycles=40)


def wrong(dataflow: Dataflow, stalls: float | None = None) -> int:
    """Frames that differ from golden; all where the design stops."""
    codes = worst_codes()
    try:
        got, _ = run_design(dataflow, codes, stalls=stalls, seed=3)
    except AssertionError:
        return len(codes)
    return int((got != dataflow.expected(codes).reshape(got.shape)).any(axis=1).sum())


def test_the_design_itself_is_right(dataflow: Dataflow) -> None:
    assert wrong(dataflow) == 0
    assert wrong(dataflow, stalls=0.8) == 0


@pytest.mark.parametrize(("low", "high"), [(-16, 14), (-15, 15)])
def test_saturation_off_by_one(dataflow: Dataflow, low: int, high: int) -> None:
    mac = dataflow.stage("first_mac")
    assert isinstance(mac, Mac)
    assert mac.requant is not None
    requant = replace(mac.requant, low=(low,), high=(high,))
    assert wrong(mutated(dataflow, "first_mac", requant=requant)) > 0


def test_accumulator_one_bit_short(dataflow: Dataflow) -> None:
    mac = dataflow.stage("first_mac")
    assert isinstance(mac, Mac)
    assert wrong(mutated(dataflow, "first_mac", accumulator_width=mac.accumulator_width - 1)) > 0


def test_one_weight_bit_flipped(dataflow: Dataflow) -> None:
    mac = dataflow.stage("last_mac")
    assert isinstance(mac, Mac)
    weights = mac.weights.copy()
    weights[0, 0, 0, 0] ^= 1
    assert wrong(mutated(dataflow, "last_mac", weights=weights)) > 0


def test_ready_stuck_high(dataflow: Dataflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output buffers that always claim a free place lose beats as soon as the sink stalls."""
    right = OutputBuffer.elaborate

    def stuck(self: OutputBuffer, platform: object) -> Any:
        m = right(self, platform)
        m.d.comb += self.available.eq(1)  # the later assignment wins
        return m

    monkeypatch.setattr(OutputBuffer, "elaborate", stuck)
    assert wrong(dataflow, stalls=0.9) > 0
