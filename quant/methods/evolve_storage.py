"""Optuna's database, patient: what fails is tried again, and a file that is another's is left alone.

A study is a SQLite file, or lies in a database that is named by its SQLAlchemy URL, which many
machines can share.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import FunctionType
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection

from hwgen.errors import BadInput, MissingTool
from hwgen.files import ensure_folder
from quant.state import differences

__all__ = ["PatientStorage", "open_study"]

IDENTITY = "hwgen"
"""Attribute of a study that says what it is a study of."""

SCHEMA = 1

PATIENCE = 60.0
"""Seconds for which a database that does not answer is tried again."""

FIRST_DELAY = 0.25
LONGEST_DELAY = 8.0

HEARTBEAT = 10
"""Seconds between signs of life of a worker."""

GRACE = 60
"""Seconds without a sign of life after which a worker counts as dead."""

BUSY = 20.0
"""Seconds that SQLite waits for another worker's transaction."""


class _Gone(Exception):
    """The study's file is not there."""


_TROUBLE = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, _Gone)


_LASTING = re.compile(
    r"authentication failed|no password supplied|database .* does not exist|readonly database"
)
"""What servers say of themselves that waiting does not change."""


def _cause(error: BaseException) -> BaseException:
    """What the database said, without Optuna's guess of it."""
    hidden = isinstance(error, StorageInternalError) and error.__cause__ is not None
    return error.__cause__ or error if hidden else error


def _reason(error: BaseException) -> str:
    """A database's error in one line."""
    cause = _cause(error)
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def _is_lasting(error: BaseException) -> bool:
    """Whether the same operation will fail again: a file that is no database, a wrong password.

    Drivers raise exactly ``DatabaseError`` for damage; connections and locks are subclasses.
    """
    return type(_cause(error)) is sqlalchemy.exc.DatabaseError or bool(
        _LASTING.search(_reason(error))
    )


class PatientStorage(RDBStorage):
    """Optuna's storage in a database; every operation is tried again for a while if it fails.

    Parameters
    ----------
    url : str
    path : Path, optional
        The file of a SQLite database, which is not created anew if it vanishes.
    patience : float
        Seconds.

    Raises
    ------
    BadInput
        From every operation, if the database does not answer in that time; at once if it never
        will.
    """

    def __init__(self, url: str, *, path: Path | None = None, patience: float) -> None:
        self._local = threading.local()
        self._patience, self._given_up = patience, False
        self._path, self._inode = path, None if path is None else path.stat().st_ino
        self.title = str(path) if path else _without_password(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            arguments: dict[str, Any] = {
                "heartbeat_interval": HEARTBEAT,
                "grace_period": GRACE,
                "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(),
            }
            options: dict[str, Any] = {"pool_pre_ping": True}
            if path is not None:
                options = {"connect_args": {"timeout": BUSY}}
            self._insist(
                lambda: RDBStorage.__init__(self, url, engine_kwargs=options, **arguments), "open"
            )

    def _check_file(self) -> None:
        if self._path is None:
            return
        try:
            found = self._path.stat().st_ino
        except OSError as error:
            raise _Gone("the file is not there") from error
        if found != self._inode:  # put back: what is still open is the file that was deleted
            self.remove_session()
            self.engine.dispose()
            self._inode = found

    def _insist(self, operation: Callable[[], Any], name: str) -> Any:
        """Do an operation until it works or patience is over."""
        if getattr(self._local, "busy", False):  # part of another, which is tried again as a whole
            return operation()
        # Signs of life come again by themselves; after one operation in vain the next are in haste.
        patience = 0.0 if self._given_up or name == "record_heartbeat" else self._patience
        end, delay, tried = time.monotonic() + patience, FIRST_DELAY, 0
        self._local.busy = True
        try:
            while True:
                try:
                    self._check_file()
                    found = operation()
                    self._given_up = False
                    return found
                except UpdateFinishedTrialError:
                    if not tried:
                        raise
                    return True  # it had worked, only the answer was lost
                except sqlalchemy.exc.ArgumentError:
                    raise  # no such kind of database: it will not come
                except _TROUBLE as error:
                    if _is_lasting(error):
                        raise BadInput(
                            f"the study {self.title} cannot be used ({_reason(error)}); give"
                            " another"
                        ) from error
                    tried += 1
                    if time.monotonic() + delay > end:
                        if name == "record_heartbeat":
                            return None  # the trial may be tried again by another; not worse
                        self._given_up = True
                        raise self._message(error) from error
                time.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY)
        finally:
            self._local.busy = False

    def _message(self, error: BaseException) -> BadInput:
        return BadInput(
            f"the study {self.title} did not answer for {self._patience:.0f} s ({_reason(error)});"
            " what was finished is kept in it: bring it back and give the same command to go on"
        )


