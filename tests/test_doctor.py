"""hwgen doctor: what it finds, and what it says of what it does not."""

from __future__ import annotations

import io
from importlib import metadata

import pytest
from rich.console import Console

from hwgen import doctor
from hwgen.cli import main
from hwgen.errors import MissingTool
from sim.tools import Tool


def text(statuses: list[doctor.ToolStatus]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(doctor.table(statuses))
    return out.getvalue()


def test_versions_are_those_installed() -> None:
    statuses = {status.name: status for status in doctor.diagnose()}
    for name in ("numpy", "torch", "amaranth", "cocotb", "onnx"):
        assert statuses[name].version == metadata.version(name)
        assert statuses[name].found
        assert not statuses[name].advice


def test_missing_tools_are_named_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Tool:
        raise MissingTool("the program 'iverilog' is not on the PATH; install Icarus")

    monkeypatch.setattr(doctor, "_PROGRAMS", (("iverilog", absent, "simulate"),))
    monkeypatch.setattr(doctor, "_PACKAGES", (("no-such-package", "nothing"),))
    statuses = doctor.diagnose()
    assert [s.name for s in statuses if not s.found] == ["no-such-package", "iverilog"]
    shown = text(statuses)
    assert shown.count("missing") == 2
    assert "pip install no-such-package" in shown
    assert "install Icarus" in shown


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "Python" in shown
    assert "cocotb" in shown
