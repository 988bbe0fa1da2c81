"""Small hand-written designs in the form of the emitted text, of which every count is known."""

from __future__ import annotations

import numpy as np

__all__ = ["ROM_DEPTH", "ROM_WIDTH", "mac_facts_words", "mac_text"]

ROM_WIDTH, ROM_DEPTH = 32, 512


def mac_facts_words() -> tuple[int, ...]:
    """Contents of the read-only memory: four signed weights of 8 bits a word."""
    rng = np.random.default_rng(7)
    return tuple(int(word) for word in rng.integers(0, 1 << ROM_WIDTH, ROM_DEPTH))


def mac_text() -> str:
    """Four multiply-accumulators with their weights and a vector memory: modules ``mac_*``.

    Operands ``x_0`` (8 bits, unsigned) and ``w_<lane>_0`` (8 bits, signed), products of 16 bits,
    accumulators of 20 bits.
    """
    lanes = range(4)
    words = "".join(
        f"    rom[{k}] = {ROM_WIDTH}'h{word:08x};\n" for k, word in enumerate(mac_facts_words())
    )
    declared = "".join(
        f"  wire [15:0] _0{k}_;\n"
        f"  wire [20:0] _1{k}_;\n"
        f"  reg signed [7:0] w_{k}_0 = 8'h00;\n"
        f"  reg signed [15:0] product_{k}_0 = 16'h0000;\n"
        f"  output signed [19:0] acc_{k};\n"
        f"  reg signed [19:0] acc_{k} = 20'h00000;\n"
        for k in lanes
    )
    logic = "".join(
        f"  assign _0{k}_ = $signed({{ 1'h0, x_0 }}) * $signed(w_{k}_0);\n"
        f"  assign _1{k}_ = $signed(acc_{k}) + $signed(product_{k}_0);\n"
        f"  always @(posedge clk)\n"
        f"    w_{k}_0 <= w[{8 * k + 7}:{8 * k}];\n"
        f"  always @(posedge clk)\n"
        f"    product_{k}_0 <= _0{k}_;\n"
        f"  always @(posedge clk)\n"
        f"    if (rst) acc_{k} <= 20'h00000;\n"
        f"    else acc_{k} <= _1{k}_[19:0];\n"
        for k in lanes
    )
    return f"""\
// mac: Verilog-2001.

module mac (
  aclk,
  aresetn,
  x,
  y
);
  input aclk;
  wire aclk;
  input aresetn;
  wire aresetn;
  input [7:0] x;
  wire [7:0] x;
  output [19:0] y;
  reg [19:0] y = 20'h00000;
  wire rst;
  wire [7:0] held;
  wire [31:0] weights;
  wire [19:0] acc_0;
  wire [19:0] acc_1;
  wire [19:0] acc_2;
  wire [19:0] acc_3;
  reg [8:0] step = 9'h000;
  wire [9:0] _0_;
  assign rst = ~ aresetn;
  assign _0_ = step + 1'h1;
  always @(posedge aclk)
    if (rst) step <= 9'h000;
    else step <= _0_[8:0];
  always @(posedge aclk)
    if (step[1]) y <= step[0] ? acc_3 : acc_2;
    else y <= step[0] ? acc_1 : acc_0;
  mac_array array (
    .acc_0(acc_0),
    .acc_1(acc_1),
    .acc_2(acc_2),
    .acc_3(acc_3),
    .clk(aclk),
    .rst(rst),
    .w(weights),
    .x(held)
  );
  mac_rom_weights rom_weights (
    .addr(step),
    .clk(aclk),
    .data(weights)
  );
  mac_vector vector (
    .addr(step[4:0]),
    .clk(aclk),
    .r_data(held),
    .w_data(x),
    .w_en(step[8])
  );
endmodule

module mac_array (
  rst,
  x,
  w,
  acc_0,
  acc_1,
  acc_2,
  acc_3,
  clk
);
  input rst;
  wire rst;
  input [7:0] x;
  wire [7:0] x;
  input [31:0] w;
  wire [31:0] w;
  input clk;
  wire clk;
  reg [7:0] x_0 = 8'h00;
{declared}  always @(posedge clk)
    x_0 <= x;
{logic}endmodule

module mac_rom_weights (
  addr,
  data,
  clk
);
  input [8:0] addr;
  wire [8:0] addr;
  output [31:0] data;
  wire [31:0] data;
  input clk;
  wire clk;
  reg [{ROM_WIDTH - 1}:0] rom [{ROM_DEPTH - 1}:0];
  initial begin
{words}  end
  reg [31:0] _0_;
  always @(posedge clk) begin
    _0_ <= rom[addr];
  end
  assign data = _0_;
endmodule

module mac_vector (
  addr,
  w_en,
  w_data,
  r_data,
  clk
);
  input [4:0] addr;
  wire [4:0] addr;
  input w_en;
  wire w_en;
  input [7:0] w_data;
  wire [7:0] w_data;
  output [7:0] r_data;
  wire [7:0] r_data;
  input clk;
  wire clk;
  reg [7:0] ram [31:0];
  always @(posedge clk) begin
    if (w_en)
      ram[addr] <= w_data;
  end
  reg [7:0] _0_;
  always @(posedge clk) begin
    _0_ <= ram[addr];
  end
  assign r_data = _0_;
endmodule
"""
