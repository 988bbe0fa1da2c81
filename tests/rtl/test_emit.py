"""The emitted text: plain, named, reproducible, and the same circuit as the one simulated here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.requant import Requant, Rounding
from rtl.argmax import Argmax
from rtl.axi import AxiStreamIn
from rtl.convert import WidthConverter
from rtl.emit import LINT_WAIVERS, emit_verilog
from rtl.memory import Rom
from rtl.names import tidy
from rtl.rescale import Rescale
from sim.tools import find_icarus, find_verilator
from tests.support import require_tool

REQUANT = Requant(
    mult=(3, 4, 5, -7, 2, 6), shift=(3,), low=(-90,), high=(100,), rounding=Rounding.HALF_EVEN
)


class Chain(wiring.Component):  # type: ignore[misc]
    """Every small stage in a row: 6 channels in beats of 3, rescaled, regrouped by 4, argmax."""

    def __init__(self) -> None:
        axis = wiring.Signature(
            {"tdata": In(32), "tvalid": In(1), "tready": Out(1), "tlast": In(1)}
        )
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "s_axis": Out(axis),
                "index": Out(5),
                "index_valid": Out(1),
                "index_ready": In(1),
                "frame_error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.domains.sync = ClockDomain("sync")
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.stream_in = stream_in = AxiStreamIn(unsigned(8), 3, 8)
        m.submodules.scale = scale = Rescale(unsigned(8), 3, 2, REQUANT, signed(8), 6)
        m.submodules.lanes = lanes = WidthConverter(signed(8), 3, 4, 6, 24, 2)
        m.submodules.classify = classify = Argmax(signed(8), 4, 24, 2)
        for source, sink in ((stream_in, scale), (scale, lanes), (lanes, classify)):
            wiring.connect(m, source.o, sink.i)
        m.d.comb += [
            stream_in.tdata.eq(self.s_axis.tdata),
            stream_in.tvalid.eq(self.s_axis.tvalid),
            stream_in.tlast.eq(self.s_axis.tlast),
            self.s_axis.tready.eq(stream_in.tready),
            self.frame_error.eq(stream_in.frame_error),
            self.index.eq(classify.o.payload[0]),
            self.index_valid.eq(classify.o.valid),
            classify.o.ready.eq(self.index_ready),
        ]
        return m


@pytest.fixture(scope="module")
def text() -> str:
    return emit_verilog(Chain(), "chain")


def test_names_are_plain(text: str) -> None:
    assert "\\" not in text
    assert "$" not in text.replace("$signed", "")
    modules = re.findall(r"^module (\w+) \(", text, re.MULTILINE)
    assert modules[0] == "chain"
    assert {"chain_stream_in", "chain_scale", "chain_lanes", "chain_classify"} < set(modules)
    assert "chain_scale_requantizer_mult" in modules
    assert len(modules) == len(set(modules))
    header = text[text.index("module chain (") : text.index(");")]
    assert re.findall(r"^  (\w+)", header, re.MULTILINE) == [
        "aclk", "aresetn", "s_axis_tdata", "s_axis_tvalid", "s_axis_tready", "s_axis_tlast",
        "index", "index_valid", "index_ready", "frame_error",
    ]  # fmt: skip


def test_streams_are_named_after_their_source(text: str) -> None:
    assert re.findall(r"^    \.i__payload\((\w+)\)", text, re.MULTILINE)[:3] == [
        "lanes_o_payload", "scale_o_payload", "stream_in_o_payload"
    ]  # fmt: skip


def test_same_text_every_time(text: str) -> None:
    assert emit_verilog(Chain(), "chain") == text


def test_no_construct_beyond_plain_verilog(text: str) -> None:
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    assert not words & {"always_ff", "always_comb", "logic", "casez", "function", "synopsys"}
    assert "'hx" not in text
    assert not re.search(r"'[hb][0-9a-f]*x", text)


@pytest.mark.parametrize("name", ["design", "a.b", "1st", "", "wire"])
def test_top_must_be_an_identifier(name: str) -> None:
    with pytest.raises(ValueError, match="must be an identifier of Verilog"):
        tidy(f"module \\{name} (a);\nendmodule\n", name, [])


def test_names_that_collide_stay_apart() -> None:
    source = "module t(a);\n  input a;\n  wire \\x$1 ;\n  wire x_1;\n  wire \\bit ;\nendmodule\n"
    result = tidy(source, "t", ["a"])
    assert re.findall(r"wire (\w+)", result) == ["x_1_", "x_1", "bit_"]


def test_two_members_with_one_port_name() -> None:
    class Twice(wiring.Component):  # type: ignore[misc]
        def elaborate(self, platform: object) -> Any:
            return Module()

    twice = Twice({"a_b": Out(1), "a": Out(wiring.Signature({"b": Out(1)}))})
    with pytest.raises(ValueError, match="the port name 'a_b'"):
        emit_verilog(twice, "twice")


def test_memory_contents() -> None:
    words = [3, 250, 17]
    text = emit_verilog(Rom(words, 8), "weights")
    assert re.findall(r"^    rom\[(\d+)\] = 8'h(\w+);", text, re.MULTILINE) == [
        (str(k), f"{word:02x}") for k, word in enumerate(words)
    ]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # pyverilog's own
def test_pyverilog_reads_it(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("iverilog")  # pyverilog's preprocessor
    from pyverilog.vparser.parser import VerilogCodeParser

    monkeypatch.chdir(tmp_path)
    Path("chain.v").write_text(text)
    parser = VerilogCodeParser(["chain.v"], outputdir=str(tmp_path), debug=False)
    names = [definition.name for definition in parser.parse().description.definitions]
    assert names == re.findall(r"^module (\w+)", text, re.MULTILINE)


def test_lint(text: str, tmp_path: Path) -> None:
    verilator = find_verilator()
    environment = dict(os.environ)
    if verilator.root is not None:
        environment["VERILATOR_ROOT"] = str(verilator.root)
    (tmp_path / "chain.v").write_text(text)
    waivers = [f"-Wno-{rule}" for rule in LINT_WAIVERS]
    command = [str(verilator.path), "--lint-only", "-Wall", *waivers, "--top-module", "chain"]
    done = subprocess.run(
        [*command, "chain.v"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, re.findall("%Warning.*", done.stderr)) == (0, []), done.stderr


BENCH = """\
module bench;
  reg clk = 0, resetn = 0, valid = 0, last = 0, pace = 0, took = 0;
  reg [31:0] data = 0;
  wire ready, out_valid, error;
  wire [4:0] index;
  reg [32:0] words [0:TOP];
  integer at = 0, seed = 7, rest = 60;
  initial $readmemh("words.hex", words);
  always #5 clk = ~clk;
  chain dut (.aclk(clk), .aresetn(resetn), .s_axis_tdata(data), .s_axis_tvalid(valid),
    .s_axis_tready(ready), .s_axis_tlast(last), .index(index), .index_valid(out_valid),
    .index_ready(pace), .frame_error(error));
  initial begin
    repeat (3) @(negedge clk);
    resetn = 1;
    while (rest > 0) begin
      if (at > TOP) rest = rest - 1;
      if (!valid && at <= TOP) valid = $random(seed);
      {last, data} = words[at];
      pace = $random(seed);
      #1;
      took = valid & ready;
      if (out_valid & pace) $display("%0d", index);
      @(posedge clk);
      @(negedge clk);
      if (took) begin
        at = at + 1;
        valid = 0;
      end
    end
    $display("error %b", error);
    $finish;
  end
endmodule
"""


def test_same_circuit_in_icarus(text: str, tmp_path: Path) -> None:
    icarus = find_icarus()
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (20, 4, 6))
    words = [
        sum(int(code) << (8 * lane) for lane, code in enumerate(beat)) | (k % 8 == 7) << 32
        for k, beat in enumerate(frames.reshape(-1, 3))
    ]
    (tmp_path / "words.hex").write_text("\n".join(f"{word:09x}" for word in words))
    (tmp_path / "chain.v").write_text(text)
    (tmp_path / "bench.v").write_text(BENCH.replace("TOP", str(len(words) - 1)))
    command = [str(icarus.path), "-g2001", "-Wall", "-o", "bench", "bench.v", "chain.v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "chain.v" not in done.stderr
    vvp = icarus.path.with_name("vvp")
    done = subprocess.run(
        [str(vvp), "bench"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    codes = REQUANT.apply(frames.reshape(-1, 6)).reshape(20, 24)
    assert done.stdout.split("\n") == [*map(str, codes.argmax(axis=1)), "error 0", ""]