def _patient(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def insisting(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._insist(lambda: method(self, *args, **kwargs), name)

    return insisting


_PLAIN = ("remove_session", "get_heartbeat_interval", "get_heartbeat_stale_trial_callback")
for _name, _method in vars(RDBStorage).items():
    _plain = _name.startswith("__") or _name in _PLAIN
    if isinstance(_method, FunctionType) and not _plain:
        setattr(PatientStorage, _name, _patient(_name, _method))


_SECRET = re.compile(r"(?s)(?:(?<=://)|^(?!.*://)).*@")
"""Who asks, in what is no URL but may have been meant as one."""


def _without_password(url: str) -> str:
    return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)


def open_study(
    storage: Path | str | None,
    *,
    name: str,
    identity: Mapping[str, Any],
    objectives: int,
    sampler: BaseSampler,
    patience: float | None = None,
) -> optuna.Study:
    """A study, created where there is none.

    Parameters
    ----------
    storage : Path, str or None
        A SQLite file, a SQLAlchemy URL, or None for a study in memory.
    name : str
        Of the study.
    identity : mapping
        JSON values that a study which is there must agree on.
    objectives : int
        How many, all to be made small.
    sampler : BaseSampler
    patience : float, optional
        Seconds for which a database that fails is tried again; :data:`PATIENCE` by default.

    Raises
    ------
    BadInput
        If what is there is of another network, of other options, of another version or no study;
        it stays as it is.
    MissingTool
        If the database needs a package that is not installed.
    """
    _quiet()
    wanted = json.loads(json.dumps({"schema": SCHEMA, **identity}))
    patience = PATIENCE if patience is None else patience
    common: dict[str, Any] = {"study_name": name, "sampler": sampler}
    if storage is None:
        return optuna.create_study(directions=[StudyDirection.MINIMIZE] * objectives, **common)
    if isinstance(storage, Path):
        ensure_folder(storage.parent)
        if not storage.exists():
            _publish(storage, name, wanted, objectives)
        _check_file(storage, name, wanted)
        url = f"sqlite:///file:{_quoted(storage)}?mode=rw&uri=true"
        try:
            found = PatientStorage(url, path=storage, patience=patience)
        except RuntimeError as error:  # changes nothing
            raise BadInput(
                f"{storage} was written by another version of Optuna ({error}); go on with that"
                " version, or name another file"
            ) from error
        return optuna.load_study(storage=found, **common)
    with _explained(storage):
        found = PatientStorage(storage, patience=patience)
        study = optuna.create_study(
            storage=found,
            directions=[StudyDirection.MINIMIZE] * objectives,
            load_if_exists=True,
            **common,
        )
    if IDENTITY not in study.user_attrs and not study.trials:
        study.set_user_attr(IDENTITY, wanted)
    _compare(found.title, study.user_attrs.get(IDENTITY), wanted)
    return study


def _quiet() -> None:
    """Keep Optuna's own reports, with tracebacks for Ctrl-C, off the terminal."""
    optuna.logging.disable_default_handler()
    logger = logging.getLogger("optuna")
    if not logger.handlers:  # else Python prints warnings itself
        logger.addHandler(logging.NullHandler())


@contextmanager
def _explained(url: str) -> Any:
    """Errors of a URL in words."""
    try:
        sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise BadInput(
            "the storage must be a database URL such as postgresql+psycopg://user@host/name, not"
            f" {re.sub(_SECRET, '***@', url)!r}"
        ) from None  # the message of SQLAlchemy holds the password
    try:
        yield
    except sqlalchemy.exc.ArgumentError as error:
        raise BadInput(f"the database {_without_password(url)} is none that is known") from error
    except ImportError as error:
        raise MissingTool(
            f"the database {_without_password(url)} needs a package that is not installed; for"
            " PostgreSQL: pip install 'hwgen[postgres]'"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"the database {_without_password(url)} cannot be used: {error}") from error


def _quoted(path: Path) -> str:
    """A path for a SQLite URI inside a SQLAlchemy URL."""
    text = str(path.absolute())
    for character in "%?#":
        text = text.replace(character, f"%{ord(character):02x}")
    return text


def _publish(path: Path, name: str, identity: Mapping[str, Any], objectives: int) -> None:
    """Make a study's file, whole or not at all; another worker's that comes first stays."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another folder") from error
    fresh = Path(temporary)
    try:
        storage = PatientStorage(f"sqlite:///{fresh}", path=fresh, patience=0.0)  # ours alone
        study = optuna.create_study(
            study_name=name, storage=storage, directions=[StudyDirection.MINIMIZE] * objectives
        )
        study.set_user_attr(IDENTITY, identity)
        storage.remove_session()
        storage.engine.dispose()
        mask = os.umask(0)
        os.umask(mask)
        fresh.chmod(0o666 & ~mask)
        with suppress(FileExistsError):
            path.hardlink_to(fresh)
    except BadInput as error:
        reason = _reason(error.__cause__ or error)
        raise BadInput(f"cannot write {path}: {reason}; free space or give another path") from error
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another folder") from error
    finally:
        fresh.unlink()


def _check_file(path: Path, name: str, wanted: Mapping[str, Any]) -> None:
    """Refuse a file that is no study of ours, reading only."""
    if not path.is_file():
        raise BadInput(f"{path} must be a study's file; give another path")
    uri = f"file:{_quoted(path)}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY)) as file:
            studies = [row[0] for row in file.execute("SELECT study_name FROM studies")]
            found = file.execute(
                "SELECT value_json FROM study_user_attributes NATURAL JOIN studies"
                " WHERE key = ? AND study_name = ?",
                (IDENTITY, name),
            ).fetchone()
    except sqlite3.Error as error:
        raise BadInput(
            f"{path} is no study of this method ({error}); give another path, or delete it"
        ) from error
    if studies != [name]:
        raise BadInput(
            f"{path} holds the study {', '.join(map(repr, studies)) or 'of nothing'}, not {name!r}"
            " alone; name another file"
        )
    _compare(str(path), json.loads(found[0]) if found else None, wanted)


def _compare(title: str, found: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise BadInput(f"{title} is a study of something else; name another")
    if found.get("schema") != wanted["schema"]:
        raise BadInput(
            f"{title} has schema {found.get('schema')}, this version reads {wanted['schema']}; name"
            " another study"
        )
    if found != wanted:
        raise BadInput(
            f"{title} is of another search ({differences(found, wanted)}); ask for the same to go on"
            " with it, or name another study"
        )
