"""Renderers of a dataflow: Verilog through Amaranth in :mod:`hwgen.backends.rtl`."""

__all__: list[str] = []
