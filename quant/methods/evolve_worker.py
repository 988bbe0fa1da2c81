"""Who works on a trial: so that the trials of a worker that died are found and tried again."""

from __future__ import annotations

import os
import socket
import warnings
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from quant.methods.evolve_storage import GRACE

__all__ = ["WORKER", "bury_dead", "retry", "worker_name"]

WORKER = "worker"
"""Attribute of a trial: :func:`worker_name` of the process that works on it."""


def _started(process: int) -> str:
    """When a process of this machine started, in clock ticks; '' where there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return text.rsplit(")", 1)[1].split()[19]


def _machine() -> str:
    """This machine, as far as processes are numbered alike in it; '' where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def worker_name() -> str:
    """This process, told from all others on all machines."""
    return f"{_machine()}|{os.getpid()}|{_started(os.getpid())}"


def _is_dead(worker: str) -> bool:
    """Whether a worker was a process of this machine and is no more."""
    machine, _, rest = worker.partition("|")
    process, _, started = rest.partition("|")
    known = bool(machine) and machine == _machine() and process.isdigit()
    return known and _started(int(process)) != started


def retry(study: Study, trial: FrozenTrial) -> None:
    """Queue a trial that failed, with its genes, to be tried again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback()(study, trial)


def bury_dead(study: Study) -> int:
    """Fail the trials of dead workers and queue them again; return how many others are running.

    Processes of this machine are looked up; those of others count as dead without a sign of life.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        fail_stale_trials(study)
    running = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is None:  # it died at once, or the database lost it
            begun = trial.datetime_start or datetime.now()
            dead = datetime.now() - begun > timedelta(seconds=GRACE)
        else:
            dead = _is_dead(worker)
        if not dead:
            running += 1
            continue
        with suppress(ValueError, UpdateFinishedTrialError):  # another was faster
            study.tell(trial.number, state=TrialState.FAIL)
            retry(study, trial)
    return running
