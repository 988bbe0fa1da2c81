"""Downloads with a checksum and a progress bar, into a cache of whole files only."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from hwgen.errors import BadDataset
from hwgen.files import ensure_folder, write_atomic

__all__ = ["Remote", "default_cache", "fetch"]

BLOCK = 1 << 20
TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file at a public address, with the size in bytes and SHA-256 it must have."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """File name, the last part of the address."""
        return self.url.rpartition("/")[2]


def default_cache() -> Path:
    """Return the user's cache folder of this project, by the XDG convention."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "hwgen"


def fetch(remote: Remote, folder: Path) -> Path:
    """Return ``folder/<name>``, downloaded unless it is there; it appears only when it is right.

    Raises
    ------
    BadDataset
        If the address cannot be reached, or what comes is not the expected file.
    BadInput
        If the folder cannot be written.
    """
    target = ensure_folder(folder) / remote.name
    if target.is_file():
        return target
    request = urllib.request.Request(remote.url, headers={"User-Agent": "hwgen"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise BadDataset(f"{remote.url} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise BadDataset(f"{remote.url} cannot be reached ({reason})") from error
    with response:
        write_atomic(target, lambda file: _receive(remote, response, file))
    return target


def _receive(remote: Remote, response: http.client.HTTPResponse, file: BinaryIO) -> None:
    digest, received = hashlib.sha256(), 0
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    with bar:
        task = bar.add_task(remote.name, total=remote.size)
        while received <= remote.size:  # a longer file is wrong, however long
            try:
                block = response.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise BadDataset(
                    f"{remote.url} broke off after {received} of {remote.size} bytes ({error})"
                ) from error
            if not block:
                break
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(task, completed=received)
    if received != remote.size or digest.hexdigest() != remote.sha256:
        got = f"{received} bytes" if received <= remote.size else f"more than {remote.size} bytes"
        raise BadDataset(
            f"{remote.url} gave another file than expected: {remote.size} bytes of SHA-256 "
            f"{remote.sha256} are wanted, {got} of SHA-256 {digest.hexdigest()} came; "
            "nothing was kept"
        )
