"""Amaranth components of the hardware: one for each kind of stage, and what they are made of.

Every component works in the domain ``sync``; streams are :mod:`amaranth.lib.stream` with payload
``ArrayLayout(element, lanes)``. Timing is that of the design page: no clock enables, credits at the
output, and ``o.valid`` and ``i.ready`` from registers.
"""

from rtl.emit import LINT_WAIVERS, emit_verilog

__all__ = ["LINT_WAIVERS", "emit_verilog"]
