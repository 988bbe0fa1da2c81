"""Points for the tests, without any tool."""

from __future__ import annotations

from typing import Any

from hwgen.explore.point import Point


def point(bits: str = "8", fps: float = 1000.0, **figures: Any) -> Point:
    """A point that is ok unless ``figures`` say otherwise."""
    known: dict[str, Any] = {
        "status": "ok",
        "accuracy_float": 0.75,
        "accuracy_integer": 0.7,
        "clock_mhz": 100.0,
    }
    width = int(bits.split("/")[0])
    return Point(
        bits=bits,
        weight_bits=width,
        bias_bits=16,
        activation_bits=width,
        fps_target=fps,
        **(known | figures),
    )
