"""A build end to end: its report, its files, that they are reproducible, and that it goes on."""

from __future__ import annotations

import json
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwgen.flow import hardware, pipeline
from hwgen.ir import load_network
from tests.cli.conftest import BUILD, ROOT, Built, Run, contents, spawn

KEYS: dict[str, type] = {
    "accuracy.float": float,
    "accuracy.integer": float,
    "cosim.icarus.images": int,
    "cosim.icarus.mismatches": int,
    "cosim.verilator.images": int,
    "cosim.verilator.mismatches": int,
    "cycles.predicted": int,
    "cycles.measured": int,
    "latency.predicted": int,
    "latency.measured": int,
    "multipliers": int,
    "synth.lut": int,
    "synth.ff": int,
    "synth.dsp": int,
    "synth.bram": int,
    "pnr.fmax_mhz": float,
    "fps": float,
}
"""What every report of a whole build holds."""


@pytest.fixture
def report(built: Built) -> dict[str, Any]:
    value = json.loads((built.folder / "report.json").read_text())
    assert isinstance(value, dict)
    return value


def find(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for part in path.split("."):
        value = value[part]
    return value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of all that is neither a list nor an object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, value


def test_it_succeeds_and_says_so(built: Built) -> None:
    outcome = built.outcome
    assert outcome.status == 0, outcome.err
    assert outcome.errors == ""
    for label in ("accuracy, integer", "cycles a frame, measured", "Fmax after place and route"):
        assert label in outcome.out
    assert "WARNING" not in outcome.out
    steps = [line.removesuffix(" ...") for line in outcome.err.splitlines()]
    assert steps[0] == "quantise"
    assert "simulate in verilator, 3 images" in steps


def test_report_has_the_keys(report: dict[str, Any]) -> None:
    for path, kind in KEYS.items():
        assert type(find(report, path)) is kind, path
    for layer in report["layers"]:
        assert type(layer["name"]) is str
        assert type(layer["activation_bits"]) is int
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert list(layers) == ["conv1", "pool1", "conv2", "pool2", "flatten", "fc"]
    for name in ("conv1", "conv2", "fc"):
        layer = layers[name]
        assert layer["weight_bits"] == 8
        for key in ("accumulator_bits", "cycles"):
            assert type(layer[key]) is int
        assert [type(lanes) for lanes in layer["lanes"]] == [int, int]
    for name in ("pool1", "pool2"):
        assert "weight_bits" not in layers[name]
        assert type(layers[name]["cycles"]) is int


def test_report_is_right(report: dict[str, Any], built: Built) -> None:
    assert report["data"] == "digits"
    assert report["target"] == "ice40-up5k"
    assert report["cosim"]["icarus"] == {
        "images": 1,
        "mismatches": 0,
        "images_with_gaps_and_stalls": 1,
    }
    assert report["cosim"]["verilator"]["images"] == 3
    assert report["cosim"]["verilator"]["mismatches"] == 0
    assert report["cycles"]["measured"] == report["cycles"]["predicted"]
    assert report["latency"]["measured"] == report["latency"]["predicted"]
    assert report["cycles"]["predicted"] <= 200_000  # 100 frames a second at 20 MHz
    assert report["test_images"] == 500
    assert report["accuracy"]["float"] > 0.95
    assert abs(report["accuracy"]["float"] - report["accuracy"]["integer"]) <= 0.02
    for path in ("accuracy.float", "accuracy.integer"):
        right = find(report, path) * 500
        assert abs(right - round(right)) < 1e-6
    fps = report["pnr"]["fmax_mhz"] * 1e6 / report["cycles"]["predicted"]
    assert report["fps"] == pytest.approx(fps, rel=1e-3)
    network = load_network(built.folder / "network")
    macs = {op.name: op for op in network.ops if hasattr(op, "macs")}
    total = 0
    for layer in report["layers"]:
        if layer["name"] in macs:
            op = macs[layer["name"]]
            assert layer["macs"] == op.macs
            assert layer["accumulator_bits"] == op.accumulator_width
            lanes = layer["lanes"]
            assert layer["cycles"] * lanes[0] * lanes[1] >= op.macs
            total += lanes[0] * lanes[1]
    assert report["multipliers"] == total


def test_nothing_stands_in_for_what_was_not_measured(report: dict[str, Any]) -> None:
    zero = {path for path, value in leaves(report) if value == 0 and value is not False}
    assert not any(value is None for _, value in leaves(report))
    measured = {
        "cosim.icarus.mismatches",
        "cosim.verilator.mismatches",
        *(f"synth.instances.{name}.dsp" for name in report["synth"]["instances"]),
        *(f"synth.instances.{name}.bram_blocks" for name in report["synth"]["instances"]),
    }
    assert zero <= measured


def test_times_are_apart(built: Built) -> None:
    text = (built.folder / "report.json").read_text()
    assert not re.search(r"second|per_s\b", text)
    timing = json.loads((built.folder / "timing.json").read_text())
    assert {"quantise", "fold", "evaluate", "generate", "synth"} <= set(timing)
    for simulator in ("icarus", "verilator"):
        step = timing[f"cosim.{simulator}"]
        for key in ("seconds", "cycles_per_s", "images_per_s"):
            assert step[key] > 0
    assert all(step["seconds"] >= 0 for step in timing.values())


def test_files(built: Built, report: dict[str, Any]) -> None:
    names = set(contents(built.folder))
    assert {
        *("report.json", "report.md", "timing.json", "dataflow.json", "build.json"),
        *("network/network.json", "network/weights.npz", "rtl/digits_tiny.v"),
    } <= names
    assert not any(Path(name).name.startswith(".") for name in names)
    assert not any(name.endswith(".log") for name in names)
    page = (built.folder / "report.md").read_text()
    assert page.startswith("# digits-tiny on ice40-up5k\n")
    assert f"{report['synth']['lut']:,}" in page
    assert "| conv1 | Conv | 8 |" in page
    assert "read back with pyverilog" in page
    dataflow = json.loads((built.folder / "dataflow.json").read_text())
    assert dataflow["interval"] == report["cycles"]["predicted"]
    assert dataflow["latency"] == report["latency"]["predicted"]


def test_nothing_of_the_machine_or_the_day(built: Built) -> None:
    words = {
        str(ROOT),
        tempfile.gettempdir(),
        str(built.folder.parent),
        sys.prefix,
        "site-packages",
    }
    words |= {socket.gethostname(), time.strftime("%Y-%m-%d"), time.strftime("%d %b %Y")}
    needles = [word.encode() for word in words if len(word) > 3]
    for name, data in contents(built.folder).items():
        found = [needle for needle in needles if needle in data]
        assert not found, name


def test_equal_bytes_elsewhere(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "a place" / "far off"
    folder.mkdir(parents=True)
    out = folder / "second build"
    outcome = spawn(
        *(*BUILD, "--out", out), cwd=tmp_path, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C"
    )
    assert outcome.status == 0, outcome.err
    first, second = contents(built.folder), contents(out)
    assert set(first) == set(second)
    different = {name for name in first if first[name] != second[name]}
    assert different <= {"timing.json"}


class Forbidden(Exception):
    """A step was done that must not be."""


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise Forbidden

    homes = {"audit": hardware, "lint": hardware}
    for name in names:
        monkeypatch.setattr(homes.get(name, pipeline), name, fail)


def test_finished_steps_are_not_done_again(
    run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    forbid(monkeypatch, "cosimulate", "synthesize", "audit", "lint")
    outcome = run(*BUILD, "--out", copy)
    assert outcome.status == 0
    after = contents(copy)
    assert {name for name in after if after[name] != before.get(name)} <= {"timing.json"}
    times = [json.loads(files["timing.json"]) for files in (before, after)]
    for step in ("audit", "cosim.icarus", "cosim.verilator", "synth"):
        assert times[0][step] == times[1][step]


def test_it_goes_on_where_it_was_interrupted(
    run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copy)
    for name in ("report.json", "report.md", "steps/cosim.icarus.json", "steps/audit.json"):
        (copy / name).unlink()

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "cosimulate", interrupt)
        outcome = run(*BUILD, "--out", copy)
    assert outcome.status == 130
    assert outcome.errors == (
        "hwgen build: interrupted; the same command goes on with what is finished\n"
    )
    assert not (copy / "report.json").exists()
    forbid(monkeypatch, "synthesize", "audit")  # done before
    assert run(*BUILD, "--out", copy).status == 0
    after = contents(copy)
    assert set(before) == set(after)
    assert {name for name in after if after[name] != before[name]} <= {"timing.json"}


def test_other_options_are_other_steps(
    run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "synthesize")
    with pytest.raises(Forbidden):
        run(*BUILD, "--out", copy, "--clock-mhz", "21", "--seed", "1")
    forbid(monkeypatch, "cosimulate")
    with pytest.raises(Forbidden):
        run(*BUILD, "--out", copy, "--seed", "2")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', None])
def test_a_damaged_step_is_done_again(
    run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    path = copy / "steps" / "audit.json"
    key = json.loads(path.read_text())["key"]
    path.write_bytes(json.dumps({"key": key}).encode() if damage is None else damage)
    forbid(monkeypatch, "audit")
    with pytest.raises(Forbidden):
        run(*BUILD, "--out", copy)


def test_what_is_left_out_is_absent(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "cosimulate", "synthesize")
    out = tmp_path / "out"
    less = ("--images", "0", "--icarus-images", "0", "--no-synth")
    outcome = run(*BUILD, *less, "--out", out)
    assert outcome.status == 0
    report = json.loads((out / "report.json").read_text())
    assert report["cosim"] == {}
    assert not {"synth", "pnr", "fps"} & set(report)
    assert "measured" not in report["cycles"]
    assert "measured" not in report["latency"]
    for word in ("LUT", "Fmax", "measured", "Icarus"):
        assert word not in outcome.out
