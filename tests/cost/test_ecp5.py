"""Product registers move into the multipliers where that changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hwgen.cost.ecp5 import absorb_product_registers


def flip_flop(d: int, q: int, **parameters: str) -> dict[str, Any]:
    return {
        "type": "TRELLIS_FF",
        "parameters": {"CEMUX": "1 ", "CLKMUX": "CLK", "REGSET": "RESET", **parameters},
        "connections": {"CLK": [2], "DI": [d], "LSR": ["0"], "Q": [q]},
        "port_directions": {"CLK": "input", "DI": "input", "LSR": "input", "Q": "output"},
    }


def netlist() -> dict[str, Any]:
    """A multiplier with two outputs in use and one idle; a flip-flop behind each of the two."""
    block = {
        "type": "MULT18X18D",
        "parameters": {},
        "connections": {"A0": [3], "B0": [4], "P0": [10], "P1": [11], "P2": [12]},
        "port_directions": {
            "A0": "input", "B0": "input", "P0": "output", "P1": "output", "P2": "output",
        },
    }  # fmt: skip
    return {
        "ports": {
            "aclk": {"direction": "input", "bits": [2]},
            "y": {"direction": "output", "bits": [20, 21]},
        },
        "cells": {"block": block, "q0": flip_flop(10, 20), "q1": flip_flop(11, 21)},
    }


def test_registers_move() -> None:
    module = netlist()
    assert absorb_product_registers(module) == 2
    assert list(module["cells"]) == ["block"]
    block = module["cells"]["block"]
    ports = block["connections"]
    assert (ports["P0"], ports["P1"], ports["P2"], ports["CLK0"]) == ([20], [21], [12], [2])
    assert block["parameters"]["REG_OUTPUT_CLK"] == "CLK0"
    assert all(block["port_directions"][p] == "input" for p in ("CLK0", "CE0", "RST0"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["ports"]["y"]["bits"].append(10),
        lambda m: m["cells"].update(second=flip_flop(10, 22)),
        lambda m: m["cells"].update(q1=flip_flop(11, 21, REGSET="SET")),
        lambda m: m["cells"].update(q1=flip_flop(11, 21, CEMUX="CE")),
        lambda m: m["cells"].update(q1=flip_flop(11, 21, CLKMUX="INV")),
        lambda m: m["cells"]["q1"]["connections"].update(LSR=[3]),
        lambda m: m["cells"]["q1"]["connections"].update(CLK=[4]),
        lambda m: m["cells"]["q0"]["connections"].update(DI=["0"], LSR=[10]),
    ],
    ids=["port", "fan-out", "starts at 1", "enable", "falling edge", "reset", "clocks", "as reset"],
)
def test_registers_stay(change: Any) -> None:
    module = netlist()
    change(module)
    before = copy.deepcopy(module)
    assert absorb_product_registers(module) == 0
    assert module == before
