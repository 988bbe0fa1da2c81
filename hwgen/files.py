"""Atomic writes: a file is either the old one or the whole new one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from hwgen.errors import BadInput

__all__ = ["ensure_folder", "write_atomic", "write_bytes", "write_json", "write_text"]


def ensure_folder(path: Path) -> Path:
    """Create ``path`` as a writable folder.

    Raises
    ------
    BadInput
        If it is a file, or cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise BadInput(
            f"cannot create the folder {path}: there is a file of that name; give another folder"
        ) from error
    except OSError as error:
        raise BadInput(
            f"cannot create the folder {path}: {error.strerror}; give another folder"
        ) from error
    if not os.access(path, os.W_OK):
        raise BadInput(f"the folder {path} is not writable; change its permissions or give another")
    return path


def write_atomic(path: Path, writer: Callable[[BinaryIO], Any]) -> None:
    """Write ``path`` through ``writer(file)``; on any failure the old file stays as it was.

    Raises
    ------
    BadInput
        If the file system refuses (no space, no permission, no such folder).
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror}; free space or give another folder"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)  # not there: Ctrl-C came just behind the move


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically; see :func:`write_atomic`."""
    write_atomic(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`write_atomic`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: two spaces of indent, keys in the order given, NaN refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
