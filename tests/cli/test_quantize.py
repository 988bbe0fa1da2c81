"""``hwgen quantize`` by each method: what it leaves, hardware of it, limits, documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwgen.cli import parser, quantize
from hwgen.errors import BadInput
from hwgen.flow.methods import (
    METHODS,
    SAVED,
    drop_note,
    limit_message,
    pruning_note,
    saved_method,
)
from hwgen.ir import load_network
from quant.cost import network_cost
from quant.methods.result import Accuracy, Result
from tests.cli.bad_files import linear_onnx
from tests.cli.conftest import ROOT, Run, contents
from tests.cli.quantize_case import ADAPTIVE, SMALL, TINY, Refused

# What a run leaves.


@pytest.mark.parametrize("method", SMALL)
def test_methods(run: Run, tmp_path: Path, method: str) -> None:
    out = tmp_path / "net"
    outcome = run(*TINY, "--method", method, *SMALL[method], "--out", out)
    assert outcome.status in (0, 1), outcome.err  # 1: a limit that so short a search does not meet
    assert "Traceback" not in outcome.err
    network = load_network(out)
    found = contents(out)
    assert set(found) == {"network.json", "weights.npz", "method.json"}
    record = json.loads(found["method.json"])
    assert record == saved_method(out)
    assert record["method"] == method
    assert (record["search"]["images"], record["test"]["images"]) == (200, 500)
    assert record["search"]["seen_in_training"] is False
    assert record["test"]["drop"] == record["test"]["float"] - record["test"]["integer"]
    assert record["cost"]["constants"] > 0
    assert str(tmp_path) not in found["method.json"].decode()
    assert f"{record['test']['integer']:.2%}" in outcome.out
    assert SAVED in " ".join(outcome.out.split())
    assert network.name == "digits-tiny"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"net", "net.study.db"} if method == "evolve" else {"net"})


def test_a_run_can_be_repeated(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(*ADAPTIVE, "--out", tmp_path / name).status == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert run(*ADAPTIVE, "--seed", "1", "--out", tmp_path / "two").status == 0
    assert contents(tmp_path / "one") != contents(tmp_path / "two")


def test_other_search_images(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "net"
    assert run(*TINY, "--search-images", "60", "--out", out).status == 0
    assert json.loads((out / "method.json").read_text())["search"]["images"] == 60


def test_a_checkpoint_that_may_have_seen_its_search_images(run: Run, tmp_path: Path) -> None:
    """A bare state_dict does not say what was held out."""
    import torch

    from quant.checkpoints import load_checkpoint, shipped_checkpoint

    state = load_checkpoint(shipped_checkpoint("digits-tiny", "digits")).state
    torch.save(dict(state), tmp_path / "net.pt")
    command = ("quantize", "--data", "digits", "--model", tmp_path / "net.pt")
    outcome = run(*command, "--out", tmp_path / "net")
    assert outcome.status == 0, outcome.err
    assert "yes, or not known" in outcome.out
    record = json.loads((tmp_path / "net/method.json").read_text())
    assert record["search"]["seen_in_training"] is True


def test_the_network_is_saved_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails behind the search loses neither the network nor the state."""

    def fail(path: Path, value: object) -> None:
        raise BadInput(f"cannot write {path}: no space")

    monkeypatch.setattr("hwgen.files.write_json", fail)
    assert run(*ADAPTIVE, "--out", tmp_path / "net").status == 2
    assert load_network(tmp_path / "net").name == "digits-tiny"
    assert {p.name for p in tmp_path.iterdir()} == {"net", "net.search.npz"}


# From a method's result to hardware.


