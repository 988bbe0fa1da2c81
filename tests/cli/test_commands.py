"""Commands other than build, each on what the build or another command left."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from hwgen.flow import hardware
from hwgen.ir import load_network
from quant.checkpoints import load_checkpoint
from tests.cli.conftest import Built, Run, contents, spawn

CIRCUIT = ("--target", "ice40-up5k", "--fps", "100")


def test_simulate(run: Run, copy: Path, tmp_path: Path) -> None:
    before = contents(copy)
    trace, figures = tmp_path / "wave.vcd", tmp_path / "figures.json"
    outcome = run(
        *("simulate", copy, "--images", "2", "--simulator", "icarus", "--gaps", "0.1"),
        *("--stalls", "0.6", "--seed", "5", "--trace", trace, "--json", figures),
    )
    assert outcome.status == 0, outcome.err
    assert outcome.errors == ""
    found = json.loads(figures.read_text())
    assert found["images"] == 2
    assert found["mismatches"] == 0
    assert "cycles_measured" not in found  # two frames have no steady state
    assert found["latency_measured"] == found["latency_predicted"]
    assert found["cycles_per_s"] > 0
    assert "$enddefinitions" in trace.read_text()[:200_000]
    assert "conv1_mac" in trace.read_text()[:200_000]
    assert contents(copy) == before
    assert "mismatches" in outcome.out


def test_simulate_finds_a_changed_design(run: Run, copy: Path) -> None:
    path = copy / "rtl" / "digits_tiny.v"
    text = path.read_text()
    # A bias of the first convolution.
    found = re.search(r"rom\[1\] = 19'h([0-9a-f]+);", text)
    assert found is not None
    changed = f"{int(found[1], 16) ^ 0x4000:05x}"
    path.write_text(text[: found.start(1)] + changed + text[found.end(1) :])
    outcome = run("simulate", copy, "--images", "1", "--simulator", "icarus")
    assert outcome.status == 1
    assert outcome.errors.startswith("hwgen simulate: error: 1 of 1 images are wrong in icarus\n")
    for word in ("conv1", "channel", "row", "column", "cycle"):
        assert word in outcome.errors
    assert "Traceback" not in outcome.err


def test_synth_for_another_part(run: Run, copy: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    outcome = run("synth", copy, "--target", "xc7-z020", "--json", figures)
    assert outcome.status == 0, outcome.err
    found = json.loads(figures.read_text())
    assert found["target"] == "xc7-z020"
    assert found["synth"]["family"] == "xc7"
    assert found["synth"]["lut"] > 0
    assert not {"pnr", "fps"} & set(found)  # this project does not place on that family
    assert "xc7-z020" in outcome.out
    assert "Fmax" not in outcome.out


def test_from_quantize_to_generate(run: Run, built: Built, tmp_path: Path) -> None:
    assert built.outcome.status == 0
    net, onnx = tmp_path / "deep" / "net", tmp_path / "net.onnx"
    outcome = run(
        *("quantize", "--model", "digits-tiny", "--data", "digits", "--bits", "8"),
        *("--out", net, "--onnx", onnx),
    )
    assert outcome.status == 0, outcome.err
    found = contents(net)
    method = json.loads(found.pop("method.json"))
    assert found == contents(built.folder / "network")
    assert onnx.stat().st_size > 1000
    report = json.loads((built.folder / "report.json").read_text())
    assert f"{report['accuracy']['integer']:.2%}" in outcome.out
    assert method["method"] == "linear"
    assert method["test"]["integer"] == report["accuracy"]["integer"]
    assert method["test"]["float"] == report["accuracy"]["float"]
    assert (method["search"]["images"], method["test"]["images"]) == (200, 500)

    outcome = run("evaluate", net, "--data", "digits")
    assert outcome.status == 0
    assert outcome.out == f"{report['accuracy']['integer']:.2%} of 500 test images\n"

    out = tmp_path / "generated"
    outcome = run("generate", net, *CIRCUIT, "--out", out)
    assert outcome.status == 0, outcome.err
    for name in ("rtl/digits_tiny.v", "dataflow.json"):
        assert (out / name).read_bytes() == (built.folder / name).read_bytes()


def test_widths_of_layers(run: Run, tmp_path: Path) -> None:
    outcome = run(
        *("quantize", "--model", "digits-tiny", "--data", "digits", "--bits", "7"),
        *("--layer-bits", "conv2=3/9/5", "--calibration", "max", "--out", tmp_path / "net"),
    )
    assert outcome.status == 0, outcome.err
    ops = {op.name: op for op in load_network(tmp_path / "net").ops}
    conv1, conv2 = ops["conv1"], ops["conv2"]
    assert (conv1.weights.width, conv1.output.width) == (7, 7)
    assert (conv2.weights.width, conv2.bias.width, conv2.output.width) == (3, 9, 5)


def test_pins_cycles_multipliers_and_argmax(
    run: Run, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the folding: generating is tested elsewhere."""

    class Enough(Exception):
        pass

    def stop(*args: object) -> None:
        raise Enough

    monkeypatch.setattr(hardware, "design_of", stop)

    def fold(*options: str) -> dict[str, dict[str, object]]:
        with pytest.raises(Enough):
            run("generate", network, *options, "--out", tmp_path)
        found = json.loads((tmp_path / "dataflow.json").read_text())
        return {"all": found} | {stage["name"]: stage for stage in found["stages"]}

    pinned = fold("--pin", "conv1=5x2", "--pin", "fc=3x1")
    assert pinned["conv1_mac"]["in"]["lanes"] == 5  # type: ignore[index]
    assert pinned["conv1_mac"]["out"]["lanes"] == 2  # type: ignore[index]
    assert pinned["fc_mac"]["in"]["lanes"] == 3  # type: ignore[index]
    assert fold("--cycles", "5000")["all"]["interval"] <= 5000  # type: ignore[operator]
    few = fold("--multipliers", "9", "--argmax")
    assert few["all"]["multipliers"] <= 9  # type: ignore[operator]
    assert any(stage.get("kind") == "Argmax" for stage in few.values())


