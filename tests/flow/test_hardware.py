"""Steps on hardware: what a co-simulation compares besides codes, pins that are too slow."""

from __future__ import annotations

import pytest

from hwgen.backends.rtl import generate
from hwgen.errors import DoesNotFit, Mismatch
from hwgen.flow.hardware import cosimulate, fold_network
from hwgen.flow.options import HardwareOptions
from hwgen.ir import MacOp
from hwgen.lower.sizing import lower
from sim.tools import Simulator
from tests.backends.test_design import buildable
from tests.strategies import random_codes


def test_cycles_other_than_the_schedule_are_a_mismatch() -> None:
    """A faster design of the same network: all codes are right, the cycles are not those predicted."""
    network = buildable(4)
    assert network is not None
    slow = lower(network, cycles=2_000)
    fast = lower(network, cycles=500)
    assert fast.interval < slow.interval
    codes = random_codes(network, 4)
    icarus = {Simulator.ICARUS: 4}
    (right,) = cosimulate(fast, generate(fast), codes, images=icarus, gaps=0, stalls=0)
    assert right.ok
    with pytest.raises(Mismatch, match="the schedule says"):
        cosimulate(slow, generate(fast), codes, images=icarus, gaps=0, stalls=0)


def test_a_slow_pin_is_allowed_and_an_unpinned_slow_layer_is_not() -> None:
    network = buildable(4)
    assert network is not None
    layers = [op.name for op in network.ops if isinstance(op, MacOp)]
    busiest = max((op for op in network.ops if isinstance(op, MacOp)), key=lambda op: op.macs).name
    options = HardwareOptions.of("ecp5-25k", cycles=50, pins={busiest: (1, 1)})
    other = next(layer for layer in layers if layer != busiest)
    try:
        assert fold_network(network, options).interval > 50
    except DoesNotFit as error:
        assert busiest not in str(error)  # noqa: PT017 - another layer may be too slow as well
    with pytest.raises(DoesNotFit):
        fold_network(network, HardwareOptions.of("ecp5-25k", cycles=1, pins={other: (1, 1)}))