def test_a_result_becomes_verified_hardware(run: Run, tmp_path: Path) -> None:
    """One command from a codebook network to Verilog that a simulator finds equal bit for bit."""
    from tests.support import require_tool

    require_tool("iverilog", "vvp", "pyosys")
    net, out = tmp_path / "net", tmp_path / "build"
    assert run(*TINY, "--method", "adaptive", *SMALL["adaptive"], "--out", net).status == 0
    assert any(op.weights.codebook for op in load_network(net).ops if hasattr(op, "weights"))
    command = ("build", "--network", net, "--data", "digits", "--target", "ice40-up5k")
    command = (*command, "--fps", "100", "--images", "0", "--icarus-images", "1", "--no-synth")
    outcome = run(*command, "--out", out)
    assert outcome.status == 0, outcome.err
    report = json.loads((out / "report.json").read_text())
    method = json.loads((net / "method.json").read_text())
    assert report["cosim"]["icarus"]["images"] == 1
    assert report["cosim"]["icarus"]["mismatches"] == 0
    assert report["settings"]["method"] == "adaptive"
    assert report["accuracy"] == {
        "float": method["test"]["float"],
        "integer": method["test"]["integer"],
    }
    assert contents(out / "network") == contents(net)


@pytest.mark.parametrize(
    "option", [("--bits", "8"), ("--layer-bits", "fc=4"), ("--calibration", "max")]
)
def test_a_network_is_not_quantised_again(
    refused: Refused, tmp_path: Path, option: tuple[str, str]
) -> None:
    command = ("build", "--network", tmp_path, "--data", "digits", "--out", tmp_path / "out")
    assert f"leave {option[0]} out" in refused(*command, *option)
    assert contents(tmp_path) == {}


def test_build_from_a_folder_without_a_network(refused: Refused, tmp_path: Path) -> None:
    command = ("build", "--network", tmp_path / "no", "--data", "digits")
    assert "network.json" in refused(*command, "--out", tmp_path / "out")
    assert contents(tmp_path) == {}


