"""A serial shell, so that a core with more ports than a package has pins can be placed.

Each input bit but the clock comes from a flip-flop; these form a shift register fed by one pin.
The outputs enter a chain ``s[k] <= s[k-1] ^ output[k]`` that ends at another pin. So the clock, one
input and one output are all the pins, no logic of the core is optimised away, and every path of the
core, those at its ports included, runs from register to register and counts in Fmax. The cost is
one flip-flop for each input bit and one LUT with its flip-flop for each output bit.

The shell is added to the mapped netlist: the core's own mapping does not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwgen.errors import ToolFailed
from hwgen.targets import Family

__all__ = ["CLOCK", "add_shell", "shell_cost"]

CLOCK = "aclk"
"""The clock port of every design."""

_DATA_IN, _DATA_OUT = "shell_in", "shell_out"


def _flip_flop(family: Family, d: Any, q: int, clock: int) -> dict[str, Any]:
    if family is Family.ECP5:
        # A string that reads as a number has a space behind it in this format.
        return {
            "type": "TRELLIS_FF",
            "parameters": {
                "CEMUX": "1 ", "CLKMUX": "CLK", "GSR": "DISABLED", "LSRMUX": "LSR",
                "REGSET": "RESET", "SRMODE": "LSR_OVER_CE",
            },
            "connections": {"CLK": [clock], "DI": [d], "LSR": ["0"], "Q": [q]},
            "port_directions": {"CLK": "input", "DI": "input", "LSR": "input", "Q": "output"},
        }  # fmt: skip
    return {
        "type": "SB_DFF",
        "parameters": {},
        "connections": {"C": [clock], "D": [d], "Q": [q]},
        "port_directions": {"C": "input", "D": "input", "Q": "output"},
    }


def _xor(family: Family, a: Any, b: Any, o: int) -> dict[str, Any]:
    table = f"{0x6666:016b}"  # inputs 0 and 1 differ
    if family is Family.ECP5:
        ports, out, kind, init = "ABCD", "Z", "LUT4", "INIT"
    else:
        ports, out, kind, init = "0123", "O", "SB_LUT4", "LUT_INIT"
    names = [f"I{port}" if kind == "SB_LUT4" else port for port in ports]
    return {
        "type": kind,
        "parameters": {init: table},
        "connections": {**dict(zip(names, ([a], [b], ["0"], ["0"]), strict=True)), out: [o]},
        "port_directions": {**dict.fromkeys(names, "input"), out: "output"},
    }


def _highest_bit(module: Mapping[str, Any]) -> int:
    bits = [bit for port in module["ports"].values() for bit in port["bits"]]
    for cell in module["cells"].values():
        for connection in cell["connections"].values():
            bits.extend(connection)
    for net in module["netnames"].values():
        bits.extend(net["bits"])
    return max((bit for bit in bits if isinstance(bit, int)), default=1)


def _clock_bit(module: Mapping[str, Any], clock: str) -> int:
    port = module["ports"].get(clock)
    if port is None or port["direction"] != "input" or not isinstance(port["bits"][0], int):
        raise ToolFailed(
            f"the netlist has no input port {clock!r}, the clock; its ports are"
            f" {', '.join(module['ports'])}"
        )
    bit = port["bits"][0]
    assert isinstance(bit, int)
    return bit


def add_shell(module: Mapping[str, Any], family: Family, *, clock: str = CLOCK) -> dict[str, Any]:
    """The mapped module ``module`` (Yosys JSON) within the shell.

    Raises
    ------
    ToolFailed
        If it has no input port ``clock``.
    """
    clock_bit = _clock_bit(module, clock)
    bit = _highest_bit(module)
    cells: dict[str, Any] = dict(module["cells"])
    netnames = dict(module["netnames"])

    def fresh(name: str) -> int:
        nonlocal bit
        bit += 1
        netnames[name] = {"hide_name": 0, "bits": [bit], "attributes": {}}
        return bit

    def add(name: str, cell: dict[str, Any]) -> None:
        cells[name] = {"hide_name": 0, "attributes": {}, **cell}

    data_in = previous = fresh(_DATA_IN)
    for name, port in module["ports"].items():
        if port["direction"] == "input" and name != clock:
            for index, target in enumerate(port["bits"]):
                add(
                    f"shell.in.{name}.{index}",
                    _flip_flop(family, previous, target, clock_bit),
                )
                previous = target
    chain: Any = previous
    for name, port in module["ports"].items():
        if port["direction"] == "output":
            for index, source in enumerate(port["bits"]):
                if not isinstance(source, int):
                    continue  # a constant
                together = fresh(f"shell.together.{name}.{index}")
                state = fresh(f"shell.out.{name}.{index}")
                add(f"shell.xor.{name}.{index}", _xor(family, source, chain, together))
                add(f"shell.ff.{name}.{index}", _flip_flop(family, together, state, clock_bit))
                chain = state
    ports = {
        clock: module["ports"][clock],
        _DATA_IN: {"direction": "input", "bits": [data_in]},
        _DATA_OUT: {"direction": "output", "bits": [chain]},
    }
    return {**module, "ports": ports, "cells": cells, "netnames": netnames}


def shell_cost(module: Mapping[str, Any], *, clock: str = CLOCK) -> tuple[int, int]:
    """LUTs and flip-flops :func:`add_shell` adds."""
    inputs = outputs = 0
    for name, port in module["ports"].items():
        if port["direction"] == "input":
            inputs += 0 if name == clock else len(port["bits"])
        else:
            outputs += sum(isinstance(bit, int) for bit in port["bits"])
    return outputs, inputs + outputs
