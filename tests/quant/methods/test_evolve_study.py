"""The study: stopped and continued, shared by workers, killed, foreign, locked, gone."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwgen.errors import BadInput
from quant.expand import resize
from quant.methods import evolve_worker
from quant.methods.evolve_finals import Finals
from quant.methods.evolve_individual import Individual
from quant.methods.evolve_worker import worker_name
from quant.methods.result import Result
from tests.quant.methods.evolve_case import SHORT, case, objectives, search, states

TRIALS = 6


@pytest.fixture(scope="module")
def whole() -> Result:
    """The search, done in one go without a file."""
    return search()


def start_worker(study: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.quant.methods.evolve_worker", str(study), str(out)]
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen([*command, *more], cwd=root, env=environment)


class Stop(Exception):
    """Ends a search in the middle."""


def stopping_at(count: int, error: type[BaseException] = Stop) -> Any:
    """Objectives that raise at the given candidate."""
    seen: list[Individual] = []

    def watch(candidate: Individual) -> None:
        seen.append(candidate)
        if len(seen) == count:
            raise error

    return objectives(watch)


@pytest.mark.parametrize("count, error", [(3, KeyboardInterrupt), (6, Stop)])
def test_a_stopped_search_goes_on_to_the_same_end(
    whole: Result,
    tmp_path: Path,
    count: int,
    error: type[BaseException],
) -> None:
    study = tmp_path / "study.db"
    with pytest.raises(error):
        search(state=study, objectives=stopping_at(count, error))
    assert states(study) == ["COMPLETE"] * (count - 1) + ["FAIL", "WAITING"]
    found = search(state=study)
    assert found.network.same(whole.network)
    assert found.record == whole.record
    before = study.read_bytes()
    assert search(state=study).record == whole.record  # nothing is left to do
    assert study.read_bytes() == before


def test_a_search_that_is_stopped_in_its_finals_keeps_what_was_trained(
    whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two finalists and the one that is chosen are trained; the last of them is interrupted."""
    study = tmp_path / "study.db"
    trained: list[float] = []
    train = Finals._again

    def count(self: Finals, trial: Any, epochs: Any) -> Individual:
        trained.append(epochs)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(self, trial, epochs)

    monkeypatch.setattr(Finals, "_again", count)
    with pytest.raises(KeyboardInterrupt):
        search(state=study)
    found = search(state=study)
    assert [epochs for epochs in trained if epochs] == [0.2, 0.2, 0.4, 0.4]
    assert found.network.same(whole.network)
    assert found.record == whole.record


def test_optuna_keeps_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else's handlers get its reports, and Python's last resort does not step in."""
    printed: list[logging.LogRecord] = []
    assert logging.lastResort is not None
    monkeypatch.setattr(logging.lastResort, "emit", printed.append)
    with pytest.raises(KeyboardInterrupt):
        search(objectives=stopping_at(1, KeyboardInterrupt), **SHORT)
    assert not printed
    assert not logging.getLogger("optuna").propagate


def test_more_trials_continue_a_study(whole: Result, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    search(state=study, trials=4, final_epochs=0, ratio=2.0)
    found = search(state=study)
    assert found.record == whole.record


@pytest.mark.slow
def test_a_killed_worker_loses_what_it_trained_and_no_more(whole: Result, tmp_path: Path) -> None:
    study, out = tmp_path / "study.db", tmp_path / "out.json"
    worker = start_worker(study, out, "2")
    try:
        wait_for(out.with_suffix(".hangs").exists, worker)
        worker.send_signal(signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING"]
    found = search(state=study)
    assert states(study) == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 4
    assert found.network.same(whole.network)
    assert found.record == whole.record


@pytest.mark.slow
def test_two_workers_share_a_study(tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    outs = [tmp_path / "one.json", tmp_path / "two.json"]
    workers = [start_worker(study, out) for out in outs]
    try:
        for worker in workers:
            assert worker.wait(timeout=300) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    one, two = (json.loads(out.read_text()) for out in outs)
    assert one == two
    assert TRIALS <= one["evaluations"] <= TRIALS + 1
    assert set(states(study)) == {"COMPLETE"}
    with sqlite3.connect(study) as file:
        names = file.execute(
            "SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'worker'"
        ).fetchall()
    file.close()
    assert 1 <= len(names) <= 2


def wait_for(condition: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert worker.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_of_this_machine_are_told_dead_by_their_process() -> None:
    assert not evolve_worker._is_dead(worker_name())
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    machine, own, started = worker_name().split("|")
    assert own == str(os.getpid())
    assert evolve_worker._is_dead(f"{machine}|{child.pid}|1")
    assert evolve_worker._is_dead(f"{machine}|{own}|1")  # the number was given to another
    assert not evolve_worker._is_dead(f"elsewhere|{own}|1")
    assert not evolve_worker._is_dead(f"|{own}|{started}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a finished study."""
    study = tmp_path_factory.mktemp("study") / "study.db"
    search(state=study, **SHORT)
    return study


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"seed": 9}, "seed 3 instead of 9"),
        ({"rate": 1e-3}, "rate 0.005 instead of 0.001"),
        ({"objectives": None}, "other objectives"),
        ({"name": "another"}, "holds the study 'evolve network', not 'evolve another' alone"),
        ({"graph": None}, "other network"),
    ],
)
def test_studies_of_other_searches_are_refused_and_stay(
    finished: Path, changes: dict[str, Any], what: str
) -> None:
    if "objectives" in changes:
        changes = {"objectives": {"loss": lambda c: c.score.loss, "error": lambda c: 1.0}}
    if "graph" in changes:
        changes = {"graph": resize(case()[0], {"conv1": 2})}
    before = finished.read_bytes()
    with pytest.raises(BadInput, match=what):
        search(state=finished, **{**SHORT, **changes})
    assert finished.read_bytes() == before
    assert list(finished.parent.iterdir()) == [finished]


def tamper(study: Path, statement: str) -> None:
    with sqlite3.connect(study) as file:
        file.execute(statement)
    file.close()


@pytest.mark.parametrize(
    "statement, what",
    [
        (
            """UPDATE study_user_attributes
               SET value_json = replace(value_json, '"schema": 1', '"schema": 99')""",
            "has schema 99, this version reads 1",
        ),
        ("DELETE FROM study_user_attributes", "is a study of something else"),
        ("UPDATE alembic_version SET version_num = 'v9'", "another version of Optuna"),
        ("DELETE FROM studies", "holds the study of nothing"),
        ("DROP TABLE studies", "no study of this method"),
    ],
)
def test_files_of_another_schema_are_refused_and_stay(
    finished: Path, tmp_path: Path, statement: str, what: str
) -> None:
    study = tmp_path / "study.db"
    study.write_bytes(finished.read_bytes())
    tamper(study, statement)
    before = study.read_bytes()
    with pytest.raises(BadInput, match=what):
        search(state=study, **SHORT)
    assert study.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_other_files_are_refused_and_stay(tmp_path: Path, content: bytes) -> None:
    study = tmp_path / "study.db"
    study.write_bytes(content)
    with pytest.raises(BadInput, match=r"study\.db is no study of this method"):
        search(state=study, **SHORT)
    assert study.read_bytes() == content
    with pytest.raises(BadInput, match="must be a study's file"):
        search(state=tmp_path, **SHORT)
