"""``hwgen quantize`` by each method: its options, what it leaves, resumption and bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwgen.cli import parser, quantize
from hwgen.errors import BadInput
from hwgen.flow import methods as flow_methods
from hwgen.flow.methods import METHODS, limit_message, options_class, saved_method
from hwgen.ir import load_network
from quant.data.dataset import Dataset
from quant.methods.result import Accuracy, Result
from quant.state import SearchState
from tests.cli.bad_files import linear_onnx
from tests.cli.conftest import ROOT, Run, contents

Refused = Callable[..., str]

TINY = ("quantize", "--data", "digits", "--model", "digits-tiny")
ADAPTIVE = (*TINY, "--method", "adaptive", "--bits", "3", "--evaluations", "40")
SMALL: dict[str, tuple[str, ...]] = {
    "linear": ("--bits", "4"),
    "adaptive": ("--bits", "3", "--form", "codebook", "--evaluations", "30"),
    "evolve": ("--trials", "3", "--population", "2", "--epochs", "0.1", "--final-epochs", "0"),
    "layerwise": ("--max-drop", "0.05"),
    "accumulator": ("--accumulator-bits", "14", "--evaluations", "4"),
    "cluster": ("--bits", "4", "--sparsity", "0.5", "--epochs", "1"),
}
"""A short run of each method."""


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


# Options.


def foreign() -> list[tuple[str, quantize.Flag]]:
    return [
        (method, flag)
        for flag in (*quantize.FLAGS, quantize.STUDY)
        for method in METHODS
        if method not in flag.methods
    ]


def value_of(flag: quantize.Flag) -> list[str]:
    settings = flag.settings
    if "const" in settings:
        return []
    return [
        settings["choices"][0]
        if "choices" in settings
        else "0.5"
        if "share" in str(settings)
        else "4"
    ]


@pytest.mark.parametrize("method, flag", foreign(), ids=lambda x: getattr(x, "name", x))
def test_options_of_other_methods(
    refused: Refused, tmp_path: Path, method: str, flag: quantize.Flag
) -> None:
    text = refused(*TINY, "--method", method, flag.name, *value_of(flag), "--out", tmp_path / "x")
    assert f"{flag.name} is an option of --method {flag.methods[0]}" in text
    assert f"not of {method}" in text
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "option", [("--layer-bits", "fc=4"), ("--calibration", "max"), ("--bits", "4")]
)
def test_options_of_the_baseline(refused: Refused, tmp_path: Path, option: tuple[str, str]) -> None:
    text = refused(*TINY, "--method", "layerwise", *option, "--out", tmp_path / "x")
    assert f"{option[0]} is an option of --method linear" in text


@pytest.mark.parametrize("flag", quantize.FLAGS, ids=lambda flag: flag.name)
def test_every_option_is_a_field(flag: quantize.Flag) -> None:
    """The choices of the command line are the members of the options' enumerations."""
    for method in flag.methods:
        cls = options_class(method)
        assert flag.target in cls.__dataclass_fields__
        for choice in flag.settings.get("choices", ()):
            value = getattr(flow_methods.make_options(method, {flag.target: choice}), flag.target)
            assert value.value == choice
        if "choices" in flag.settings:
            kind = type(value)
            assert {member.value for member in kind} == set(flag.settings["choices"])


@pytest.mark.parametrize(
    "options, words",
    [
        (("adaptive", "--bits", "9"), "bits must be a whole number from 2 to 8, not 9"),
        (("adaptive", "--bits", "4/8/8"), "--bits must be one width"),
        (("adaptive", "--bits", "8", "--entry-bits", "4"), "entry_bits must be at least bits"),
        (("cluster", "--bits", "1"), "bits must be a whole number from 2 to 8, not 1"),
        (("cluster", "--epochs", "1.5"), "epochs must be a whole number, not 1.5"),
        (("evolve", "--population", "1"), "population must be a whole number at least 2, not 1"),
        (("evolve", "--study", "x.db", "--no-resume"), "does not empty a --study"),
        (("evolve", "--study", "nosuch://here/x"), "nosuch"),
        (("linear", "--search-images", "9"), "search set must have at least 10 images, not 9"),
        (("adaptive", "--search-images", "201"), "at most the 200 held-out images.* not 201"),
    ],
)
def test_values(refused: Refused, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    text = refused(*TINY, "--method", *options, "--out", tmp_path / "x")
    assert re.search(words, text), text
    assert contents(tmp_path) == {}


def test_an_output_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    """Said before the search, not behind it."""
    (tmp_path / "file").write_text("mine")
    text = refused(*TINY, "--method", "adaptive", "--out", tmp_path / "file")
    assert "must be a folder that can be written" in text
    assert contents(tmp_path) == {"file": b"mine"}


# Images.


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda d: {"train_images": np.concatenate([d.train_images[:-1], d.test_images[:1]])},
            "the search and the test images must have none in common, but share 1",
        ),
        (
            lambda d: {"train_images": np.concatenate([d.test_images[:1], d.train_images[1:]])},
            "the train and the test images must have none in common, but share 1",
        ),
        (lambda d: {"held_out": 0}, "holds out no training images"),
        (lambda d: {"held_out": 5}, "search set must have at least 10 images, not 5"),
        (
            lambda d: {"train_images": d.train_images[:, :, :30, :30]},
            "must have one shape",
        ),
    ],
    ids=["search in test", "training in test", "none", "few", "shape"],
)
def test_images(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Dataset], dict[str, Any]],
    words: str,
) -> None:
    from quant import datasets

    def changed(name: str, **where: object) -> Dataset:
        data = original(name)
        return replace(data, **change(data))

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", changed)
    text = refused(*TINY, "--method", "adaptive", "--out", tmp_path / "x")
    assert re.search(words, text), text
    assert contents(tmp_path) == {}


