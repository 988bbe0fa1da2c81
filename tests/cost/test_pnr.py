"""Place and route on both families, within the serial shell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwgen.cost.pnr import place_and_route
from hwgen.cost.shell import add_shell, shell_cost
from hwgen.cost.synth import SynthResult, synthesise
from hwgen.errors import BadInput, DoesNotFit, ToolFailed
from hwgen.targets import Family, Part, find_part
from tests.cost.designs import mac_text
from tests.support import require_tool

UP5K = find_part("ice40-up5k")


def mac(part: Part, work: Path) -> SynthResult:
    require_tool("pyosys", f"yowasp_nextpnr_{part.family.value}")
    return synthesise(mac_text(), "mac", part, work=work)


def test_ecp5(tmp_path: Path) -> None:
    part = find_part("ecp5-25k")
    synth = mac(part, tmp_path)
    result = place_and_route(synth, part, work=tmp_path, clock_mhz=400.0)
    assert 80 < result.fmax_mhz < 400  # what is reached counts, not what is aimed at
    assert result.utilisation["MULT18X18D"] == synth.dsp == 4
    assert result.utilisation["DP16KD"] == synth.bram == 1
    # Reset and eight bits in, twenty bits out.
    assert (result.shell_lut, result.shell_ff) == (20, 29)
    assert result.utilisation["TRELLIS_FF"] == synth.ff + result.shell_ff
    assert result.utilisation["TRELLIS_IO"] == 3
    assert result.critical is not None
    path = result.critical.logic_ns + result.critical.routing_ns
    assert path == pytest.approx(1000 / result.fmax_mhz, rel=0.02)


def reported_fmax(work: Path, part: str) -> float:
    """The one clock's figure in nextpnr's own report."""
    (path,) = work.glob(f"*.{part}.report.json")
    (clock,) = json.loads(path.read_text())["fmax"].values()
    return float(clock["achieved"])


def test_ice40(tmp_path: Path) -> None:
    synth = mac(UP5K, tmp_path)
    first = place_and_route(synth, UP5K, work=tmp_path)
    assert first.fmax_mhz == reported_fmax(tmp_path, "ice40-up5k")
    assert 5 < first.fmax_mhz < 150
    assert first.utilisation["ICESTORM_DSP"] == 4
    assert first.utilisation["ICESTORM_LC"] >= synth.lut
    assert place_and_route(synth, UP5K, work=tmp_path) == first
    # Packing alone shows what is too much where the cells' own counts do not.
    tight = replace(UP5K, lut=10_000, bram=999, dsp=999)
    netlist = replace(synth, netlist=_multiplied(synth, tmp_path, 3))
    with pytest.raises(DoesNotFit, match="12 DSP blocks, it has 8"):
        place_and_route(netlist, tight, work=tmp_path)


def _multiplied(synth: SynthResult, work: Path, copies: int) -> Path:
    """The netlist with its multipliers several times over."""
    import json

    text = json.loads(synth.netlist.read_text())
    cells = text["modules"]["mac"]["cells"]
    for name, cell in [(n, c) for n, c in cells.items() if c["type"] == "SB_MAC16"]:
        for copy in range(1, copies):
            # Their outputs reach nothing.
            outputs = {p for p, d in cell["port_directions"].items() if d == "output"}
            ports = {p: b for p, b in cell["connections"].items() if p not in outputs}
            cells[f"{name}_{copy}"] = {**cell, "connections": ports}
    path = work / "multiplied.json"
    path.write_text(json.dumps(text))
    return path


def test_refusals(tmp_path: Path) -> None:
    synth = mac(UP5K, tmp_path)
    with pytest.raises(BadInput, match="xc7-a35t has no place and route"):
        place_and_route(synth, find_part("xc7-a35t"), work=tmp_path)
    with pytest.raises(BadInput, match="the netlist is for ice40, ecp5-25k is ecp5"):
        place_and_route(synth, find_part("ecp5-25k"), work=tmp_path)
    with pytest.raises(DoesNotFit, match="4 DSP blocks, it has 3"):
        place_and_route(synth, replace(UP5K, dsp=3), work=tmp_path)
    with pytest.raises(ToolFailed, match="no input port 'clk', the clock; its ports are aclk"):
        place_and_route(synth, UP5K, work=tmp_path, clock="clk")
    unknown = replace(UP5K, package="none")
    with pytest.raises(ToolFailed, match=r"(?s)nextpnr-ice40 ended with status .*ERROR"):
        place_and_route(synth, unknown, work=tmp_path)


def test_shell_keeps_constants_out() -> None:
    module = {
        "ports": {
            "aclk": {"direction": "input", "bits": [2]},
            "a": {"direction": "input", "bits": [3, 4]},
            "y": {"direction": "output", "bits": [5, "0", 3]},
        },
        "cells": {},
        "netnames": {},
    }
    shelled = add_shell(module, Family.ICE40)
    assert shell_cost(module) == (2, 4)
    kinds = [cell["type"] for cell in shelled["cells"].values()]
    assert (kinds.count("SB_DFF"), kinds.count("SB_LUT4")) == (4, 2)
    assert set(shelled["ports"]) == {"aclk", "shell_in", "shell_out"}
    assert not module["cells"]
    # Every bit has one driver.
    driven = [
        bit
        for cell in shelled["cells"].values()
        for port, bits in cell["connections"].items()
        if cell["port_directions"][port] == "output"
        for bit in bits
    ]
    assert len(driven) == len(set(driven))
    assert {3, 4} < set(driven)
