"""The Verilog module that surrounds a design in simulation.

It exists so that Python need not wake at every clock edge. On each rising edge it

* plays a stimulus file into ``s_axis`` when ``lean`` is high, with random gaps and stalls on
  request (when ``lean`` is low the ports of this module drive the design: cocotbext-axi does);
* records every beat taken at ``m_axis`` with the cycle of its handshake;
* checks the rules of AXI4-Stream at the design's outputs, and ``tlast`` against the frame's length;
* records the streams between stages, where the design has probes and they are asked for.

Cycles are rising edges of ``aclk`` counted from 0. Files are named relative to the simulator's
working directory: ``stimulus.bin`` in; ``outputs.txt``, ``events.txt`` and ``probe<i>.txt`` out.
"""

from __future__ import annotations

from enum import Enum

from hwgen.backends.rtl.design import Design, Probe

__all__ = ["BENCH", "Rule", "bench_text", "probe_bits", "record_bytes"]

BENCH = "hwgen_bench"
"""Name of the surrounding module."""


class Rule(Enum):
    """What the monitor checks, by the number in the event file."""

    VALID_DROPPED = 1, "m_axis_tvalid fell before m_axis_tready took the beat"
    DATA_CHANGED = 2, "m_axis_tdata changed while the beat waited for m_axis_tready"
    LAST_CHANGED = 3, "m_axis_tlast changed while the beat waited for m_axis_tready"
    LAST_MISSING = 4, "m_axis_tlast is low on the last beat of a frame"
    LAST_EARLY = 5, "m_axis_tlast is high before the last beat of a frame"
    VALID_UNKNOWN = 6, "m_axis_tvalid is X or Z after reset"
    READY_UNKNOWN = 7, "s_axis_tready is X or Z after reset"
    LAST_UNKNOWN = 8, "m_axis_tlast is X or Z on a valid beat"
    ERROR_UNKNOWN = 9, "frame_error is X or Z after reset"
    ERROR_FELL = 10, "frame_error fell without a reset"

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text

    @classmethod
    def of(cls, number: int) -> Rule:
        """The rule with a number."""
        return next(rule for rule in cls if rule.number == number)


def record_bytes(design: Design) -> int:
    """Bytes of a stimulus record: flags (bit 0: ``tlast``), then TDATA, highest byte first."""
    return 1 + design.input.data_bytes


def probe_bits(probe: Probe) -> int:
    """Width of a probe's payload."""
    return probe.layout.lanes * probe.layout.tensor.width


_PORTS = """\
`timescale 1ns / 1ps
module {bench} (
  input aclk /*verilator public_flat_rw*/,
  input aresetn /*verilator public_flat_rw*/,
  input [{s_high}:0] s_axis_tdata /*verilator public_flat_rw*/,
  input s_axis_tvalid /*verilator public_flat_rw*/,
  output s_axis_tready /*verilator public_flat_rd*/,
  input s_axis_tlast /*verilator public_flat_rw*/,
  output [{m_high}:0] m_axis_tdata /*verilator public_flat_rd*/,
  output m_axis_tvalid /*verilator public_flat_rd*/,
  input m_axis_tready /*verilator public_flat_rw*/,
  output m_axis_tlast /*verilator public_flat_rd*/,
  output frame_error /*verilator public_flat_rd*/,
  input lean /*verilator public_flat_rw*/,
  input [31:0] seed /*verilator public_flat_rw*/,
  input [16:0] gaps /*verilator public_flat_rw*/,
  input [16:0] stalls /*verilator public_flat_rw*/,
  input [31:0] frames /*verilator public_flat_rw*/,
  input [31:0] patience /*verilator public_flat_rw*/,
  output reg done /*verilator public_flat_rd*/
);
"""

_DUT = """
  reg [{s_high}:0] src_data;
  reg src_valid, src_last, snk_ready;
  wire in_valid = lean ? src_valid : s_axis_tvalid;
  wire in_last = lean ? src_last : s_axis_tlast;
  wire [{s_high}:0] in_data = lean ? src_data : s_axis_tdata;
  wire out_ready = lean ? snk_ready : m_axis_tready;

  {top} dut (
    .aclk(aclk), .aresetn(aresetn),
    .s_axis_tdata(in_data), .s_axis_tvalid(in_valid), .s_axis_tready(s_axis_tready),
    .s_axis_tlast(in_last),
    .m_axis_tdata(m_axis_tdata), .m_axis_tvalid(m_axis_tvalid), .m_axis_tready(out_ready),
    .m_axis_tlast(m_axis_tlast),
    .frame_error(frame_error)
  );
"""

# xorshift32 gives a gap or a stall with probability gaps / 2^16 or stalls / 2^16 in each cycle.
_DRIVER = """
  integer stimulus, got;
  reg [{record_high}:0] record;
  reg ended;
  reg [31:0] noise;
  initial begin
    stimulus = 0;
    src_valid = 0; src_last = 0; src_data = 0; snk_ready = 0; ended = 0; noise = 0;
  end
  always @(posedge aclk) begin
    if (!lean || !aresetn) begin
      src_valid <= 0;
      snk_ready <= 0;
      noise <= seed;
    end else begin
      if (stimulus == 0) stimulus = $fopen("stimulus.bin", "rb");
      noise = noise ^ (noise << 13);
      noise = noise ^ (noise >> 17);
      noise = noise ^ (noise << 5);
      snk_ready <= {{1'b0, noise[31:16]}} >= stalls;
      if (!src_valid || s_axis_tready) begin
        src_valid <= 0;
        if (!ended && {{1'b0, noise[15:0]}} >= gaps) begin
          got = $fread(record, stimulus);
          if (got == {record_bytes}) begin
            src_valid <= 1;
            src_last <= record[{flag}];
            src_data <= record[{s_high}:0];
          end else ended = 1;
        end
      end
    end
  end
"""

