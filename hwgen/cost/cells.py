"""Counts of a mapped netlist: what its cells occupy in a family's fabric.

The netlist is Yosys's JSON of one flattened module. What a cell counts as:

* xc7: ``LUT1`` to ``LUT6`` and ``INV`` 1; distributed RAM and shift registers by the LUTs they
  fill (``RAM32M``, ``RAM64M``, ``RAM128X1D`` 4, ``RAM32X1D``, ``RAM64X1D`` 2, ``SRL16E`` 1, ...).
  ``CARRY4``, ``MUXF7``, ``MUXF8`` are no LUTs.
* ecp5: ``LUT4`` 1, ``CCU2C`` 2 (it turns both LUTs of a slice into adder bits),
  ``TRELLIS_DPR16X4`` 6 (two slices hold the data, one the write control). ``PFUMX`` and ``L6MUX21``
  join LUTs that are counted already. nextpnr adds a few at the ends of carry chains.
* ice40, logic cells: ``SB_LUT4`` 1, and 1 for each ``SB_CARRY`` that has no LUT with the same two
  operands to share a logic cell with, as nextpnr packs them.

Flip-flops are the cells of the fabric; registers inside DSP and memory blocks do not count.
Block RAMs are in blocks of the family: 18 kbit (``RAMB36E1`` 2) or 4 kbit (``SB_RAM40_4K``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwgen.errors import ToolFailed
from hwgen.targets import Family

__all__ = ["Counts", "count_cells", "load_netlist"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a netlist or a part of it occupies.

    Parameters
    ----------
    lut : int
        LUTs, those used as memory and by carry chains included.
    ff : int
        Flip-flops of the fabric.
    dsp : int
        Multiplier blocks.
    bram : int
        Block RAMs of the family (18 or 4 kbit).
    lutram : int
        Of ``lut``, those used as memory or shift register.
    carry : int
        Carry cells: four bits on xc7, two on ecp5, one on ice40.
    """

    lut: int = 0
    ff: int = 0
    dsp: int = 0
    bram: int = 0
    lutram: int = 0
    carry: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            lut=self.lut + other.lut,
            ff=self.ff + other.ff,
            dsp=self.dsp + other.dsp,
            bram=self.bram + other.bram,
            lutram=self.lutram + other.lutram,
            carry=self.carry + other.carry,
        )


def _ram(luts: int) -> Counts:
    return Counts(lut=luts, lutram=luts)


_LUT, _FF, _DSP, _NONE = Counts(lut=1), Counts(ff=1), Counts(dsp=1), Counts()

_XC7: Mapping[str, Counts] = {
    **{f"LUT{n}": _LUT for n in range(1, 7)},
    "INV": _LUT,
    **dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE"), _FF),
    **dict.fromkeys(("FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1"), _FF),
    "CARRY4": Counts(carry=1),
    **dict.fromkeys(("MUXF7", "MUXF8", "GND", "VCC", "BUFG", "IBUF", "OBUF"), _NONE),
    "DSP48E1": _DSP,
    "RAMB18E1": Counts(bram=1),
    "RAMB36E1": Counts(bram=2),
    **dict.fromkeys(("RAM32M", "RAM64M", "RAM128X1D", "RAM256X1S"), _ram(4)),
    **dict.fromkeys(("RAM32X1D", "RAM64X1D", "RAM128X1S", "RAM32X2S"), _ram(2)),
    **dict.fromkeys(("RAM32X1S", "RAM64X1S", "RAM16X1S", "SRL16E", "SRLC16E", "SRLC32E"), _ram(1)),
    "RAM16X1D": _ram(2),
}
_ECP5: Mapping[str, Counts] = {
    "LUT4": _LUT,
    "TRELLIS_FF": _FF,
    "CCU2C": Counts(lut=2, carry=1),
    "TRELLIS_DPR16X4": _ram(6),
    **dict.fromkeys(("PFUMX", "L6MUX21", "VLO", "VHI", "GSR"), _NONE),
    **dict.fromkeys(("MULT18X18D", "ALU54B"), _NONE),  # counted apart: one ALU54B takes two
    "DP16KD": Counts(bram=1),
    "PDPW16KD": Counts(bram=1),
}
_ICE40: Mapping[str, Counts] = {
    "SB_LUT4": _LUT,
    "SB_CARRY": Counts(carry=1),
    **{
        f"SB_DFF{edge}{kind}": _FF
        for edge in ("", "N")
        for kind in ("", "E", "R", "S", "SR", "SS", "ER", "ES", "ESR", "ESS")
    },
    "SB_MAC16": _DSP,
    "SB_RAM40_4K": Counts(bram=1),
    "SB_GB": _NONE,
}
_ICE40 = {**_ICE40, **{f"SB_RAM40_4K{edges}": Counts(bram=1) for edges in ("NR", "NW", "NRNW")}}
_TABLES = {Family.XC7: _XC7, Family.ECP5: _ECP5, Family.ICE40: _ICE40}


