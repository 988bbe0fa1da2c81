"""A temporary folder whose failures reach the user as one sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hwgen.errors import BadInput

__all__ = ["scratch"]


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder that goes with the context.

    Raises
    ------
    BadInput
        If the file system refuses what is done in the context, for lack of space for example.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="hwgen-") as name:
            yield Path(name)
    except OSError as error:
        raise BadInput(
            f"cannot work in the folder for temporary files: {error}; free space, or set TMPDIR to"
            " another folder"
        ) from error