def test_figures_of_another_network_do_not_count(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "net"
    assert run(*TINY, "--out", out).status == 0
    figures = (out / "method.json").read_bytes()
    assert saved_method(out) is not None
    assert run(*TINY, "--bits", "4", "--out", out).status == 0
    (out / "method.json").write_bytes(figures)
    assert saved_method(out) is None
    (out / "method.json").write_text("[]")
    assert saved_method(out) is None


# Documentation.

PAGE = (ROOT / "docs/quantisation.md").read_text()


def test_commands_of_the_page_are_understood() -> None:
    lines = [
        line.partition("#")[0].split() for line in re.findall(r"^hwgen .*", PAGE, re.MULTILINE)
    ]
    assert {line[1] for line in lines} == {"quantize", "build"}
    for line in lines:
        arguments = parser().parse_args(line[1:])
        if line[1] == "quantize":
            quantize.check(arguments)
    assert {a.method for a in map(parser().parse_args, (x[1:] for x in lines[:-1]))} == set(METHODS)


def test_example_of_the_page(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"test: float 96\.60%, integer 9\d\.\d\d%\n", done.stdout)
    assert load_network(tmp_path / "net").name == "network"


# Limits.


def a_result(record: dict[str, Any]) -> Result:
    same = Accuracy(images=10, exact=0.5, integer=0.5)
    return Result(
        method="evolve",
        network=None,  # type: ignore[arg-type]
        search=same,
        test=same,
        search_seen=False,
        record=record,
    )


def test_a_drop_that_cannot_be_met(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "net"
    command = (*TINY, "--method", "layerwise", "--max-drop", "0", "--search-images", "200")
    outcome = run(*command, "--out", out)
    record = json.loads((out / "method.json").read_text())
    assert outcome.status == (0 if record["limit_met"] else 1)
    assert ("what binds is" in outcome.err) is not record["limit_met"]
    assert record["test_limit_met"] is (record["test"]["relative_drop"] <= 0)
    for kind, kept in (("search", record["limit_met"]), ("test", record["test_limit_met"])):
        assert f"0.00%, {'kept' if kept else 'exceeded'}" in outcome.out, kind


def test_savings_that_are_asked_for(run: Run, tmp_path: Path) -> None:
    """They are reached, whatever the drop; one beyond the limit is told as in the other search."""
    out = tmp_path / "net"
    asked = ("--memory-saved", "0.7", "--max-drop", "0.001")
    outcome = run(*TINY, "--method", "layerwise", *asked, "--out", out)
    record = json.loads((out / "method.json").read_text())
    assert record["cost"]["memory_saved"] >= 0.7
    assert record["cost"] == network_cost(load_network(out)).table()
    assert f"{record['cost']['memory_saved']:.1%}" in outcome.out
    assert not record["limit_met"]
    assert outcome.status == 1
    assert "the most accurate network found that saves as much" in outcome.err
    assert f"what binds is {record['binding']}; the best network is in {out}" in outcome.err
    assert "0.10%, exceeded" in outcome.out


def test_a_drop_that_only_the_search_images_keep() -> None:
    """It is said; no choice may depend on the test images, so that it is no failure."""
    result = replace(
        a_result({"limit_met": True, "test_limit_met": False, "options": {"max_drop": 0.01}}),
        test=Accuracy(images=500, exact=0.96, integer=0.948),
    )
    note = drop_note(result)
    assert note is not None
    assert note.startswith("the network loses 1.25% on the test images, more than the 1.00% that")
    assert drop_note(replace(result, record={**result.record, "test_limit_met": True})) is None
    assert "a smaller tolerance, or more search images" in note
    options = {"max_drop": 0.01, "memory_saved": None, "multiplications_saved": 0.5}
    note = drop_note(replace(result, record={**result.record, "options": options}))
    assert note is not None
    assert "smaller savings, or more search images" in note
    failed = {**result.record, "limit_met": False, "search_drop": 0.02, "binding": "fc"}
    assert drop_note(replace(result, record=failed)) is None
    assert drop_note(a_result({})) is None


def test_pruning_that_costs_much_by_itself() -> None:
    """It is said: nothing that comes after it makes up for it."""
    note = pruning_note(a_result({"pruned_search": 0.45}))
    assert note is not None
    assert note.startswith("the pruned network has 45.00% on the search images in floats, before")
    assert "the network that was given 50.00%; a smaller --sparsity" in note
    assert pruning_note(a_result({"pruned_search": 0.49})) is None
    assert pruning_note(a_result({})) is None


def test_an_accumulator_too_narrow(refused: Refused, tmp_path: Path) -> None:
    """The layer, the channel and what would do are named."""
    command = ("quantize", "--data", "digits", "--model", linear_onnx(tmp_path))
    before = contents(tmp_path)
    options = ("--method", "accumulator", "--accumulator-bits", "12", "--bound", "formats")
    text = refused(*command, *options, "--out", tmp_path / "net")
    assert re.search(
        r"(any channel|channel \d+) of layer \w+ fit an accumulator of 12 bits", text
    ), text
    assert re.search(r"the narrowest that works for this layer is \d+ ", text), text
    assert contents(tmp_path) == before


def test_limits_in_words() -> None:
    assert limit_message(a_result({})) is None
    assert limit_message(a_result({"limit": {"met": True, "reached": 3}})) is None
    text = limit_message(
        a_result({"limit": {"met": False, "max_bits": 9, "reached": 1200, "binding_layer": "fc"}})
    )
    assert text == (
        "the limit is not met: bits of constants at most 9, reached 1,200, binding layer fc"
    )
    assert limit_message(a_result({"limit_met": True, "search_drop": 0.0})) is None
    text = limit_message(a_result({"limit_met": False, "search_drop": 0.0213, "binding": "fc"}))
    assert text is not None
    assert text.endswith("judged is 2.13%, and what binds is fc")


def test_a_limit_that_cannot_be_met(run: Run, tmp_path: Path) -> None:
    """The best network is kept, and the status is 1."""
    out = tmp_path / "net"
    options = (*SMALL["evolve"], "--ratio", "1000")
    outcome = run(*TINY, "--method", "evolve", *options, "--out", out)
    assert outcome.status == 1
    assert re.search(
        r"^hwgen quantize: the limit is not met: .*reached [\d,]+, binding layer \w+",
        outcome.err,
        re.MULTILINE,
    )
    assert f"the best network is in {out}" in outcome.err
    assert load_network(out).name == "digits-tiny"
