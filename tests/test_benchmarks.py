"""The benchmark of the methods: every method is there, cells run once, what fails is told."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import quant
from benchmarks import methods
from benchmarks.cells import METHODS
from benchmarks.cells.common import NETWORKS, Absent, Cases, Cell, markdown_table
from hwgen.errors import BadInput
from hwgen.flow import methods as flow_methods
from hwgen.flow.methods import options_class
from tests.cli.conftest import contents

SEARCHES = METHODS[1:]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_function_of_quant(name: str) -> None:
    function = getattr(quant, name)
    assert function is getattr(importlib.import_module(f"quant.methods.{name}"), name)
    parameters = inspect.signature(function).parameters
    first, *others = parameters.values()
    assert first.name == "graph"
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others)
    common = {"preprocess", "splits", "name", "progress"}
    common |= {"config"} if name == "linear" else {"options", "seed", "state"}
    assert common <= set(parameters)
    required = {p.name for p in others if p.default is inspect.Parameter.empty}
    assert required <= {"preprocess", "splits", "options"}
    assert name in quant.__all__


@pytest.mark.parametrize("name", SEARCHES)
def test_options_are_frozen_and_checked(name: str) -> None:
    cls = options_class(name)
    assert cls.__name__ in quant.__all__
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert cls()


def test_the_names_are_the_same_everywhere() -> None:
    assert flow_methods.METHODS == METHODS


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("quick", [False, True])
def test_every_method_has_cells(name: str, quick: bool) -> None:
    module = importlib.import_module(f"benchmarks.cells.{name}")
    cells = module.cells(quick)
    assert cells
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.name.startswith(f"{name}-") for cell in cells)
    assert all(json.loads(json.dumps(dict(cell.config))) is not None for cell in cells)


def run(*arguments: object) -> int:
    return methods.main([str(argument) for argument in arguments])


def test_quick_run_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method's cells are measured once, and another run writes the same files."""
    command = ("--out", tmp_path, "--quick", "--only", "linear-digits-tiny-b[84]")
    assert run(*command) == 0
    assert "2 of 2 cells to run" in capsys.readouterr().err
    first = contents(tmp_path)
    record = json.loads(first["cells/linear-digits-tiny-b4.json"])
    assert set(record) == {"cell", "config", "networks", "result"}
    assert 0.9 < record["result"]["test"]["integer"] < 0.97
    assert set(json.loads(first["timing.json"])) == {
        "linear-digits-tiny-b4",
        "linear-digits-tiny-b8",
    }
    text = first["README.md"].decode()
    assert "| digits-tiny | 8 | 96.60% | 96.20% | 0.40 |" in text
    assert "Not run yet, 8 of 10: linear-lenet5-digits-b8" in text
    assert run(*command) == 0
    assert "0 of 2 cells to run" in capsys.readouterr().err
    assert contents(tmp_path) == first

    (tmp_path / "cells/linear-digits-tiny-b4.json").unlink()
    (tmp_path / "README.md").unlink()
    assert run(*command) == 0
    again = contents(tmp_path)
    assert again.pop("timing.json") != b""
    assert again == {name: data for name, data in first.items() if name != "timing.json"}


def test_two_at_once(tmp_path: Path) -> None:
    """Each method in a process of its own; of one that has nothing to do, none."""
    only = ("--only", "digits-tiny-b8", "--only", "^linear")
    assert run("--out", tmp_path, "--quick", "--jobs", "2", *only) == 0
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {"linear-digits-tiny-b8.json"}


class Stubs:
    """Cells whose results are counted and may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.failing: dict[str, BaseException] = {}
        self.watch: dict[str, Callable[[Cases], object]] = {}
        self.version = 1
        module = ModuleType("stub")
        vars(module)["report"] = self.report
        monkeypatch.setattr(methods, "load_methods", lambda quick: [self.method(module)])

    def method(self, module: ModuleType) -> methods.Method:
        cells = tuple(
            Cell(name=f"stub-{n}", run=self.running(f"stub-{n}"), config={"v": self.version})
            for n in range(3)
        )
        return methods.Method(name="stub", module=module, cells=cells)

    def running(self, name: str) -> Any:
        def run_cell(cases: Cases) -> dict[str, Any]:
            self.ran.append(name)
            if name in self.watch:
                self.watch[name](cases)
            if name in self.failing:
                raise self.failing[name]
            return {"value": len(name)}

        return run_cell

    @staticmethod
    def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
        return markdown_table(("cell", "value"), [(n, r["value"]) for n, r in results.items()])


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(monkeypatch)


def test_a_cell_that_fails_stops_no_other(
    stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stubs.failing["stub-1"] = ValueError("no such luck")
    assert run("--out", tmp_path) == 1
    err = capsys.readouterr().err
    assert "failed: stub-1: ValueError: no such luck" in err
    text = (tmp_path / "README.md").read_text()
    assert "| stub-0 | 6 |" in text
    assert "| stub-2 | 6 |" in text
    assert "Not run yet, 1 of 3: stub-1." in text
    stubs.failing.clear()
    assert run("--out", tmp_path) == 0
    assert stubs.ran == ["stub-0", "stub-1", "stub-2", "stub-1"]
    assert "Not run yet" not in (tmp_path / "README.md").read_text()


def test_an_interrupted_run_goes_on(stubs: Stubs, tmp_path: Path) -> None:
    stubs.failing["stub-1"] = KeyboardInterrupt()
    assert run("--out", tmp_path) == 130
    assert {path.name for path in (tmp_path / "cells").iterdir()} == {"stub-0.json"}
    stubs.failing.clear()
    assert run("--out", tmp_path) == 0
    assert stubs.ran == ["stub-0", "stub-1", "stub-1", "stub-2"]


def test_seconds_of_unfinished_runs_add_up(
    stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a process that was killed; a result that is measured anew begins at 0."""
    monkeypatch.setattr(methods, "NOTED", 0.01)
    noted: list[dict[str, Any]] = []

    def sleep(cases: Cases) -> None:
        time.sleep(0.2)
        noted.append(timing()["stub-1"])

    def timing() -> Any:
        return json.loads((tmp_path / "timing.json").read_text())

    stubs.watch["stub-1"] = sleep
    stubs.failing["stub-1"] = KeyboardInterrupt()
    assert run("--out", tmp_path) == 130
    first = timing()["stub-1"]
    assert noted[0].keys() == first.keys() == {"seconds", "cpu_seconds", "unfinished"}
    assert 0 < noted[0]["seconds"] <= first["seconds"]
    stubs.failing.clear()
    assert run("--out", tmp_path) == 0
    second = timing()["stub-1"]
    assert second.keys() == {"seconds", "cpu_seconds"}
    assert second["seconds"] >= 0.2 + first["seconds"] >= 0.4
    (tmp_path / "cells/stub-1.json").unlink()
    del stubs.watch["stub-1"]
    assert run("--out", tmp_path) == 0
    assert timing()["stub-1"]["seconds"] < 0.2


