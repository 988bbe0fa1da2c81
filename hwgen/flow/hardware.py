"""Steps from an integer network to measured hardware; none of them needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design
from hwgen.backends.rtl.top import generate
from hwgen.cost.audit import audit
from hwgen.cost.fit import check_fit
from hwgen.cost.lint import lint
from hwgen.cost.pnr import PnrResult, place_and_route
from hwgen.cost.synth import SynthResult, synthesise
from hwgen.errors import Mismatch
from hwgen.flow.facts import audit_facts
from hwgen.flow.options import HardwareOptions
from hwgen.flow.workspace import Workspace, digest
from hwgen.ir.network import Network
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.sizing import lower, lower_to_multipliers
from sim.tools import Simulator
from sim.verify import Verification, verify

__all__ = [
    "check_cycles",
    "cosimulate",
    "design_of",
    "fold_network",
    "generate",
    "pnr_figures",
    "synth_figures",
    "synthesize",
]


def fold_network(network: Network, options: HardwareOptions) -> Dataflow:
    """The dataflow of a network for what ``options`` ask."""
    if options.multipliers is not None:
        return lower_to_multipliers(
            network, multipliers=options.multipliers, pins=options.pins, argmax=options.argmax
        )
    cycles = options.frame_cycles
    assert cycles is not None
    return lower(network, cycles=cycles, pins=options.pins, argmax=options.argmax)


def cosimulate(
    dataflow: Dataflow,
    design: Design,
    codes: NDArray[np.int64],
    *,
    images: Mapping[Simulator, int],
    gaps: float = 0.3,
    stalls: float = 0.3,
    seed: int = 0,
    trace: Path | None = None,
    progress: Callable[[Simulator, int, int], None] | None = None,
) -> tuple[Verification, ...]:
    """Run images through the design; compare every output with golden and every cycle with the schedule.

    See :func:`sim.verify.verify`; the outcome's ``check()`` raises where codes differ.

    Raises
    ------
    Mismatch
        If all codes are right and an image took other cycles than predicted.
    """
    outcomes = verify(
        design,
        dataflow.network,
        codes,
        images=images,
        expected=dataflow.expected(codes),
        interval=dataflow.interval,
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        trace=trace,
        progress=progress,
    )
    for outcome in outcomes:
        if outcome.bulk.ok:
            check_cycles(dataflow, outcome)
    return outcomes


def check_cycles(dataflow: Dataflow, outcome: Verification) -> None:
    """Compare the cycle in which every frame ended, at full rate, with the schedule.

    Raises
    ------
    Mismatch
        Naming the first frame that ended in another cycle than predicted.
    """
    bulk = outcome.bulk
    predicted = dataflow.schedule.times["output"][:, -1].tolist()
    if dataflow.schedule.settled:
        missing = range(1, len(bulk.ends) - len(predicted) + 1)
        predicted += [predicted[-1] + k * dataflow.interval for k in missing]
    for frame, (end, expected) in enumerate(zip(bulk.ends, predicted, strict=False)):
        if end - bulk.starts[0] != expected:
            raise Mismatch(
                f"in {outcome.simulator.value} image {frame} left the design {end - bulk.starts[0]} cycles after"
                f" the first pixel came, the schedule says {expected}; please report this with the network"
            )


def synthesize(
    design: Design, options: HardwareOptions, *, work: Path, pnr: bool = True, seed: int = 1
) -> tuple[SynthResult, PnrResult | None]:
    """Synthesise, check that it fits, and where the part allows place and route.

    Raises
    ------
    DoesNotFit
        Naming the resource, need and have, and the stages that take most.
    """
    synth = synthesise(design.verilog, design.top, options.target, work=work)
    check_fit(synth, options.target)
    if not pnr or not options.target.placeable:
        return synth, None
    placed = place_and_route(
        synth, options.target, work=work, clock_mhz=options.clock_mhz, seed=seed
    )
    return synth, placed


def synth_figures(synth: SynthResult) -> dict[str, Any]:
    """A synthesis result for ``report.json``."""
    return {
        "family": synth.family.value,
        "lut": synth.lut,
        "ff": synth.ff,
        "dsp": synth.dsp,
        "bram": synth.bram18,
        "bram_blocks": synth.bram,
        "bram_kbit": synth.bram_kbit,
        "instances": {
            name or "(top)": {"lut": c.lut, "ff": c.ff, "dsp": c.dsp, "bram_blocks": c.bram}
            for name, c in sorted(synth.instances.items())
        },
    }


def pnr_figures(placed: PnrResult) -> dict[str, Any]:
    """A place-and-route result for ``report.json``."""
    return {
        "part": placed.part.name,
        "fmax_mhz": round(placed.fmax_mhz, 2),
        "clock_mhz": placed.clock_mhz,
        "seed": placed.seed,
        "usage": {u.kind: {"used": u.used, "available": u.available} for u in placed.usage},
    }


def design_of(dataflow: Dataflow, workspace: Workspace) -> tuple[Design, list[str]]:
    """Generate the Verilog, write it, lint it and read it back against the dataflow.

    Returns
    -------
    design : Design
    checks : list of str
        What was checked, for the report.

    Raises
    ------
    Mismatch
        If the text that was read back differs from the dataflow.
    """
    design = generate(dataflow)
    workspace.text(f"rtl/{design.top}.v", design.verilog)
    facts = audit_facts(dataflow, design.top)
    key = digest("audit", 1, design.verilog, asdict(facts))

    def check() -> dict[str, Any]:
        report = audit(design.verilog, facts)
        lint(design.verilog, design.top)
        return {"result": {"checked": report.summary}}

    done = workspace.step("audit", key, check)
    return design, [
        done["checked"],
        "verilator --lint-only -Wall: no warning outside the waived rules",
    ]
