"""Dataflow stages as Amaranth components, and their Verilog."""

from __future__ import annotations

from hwgen.backends.rtl.design import Design, Probe
from hwgen.backends.rtl.top import generate

__all__ = ["Design", "Probe", "generate"]
