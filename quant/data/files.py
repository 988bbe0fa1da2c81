"""Bounded reading of data files, with errors that name the file."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from hwgen.errors import BadDataset

__all__ = ["read_exactly", "read_up_to"]


def read_up_to(path: Path, limit: int) -> bytes:
    """Return at most ``limit`` bytes of a file, unpacked if its name ends in ``.gz``.

    Raises
    ------
    BadDataset
        If the file cannot be read or its gzip data are corrupt or truncated.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return file.read(limit)
        with path.open("rb") as file:
            return file.read(limit)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadDataset(
            f"{path}: not a whole gzip file ({error}); delete it and fetch it again"
        ) from error
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read ({error.strerror or error})") from error


def read_exactly(path: Path, size: int, what: str) -> bytes:
    """Return a file's ``size`` bytes (unpacked); ``what`` says in words what they are.

    Raises
    ------
    BadDataset
        Also if the file holds fewer or more bytes.
    """
    # One byte more than wanted shows a longer file without unpacking all of a huge one, and
    # makes gzip check its CRC at the end of a right one.
    data = read_up_to(path, size + 1)
    if len(data) != size:
        got = f"{len(data)}: it is truncated" if len(data) < size else "more"
        raise BadDataset(
            f"{path}: must hold {size} bytes ({what}), and holds {got}; "
            "delete it and fetch it again"
        )
    return data
