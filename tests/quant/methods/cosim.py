"""Whether the network that a method made becomes hardware that computes the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl import generate
from hwgen.cost.audit import audit
from hwgen.cost.lint import lint
from hwgen.flow.facts import audit_facts
from hwgen.flow.hardware import cosimulate
from hwgen.ir import Network
from hwgen.lower.sizing import lower
from sim.tools import Simulator

__all__ = ["check_hardware"]


def check_hardware(network: Network, images: NDArray[np.uint8], count: int = 3) -> None:
    """Fold, generate, audit, lint and co-simulate in Verilator; every output must equal golden's.

    Parameters
    ----------
    network : Network
        Of raw pixels; a sequential one.
    images : uint8 array
        ``(N, C, H, W)``, N at least ``count``.
    count : int
        Images to run, back to back at full rate.

    Raises
    ------
    Mismatch
        Naming the first layer, channel, row, column and cycle that differ, or what else is wrong.
    """
    macs = sum(op.macs for op in network.ops if hasattr(op, "macs"))
    # Few multipliers, so that the simulator is built quickly, and not too many cycles to run.
    dataflow = lower(network, cycles=max(4 * network.input.size, macs // 16))
    design = generate(dataflow)
    audit(design.verilog, audit_facts(dataflow, design.top))
    lint(design.verilog, design.top)
    codes = images[:count].astype(np.int64)
    (outcome,) = cosimulate(
        dataflow, design, codes, images={Simulator.VERILATOR: count}, gaps=0.0, stalls=0.0
    )
    outcome.check()
    assert outcome.bulk.ok
    assert np.array_equal(outcome.bulk.outputs, network.evaluate(codes))
