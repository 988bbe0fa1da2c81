"""Emission of plain Verilog-2001 with readable names, byte for byte the same on every run.

Amaranth's elaborated design goes through Yosys in a child process: its processes become
continuous assignments and one ``always`` block for each register. Then names become plain
identifiers (:mod:`rtl.names`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ValueCastable
from amaranth.lib import wiring

from hwgen.errors import MissingTool, ToolFailed
from rtl.names import tidy

__all__ = ["LINT_WAIVERS", "emit_verilog"]

LINT_WAIVERS: dict[str, str] = {
    "DECLFILENAME": "one file holds all modules of a design",
    "PROCASSINIT": "registers have their power-up value in the declaration, as FPGAs load it",
    "UNUSEDSIGNAL": "sums keep their carry although a counter drops it; AXI pads lanes to bytes",
    "WIDTHEXPAND": "operands keep their own width and Verilog extends them, which is exact",
}
"""Rules of ``verilator --lint-only -Wall`` that the emitted text breaks by design, and why."""

_CHILD = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for line in sys.stdin:
    libyosys.run_pass(line.strip(), design)
"""

_SCRIPT = """\
read_rtlil design.il
proc -norom
memory_collect
opt_expr
opt_merge
opt_clean -purge
opt_dff
pmuxtree
opt_expr -mux_undef
opt_merge
opt_clean -purge
write_verilog -noattr design.v
"""


def emit_verilog(component: Any, name: str) -> str:
    """Emit a component and all it contains as one Verilog-2001 text.

    Parameters
    ----------
    component : wiring.Component
        Its ports become the module's; a member ``tdata`` of an interface ``s_axis`` becomes
        ``s_axis_tdata``. A clock domain it does not define gives ports ``clk`` and ``rst``.
    name : str
        Name of the top module and prefix of all others: ``name_stage_part``.

    Raises
    ------
    MissingTool
        If pyosys is not installed.
    ToolFailed
        If it refuses the design.
    """
    ports = {}
    for path, member, value in component.signature.flatten(component):
        port = "_".join(map(str, path))
        if port in ports:
            raise ValueError(f"two members of the component have the port name {port!r}")
        value = value.as_value() if isinstance(value, ValueCastable) else value
        ports[port] = (value, _direction(member))
    text = rtlil.convert(component, name=name, ports=ports, emit_src=False)
    return tidy(_run_yosys(text), name, list(ports))


def _direction(member: wiring.Member) -> Any:
    from amaranth.hdl._ir import PortDirection

    return PortDirection.Input if member.flow == wiring.In else PortDirection.Output


def _run_yosys(text: str) -> str:
    """RTLIL text to Verilog text."""
    if find_spec("pyosys") is None:
        raise MissingTool("emitting Verilog needs Yosys as the package pyosys: pip install pyosys")
    with tempfile.TemporaryDirectory(prefix="hwgen-") as folder:
        (Path(folder) / "design.il").write_text(text, encoding="utf-8")
        # The folder is the child's: no path needs quoting in the script.
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=_SCRIPT,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        result = Path(folder) / "design.v"
        if done.returncode != 0 or not result.exists():
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
            raise ToolFailed(f"Yosys cannot write the design as Verilog:\n{tail}")
        return result.read_text(encoding="utf-8")
