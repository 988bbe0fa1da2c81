"""What a design costs and whether its text is right: Yosys, nextpnr, pyverilog, Verilator's lint.

Every figure comes from a tool's run; what was not measured is absent.
"""