def test_help_tells_the_defaults() -> None:
    """What a method takes where nothing is typed stands in the help of its option."""
    for flag in quantize.FLAGS:
        for method in flag.methods:
            value = getattr(options_class(method)(), flag.target)
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            if isinstance(value, bool) or value is None or flag.name == "--tolerance":
                continue  # a switch, or told in words
            if not isinstance(value, int | float):
                shown = value.value
            words = rf"default {re.escape(shown)}\b"
            assert re.search(words, flag.settings["help"]), (flag.name, method, shown)


# Unfinished searches.


@pytest.fixture
def interrupted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a search that was interrupted after its second save."""
    count = 0
    save = SearchState.save

    def interrupt(self: SearchState, *args: Any) -> None:
        nonlocal count
        save(self, *args)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    out = tmp_path / "net"
    with monkeypatch.context() as patch:
        patch.setattr(SearchState, "save", interrupt)
        outcome = run(*ADAPTIVE, "--out", out)
    assert outcome.status == 130
    assert outcome.errors == (
        "hwgen quantize: interrupted; the same command goes on with what is finished\n"
    )
    assert set(contents(tmp_path)) == {"net.search.npz"}
    return out


def test_an_interrupted_search_goes_on(run: Run, interrupted: Path, tmp_path: Path) -> None:
    assert run(*ADAPTIVE, "--out", interrupted).status == 0
    assert not (tmp_path / "net.search.npz").exists()
    assert run(*ADAPTIVE, "--out", tmp_path / "whole").status == 0
    assert contents(interrupted) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change, words",
    [
        (("--seed", "1"), r"seed 0 instead of 1"),
        (("--entry-bits", "7"), "entry bits 8 instead of 7"),
        (("--search-images", "100"), "other search set"),
    ],
)
def test_a_search_of_another_kind_is_left_alone(
    refused: Refused, interrupted: Path, tmp_path: Path, change: tuple[str, ...], words: str
) -> None:
    before = contents(tmp_path)
    text = refused(*ADAPTIVE, *change, "--out", interrupted)
    assert "net.search.npz is of another search" in text
    assert words in text
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [b"", b"not a state", None])
def test_a_damaged_state(
    refused: Refused, run: Run, interrupted: Path, tmp_path: Path, damage: bytes | None
) -> None:
    state = tmp_path / "net.search.npz"
    state.write_bytes(state.read_bytes()[:-200] if damage is None else damage)
    before = contents(tmp_path)
    assert "is no state of a search" in refused(*ADAPTIVE, "--out", interrupted)
    assert contents(tmp_path) == before
    assert run(*ADAPTIVE, "--no-resume", "--out", interrupted).status == 0
    assert not state.exists()


def test_a_study_of_another_network(run: Run, refused: Refused, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    command = ("quantize", "--data", "digits", "--method", "evolve", *SMALL["evolve"])
    command = (*command, "--study", study)
    assert run(*command, "--model", "digits-tiny", "--out", tmp_path / "one").status in (0, 1)
    before = contents(tmp_path)
    text = refused(*command, "--model", "digits-tiny", "--seed", "1", "--out", tmp_path / "two")
    assert str(study) in text
    assert contents(tmp_path) == before
    study.write_bytes(b"not a database" * 100)
    text = refused(*command, "--model", "digits-tiny", "--out", tmp_path / "two")
    assert str(study) in text
    assert study.read_bytes() == b"not a database" * 100


def test_control_c(tmp_path: Path) -> None:
    """The real signal: a state that is there, status 130, no traceback."""
    command = [sys.executable, "-m", "hwgen.cli", *ADAPTIVE[:-1], "100000", "--out", "net"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        state = tmp_path / "net.search.npz"
        end = time.monotonic() + 120
        while not state.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.endswith("interrupted; the same command goes on with what is finished\n")
    assert set(contents(tmp_path)) == {"net.search.npz"}


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
