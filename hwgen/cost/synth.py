"""Synthesis with Yosys (pyosys in a child process)."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from hwgen.cost.cells import Counts, count_cells, load_netlist
from hwgen.cost.contents import hoist_contents
from hwgen.cost.ecp5 import absorb_product_registers
from hwgen.cost.process import run_tool
from hwgen.errors import MissingTool
from hwgen.files import ensure_folder, write_json, write_text
from hwgen.targets import Family, Part

__all__ = ["SynthResult", "synthesise"]

_CHILD = Path(__file__).with_name("yosys_child.py")
_DEVICE = {"up5k": "u", "hx8k": "hx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthResult:
    """A synthesised design.

    Parameters
    ----------
    family : Family
    top : str
        Name of the top module.
    counts : Counts
        Of the whole design.
    instances : dict of str to Counts
        Of each instance in the top module; the top module's own logic under ``""``.
    cells : dict of str to int
        Cells of the netlist by type.
    netlist : Path
        Mapped and flattened netlist, Yosys's JSON, without pads and clock buffers.
    """

    family: Family
    top: str
    counts: Counts
    instances: dict[str, Counts]
    cells: dict[str, int]
    netlist: Path

    @property
    def lut(self) -> int:
        """LUTs, as :mod:`hwgen.cost.cells` counts them."""
        return self.counts.lut

    @property
    def ff(self) -> int:
        """Flip-flops of the fabric."""
        return self.counts.ff

    @property
    def dsp(self) -> int:
        """Multiplier blocks."""
        return self.counts.dsp

    @property
    def bram(self) -> int:
        """Block RAMs of the family, of ``family.bram_kbit`` kbit each."""
        return self.counts.bram

    @property
    def bram18(self) -> int:
        """Block RAM in blocks of 18 kbit, rounded up."""
        return self.family.bram18(self.counts.bram)

    @property
    def bram_kbit(self) -> int:
        """Kibibits of the block RAMs used, whole blocks."""
        return self.counts.bram * self.family.bram_kbit


def _pass(family: Family, part: Part | None, top: str, dsp: int | None) -> str:
    """The Yosys pass. Pads and clock buffers are left out: the core goes into a larger design."""
    if family is Family.XC7:
        soft = " -nodsp" if dsp == 0 else ""
        return f"synth_xilinx -family xc7 -top {top} -flatten -noiopad -noclkbuf{soft}"
    if family is Family.ECP5:
        soft = " -nodsp" if dsp == 0 else ""
        return f"synth_ecp5 -top {top} -noiopad{soft}"
    hard = "" if dsp == 0 else " -dsp"
    device = f" -device {_DEVICE[part.device]}" if part is not None else ""
    return f"synth_ice40 -top {top}{hard}{device}"


def synthesise(
    verilog: str,
    top: str,
    target: Family | Part,
    *,
    work: Path,
    dsp: int | None = None,
    timeout: float = 3600.0,
) -> SynthResult:
    """Synthesise a design.

    Parameters
    ----------
    verilog : str
        The design's text.
    top : str
        Name of its top module.
    target : Family or Part
        With a part, multipliers beyond its DSP blocks are made of LUTs, the largest products
        keeping the blocks; with a family all that suit become DSP blocks.
    work : Path
        Folder for what the tool reads and writes, ``<top>.<family>.*``: the netlist ends in
        ``.json``, the log in ``.yosys.log``.
    dsp : int, optional
        DSP blocks to use at most, in place of the part's.
    timeout : float
        Seconds.

    Raises
    ------
    BadInput
        If ``work`` cannot be written.
    MissingTool
        If pyosys is not installed.
    ToolFailed
        If Yosys fails; the message holds the last lines of its log.
    """
    if importlib.util.find_spec("pyosys") is None:
        raise MissingTool(
            "synthesis needs Yosys as the package pyosys; install it: pip install pyosys"
        )
    part = target if isinstance(target, Part) else None
    family = target.family if isinstance(target, Part) else target
    budget = part.dsp if dsp is None and part is not None else dsp
    ensure_folder(work)
    stem = f"{top}.{family.value}"
    netlist = work / f"{stem}.json"
    netlist.unlink(missing_ok=True)
    for stale in work.glob(f"{stem}.memory*.hex"):
        stale.unlink()
    hoisted = hoist_contents(verilog, stem)
    for name, text in hoisted.files:
        write_text(work / name, text)
    write_text(work / f"{stem}.v", hoisted.verilog)
    job: dict[str, object] = {
        "source": f"{stem}.v",
        "top": top,
        "synth": _pass(family, part, top, budget),
        "netlist": netlist.name,
    }
    if family is not Family.ICE40:
        # A fifth fewer LUTs on xc7, a tenth on ecp5, for LeNet-5; on ice40 it makes no difference.
        job["script"] = "abc9.script.flow3"
    if budget:
        job["dsp"] = {"blocks": budget, "operands": list(family.dsp_operands)}
    write_json(work / f"{stem}.job.json", job)
    run_tool(
        "Yosys",
        [sys.executable, "-P", str(_CHILD), f"{stem}.job.json"],
        work=work,
        log=work / f"{stem}.yosys.log",
        timeout=timeout,
    )
    module = load_netlist(netlist, top)
    if family is Family.ECP5 and absorb_product_registers(module):
        write_text(netlist, json.dumps({"modules": {top: module}}))
    counts, instances, cells = count_cells(module, family)
    return SynthResult(
        family=family,
        top=top,
        counts=counts,
        instances=instances,
        cells=cells,
        netlist=netlist,
    )