_MONITOR = """
  integer outputs, events;
  reg [63:0] cycle;
  reg running, at_start, held, held_last, was_error;
  reg [{m_high}:0] held_data;
  reg [31:0] beat, taken, quiet, broken;
  initial begin
    outputs = $fopen("outputs.txt", "w");
    events = $fopen("events.txt", "w");
    cycle = 0; running = 0; at_start = 1; held = 0; held_last = 0; held_data = 0; was_error = 0;
    beat = 0; taken = 0; quiet = 0; broken = 0; done = 0;
  end

  task violation(input [7:0] number);
    begin
      if (broken < 20) begin
        $fwrite(events, "V %0d %0d\\n", cycle, number);
        broken = broken + 1;
      end
    end
  endtask

  always @(posedge aclk) begin
    cycle <= cycle + 1;
    if (aresetn !== 1'b1) begin
      running <= 0; at_start <= 1; held <= 0; was_error <= 0;
      beat <= 0; taken <= 0; quiet <= 0; done <= 0;
    end else begin
      if (!running) $fwrite(events, "R %0d 0\\n", cycle);
      running <= 1;
      quiet <= quiet + 1;
      if ((^s_axis_tready) === 1'bx) violation({READY_UNKNOWN});
      if ((^m_axis_tvalid) === 1'bx) violation({VALID_UNKNOWN});
      if ((^frame_error) === 1'bx) violation({ERROR_UNKNOWN});
      if (frame_error === 1'b1 && !was_error) $fwrite(events, "E %0d 1\\n", cycle);
      if (frame_error === 1'b0 && was_error) violation({ERROR_FELL});
      was_error <= frame_error === 1'b1;
      if (in_valid && s_axis_tready === 1'b1) begin
        if (at_start) $fwrite(events, "F %0d 0\\n", cycle);
        at_start <= in_last;
        quiet <= 0;
      end
      if (held) begin
        if (m_axis_tvalid !== 1'b1) violation({VALID_DROPPED});
        else begin
          if (m_axis_tdata !== held_data) violation({DATA_CHANGED});
          if (m_axis_tlast !== held_last) violation({LAST_CHANGED});
        end
      end
      held <= m_axis_tvalid === 1'b1 && !out_ready;
      held_data <= m_axis_tdata;
      held_last <= m_axis_tlast;
      if (m_axis_tvalid === 1'b1 && out_ready) begin
        $fwrite(outputs, "%h%h%h\\n", cycle, {{3'b0, m_axis_tlast}}, m_axis_tdata);
        quiet <= 0;
        if ((^m_axis_tlast) === 1'bx) violation({LAST_UNKNOWN});
        if (beat == {m_beats} - 1) begin
          if (m_axis_tlast === 1'b0) violation({LAST_MISSING});
          beat <= 0;
          taken <= taken + 1;
          $fflush(outputs);
        end else begin
          if (m_axis_tlast === 1'b1) violation({LAST_EARLY});
          beat <= beat + 1;
        end
      end
      // A design that gives more than it should shows it in the 64 cycles after the last frame.
      if (quiet >= ((taken >= frames) ? 64 : patience)) done <= 1;
    end
  end
"""

_PROBE = """
  integer file{i};
  wire [{high}:0] payload{i} = dut.\\{instance} .\\o__payload ;
  initial file{i} = $fopen("probe{i}.txt", "w");
  always @(posedge aclk)
    if (aresetn === 1'b1 && dut.\\{instance} .\\o__valid === 1'b1
        && dut.\\{instance} .\\o__ready === 1'b1)
      $fwrite(file{i}, "%h%h\\n", cycle, payload{i});
"""

_TRACE = """
  reg [8 * 64 - 1:0] trace;
  initial if ($value$plusargs("hwgen_trace=%s", trace)) begin
    $dumpfile(trace);
    $dumpvars(0, dut);
  end
"""


def bench_text(design: Design, *, probes: bool = False, dump: bool = False) -> str:
    """Verilog of the module around ``design``.

    Parameters
    ----------
    design : Design
    probes : bool
        Whether to record the design's internal streams.
    dump : bool
        Whether the text itself dumps a trace on ``+hwgen_trace=FILE``, as Icarus needs it.
    """
    rules = {rule.name: rule.number for rule in Rule}
    names = {
        "bench": BENCH,
        "top": f"\\{design.top} ",
        "s_high": 8 * design.input.data_bytes - 1,
        "m_high": 8 * design.output.data_bytes - 1,
        "m_beats": design.output.layout.beats,
        "record_bytes": record_bytes(design),
        "record_high": 8 * record_bytes(design) - 1,
        "flag": 8 * design.input.data_bytes,
        **rules,
    }
    parts = [text.format(**names) for text in (_PORTS, _DUT, _DRIVER, _MONITOR)]
    if probes:
        parts += [
            _PROBE.format(i=index, instance=probe.instance, high=probe_bits(probe) - 1)
            for index, probe in enumerate(design.probes)
        ]
    if dump:
        parts.append(_TRACE)
    return "".join(parts) + "endmodule\n"
