"""Place and route with nextpnr (the YoWASP packages, in a child process)."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.cost.cells import load_netlist
from hwgen.cost.fit import Shortage, check_fit, does_not_fit
from hwgen.cost.process import run_tool, tail
from hwgen.cost.shell import CLOCK, add_shell, shell_cost
from hwgen.cost.synth import SynthResult
from hwgen.errors import BadInput, MissingTool, ToolFailed
from hwgen.files import ensure_folder, write_text
from hwgen.targets import Family, Part

__all__ = ["CriticalPath", "PnrResult", "Usage", "place_and_route"]

_RESOURCES = {
    "TRELLIS_COMB": ("LUTs", "lut"),
    "TRELLIS_FF": ("flip-flops", "ff"),
    "MULT18X18D": ("DSP blocks", "dsp"),
    "DP16KD": ("block RAMs of 18 kbit", "bram"),
    "ICESTORM_LC": ("logic cells", "lut"),
    "ICESTORM_DSP": ("DSP blocks", "dsp"),
    "ICESTORM_RAM": ("block RAMs of 4 kbit", "bram"),
}
_USAGE = re.compile(r"Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Sites of one kind (nextpnr's own name), the shell's included."""

    kind: str
    used: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """The path that limits the clock.

    Parameters
    ----------
    start, end : str
        Cells it runs between; a name begins with the instance it came from.
    logic_ns, routing_ns : float
        Delay within cells and between them.
    levels : int
        Combinational cells it runs through.
    """

    start: str
    end: str
    logic_ns: float
    routing_ns: float
    levels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PnrResult:
    """A placed and routed design.

    Parameters
    ----------
    part : Part
    fmax_mhz : float
        Largest clock frequency after routing, in MHz, all paths from register to register.
    clock_mhz : float
        The frequency aimed at.
    seed : int
    usage : tuple of Usage
        Of every kind used.
    shell_lut, shell_ff : int
        Of those, what the serial shell takes (:mod:`hwgen.cost.shell`).
    critical : CriticalPath or None
        The slowest path.
    """

    part: Part
    fmax_mhz: float
    clock_mhz: float
    seed: int
    usage: tuple[Usage, ...]
    shell_lut: int
    shell_ff: int
    critical: CriticalPath | None

    @property
    def utilisation(self) -> dict[str, int]:
        """Sites used by kind."""
        return {usage.kind: usage.used for usage in self.usage}


def _tool(family: Family) -> str:
    name = f"nextpnr-{family.value}"
    if importlib.util.find_spec(f"yowasp_nextpnr_{family.value}") is None:
        raise MissingTool(f"place and route needs {name}; install it: pip install yowasp-{name}")
    return name


def _command(family: Family, arguments: list[str]) -> list[str]:
    """The YoWASP package has a function for what its script does; the script may not be on PATH."""
    code = (
        f"import sys, yowasp_nextpnr_{family.value} as package;"
        f"sys.exit(package.run_nextpnr_{family.value}(sys.argv[1:]))"
    )
    return [sys.executable, "-P", "-c", code, *arguments]


def _overflow(log: str, synth: SynthResult) -> list[Shortage]:
    """Resources of which nextpnr says that it needs more than there are."""
    found = []
    for kind, used, available in _USAGE.findall(log):
        if int(used) > int(available):
            resource, field = _RESOURCES.get(kind, (kind, ""))
            by_need = sorted(
                (
                    (name or synth.top, getattr(counts, field))
                    for name, counts in (synth.instances.items() if field else ())
                ),
                key=lambda item: (-item[1], item[0]),
            )
            largest = tuple((name, need) for name, need in by_need[:3] if need)
            found.append(
                Shortage(resource=resource, need=int(used), have=int(available), largest=largest)
            )
    return found


def _fmax(report: Mapping[str, Any], log: Path) -> float:
    clocks = report.get("fmax", {})
    if len(clocks) != 1:
        raise ToolFailed(
            f"nextpnr must report one clock, it reports {', '.join(clocks) or 'none'}; see {log}"
        )
    (clock,) = clocks.values()
    return float(clock["achieved"])