def test_train(tmp_path: Path) -> None:
    """In a process of its own, as it sets the number of threads."""
    out = tmp_path / "net.safetensors"
    command = ("train", "--model", "digits-tiny", "--data", "digits", "--out", out)
    short = (*command, "--epochs", "2", "--threads", "1")
    stopped = spawn(*short, "--max-seconds", "0.001", cwd=tmp_path)
    assert stopped.status == 0, stopped.err
    assert stopped.out == "stopped before the last epoch; the same command goes on\n"
    assert not out.exists()  # an unfinished network replaces no finished one
    outcome = spawn(*short, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    checkpoint = load_checkpoint(out)
    assert checkpoint.epochs == 2
    assert checkpoint.held_out == 200
    assert checkpoint.accuracy is not None
    assert checkpoint.accuracy > 0.5
    assert outcome.out == (
        f"{out}: {checkpoint.accuracy:.2%} on the test images; 200 training images held out\n"
    )
    assert "epoch 2/2" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_train_one_epoch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument reaches the trainer."""
    seen: dict[str, object] = {}

    def train(model: str, data: object, **given: object) -> object:
        seen.update(given, model=model)
        raise KeyboardInterrupt

    monkeypatch.setattr("quant.train.train", train)
    outcome = run(
        *(
            "train",
            "--model",
            "digits-tiny",
            "--data",
            "digits",
            "--out",
            tmp_path / "x.safetensors",
        ),
        *("--epochs", "1", "--seed", "3", "--threads", "1", "--max-seconds", "9", "--no-resume"),
    )
    assert outcome.status == 130
    assert seen == {
        "model": "digits-tiny",
        "epochs": 1,
        "seed": 3,
        "threads": 1,
        "max_seconds": 9.0,
        "resume": False,
        "out": tmp_path / "x.safetensors",
    }


def test_explore(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    command = (
        *("explore", "--model", "digits-tiny", "--data", "digits", "--bits", "3/8/4"),
        *("--fps", "100,5e6", "--target", "ice40-up5k", "--out", out),
    )
    outcome = run(*command)
    assert outcome.status == 0, outcome.err
    assert outcome.errors == ""
    assert "point 1 of 2: 3/8/4 bits, 100 frames/s ..." in outcome.err
    assert "3/8/4 bits, 5,000,000 frames/s: layer conv1 needs at least" in outcome.out
    rows = list(csv.DictReader((out / "points.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["ok", "too slow"]
    assert 0.5 < float(rows[0]["accuracy_integer"]) < 1
    assert int(rows[0]["lut"]) > 500
    assert int(rows[0]["bram"]) > 0
    assert f"{int(rows[0]['lut'])}" in outcome.out.replace(",", "")
    assert {"points.csv", "points.json", "accuracy-lut.png", "accuracy-lut.svg"} <= {
        path.name for path in out.iterdir()
    }
    before = contents(out)
    again = run(*command)
    assert again.status == 0
    assert again.out == outcome.out
    assert "point 1 of 2" not in again.err
    assert contents(out) == before
