"""The picture: equal bytes for equal points, nothing of the day or the machine, all kinds drawn."""

from __future__ import annotations

import re
import struct
import time

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hwgen.explore import plot
from hwgen.explore.plot import accuracy_against_lut
from hwgen.explore.point import Point
from hwgen.targets import find_part
from tests.explore.points import point

MIXED = [
    point("8", 1000.0, lut=5000, accuracy_integer=0.74),
    point("4/12/8", 1000.0, lut=3000, accuracy_integer=0.6),
    point("8", 5000.0, lut=9000, accuracy_integer=0.74),
    point("4/12/8", 5000.0, lut=20000, accuracy_integer=0.6, status="does not fit", reason="x"),
    point("8", 1e9, status="too slow", reason="y"),
]
NONE = [point("8", 1e9, status="too slow", reason="y")]


def draw(points: list[Point]) -> tuple[bytes, bytes]:
    return accuracy_against_lut(points, title="net on data", images=500, part=find_part("ecp5-25k"))


@pytest.mark.parametrize("points", [MIXED, NONE, MIXED[:1]])
def test_equal_bytes(points: list[Point], monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(points)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 5}):  # a user's own settings
        assert draw(points) == first
    png, svg = first
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", png[16:24]) == (960, 660)
    for file in first:
        for stray in (b"tEXt", b"tIME", b"<dc:date>", time.strftime("%Y-%m").encode()):
            assert stray not in file
    assert b"</svg>" in svg


def test_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(
        plot, "FigureCanvasAgg", lambda figure: figures.append(figure) or FigureCanvasAgg(figure)
    )
    draw(MIXED)
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "LUTs after synthesis"
    assert axes.get_ylabel() == "top-1 accuracy on 500 test images (%)"
    assert re.search(r"net on data .*1 of 5", axes.get_title(loc="left"))
    assert [text.get_text() for text in axes.texts] == ["8", "4/12/8", "8", "4/12/8"]
    keys = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [key for key in keys if key.endswith("frames/s")] == [
        "1,000 frames/s",
        "5,000 frames/s",
        "1,000,000,000 frames/s",
    ]
    assert "float network: 75.00%" in keys
    assert "all of ecp5-25k: 24,288" in keys
    assert "Pareto front of a frame rate" in keys
    assert any("hollow" in key for key in keys)
    # One marker for each frame rate, hollow where it does not fit.
    drawn = [line for line in axes.lines if line.get_marker() != "None" and len(line.get_xdata())]
    assert [line.get_marker() for line in drawn] == ["o", "s", "s"]
    assert [line.get_markerfacecolor() == "none" for line in drawn] == [False, False, True]
    fronts = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert np.array_equal(fronts[0].get_xdata(), [3000, 5000])
    assert np.allclose(fronts[0].get_ydata(), [60, 74])
    assert np.array_equal(fronts[1].get_xdata(), [9000])