def _critical(report: Mapping[str, Any]) -> CriticalPath | None:
    for path in report.get("critical_paths", ()):
        steps = path["path"]
        if steps and path["from"].startswith("posedge") and path["to"].startswith("posedge"):
            routing = sum(step["delay"] for step in steps if step["type"] == "routing")
            return CriticalPath(
                start=steps[0]["from"]["cell"],
                end=steps[-1]["to"]["cell"],
                logic_ns=round(sum(step["delay"] for step in steps) - routing, 3),
                routing_ns=round(routing, 3),
                levels=sum(step["type"] == "logic" for step in steps),
            )
    return None


def place_and_route(
    synth: SynthResult,
    part: Part,
    *,
    work: Path,
    clock_mhz: float | None = None,
    seed: int = 1,
    clock: str = CLOCK,
    timeout: float = 3600.0,
) -> PnrResult:
    """Place and route a synthesised design within the serial shell.

    The clock need not be reached: what is reached is reported.

    Parameters
    ----------
    synth : SynthResult
        Synthesised for ``part`` or its family.
    part : Part
        An ecp5 or ice40 part.
    work : Path
        Folder for ``<top>.<part>.*``: netlist, report and log.
    clock_mhz : float, optional
        Frequency to aim at; the part's own by default.
    seed : int
        Of the placement. The same seed gives the same result.
    clock : str
        The clock port.
    timeout : float
        Seconds. The tool's first run on a machine compiles it, about half a minute more.

    Raises
    ------
    BadInput
        If the part has no place and route, or is of another family than the netlist.
    DoesNotFit
        If the part has too little of something.
    MissingTool
        If nextpnr is not installed.
    ToolFailed
        If nextpnr fails otherwise, or takes too long.
    """
    if not part.placeable:
        raise BadInput(f"{part.name} has no place and route here; take an ecp5 or ice40 part")
    if synth.family is not part.family:
        raise BadInput(
            f"the netlist is for {synth.family.value}, {part.name} is {part.family.value};"
            " synthesise for that"
        )
    tool = _tool(part.family)
    check_fit(synth, part)
    ensure_folder(work)
    aim = part.clock_mhz if clock_mhz is None else clock_mhz
    stem = f"{synth.top}.{part.name}"
    module = load_netlist(synth.netlist, synth.top)
    shelled = {"modules": {synth.top: add_shell(module, part.family, clock=clock)}}
    write_text(work / f"{stem}.json", json.dumps(shelled))
    report, log = work / f"{stem}.report.json", work / f"{stem}.nextpnr.log"
    report.unlink(missing_ok=True)
    arguments = [
        f"--{part.device}",
        *("--package", part.package),
        *("--json", f"{stem}.json"),
        *("--report", report.name),
        *("--freq", f"{aim:g}"),
        *("--seed", str(seed)),
        "--timing-allow-fail",
        *(["--lpf-allow-unconstrained"] if part.family is Family.ECP5 else []),
    ]
    status, text = run_tool(
        tool, _command(part.family, arguments), work=work, log=log, timeout=timeout, check=False
    )
    if status != 0:
        overflow = _overflow(text, synth)
        if overflow:
            raise does_not_fit(synth, part, overflow)
        raise ToolFailed(
            f"{tool} ended with status {status}. The last lines of {log}:\n{tail(text)}"
        )
    figures = json.loads(report.read_text(encoding="utf-8"))
    luts, ffs = shell_cost(module, clock=clock)
    return PnrResult(
        part=part,
        fmax_mhz=_fmax(figures, log),
        clock_mhz=aim,
        seed=seed,
        usage=tuple(
            Usage(kind=kind, used=use["used"], available=use["available"])
            for kind, use in sorted(figures["utilization"].items())
            if use["used"]
        ),
        shell_lut=luts,
        shell_ff=ffs,
        critical=_critical(figures),
    )
