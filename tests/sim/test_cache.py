"""The build cache: whole entries only, one build at a time, bounded size."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from sim.cache import BuildCache, default_cache


def test_built_once_by_many(tmp_path: Path) -> None:
    built = []

    def build(entry: Path) -> None:
        built.append(entry)
        time.sleep(0.05)
        (entry / "data").write_text("whole")

    def use() -> None:
        with BuildCache(tmp_path).hold("key", build) as entry:
            assert (entry / "data").read_text() == "whole"

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(entry: Path) -> None:
        (entry / "half").write_text("")
        raise RuntimeError("compiler")

    with pytest.raises(RuntimeError, match="compiler"), BuildCache(tmp_path).hold("key", build):
        pass
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_prunes_the_oldest_but_not_one_in_use(tmp_path: Path) -> None:
    def build(entry: Path) -> None:
        (entry / "data").write_bytes(bytes(100))

    cache = BuildCache(tmp_path, limit=250)
    with cache.hold("first", build) as first:
        os.utime(first, (1, 1))
        with cache.hold("second", build) as second:
            os.utime(second, (2, 2))
        with cache.hold("third", build), cache.hold("fourth", build):
            kept = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert kept == {"first", "third", "fourth"}


def test_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    (tmp_path / ".new.old").mkdir()
    os.utime(tmp_path / ".new.old", (1, 1))
    (tmp_path / ".new.now").mkdir()
    cache.prune()
    assert not (tmp_path / ".new.old").exists()
    assert (tmp_path / ".new.now").exists()


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "hwgen" / "sim"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard: only absolute paths count
    assert default_cache() == Path.home() / ".cache" / "hwgen" / "sim"
