"""Co-simulation of generated designs in Icarus Verilog and Verilator.

:func:`sim.verify.verify` is the way in; :func:`sim.simulate.simulate` runs one simulation. Nothing is
imported here, because the simulator's own process imports :mod:`sim.benches` at every start.
"""

__all__: list[str] = []
