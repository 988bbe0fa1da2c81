"""Sweeps on a network of two layers; Yosys and nextpnr are stood in for, all else is real."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hwgen.cost.cells import Counts
from hwgen.cost.pnr import PnrResult
from hwgen.cost.synth import SynthResult
from hwgen.errors import BadInput, ToolFailed, UnsupportedLayer
from hwgen.explore.plot import accuracy_against_lut
from hwgen.explore.sweep import sweep
from hwgen.flow import workspace
from hwgen.flow.model import Model
from hwgen.ir import load_network
from hwgen.targets import Part, find_part
from quant.datasets import Dataset, load_dataset
from quant.importers import fold, import_torch
from quant.models import Preprocess

# The package has the function under the module's name.
module = sys.modules[sweep.__module__]


@pytest.fixture(scope="module")
def data() -> Dataset:
    whole = load_dataset("digits")
    return replace(whole, test_images=whole.test_images[:60], test_labels=whole.test_labels[:60])


def network(*layers: nn.Module) -> Model:
    torch.manual_seed(1)
    parts = nn.Sequential(nn.Conv2d(1, 2, 5, stride=4), nn.ReLU(), *layers, nn.Flatten())
    size = parts(torch.zeros(1, 1, 32, 32)).numel()
    graph = fold(import_torch(nn.Sequential(parts, nn.Linear(size, 10)).eval(), (1, 32, 32)))
    return Model(name="two-layers", graph=graph, preprocess=Preprocess.standard(1), held_out=None)


@pytest.fixture(scope="module")
def model() -> Model:
    return network()


class Tools:
    """Stand-ins for Yosys and nextpnr that count their calls.

    ``lut`` and ``fmax`` may be changed; ``before`` is called with the number of the call.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.lut: Callable[[str], int] = len
        self.fmax = 123.456
        self.before: Callable[[int], None] = lambda call: None

    def synthesise(self, verilog: str, top: str, target: Part, *, work: Path) -> SynthResult:
        self.calls += 1
        work.mkdir(parents=True)
        (work / "netlist").write_text("large")
        self.before(self.calls)
        counts = Counts(lut=self.lut(verilog), ff=7, dsp=0, bram=3)
        return SynthResult(
            family=target.family,
            top=top,
            counts=counts,
            instances={"conv_mac": counts},
            cells={},
            netlist=work / "netlist",
        )

    def place_and_route(self, synth: SynthResult, part: Part, **given: Any) -> PnrResult:
        assert given["clock_mhz"] == part.clock_mhz
        return PnrResult(
            part=part,
            fmax_mhz=self.fmax,
            clock_mhz=part.clock_mhz,
            seed=given["seed"],
            usage=(),
            shell_lut=0,
            shell_ff=0,
            critical=None,
        )


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    stand_in = Tools()
    stand_in.lut = lambda verilog: len(verilog) // 100
    monkeypatch.setattr(module, "synthesise", stand_in.synthesise)
    monkeypatch.setattr(module, "place_and_route", stand_in.place_and_route)
    monkeypatch.setattr(workspace, "program", lambda: "this version")  # as long as a test runs
    monkeypatch.setattr(module, "accuracy_against_lut", lambda points, **_: (b"png", b"svg"))
    return stand_in


