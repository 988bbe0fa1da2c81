"""Stages in NumPy against the layers, on random networks, targets and pins."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen.errors import BadInput, DoesNotFit, UnsupportedLayer
from hwgen.ir import Conv, MacOp, Network
from hwgen.lower.lowering import check_buildable
from hwgen.lower.reference import run_dataflow
from hwgen.lower.sizing import lower, lower_to_multipliers
from tests.strategies import random_codes, random_network


def random_pins(network: Network, rng: np.random.Generator) -> dict[str, tuple[int, int]]:
    """Any lanes for about half of the MAC layers."""
    pins = {}
    for op in network.ops:
        if isinstance(op, MacOp) and rng.random() < 0.5:
            elements = op.weights.codes[0].size
            pins[op.name] = (
                int(rng.integers(1, elements, endpoint=True)),
                int(rng.integers(1, op.out_channels, endpoint=True)),
            )
    return pins


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_stages_compute_the_network(first: int) -> None:
    built = 0
    for seed in range(first, first + 30):
        network = random_network(seed, hardware_only=True)
        try:
            check_buildable(network)
        except UnsupportedLayer as error:
            if "zero point" not in str(error):  # the one form of these networks without hardware
                raise
            continue
        built += 1
        rng = np.random.default_rng(seed)
        pins = random_pins(network, rng)
        work = sum(op.macs for op in network.ops if isinstance(op, MacOp))
        cycles = int(rng.integers(1, 4)) * work
        try:
            dataflow = lower(network, cycles=max(cycles, 1), pins=pins)
        except DoesNotFit:
            dataflow = lower(network, cycles=50 * work + 10_000, pins=pins)
        codes = random_codes(network, 3, seed)
        beats = run_dataflow(dataflow, codes)
        values = network.values(codes)
        for stream in dataflow.streams:
            got = stream.layout.unpack(beats[stream.stage])
            want = values[stream.tensor].reshape(got.shape)
            assert np.array_equal(got, want), (seed, stream.tensor, pins)
        for layer, lanes in pins.items():
            mac = next(s for s in dataflow.stages if s.name.endswith("_mac") and s.layer == layer)
            assert (mac.i.lanes, mac.o.lanes) == lanes
    assert built > 25


def test_interval_meets_the_target_and_rings_shrink() -> None:
    network = random_network(3, hardware_only=True)
    slow = lower(network, cycles=1_000_000)
    assert slow.interval <= 1_000_000
    fast = lower(network, cycles=slow.interval)
    assert fast.interval <= slow.interval
    assert fast.multipliers >= 1


def test_multiplier_budget() -> None:
    network = random_network(5, hardware_only=True)
    macs = sum(isinstance(op, MacOp) for op in network.ops)
    dataflow = lower_to_multipliers(network, multipliers=macs + 5)
    assert dataflow.multipliers <= macs + 5
    with pytest.raises(DoesNotFit, match="multipliers"):
        lower_to_multipliers(network, multipliers=macs - 1)


def test_impossible_target_names_layer_and_need() -> None:
    network = random_network(7, hardware_only=True)
    with pytest.raises(DoesNotFit, match=r"needs at least \d+ cycles|needs \d+ cycles"):
        lower(network, cycles=1)


def test_bad_pins_are_refused() -> None:
    network = random_network(7, hardware_only=True)
    layer = next(op.name for op in network.ops if isinstance(op, MacOp))
    with pytest.raises(BadInput, match="nosuch"):
        lower(network, cycles=10**6, pins={"nosuch": (1, 1)})
    with pytest.raises(BadInput, match=layer):
        lower(network, cycles=10**6, pins={layer: (10**6, 1)})


def test_unbuildable_layers_are_all_named() -> None:
    """Of a network with joins or groups, the message names every layer without hardware."""
    found = 0
    for seed in range(60):
        network = random_network(seed, hardware_only=False)
        bad = [
            op.name
            for op in network.ops
            if type(op).__name__ in ("Add", "Concat") or (isinstance(op, Conv) and op.groups > 1)
        ]
        if not bad:
            continue
        found += 1
        with pytest.raises(UnsupportedLayer) as error:
            lower(network, cycles=10**7)
        assert all(f"layer {name} " in str(error.value) for name in bad)
    assert found > 5
