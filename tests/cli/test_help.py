"""Help, version, and what the parser itself refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwgen import __version__
from hwgen.cli.commands import COMMANDS, Command
from tests.cli.conftest import Run, spawn

NAMES = [command.name for command in COMMANDS]


def test_the_commands() -> None:
    assert set(NAMES) == {
        *("build", "train", "quantize", "evaluate", "generate", "simulate", "synth", "explore"),
        "doctor",
    }


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(
    run: Run, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # so that no line is broken
    outcome = run(*arguments)
    assert outcome.status == 0
    assert outcome.err == ""
    for command in COMMANDS:
        line = rf"^    {command.name} +{re.escape(command.help)}$"
        assert re.search(line, outcome.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_help_of_a_command(run: Run, command: Command) -> None:
    outcome = run(command.name, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"usage: hwgen {command.name} ")
    assert outcome.err == ""
    assert "  -h, --help " in outcome.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("paint",), "invalid choice: 'paint'"),
        (("build",), "required: --data, --out"),
        (("build", "--data", "digits", "--out", "x"), "one of the arguments --network --model"),
        (("build", "--network", "x", "--model", "y"), "not allowed with"),
        (("quantize", "--method", "magic"), "invalid choice: 'magic'"),
        (("quantize", "--search-images", "0"), "whole number of at least 1, not '0'"),
        (("build", "--bitz", "8"), "required"),
        (("evaluate", "net"), "required: --data"),
        (("generate", "net", "--out", "x", "--fps", "0"), "must be a number above 0, not '0'"),
        (("generate", "net", "--out", "x", "--fps", "nan"), "must be a number above 0, not 'nan'"),
        (("generate", "net", "--out", "x", "--cycles", "1.5"), "whole number of at least 1"),
        (("generate", "net", "--out", "x", "--multipliers", "-2"), "at least 1, not '-2'"),
        (("generate", "net", "--out", "x", "--cycles", "9", "--fps", "9"), "not allowed with"),
        (("simulate", "x", "--images", "0"), "whole number of at least 1, not '0'"),
        (("simulate", "x", "--simulator", "modelsim"), "invalid choice: 'modelsim'"),
        (("synth", "x", "--clock-mhz", "inf"), "must be a number above 0, not 'inf'"),
    ],
)
def test_what_the_parser_refuses(run: Run, arguments: tuple[str, ...], words: str) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("usage: hwgen")
    assert words in outcome.err


def test_as_a_module(tmp_path: Path) -> None:
    outcome = spawn("--version", cwd=tmp_path)
    assert (outcome.status, outcome.out, outcome.err) == (0, f"hwgen {__version__}\n", "")
    assert not list(tmp_path.iterdir())


def test_doctor(run: Run) -> None:
    outcome = run("doctor")
    assert outcome.status == 0
    for tool in ("iverilog", "verilator", "pyosys", "nextpnr", "torch"):
        assert tool in outcome.out
