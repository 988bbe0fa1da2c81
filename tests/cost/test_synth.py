"""Synthesis of a design of known size, counts of cells, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwgen.cost.cells import Counts, count_cells, load_netlist
from hwgen.cost.contents import hoist_contents
from hwgen.cost.fit import check_fit, shortages
from hwgen.cost.process import run_tool
from hwgen.cost.synth import SynthResult, synthesise
from hwgen.errors import BadInput, DoesNotFit, ToolFailed
from hwgen.targets import Family, find_part
from tests.cost.designs import ROM_DEPTH, mac_facts_words, mac_text
from tests.support import require_tool


def mac(target: Any, work: Path, **options: Any) -> SynthResult:
    require_tool("pyosys")
    return synthesise(mac_text(), "mac", target, work=work, **options)


def test_ecp5(tmp_path: Path) -> None:
    result = mac(Family.ECP5, tmp_path)
    assert (result.dsp, result.bram, result.bram18, result.bram_kbit) == (4, 1, 1, 18)
    # Operands, weights, accumulators, counter, output. The products' registers are those of the
    # multipliers, the memories' are theirs, or at most the vector's eight are the fabric's.
    registers = 8 + 4 * (8 + 20) + 9 + 20
    assert registers <= result.ff <= registers + 8
    assert result.cells["TRELLIS_DPR16X4"] == 4  # 32 words of 8 bits
    assert result.counts.lutram == 4 * 6
    assert sum(result.instances.values(), Counts()) == result.counts
    assert result.instances["array"].dsp == 4
    assert result.instances["rom_weights"].bram == 1
    assert result.instances["vector"].lutram == 24
    again = mac(Family.ECP5, tmp_path)
    assert again == result


def test_memory_contents_reach_the_netlist(tmp_path: Path) -> None:
    netlist = load_netlist(mac(Family.ECP5, tmp_path).netlist, "mac")
    (block,) = [c for c in netlist["cells"].values() if c["type"] == "DP16KD"]
    rows = (block["parameters"][f"INITVAL_{row:02X}"] for row in range(64))
    ones = sum(word.bit_count() for word in mac_facts_words())
    assert sum(row.count("1") for row in rows) == ones


def test_multipliers_beyond_the_dsp_blocks_go_to_luts(tmp_path: Path) -> None:
    part = replace(find_part("ecp5-25k"), dsp=3)
    result = mac(part, tmp_path)
    full = mac(part, tmp_path, dsp=4)
    assert (result.dsp, full.dsp) == (3, 4)
    assert 60 < result.lut - full.lut < 250
    assert result.ff == full.ff + 16  # the product's register is the fabric's again
    assert mac(part, tmp_path, dsp=0).dsp == 0


def test_ice40(tmp_path: Path) -> None:
    result = mac(find_part("ice40-up5k"), tmp_path)
    # 512 words of 32 bits, and 32 of 8 in a block of their own
    assert (result.dsp, result.bram, result.bram18, result.bram_kbit) == (4, 5, 2, 20)
    assert result.counts.carry <= result.lut


def test_xc7(tmp_path: Path) -> None:
    result = mac(find_part("xc7-a35t"), tmp_path)
    assert result.dsp == 4
    assert result.bram18 in (0, 1, 2)
    # A block that holds an accumulator may be named after the top module's net.
    assert result.instances["array"].dsp >= 3
    assert set(result.instances) <= {"", "array", "rom_weights", "vector"}


def test_yosys_fails(tmp_path: Path) -> None:
    require_tool("pyosys")
    with pytest.raises(ToolFailed, match=r"(?s)Yosys ended with status .*ERROR.*nothing"):
        synthesise("module m(input a); nothing x(a); endmodule", "m", Family.ECP5, work=tmp_path)


def test_unwritable_folder(tmp_path: Path) -> None:
    require_tool("pyosys")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot create the folder"):
        synthesise(mac_text(), "mac", Family.ECP5, work=tmp_path / "file")


def test_time_limit(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="sleep did not finish within 0 s"):
        run_tool("sleep", ["sleep", "60"], work=tmp_path, log=tmp_path / "log", timeout=0.2)
    with pytest.raises(ToolFailed, match="cannot start no-such-tool"):
        run_tool("tool", ["no-such-tool"], work=tmp_path, log=tmp_path / "log", timeout=9)
    with pytest.raises(BadInput, match="no such folder"):
        run_tool("tool", ["true"], work=tmp_path, log=tmp_path / "none" / "log", timeout=9)


def test_contents_by_file() -> None:
    hoisted = hoist_contents(mac_text(), "mac")
    ((name, text),) = hoisted.files
    assert [int(word, 16) for word in text.split()] == list(mac_facts_words())
    assert f'$readmemh("{name}", rom);' in hoisted.verilog
    assert "rom[0]" not in hoisted.verilog
    assert len(mac_facts_words()) == ROM_DEPTH
    other = "  initial begin\n    a[3] = 8'd200;\n    a[5] = 8'hff;\n    a[6] = 8'h01;\n  end\n"
    ((_, text),) = hoist_contents(other, "m").files
    assert text == "@3 c8\n@5 ff\n01\n"
    two = "  initial begin\n    a[0] = 8'h00;\n    b[0] = 8'h00;\n  end\n"
    assert hoist_contents(two, "m").verilog == two


def cell(kind: str, **ports: int) -> dict[str, Any]:
    return {"type": kind, "connections": {name: [bit] for name, bit in ports.items()}}


def test_carries_share_logic_cells() -> None:
    cells = {
        "a.lut": cell("SB_LUT4", I0=0, I1=2, I2=3, I3=9),
        "a.carry": cell("SB_CARRY", I0=2, I1=3, CI=9),
        "a.second": cell("SB_CARRY", I0=2, I1=3, CI=9),
        "b.lone": cell("SB_CARRY", I0=4, I1=3, CI=9),
        "top_lut": cell("SB_LUT4", I0=0, I1=5, I2=6, I3=9),
        "scope": cell("$scopeinfo"),
    }
    total, regions, types = count_cells({"cells": cells}, Family.ICE40)
    assert (total.lut, total.carry) == (4, 3)
    assert {name: counts.lut for name, counts in regions.items()} == {"": 1, "a": 2, "b": 1}
    assert types == {"SB_CARRY": 3, "SB_LUT4": 2}


def test_counts_of_cells() -> None:
    kinds = ["RAMB36E1", "RAMB18E1", "RAM32M", "SRL16E", "LUT6", "MUXF7", "CARRY4", "FDRE"]
    cells = {f"c{k}": cell(kind) for k, kind in enumerate(kinds)}
    total, _, _ = count_cells({"cells": cells}, Family.XC7)
    assert total == Counts(lut=6, ff=1, dsp=0, bram=3, lutram=5, carry=1)
    with pytest.raises(ToolFailed, match="unknown cost: MYSTERY"):
        count_cells({"cells": {"c": cell("MYSTERY")}}, Family.XC7)


def test_unreadable_netlist(tmp_path: Path) -> None:
    path = tmp_path / "netlist.json"
    for text in ("", "[]", json.dumps({"modules": {}})):
        path.write_text(text)
        with pytest.raises(ToolFailed, match="is not a netlist with a module top"):
            load_netlist(path, "top")


def result_of(**instances: Counts) -> SynthResult:
    return SynthResult(
        family=Family.ICE40,
        top="net",
        counts=sum(instances.values(), Counts()),
        instances=instances,
        cells={},
        netlist=Path("none"),
    )


def test_does_not_fit() -> None:
    part = find_part("ice40-up5k")
    fits = result_of(conv1=Counts(lut=5280, ff=10, dsp=8, bram=30))
    check_fit(fits, part)
    large = result_of(
        conv1=Counts(lut=900, ff=100, dsp=6, bram=2),
        conv2=Counts(lut=3000, ff=200, dsp=6, bram=20),
        fc1=Counts(lut=1400, ff=200, dsp=0, bram=15),
        fc2=Counts(lut=5, ff=2, dsp=0, bram=1),
    )
    assert [s.need for s in shortages(large, part)] == [5305, 12, 38]
    with pytest.raises(DoesNotFit) as caught:
        check_fit(large, part)
    message = str(caught.value)
    assert "does not fit ice40-up5k" in message
    assert "5305 logic cells, it has 5280 (most in conv2 3000, fc1 1400, conv1 900)" in message
    assert "12 DSP blocks, it has 8 (most in conv1 6, conv2 6)" in message
    assert "38 block RAMs of 4 kbit, it has 30 (most in conv2 20, fc1 15, conv1 2)" in message
    assert "lower frame rate" in message
    assert "larger part" not in message  # the hx8k has no DSP blocks
    assert "larger family" in message
    memory = result_of(fc1=Counts(lut=10, ff=10, bram=31))
    with pytest.raises(DoesNotFit, match=r"narrower weights .* a larger part such as ice40-hx8k"):
        check_fit(memory, part)
