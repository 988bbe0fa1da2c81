"""A cache of built simulators on disk: safe with several processes, bounded in size."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hwgen.errors import BadInput
from hwgen.files import ensure_folder

__all__ = ["BuildCache", "default_cache"]

LIMIT = 1 << 30
"""Bytes that a cache may hold before its least recently used entries go."""


def default_cache() -> Path:
    """``hwgen`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hwgen" / "sim"


class BuildCache:
    """Entries are folders named by the hash of all that decides their contents.

    An entry is built in a temporary folder and renamed into place, so it is whole or absent. A lock
    file per entry lets one process build while others wait for it, and keeps an entry in use from
    being pruned.

    Parameters
    ----------
    folder : Path
    limit : int
        Bytes to keep.

    Raises
    ------
    BadInput
        If the folder cannot be created or written.
    """

    def __init__(self, folder: Path, *, limit: int = LIMIT) -> None:
        self.folder = ensure_folder(folder.absolute())
        self.limit = limit

    @contextmanager
    def hold(self, key: str, build: Callable[[Path], None]) -> Iterator[Path]:
        """The entry ``key``, made by ``build(folder)`` where absent; it stays in the context."""
        entry = self.folder / key
        while True:
            with self._lock(key, fcntl.LOCK_EX):
                if not entry.is_dir():
                    self._build(entry, build)
                    self.prune(keep=key)
                os.utime(entry)
            with self._lock(key, fcntl.LOCK_SH):
                if entry.is_dir():  # else another process pruned it between the two locks
                    yield entry
                    return

    def prune(self, *, keep: str = "") -> None:
        """Remove the least recently used entries that no process holds until the limit is kept."""
        sizes = []
        for entry in self.folder.iterdir():
            if entry.name.startswith(".new."):
                self._remove_abandoned(entry)
            elif entry.is_dir() and not entry.name.startswith("."):
                try:
                    size = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
                    sizes.append((entry.stat().st_mtime, size, entry))
                except OSError:  # another process removes it
                    continue
        total = sum(size for _, size, _ in sizes)
        for _, size, entry in sorted(sizes, key=lambda item: item[0]):
            if total <= self.limit:
                break
            if entry.name == keep:
                continue
            try:
                with self._lock(entry.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(entry, ignore_errors=True)
            except BlockingIOError:
                continue
            total -= size

    @staticmethod
    def _remove_abandoned(entry: Path) -> None:
        """Remove what a killed process left: no build takes a day."""
        try:
            old = time.time() - entry.stat().st_mtime > 86400
        except OSError:
            return
        if old:
            shutil.rmtree(entry, ignore_errors=True)

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=".new.", dir=self.folder))
        try:
            build(temporary)
            temporary.chmod(0o755)
            temporary.rename(entry)
        except OSError as error:
            raise BadInput(
                f"cannot write the cache folder {self.folder}: {error};"
                " free space or give another folder"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _lock(self, key: str, mode: int) -> Iterator[int]:
        """A lock on the entry; its file stays, as removing it races with its next user."""
        handle = os.open(self.folder / f".{key}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, mode)
            yield handle
        finally:
            os.close(handle)