def files(folder: Path) -> dict[str, bytes]:
    """All files but the one with the times."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del found["timing.json"]
    return found


def run(model: Model, data: Dataset, out: Path, **changes: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"bits": ["8", "3/6/4"], "fps": ["1000", "5e4"], "target": "ecp5-85k"}
    return sweep(model, data, out=out, **(given | changes))


def test_points_and_files(
    model: Model, data: Dataset, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "accuracy_against_lut", accuracy_against_lut)
    points = run(model, data, tmp_path, fps=["1000", "2000", "5e4", "1e5", " 1000"])
    key = [(p["bits"], p["fps_target"], p["status"]) for p in points]
    assert key == [
        (bits, fps, "too slow" if fps == 1e5 else "ok")
        for bits in ("8", "3/6/4")
        for fps in (1000.0, 2000.0, 5e4, 1e5)
    ]
    # At 1,000 and 2,000 frames a second one multiplier a layer does: the same Verilog, mapped once.
    assert tools.calls == 4
    for p in points:
        widths = (p["weight_bits"], p["bias_bits"], p["activation_bits"])
        assert widths == ((8, 16, 8) if p["bits"] == "8" else (3, 6, 4))
        assert p["clock_mhz"] == 100.0
        assert 0 <= p["accuracy_integer"] <= 1
        if p["status"] == "ok":
            assert p["fps_at_clock"] == round(1e8 / p["cycles"], 2) >= p["fps_target"]
            assert (p["ff"], p["dsp"], p["bram"], p["bram_kbit"]) == (7, 0, 3, 54)
            assert p["multipliers"] >= 2
            assert "reason" not in p
            assert "fps" not in p
        else:
            assert "cycles a frame, the target allows 1000" in p["reason"]
            assert not {"lut", "cycles", "multipliers", "fps_at_clock"} & set(p)
    assert json.loads((tmp_path / "points.json").read_text())["points"] == points
    rows = list(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert [row["lut"] for row in rows] == [str(p.get("lut", "")) for p in points]
    assert load_network(tmp_path / "networks" / "3-6-4").name == "two-layers"
    assert (tmp_path / "points" / "8.50000" / "two_layers.v").read_text().count("endmodule") > 3
    assert not (tmp_path / "points" / "8.100000").exists()
    assert not list(tmp_path.rglob("work"))
    assert (tmp_path / "accuracy-lut.png").stat().st_size > 10_000
    assert (tmp_path / "accuracy-lut.svg").stat().st_size > 10_000


def test_place_and_route(model: Model, data: Dataset, tools: Tools, tmp_path: Path) -> None:
    points = run(model, data, tmp_path, bits=["8"], pnr=True)
    assert [p["status"] for p in points] == ["ok", "ok"]
    for p in points:
        assert p["fmax_mhz"] == 123.46
        assert p["fps"] == round(123.46e6 / p["cycles"], 2)
    tools.fmax = 40.0
    points = run(model, data, tmp_path / "slow", bits=["8"], fps=["1e3", "5e4"], pnr=True)
    assert [p["status"] for p in points] == ["ok", "too slow"]
    assert "it reaches 40 MHz after routing" in points[1]["reason"]
    assert points[1]["lut"] > 0


def test_too_large_is_kept(model: Model, data: Dataset, tools: Tools, tmp_path: Path) -> None:
    tools.lut = lambda verilog: 83_641 if tools.calls == 1 else 83_640
    points = run(model, data, tmp_path, bits=["8"])
    assert [p["status"] for p in points] == ["does not fit", "ok"]
    assert points[0]["lut"] == 83_641
    for part in ("83641 LUTs, it has 83640", "conv_mac 83641", "ecp5-85k"):
        assert part in points[0]["reason"]


def test_goes_on_where_it_was_stopped(
    model: Model, data: Dataset, tools: Tools, tmp_path: Path
) -> None:
    run(model, data, tmp_path / "straight")
    assert tools.calls == 4

    def stop(call: int) -> None:
        if call == 7:
            raise KeyboardInterrupt

    tools.before = stop
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(model, data, out)
    assert not (out / "points.csv").exists()
    shutil.rmtree(out / "points" / "3-6-4.1000" / "work")
    run(model, data, out)
    assert tools.calls == 9  # the point in flight and the last one
    assert files(out) == files(tmp_path / "straight")
    run(model, data, out)
    assert tools.calls == 9
    run(model, data, out, bits=["8", "7"])
    assert tools.calls == 11  # the new width alone


def test_another_version_measures_again(
    model: Model, data: Dataset, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, data, tmp_path, bits=["8"], fps=["1000"])
    monkeypatch.setattr(workspace, "program", lambda: "next version")
    run(model, data, tmp_path, bits=["8"], fps=["1000"])
    assert tools.calls == 2


def test_the_version_is_that_of_the_sources() -> None:
    first = workspace.program()
    assert len(first) == 64
    assert set(first) <= set("0123456789abcdef")


def test_other_networks_are_other_points(
    model: Model, data: Dataset, tools: Tools, tmp_path: Path
) -> None:
    first = run(model, data, tmp_path, bits=["8"], fps=["1000"])
    second = run(network(nn.MaxPool2d(2)), data, tmp_path, bits=["8"], fps=["1000"])
    assert tools.calls == 2
    assert first[0]["lut"] != second[0]["lut"]


def test_a_tool_that_fails(model: Model, data: Dataset, tools: Tools, tmp_path: Path) -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise ToolFailed(f"Yosys ended with status 1; see {tmp_path}/points/log")

    tools.before = fail
    points = run(model, data, tmp_path, bits=["8"])
    assert [p["status"] for p in points] == ["failed", "ok"]
    assert points[0]["reason"] == "Yosys ended with status 1; see points/log"
    shutil.rmtree(tmp_path / "points" / "8.1000" / "work")
    points = run(model, data, tmp_path, bits=["8"])
    assert [p["status"] for p in points] == ["ok", "ok"]
    assert tools.calls == 3

    def always(call: int) -> None:
        raise ToolFailed("Yosys is broken")

    tools.before = always
    with pytest.raises(ToolFailed, match="at every point; at the last: Yosys is broken"):
        run(model, data, tmp_path / "broken", bits=["8"])
    assert not (tmp_path / "broken" / "points.csv").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bits": []}, "at least one width"),
        ({"fps": []}, "at least one width and one frame rate"),
        ({"bits": ["8", "17"]}, "1 to 16"),
        ({"bits": ["8", ""]}, "1 to 16"),
        ({"fps": ["1000", "fast"]}, "above 0, not 'fast'"),
        ({"fps": ["-1"]}, "above 0, not '-1'"),
        ({"fps": ["nan"]}, "above 0"),
        ({"fps": ["inf"]}, "above 0"),
        ({"target": "ecp5"}, "a part hwgen knows"),
        ({"clock_mhz": 0.0}, "clock"),
        ({"calibration": "best"}, "max, percentile, mse"),
        ({"target": "xc7-z020", "pnr": True}, "no place and route here"),
    ],
)
def test_refused_before_anything_is_written(
    model: Model,
    data: Dataset,
    tools: Tools,
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(BadInput, match=words):
        run(model, data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
    assert tools.calls == 0


def test_a_layer_without_hardware_ends_the_sweep(
    data: Dataset, tools: Tools, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedLayer):
        run(network(nn.Conv2d(2, 2, 3, groups=2)), data, tmp_path)
    assert not (tmp_path / "points.csv").exists()


def test_frame_rates_above_the_clock(
    model: Model, data: Dataset, tools: Tools, tmp_path: Path
) -> None:
    part = find_part("ecp5-85k")
    assert part.clock_mhz == 100.0
    (point,) = run(model, data, tmp_path, bits=["8"], fps=["2e8"])
    assert point["status"] == "too slow"
    assert "more than 100 MHz" in point["reason"]
