"""Which simulators are installed, where, and in which version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path

import cocotb_tools.config
import find_libpython

from hwgen.errors import MissingTool
from hwgen.verilator import ADVICE, locate

__all__ = [
    "Simulator",
    "Tool",
    "find_compiler",
    "find_icarus",
    "find_libpython_path",
    "find_make",
    "find_verilator",
    "missing_tools",
]

OLDEST_VERILATOR = (5, 36)
"""The oldest Verilator that cocotb 2 drives."""


class Simulator(Enum):
    """A Verilog simulator."""

    ICARUS = "icarus"
    VERILATOR = "verilator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """An external program.

    Parameters
    ----------
    name : str
    path : Path
        The program, absolute.
    version : str
        As it reports it.
    root : Path, optional
        Folder of its own files, where the caller must name it.
    """

    name: str
    path: Path
    version: str
    root: Path | None = None


def _output(command: list[str]) -> str:
    """What a version query prints; empty where the program cannot run."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _which(name: str, advice: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise MissingTool(f"the program '{name}' is not on the PATH; {advice}")
    return Path(path).absolute()


@cache
def find_icarus() -> Tool:
    """Icarus Verilog.

    Raises
    ------
    MissingTool
        If ``iverilog`` or ``vvp`` is absent.
    """
    advice = "install Icarus Verilog (Debian: apt-get install iverilog)"
    path = _which("iverilog", advice)
    _which("vvp", advice)
    found = re.search(r"Icarus Verilog version (\S+)", _output([str(path), "-V"]))
    if found is None:
        raise MissingTool(
            f"{path} does not report a version; reinstall it (Debian: apt-get install iverilog)"
        )
    return Tool(name="iverilog", path=path, version=found[1])


@cache
def find_verilator() -> Tool:
    """Verilator: the Python package first, else the program on the PATH.

    Raises
    ------
    MissingTool
        If there is none of version 5.036 or later, or not all of Perl, which its front end is
        written in.
    """
    there = locate()
    path, root = there.path, there.root
    try:
        done = there.run(["--version"], timeout=60)
        text = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    # The Python package's program does not know its number; its metadata do.
    runs = re.search(r"\brev |Verilator \d", text) is not None
    found = re.match(r"(\d+)\.(\d+)", metadata.version("verilator")) if root is not None else None
    found = found or re.search(r"Verilator (\d+)\.(\d+)", text)
    if found is None or not runs:
        raise MissingTool(f"{path} does not run; re{ADVICE}: {text.strip()[-200:]}")
    if (int(found[1]), int(found[2])) < OLDEST_VERILATOR:
        raise MissingTool(
            f"Verilator must be 5.036 or later, not {found[1]}.{found[2]} ({path}); {ADVICE}"
        )
    return Tool(name="verilator", path=path, version=f"{found[1]}.{found[2]}", root=root)


@cache
def find_compiler() -> Tool:
    """The C++ compiler that Verilator's output needs.

    Raises
    ------
    MissingTool
        If there is no ``g++``.
    """
    path = _which("g++", "Verilator needs a C++ compiler (Debian: apt-get install g++)")
    return Tool(name="g++", path=path, version=_output([str(path), "-dumpfullversion"]).strip())


@cache
def find_fst_headers() -> None:
    """What Verilator needs besides to write FST files.

    Raises
    ------
    MissingTool
        If the headers of lz4 or zlib are absent.
    """
    includes = "#include <lz4.h>\n#include <zlib.h>\n"
    command = [str(find_compiler().path), "-E", "-x", "c++", "-", "-o", os.devnull]
    done = subprocess.run(command, input=includes, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingTool(
            "Verilator needs the headers of lz4 and zlib to write FST files; install them"
            " (Debian: apt-get install liblz4-dev zlib1g-dev) or name a .vcd file"
        )


@cache
def find_make() -> Tool:
    """GNU make.

    Raises
    ------
    MissingTool
        If it is absent.
    """
    path = _which("make", "Verilator needs it (Debian: apt-get install make)")
    found = re.search(r"GNU Make (\S+)", _output([str(path), "--version"]))
    if found is None:
        raise MissingTool(f"{path} must be GNU make; install it (Debian: apt-get install make)")
    return Tool(name="make", path=path, version=found[1])


@cache
def find_libpython_path() -> Path:
    """Python's shared library, which cocotb loads into the simulator.

    Raises
    ------
    MissingTool
        If this Python has none.
    """
    path = find_libpython.find_libpython()
    if path is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise MissingTool(
            f"cocotb needs the shared library of Python {version}; install it"
            f" (Debian: apt-get install libpython{version})"
        )
    return Path(path)


def missing_tools(simulator: Simulator) -> list[str]:
    """One sentence for each thing that ``simulator`` needs and that is absent."""
    finders: dict[Simulator, tuple[Callable[[], object], ...]] = {
        Simulator.ICARUS: (find_icarus, find_libpython_path),
        Simulator.VERILATOR: (find_verilator, find_compiler, find_make, find_libpython_path),
    }
    missing = []
    for finder in finders[simulator]:
        try:
            finder()
        except MissingTool as error:
            missing.append(str(error))
    return missing


def cocotb_libraries() -> Path:
    """Folder of cocotb's simulator interface libraries."""
    return Path(cocotb_tools.config.libs_dir)
