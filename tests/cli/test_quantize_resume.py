"""Searches of ``hwgen quantize`` that were interrupted, and states and studies of others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quant.state import SearchState
from tests.cli.conftest import ROOT, Run, contents
from tests.cli.quantize_case import ADAPTIVE, SMALL, Refused

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
        (("--activation-bits", "7"), "activation bits 8 instead of 7"),
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
