"""Atomic writes when Ctrl-C or the file system comes between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwgen.errors import BadInput
from hwgen.files import write_bytes

MOVE = os.replace


@pytest.mark.parametrize("moved", [False, True])
def test_an_interruption_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Also where it comes when the new file is in its place and the temporary one is gone."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def interrupted(source: str, target: Path) -> None:
        if moved:
            MOVE(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == (b"new" if moved else b"old")
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_file_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def refused(source: str, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(BadInput, match="state: Permission denied"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
