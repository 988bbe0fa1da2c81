"""A two-stage design in plain Verilog, right or with one deliberate fault, and what it computes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design, Probe
from hwgen.ir.formats import TensorType
from hwgen.lower.stream import AxiPort, StreamLayout

Codes = NDArray[np.int64]

INPUT = StreamLayout(tensor=TensorType(shape=(3, 2, 4), width=8, signed=False), lanes=2)
FIRST = StreamLayout(tensor=TensorType(shape=(3, 2, 4), width=9, signed=True), lanes=2)
SECOND = StreamLayout(tensor=TensorType(shape=(3, 2, 4), width=9, signed=True), lanes=2)
BEATS = INPUT.beats

FAULTS: dict[str, tuple[str, str]] = {
    "no tlast": ("n == 15;", "1'b0;"),
    "early tlast": ("n == 15;", "n == 15 || n == 3;"),
    "payload moves": ("assign o__payload = d;", "assign o__payload = d ^ {18{waited}};"),
    "valid drops": ("assign o__valid = v;", "assign o__valid = v && !waited;"),
    "one wrong code": ("- 18'd5;", "- (count == 21 ? 18'd261 : 18'd5);"),
    "stops": ("assign o__valid = v;", "assign o__valid = v && count < 21;"),
    "unknown bits": ("- 18'd5;", "- (count == 21 ? 18'dx : 18'd5);"),
    "beat too many": ("wire rerun = 0;", "wire rerun = count == 47;"),
    "reset forgets": ("if (rst) n <= 0; else", ""),
    "error not sticky": ("if (rst) error <= 0; else", "if (rst || n == 2) error <= 0; else"),
    "no resynchronisation": ("drop <= 1;", "drop <= 0;"),
    "no filling": ("fill <= 1;", "fill <= 0;"),
    "ready unknown": ("assign i__ready = !v", "assign i__ready = 1'bx & !v"),
}
"""Text of the right design and what stands in its place."""

_VERILOG = """
module stage_a(input clk, input rst, input [17:0] i__payload, input i__valid, output i__ready,
  output [17:0] o__payload, output o__valid, input o__ready);
  reg [17:0] d; reg v; initial v = 0;
  assign i__ready = !v || o__ready;
  assign o__payload = d;
  assign o__valid = v;
  always @(posedge clk) if (rst) v <= 0; else if (i__ready) begin
    v <= i__valid;
    d <= {i__payload[17:9] ^ 9'h1, i__payload[8:0] ^ 9'h1};
  end
endmodule

module stage_b(input clk, input rst, input [17:0] i__payload, input i__valid, output i__ready,
  output [17:0] o__payload, output o__valid, input o__ready);
  reg [17:0] d; reg v, waited; reg [15:0] count;
  initial begin v = 0; waited = 0; count = 0; end
  wire rerun = 0;
  assign i__ready = !v || (o__ready && !rerun);
  assign o__payload = d;
  assign o__valid = v;
  wire [8:0] high = i__payload[17:9] - 9'd5, low = i__payload[8:0] - 18'd5;
  always @(posedge clk) if (rst) begin v <= 0; count <= 0; waited <= 0; end else begin
    waited <= o__valid && !o__ready;
    if (o__valid && o__ready) count <= count + 1;
    if (i__ready) begin
      v <= i__valid;
      d <= {high, low};
    end
  end
endmodule

module toy(input aclk, input aresetn,
  input [15:0] s_axis_tdata, input s_axis_tvalid, output s_axis_tready, input s_axis_tlast,
  output [31:0] m_axis_tdata, output m_axis_tvalid, input m_axis_tready, output m_axis_tlast,
  output frame_error);
  wire rst = !aresetn;
  reg [4:0] n; reg fill, drop, error;
  reg [4:0] p;
  initial begin n = 0; p = 0; fill = 0; drop = 0; error = 0; end
  wire ar, av, br, bv;
  wire [17:0] ad, bd;
  wire go = fill || (s_axis_tvalid && !drop);
  assign s_axis_tready = !rst && (drop || (!fill && ar));
  always @(posedge aclk) begin
    if (rst) error <= 0; else
    if (go && ar && !fill && s_axis_tlast != (p == 15)) error <= 1;
    if (rst) begin p <= 0; fill <= 0; drop <= 0; end
    else if (go && ar) begin
      p <= p == 15 ? 0 : p + 1;
      if (p == 15) begin
        fill <= 0;
        if (!fill && !s_axis_tlast) drop <= 1;
      end else if (!fill && s_axis_tlast) fill <= 1;
    end else if (drop && s_axis_tvalid && s_axis_tlast) drop <= 0;
  end
  wire [15:0] data = fill ? 16'd0 : s_axis_tdata;
  stage_a \\first.a (.clk(aclk), .rst(rst),
    .i__payload({1'b0, data[15:8], 1'b0, data[7:0]}), .i__valid(go && !rst), .i__ready(ar),
    .o__payload(ad), .o__valid(av), .o__ready(br));
  stage_b b(.clk(aclk), .rst(rst), .i__payload(ad), .i__valid(av), .i__ready(br),
    .o__payload(bd), .o__valid(bv), .o__ready(m_axis_tready));
  assign m_axis_tvalid = bv;
  assign m_axis_tdata = {{7{bd[17]}}, bd[17:9], {7{bd[8]}}, bd[8:0]};
  assign m_axis_tlast = n == 15;
  always @(posedge aclk) if (rst) n <= 0; else if (bv && m_axis_tready) n <= n == 15 ? 0 : n + 1;
  assign frame_error = error;
endmodule
"""


def toy(fault: str = "") -> Design:
    """The design, with a fault of :data:`FAULTS` or none."""
    text = _VERILOG
    if fault:
        old, new = FAULTS[fault]
        assert old in text, fault
        before, after = text.rsplit(old, 1)  # the second stage's, where both have it
        text = before + new + after
    return Design(
        top="toy",
        verilog=text,
        input=AxiPort(layout=INPUT),
        output=AxiPort(layout=SECOND),
        probes=(
            Probe(instance="first.a", tensor="first", layout=FIRST),
            Probe(instance="b", tensor="second", layout=SECOND),
        ),
    )


def values(codes: Codes) -> dict[str, Codes]:
    """What the right design computes, tensor by tensor."""
    first = codes ^ 1
    return {"input": codes, "first": first, "second": first - 5}


def evaluate(codes: Codes) -> Codes:
    """The output."""
    return values(codes)["second"]


def frames(count: int, seed: int = 0) -> Codes:
    """Random input frames."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *INPUT.tensor.shape), dtype=np.int64)
