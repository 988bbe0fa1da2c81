"""Finding the simulators, and what is said where one is absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import find_libpython
import pytest

from hwgen.errors import MissingTool
from sim import tools
from sim.build import Trace, compile_bench
from sim.cache import BuildCache
from sim.tools import Simulator, missing_tools

FINDERS = (
    tools.find_icarus,
    tools.find_verilator,
    tools.find_compiler,
    tools.find_make,
    tools.find_fst_headers,
    tools.find_libpython_path,
)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing remembered, before or after."""
    for finder in FINDERS:
        finder.cache_clear()
    yield
    for finder in FINDERS:
        finder.cache_clear()


def test_found(simulator: Simulator) -> None:
    if missing := missing_tools(simulator):
        raise MissingTool("; ".join(missing))
    tool = tools.find_icarus() if simulator is Simulator.ICARUS else tools.find_verilator()
    assert tool.path.is_file()
    assert int(tool.version.split(".")[0]) >= 5


@pytest.mark.usefixtures("fresh")
def test_nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(find_libpython, "find_libpython", lambda: None)
    icarus = " ".join(missing_tools(Simulator.ICARUS))
    assert "apt-get install iverilog" in icarus
    assert "apt-get install libpython3." in icarus
    verilator = " ".join(missing_tools(Simulator.VERILATOR))
    assert all(f"apt-get install {name}" in verilator for name in ("perl", "g++", "make"))


@pytest.mark.usefixtures("fresh")
def test_old_verilator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("verilator", "Verilator 4.038 2020-07-11"), ("perl", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingTool, match=r"must be 5\.036 or later, not 4\.038"):
        tools.find_verilator()


@pytest.mark.usefixtures("fresh")
def test_perl_without_its_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "Can't locate FindBin.pm in @INC (@INC contains: /etc/perl)"
    for name in ("verilator", "perl"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{text}" >&2\nexit 2\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingTool, match=r"apt-get install perl.*FindBin"):
        tools.find_verilator()


def test_fst_without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if missing := missing_tools(Simulator.VERILATOR):
        raise MissingTool("; ".join(missing))

    def absent() -> None:
        raise MissingTool("liblz4-dev")

    monkeypatch.setattr("sim.build.find_fst_headers", absent)
    with pytest.raises(MissingTool, match="liblz4-dev"):
        compile_bench(
            "",
            "",
            Simulator.VERILATOR,
            trace=Trace.FST,
            cache=BuildCache(tmp_path),
            jobs=1,
            into=tmp_path,
        )
