"""Dataflow stages as Amaranth components, and their Verilog."""
