"""The study's file or database goes away, is locked, was never there: waited for, then said."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy

from hwgen.errors import BadInput, MissingTool
from quant.methods import evolve_storage
from quant.methods.evolve_individual import Individual
from quant.methods.evolve_worker import worker_name
from tests.quant.methods.evolve_case import SHORT, objectives, search, states


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of a second."""
    monkeypatch.setattr(evolve_storage, "PATIENCE", 1.0)
    monkeypatch.setattr(evolve_storage, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(evolve_storage, "BUSY", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_file_that_goes_away_is_waited_for_and_then_said(tmp_path: Path) -> None:
    study, elsewhere = tmp_path / "study.db", tmp_path / "elsewhere.db"
    seen: list[Individual] = []

    def take_away(candidate: Individual) -> None:
        seen.append(candidate)
        if len(seen) == 2:
            study.rename(elsewhere)

    with pytest.raises(
        BadInput, match=r"study\.db did not answer for 1 s .*is kept in it"
    ) as error:
        search(state=study, objectives=objectives(take_away), **SHORT)
    assert "\n" not in str(error.value)
    assert not study.exists()
    assert states(elsewhere) == ["COMPLETE", "RUNNING"]
    elsewhere.rename(study)
    declare_dead(study)
    assert search(state=study, **SHORT).record == search(**SHORT).record


def declare_dead(study: Path) -> None:
    """Make the worker of the running trial another process, which is no more."""
    machine = worker_name().split("|")[0]
    with sqlite3.connect(study) as file:
        file.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'worker'",
            (json.dumps(f"{machine}|{os.getpid()}|1"),),
        )
    file.close()


@pytest.mark.usefixtures("quick")
def test_a_file_that_comes_back_costs_nothing(tmp_path: Path) -> None:
    study, elsewhere = tmp_path / "study.db", tmp_path / "elsewhere.db"
    threads: list[threading.Timer] = []

    def take_away(candidate: Individual) -> None:
        if not threads:
            elsewhere.write_bytes(study.read_bytes())  # a copy: another file under the same name
            study.unlink()
            threads.append(threading.Timer(0.3, lambda: elsewhere.rename(study)))
            threads[0].start()

    found = search(state=study, objectives=objectives(take_away), **SHORT)
    threads[0].join()
    assert states(study) == ["COMPLETE", "COMPLETE"]
    assert found.record == search(**SHORT).record


@pytest.mark.usefixtures("quick")
def test_patience_is_spent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried in vain for long enough is not tried as long again to clean up; signs of life
    do not wait at all."""
    path = tmp_path / "study.db"
    search(state=path, **SHORT)
    storage = evolve_storage.PatientStorage(f"sqlite:///{path}", path=path, patience=1.0)
    path.rename(tmp_path / "elsewhere.db")
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=lambda: sum(waits))
    monkeypatch.setattr(evolve_storage, "time", clock)
    storage.record_heartbeat(1)
    assert waits == []
    for expected in (True, False):
        with pytest.raises(BadInput, match="did not answer for 1 s"):
            storage.get_all_studies()
        assert bool(waits) is expected
        waits.clear()
    (tmp_path / "elsewhere.db").rename(path)
    assert len(storage.get_all_studies()) == 1
    path.unlink()
    with pytest.raises(BadInput, match="did not answer for 1 s"):
        storage.get_all_studies()
    assert waits


@pytest.mark.usefixtures("quick")
def test_a_locked_file_is_waited_for_and_then_said(tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    locks: list[sqlite3.Connection] = []
    threads: list[threading.Timer] = []

    def unlock() -> None:
        locks[0].rollback()
        locks[0].close()

    def lock(candidate: Individual) -> None:
        locks.append(sqlite3.connect(study, check_same_thread=False, isolation_level=None))
        locks[-1].execute("BEGIN EXCLUSIVE")
        if not threads:
            threads.append(threading.Timer(0.3, unlock))
            threads[0].start()

    with pytest.raises(BadInput, match=r"did not answer for 1 s \(database is locked\)"):
        search(state=study, objectives=objectives(lock), **SHORT)
    threads[0].join()
    locks[1].rollback()
    locks[1].close()
    assert states(study) == ["COMPLETE", "RUNNING"]


def test_an_answer_that_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after a trial's values were written; writing them again is refused."""
    lost: list[int] = []
    finish = optuna.storages.RDBStorage.set_trial_state_values

    def lose(self: Any, trial: int, state: Any, values: Any = None) -> bool:
        done = finish(self, trial, state, values)
        if state is optuna.trial.TrialState.COMPLETE and not lost:
            lost.append(trial)
            raise sqlalchemy.exc.OperationalError("COMMIT", None, Exception("connection lost"))
        return done

    monkeypatch.setattr(evolve_storage, "FIRST_DELAY", 0.01)
    patient = evolve_storage._patient("set_trial_state_values", lose)
    monkeypatch.setattr(evolve_storage.PatientStorage, "set_trial_state_values", patient)
    found = search(state=tmp_path / "study.db", **SHORT)
    assert lost
    assert found.record == search(**SHORT).record


def test_a_url_of_no_database_is_refused_at_once(tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    study.write_bytes(b"no database" * 100)
    begun = time.monotonic()
    with pytest.raises(BadInput, match=r"study\.db cannot be used \(file is not a database\)"):
        search(storage=f"sqlite:///{study}", **SHORT)
    assert time.monotonic() - begun < evolve_storage.PATIENCE / 2
    assert study.read_bytes() == b"no database" * 100


@pytest.mark.parametrize(
    "said, lasting",
    [
        ('FATAL:  password authentication failed for user "me"', True),
        ('FATAL:  database "studies" does not exist', True),
        ("connection refused\nIs the server running?", False),
        ("database is locked", False),
    ],
)
def test_what_servers_say(said: str, lasting: bool) -> None:
    error = sqlalchemy.exc.OperationalError("SELECT 1", None, Exception(said))
    assert evolve_storage._is_lasting(error) is lasting
    assert evolve_storage._reason(error) == said.splitlines()[0]
    wrapped = optuna.exceptions.StorageInternalError("perhaps invalid data")
    wrapped.__cause__ = error
    assert evolve_storage._is_lasting(wrapped) is lasting
    assert evolve_storage._reason(wrapped) == said.splitlines()[0]


def test_a_database_url(tmp_path: Path) -> None:
    """A URL goes the way of PostgreSQL; here it names a second SQLite file."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    found = search(storage=url, **SHORT)
    assert found.record == search(**SHORT).record == search(storage=url, **SHORT).record
    with pytest.raises(BadInput, match="seed 3 instead of 9"):
        search(storage=url, seed=9, **SHORT)
    assert search(storage=url, seed=9, name="second", **SHORT).record["seed"] == 9


def test_bad_urls_are_refused() -> None:
    with pytest.raises(BadInput, match=r"must be a database URL such as postgresql\+psycopg://"):
        search(storage="somewhere", **SHORT)
    with pytest.raises(MissingTool, match="needs a package that is not installed") as error:
        search(storage="postgresql+pg8000://me:secret@localhost/studies", **SHORT)
    assert "secret" not in str(error.value)
    for bad in (
        "postgresql+psycopg://me:secret@host:port/name",
        "me:secret@host",
        "://me:secret@host",
    ):
        with pytest.raises(BadInput, match="must be a database URL such as") as refused:
            search(storage=bad, **SHORT)
        assert "secret" not in str(refused.value)
    with pytest.raises(
        BadInput, match=r"nothing://me:\*\*\*@host/name is none that is known"
    ) as none:
        search(storage="nothing://me:secret@host/name", **SHORT)
    assert "secret" not in str(none.value)


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'no folder' / 'study.db'}"
    with pytest.raises(BadInput, match=r"did not answer for 1 s \(unable to open database file\)"):
        search(storage=url, **SHORT)