def test_unfinished_seconds_of_another_configuration_do_not_count(
    stubs: Stubs, tmp_path: Path
) -> None:
    stubs.failing["stub-1"] = KeyboardInterrupt()
    stubs.watch["stub-1"] = lambda cases: time.sleep(0.2)
    assert run("--out", tmp_path) == 130
    stubs.failing.clear()
    stubs.watch.clear()
    stubs.version = 2
    assert run("--out", tmp_path) == 0
    assert json.loads((tmp_path / "timing.json").read_text())["stub-1"]["seconds"] < 0.2


def test_a_network_that_is_not_there_is_left_out(
    stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stubs.failing["stub-2"] = Absent("no weights ship for it")
    assert run("--out", tmp_path) == 0
    assert "left out: no weights ship for it" in capsys.readouterr().err
    assert "Not run yet, 1 of 3: stub-2." in (tmp_path / "README.md").read_text()


def test_other_configurations_are_measured_again(stubs: Stubs, tmp_path: Path) -> None:
    assert run("--out", tmp_path) == 0
    stubs.version = 2
    assert run("--out", tmp_path, "--only", "stub-[01]") == 0
    assert stubs.ran == ["stub-0", "stub-1", "stub-2", "stub-0", "stub-1"]
    assert "Not run yet, 1 of 3: stub-2." in (tmp_path / "README.md").read_text()
    (tmp_path / "cells/stub-0.json").write_text("{")  # a broken file is measured again
    assert run("--out", tmp_path) == 0
    assert stubs.ran[5:] == ["stub-0", "stub-2"]
    assert run("--out", tmp_path, "--report-only") == 0
    assert len(stubs.ran) == 7


def test_another_version_of_a_method_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--out", tmp_path, "--quick", "--only", "linear-digits-tiny-b8")
    assert run(*command) == 0
    monkeypatch.setattr("benchmarks.cells.linear.VERSION", 2)
    capsys.readouterr()
    assert run(*command) == 0
    assert "1 of 1 cells to run" in capsys.readouterr().err
    assert run(*command) == 0
    assert "0 of 1 cells to run" in capsys.readouterr().err


def test_unfinished_searches_of_other_configurations_have_other_files(tmp_path: Path) -> None:
    cases = Cases(tmp_path, quick=True)
    first = cases.state("cell", 1, {"bits": 3})
    assert first.name.startswith("cell-")
    assert first == cases.state("cell", 1, {"bits": 3})
    cases.case("digits-tiny", search=50)
    others = cases.state("cell", 1, {"bits": 3}), cases.state("cell", 2, {"bits": 3})
    assert len({first, *others}) == 3
    study = cases.state("method/cell", 1, {"bits": 3}, suffix=".db")
    assert (study.parent, study.suffix) == (tmp_path / "method", ".db")
    assert study.stem == others[0].stem
    assert study.parent.is_dir()


def test_what_is_refused(stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", tmp_path, "--only", "(") == 2
    assert "--only must be a regular expression" in capsys.readouterr().err
    assert run("--out", tmp_path, "--jobs", "0") == 2
    (tmp_path / "file").write_text("")
    assert run("--out", tmp_path / "file") == 2
    with pytest.raises(BadInput, match="plain file name"):
        Cell(name="../x", run=lambda cases: {})
    with pytest.raises(BadInput, match="version"):
        Cell(name="x", run=lambda cases: {}, version=0)


def test_cases(tmp_path: Path) -> None:
    cases = Cases(tmp_path / "work", quick=True)
    case = cases.case("digits-tiny", search=50)
    assert case is cases.case("digits-tiny", search=50)
    assert (len(case.splits.search_images), case.seen) == (50, False)
    assert list(cases.used) == ["digits-tiny"]
    assert cases.origin(cases.digest("digits-tiny")).startswith("shipped")
    assert cases.scratch("deep/file.npz").parent.is_dir()
    with pytest.raises(BadInput, match="must be one of lenet5-cifar10"):
        cases.case("alexnet")
    with pytest.raises(Absent, match="give --models"):
        cases.case("resnet8-cifar10")
    with pytest.raises(Absent, match=r"holds no lenet5_mnist\.pt"):
        Cases(tmp_path, models=tmp_path).case("lenet5-mnist")
    assert set(NETWORKS) >= {"lenet5-cifar10", "goyal-mnist", "goyal-cifar10"}
