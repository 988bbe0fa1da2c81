"""Runs Yosys in a process of its own: it prints much and ends the process on an error.

Called as a script with a job file: JSON with ``source``, ``top``, ``synth`` (the pass and its
options), ``netlist`` and, optionally, ``script`` (a named script of abc9) and ``dsp`` with
``blocks`` (multiplier blocks to spend) and ``operands`` (the two signed operand widths of one
block, the larger first).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_SOFT = "\\hwgen_soft"


def _cost(cell: Any, operands: tuple[int, int]) -> tuple[int, int, int]:
    """``(blocks, smaller operand, larger operand)`` of a multiplier cell in DSP blocks."""

    def number(name: str) -> int:
        return int(cell.parameters[name].as_int())

    signed = number("\\A_SIGNED")
    small, large = sorted((number("\\A_WIDTH"), number("\\B_WIDTH")))
    # The blocks are signed: an unsigned operand needs a bit more.
    wide, narrow = operands
    unsigned = 0 if signed else 1
    blocks = -(-(small + unsigned) // narrow) * -(-(large + unsigned) // wide)
    return blocks, small, large


def _in_luts(module: Any, blocks: int, operands: tuple[int, int]) -> int:
    """Mark all but the largest multipliers, as many as ``blocks`` DSP blocks hold; how many."""
    cells = [cell for cell in module.cells_.values() if cell.type.str() == "$mul"]
    sized = [(*_cost(cell, operands), cell.name.str(), cell) for cell in cells]
    # By falling size: in LUTs a product costs about small * large of them.
    sized.sort(key=lambda item: (-item[1] * item[2], item[3]))
    left, marked = blocks, 0
    for need, _, _, _, cell in sized:
        if need <= left:
            left -= need
        else:
            cell.set_bool_attribute(_SOFT)
            marked += 1
    return marked


def main(path: str) -> None:
    """Run the job in file ``path``."""
    from pyosys import libyosys as ys

    job = json.loads(Path(path).read_text(encoding="utf-8"))
    design = ys.Design()

    def run(command: str) -> None:
        ys.run_pass(command, design)

    run("scratchpad -set abc9.verify false")  # minutes on xc7, and no part of the result
    if "script" in job:
        run(f"scratchpad -copy {job['script']} abc9.script")
    run(f"read_verilog {job['source']}")
    run(f"hierarchy -check -top {job['top']}")
    # No stage uses a word that it reads in the cycle that writes it (docs/design.md, section 4), so
    # that block memories need no logic for that case.
    run("setattr -set no_rw_check 1 m:*")
    if "dsp" in job:
        for command in ("proc", "flatten", "opt_expr", "opt_clean", "wreduce t:$mul", "opt_clean"):
            run(command)
        if _in_luts(design.top_module(), job["dsp"]["blocks"], tuple(job["dsp"]["operands"])):
            # Mapped to adders here, they are no multipliers any more when DSP blocks are inferred.
            # booth leaves the smallest to the others; from 4 x 4 bits on it is smaller and faster.
            run(f"booth a:{_SOFT[1:]}")
            run(f"alumacc a:{_SOFT[1:]}")
            run("maccmap t:$macc t:$macc_v2")
    run(job["synth"])
    run("autoname")  # cells get their instance's name in front; synth_xilinx leaves it out
    # Where the tool's own files lie is no part of the result: equal designs give equal netlists.
    run("setattr -unset src")
    run("setattr -mod -unset src")
    run(f"select {job['top']}")  # without the models of the family's cells
    run(f"write_json -selected {job['netlist']}")


if __name__ == "__main__":
    main(sys.argv[1])
