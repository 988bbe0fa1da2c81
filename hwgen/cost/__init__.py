"""What a design costs and whether its text is right: Yosys, nextpnr, pyverilog, Verilator's lint.

Every figure comes from a tool's run; what was not measured is absent.
"""

from hwgen.cost.audit import AuditFacts, AuditReport, audit
from hwgen.cost.fit import check_fit
from hwgen.cost.lint import lint
from hwgen.cost.pnr import PnrResult, place_and_route
from hwgen.cost.synth import SynthResult, synthesise

__all__ = [
    "AuditFacts",
    "AuditReport",
    "PnrResult",
    "SynthResult",
    "audit",
    "check_fit",
    "lint",
    "place_and_route",
    "synthesise",
]
