"""The audit reads text back and finds every tampering with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwgen.cost.audit import AuditFacts, MemoryFact, ModuleFacts, MultiplierFact, audit
from hwgen.cost.reading import read_verilog
from hwgen.errors import Mismatch
from tests.cost.designs import ROM_DEPTH, ROM_WIDTH, mac_facts_words, mac_text

FACTS = AuditFacts(
    modules=(
        ModuleFacts(
            module="mac_array",
            registers=(*((f"acc_{k}", 20) for k in range(4)), ("product_0_0", 16), ("x_0", 8)),
            multipliers=tuple(
                MultiplierFact(product=f"product_{k}_0", operands=(8, 8)) for k in range(4)
            ),
        ),
        ModuleFacts(
            module="mac_rom_weights",
            memories=(
                MemoryFact(name="rom", width=ROM_WIDTH, depth=ROM_DEPTH, words=mac_facts_words()),
            ),
        ),
        ModuleFacts(module="mac_vector", memories=(MemoryFact(name="ram", width=8, depth=32),)),
    ),
    every_memory=True,
)
TEXT = mac_text()


def tampered(old: str, new: str, count: int = 1) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, count)


def test_true_text_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = audit(TEXT, FACTS)
    assert (report.modules, report.registers, report.multipliers) == (4, 6, 4)
    assert (report.memories, report.memory_bits) == (2, ROM_WIDTH * ROM_DEPTH)
    assert "16,384 bits" in report.summary
    assert not list(tmp_path.iterdir())  # the parser's tables stay in memory


def test_accumulator_one_bit_short() -> None:
    text = tampered("output signed [19:0] acc_2", "output signed [18:0] acc_2")
    text = text.replace("reg signed [19:0] acc_2", "reg signed [18:0] acc_2")
    text = text.replace("wire [19:0] acc_2", "wire [18:0] acc_2")
    with pytest.raises(Mismatch, match=r"mac_array: register acc_2 must have 20 bits, it has 19"):
        audit(text, FACTS)


@pytest.mark.parametrize("address", [0, 200, ROM_DEPTH - 1])
def test_one_bit_of_one_word_flipped(address: int) -> None:
    word = mac_facts_words()[address]
    line = f"    rom[{address}] = 32'h{word:08x};"
    text = tampered(line, f"    rom[{address}] = 32'h{word ^ 0x400:08x};")
    with pytest.raises(Mismatch, match=rf"memory rom: word {address} must be .* \(bits 0x400"):
        audit(text, FACTS)


def test_wrong_depth_and_width() -> None:
    with pytest.raises(Mismatch, match="memory ram must have 32 words of 8 bits, it has 31 words"):
        audit(tampered("ram [31:0]", "ram [30:0]"), FACTS)
    with pytest.raises(Mismatch, match="memory rom is given word 511, it has 511 words"):
        audit(tampered("rom [511:0]", "rom [510:0]"), FACTS)
    with pytest.raises(Mismatch, match=r"word \d+ of memory rom is 0x.*, more than its 31 bits"):
        audit(tampered("reg [31:0] rom", "reg [30:0] rom"), FACTS)


def test_missing_word() -> None:
    line = f"    rom[9] = 32'h{mac_facts_words()[9]:08x};\n"
    with pytest.raises(Mismatch, match=r"word 9 must be .* it is not given"):
        audit(tampered(line, ""), FACTS)
    with pytest.raises(Mismatch, match="word 9 of rom is given twice"):
        audit(tampered(line, line * 2), FACTS)


def test_narrow_multiplier() -> None:
    text = tampered(
        "$signed({ 1'h0, x_0 }) * $signed(w_1_0)", "$signed({ 1'h0, x_0[6:0] }) * w_1_0"
    )
    with pytest.raises(
        Mismatch, match=r"product_1_0 must be a product of 8 and 8 bits, .* 7 and 8"
    ):
        audit(text, FACTS)


def test_multiplier_lost_or_added() -> None:
    text = tampered("$signed({ 1'h0, x_0 }) * $signed(w_3_0)", "$signed(w_3_0)")
    with pytest.raises(Mismatch, match=r"product_3_0 must come from one multiplier, .* from 0"):
        audit(text, FACTS)
    text = tampered("assign _10_ = $signed(acc_0) +", "assign _10_ = acc_0 * w_0_0 +")
    with pytest.raises(Mismatch, match="mac_array must have 4 multipliers, it has 5"):
        audit(text, FACTS)


def test_unknown_memory_and_writable_rom() -> None:
    fewer = replace(FACTS, modules=FACTS.modules[:2])
    with pytest.raises(Mismatch, match="mac_vector: memory ram is not of the dataflow"):
        audit(TEXT, fewer)
    audit(TEXT, replace(fewer, every_memory=False))
    text = tampered("_0_ <= rom[addr];", "_0_ <= rom[addr]; rom[addr] <= 32'h0;")
    with pytest.raises(Mismatch, match="memory rom must be read-only"):
        audit(text, FACTS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("assign rst = ~ aresetn;", "", "rst is read but nothing drives it"),
        ("assign rst = ~ aresetn;", "assign rst = ~ aresetn; assign rst = 1'h0;", "more than one"),
        (
            "assign rst = ~ aresetn;",
            "reg q; always @* if (aresetn) q = x[0]; assign rst = q;",
            "q is a latch",
        ),
        (
            "assign rst = ~ aresetn;",
            "reg q; always @* begin q = x[0]; if (aresetn) q = x[1]; end assign rst = q;",
            "",
        ),
        (
            "assign rst = ~ aresetn;",
            "reg q; always @* case (x[1:0]) 2'h0: q = x[3]; 2'h1: q = x[4]; endcase assign rst = q;",
            "q is a latch",
        ),
        ("assign _0_ = step + 1'h1;", "assign _0_[3:0] = step[3:0];", "drives all of its bits"),
        (".addr(step),", ".addr(step[7:0]),", "addr has 9 bits, 8 are connected"),
        (".w(weights),", "", "the input w is not connected"),
        (".w(weights),", ".w(weights), .z(weights),", "has no port z"),
        ("mac_vector vector (", "mac_vectors vector (", "there is no module mac_vectors"),
        ("assign rst = ~ aresetn;", "assign rst = ~ aresetm;", "aresetm is not declared"),
        ("assign rst = ~ aresetn;", "assign rst = x[8];", "beyond its 8"),
        ("always @(posedge aclk)", "always @(negedge aclk)", "another event"),
        ("assign rst = ~ aresetn;", "assign rst = ~ aresetn", "no Verilog-2001"),
        ("reg [8:0] step", "logic [8:0] step", "Verilog-2001"),
        ("assign rst = ~ aresetn;", "assign rst = $random;", "Verilog-2001"),
        ("wire rst;", "integer rst;", "Verilog-2001"),
    ],
)
def test_structure(old: str, new: str, message: str) -> None:
    text = tampered(old, new)
    if not message:
        audit(text, FACTS)
        return
    with pytest.raises(Mismatch, match=message):
        audit(text, FACTS)


def test_constants() -> None:
    text = """\
module m (
  clk
);
  input clk;
  wire clk;
  reg [7:0] ram [3:0];
  initial begin
    ram[0] = 8'd200;
    ram[1] = 8'b1010_0101;
    ram[2] = 8'hff;
    ram[3] = 7;
  end
endmodule
"""
    assert read_verilog(text)["m"].contents == {"ram": {0: 200, 1: 0xA5, 2: 255, 3: 7}}
    with pytest.raises(Mismatch, match="a memory word that is not constant"):
        read_verilog(text.replace("8'hff", "8'hxx"))
