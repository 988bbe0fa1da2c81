"""Tools as child processes: output to a log file, a time limit, one clear error."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hwgen.errors import BadInput, ToolFailed

__all__ = ["run_tool", "tail"]

_TAIL = 12


def tail(text: str, lines: int = _TAIL) -> str:
    """The last non-empty lines of a log."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def run_tool(
    name: str, command: Sequence[str], *, work: Path, log: Path, timeout: float, check: bool = True
) -> tuple[int, str]:
    """Run ``command`` in folder ``work`` with its output in ``log``, which stays where it fails.

    A tool that does its work says how long it took and where it lies; the results say the rest.

    Parameters
    ----------
    name : str
        What messages call the tool.
    timeout : float
        Seconds; then the tool and all it started are ended.
    check : bool
        Whether a non-zero exit is an error.

    Returns
    -------
    tuple of int and str
        The exit status and the log's text.

    Raises
    ------
    BadInput
        If the log cannot be written.
    ToolFailed
        If the tool cannot be started, exceeds the time, or (``check``) fails.
    """
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that what it started ends with it
            )
    except FileNotFoundError as error:
        if error.filename == str(log) or not work.is_dir():
            raise BadInput(f"cannot write {log}: no such folder; give another folder") from error
        raise ToolFailed(f"{name}: cannot start {command[0]}: {error.strerror}") from error
    except OSError as error:
        raise BadInput(f"cannot write {log}: {error.strerror}; give another folder") from error
    try:
        status = child.wait(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(
            f"{name} did not finish within {timeout:.0f} s; allow more time or make the design"
            f" smaller. Its log is {log}"
        ) from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    if status == 0:
        log.unlink()
    elif check:
        raise ToolFailed(
            f"{name} ended with status {status}. The last lines of {log}:\n{tail(text)}"
        )
    return status, text