def load_netlist(path: Path, top: str) -> dict[str, Any]:
    """The module ``top`` of a Yosys JSON netlist.

    Raises
    ------
    ToolFailed
        If the file is no such netlist.
    """
    try:
        module = json.loads(path.read_text(encoding="utf-8"))["modules"][top]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolFailed(f"{path} is not a netlist with a module {top}; synthesise anew") from error
    assert isinstance(module, dict)
    return module


def _lone_carries(cells: Mapping[str, Any]) -> Iterable[str]:
    """Names of the ``SB_CARRY`` that share no logic cell with an ``SB_LUT4``."""
    free: Counter[tuple[Any, Any]] = Counter()
    for cell in cells.values():
        if cell["type"] == "SB_LUT4":
            ports = cell["connections"]
            free[ports["I1"][0], ports["I2"][0]] += 1
    for name, cell in cells.items():
        if cell["type"] == "SB_CARRY":
            ports = cell["connections"]
            operands = ports["I0"][0], ports["I1"][0]
            if free[operands]:
                free[operands] -= 1
            else:
                yield name


def _region(name: str) -> str:
    """Top-level instance a flattened cell came from; empty for the top module's own."""
    head, dot, _ = name.partition(".")
    if not dot or head.startswith("$abc"):
        return ""
    return head.removeprefix("$flatten\\").removeprefix("\\").removeprefix("$techmap\\")


def count_cells(
    module: Mapping[str, Any], family: Family
) -> tuple[Counts, dict[str, Counts], dict[str, int]]:
    """Count a mapped, flattened module.

    Returns
    -------
    tuple
        The total, the counts of each top-level instance (the top module's own logic under ``""``;
        logic optimised across instances goes to the one whose net names it), the cells by type.

    Raises
    ------
    ToolFailed
        If the netlist holds a cell this module has no count for.
    """
    table = _TABLES[family]
    cells = {n: c for n, c in module["cells"].items() if c["type"] != "$scopeinfo"}
    types = Counter(cell["type"] for cell in cells.values())
    unknown = sorted(set(types) - set(table))
    if unknown:
        raise ToolFailed(
            f"the {family.value} netlist holds cells of unknown cost: {', '.join(unknown)};"
            " hwgen/cost/cells.py must list them"
        )
    regions: dict[str, Counts] = {}

    def add(name: str, counts: Counts) -> None:
        regions[_region(name)] = regions.get(_region(name), Counts()) + counts

    for name, cell in cells.items():
        add(name, table[cell["type"]])
        if cell["type"] == "MULT18X18D":
            add(name, _DSP)
    if family is Family.ICE40:
        for name in _lone_carries(cells):
            add(name, _LUT)
    total = sum(regions.values(), Counts())
    return total, dict(sorted(regions.items())), dict(sorted(types.items()))
