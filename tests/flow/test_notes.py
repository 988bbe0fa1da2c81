"""What a report says of what was asked for, and of a build that does not do it."""

from __future__ import annotations

from typing import Any

from hwgen.flow.options import HardwareOptions
from hwgen.flow.pipeline import _notes
from hwgen.flow.report import markdown


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


def test_settings_are_plain_numbers() -> None:
    report: dict[str, Any] = {
        "name": "net",
        "target": "ice40-up5k",
        "clock_mhz": 12.5,
        "data": "digits",
        "test_images": 500,
        "layers": [],
        "settings": {"fps": 1000.0, "argmax": False},
    }
    page = markdown(report)
    assert "| fps | 1000 |\n" in page
    assert "| clock in MHz | 12.5 |\n" in page
    assert "| argmax | False |\n" in page
    report["settings"]["fps"] = 29.97
    assert "| fps | 29.97 |\n" in markdown(report)
