"""What a report says of a build that does not do what was asked for."""

from __future__ import annotations

from typing import Any

from hwgen.flow.options import HardwareOptions
from hwgen.flow.pipeline import _notes


def notes(needed: int, **options: Any) -> list[str]:
    report = {"cycles": {"predicted": needed}, "latency": {"predicted": 1}}
    return _notes(report, HardwareOptions.of("ice40-up5k", **options))


def test_pins_that_are_too_slow_are_named() -> None:
    (note,) = notes(7200, cycles=4000, pins={"conv2": (1, 1)})
    assert "7,200 cycles" in note
    assert "4,000" in note
    assert "conv2" in note


def test_nothing_to_say() -> None:
    assert notes(4000, cycles=4000, pins={"conv2": (1, 1)}) == []
    assert notes(4000, multipliers=9) == []
