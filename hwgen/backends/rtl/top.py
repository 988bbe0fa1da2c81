"""The top module: all stages between an AXI4-Stream slave and master."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal, Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hwgen.backends.rtl.components import component
from hwgen.backends.rtl.design import Design, Probe
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stream import AxiPort
from rtl.axi import AxiStreamOut
from rtl.emit import emit_verilog

__all__ = ["Top", "generate"]


class Top(wiring.Component):
    """A dataflow as hardware.

    Parameters
    ----------
    dataflow : Dataflow
    own_clock : bool
        Whether ``aclk`` and ``aresetn`` drive the stages; else the domain ``sync`` of the surroundings.

    Members
    -------
    aclk, aresetn
        Clock and synchronous reset, active low.
    s_axis_tdata, s_axis_tvalid, s_axis_tready, s_axis_tlast
        Input frames; ``dataflow.input`` gives the layout.
    m_axis_tdata, m_axis_tvalid, m_axis_tready, m_axis_tlast
        Output frames; ``dataflow.output`` gives the layout.
    frame_error
        Sticky: an input ``tlast`` came early or late.
    """

    def __init__(self, dataflow: Dataflow, *, own_clock: bool = True) -> None:
        self.dataflow = dataflow
        self.own_clock = own_clock
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "s_axis_tdata": In(8 * dataflow.input.data_bytes),
                "s_axis_tvalid": In(1),
                "s_axis_tready": Out(1),
                "s_axis_tlast": In(1),
                "m_axis_tdata": Out(8 * dataflow.output.data_bytes),
                "m_axis_tvalid": Out(1),
                "m_axis_tready": In(1),
                "m_axis_tlast": Out(1),
                "frame_error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        if self.own_clock:
            m.domains.sync = ClockDomain("sync")
            m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        stages = self.dataflow.stages
        parts = [component(stage) for stage in stages]
        for stage, part in zip(stages, parts, strict=True):
            m.submodules[stage.name] = part
        for source, sink in pairwise(parts):
            wiring.connect(m, source.o, sink.i)
        last = stages[-1].o
        m.submodules.stream_out = out = AxiStreamOut(
            Shape(last.width, last.signed), last.lanes, stages[-1].beats_out
        )
        wiring.connect(m, parts[-1].o, out.i)
        first = parts[0]
        m.d.comb += [
            first.tdata.eq(self.s_axis_tdata),
            first.tvalid.eq(self.s_axis_tvalid),
            first.tlast.eq(self.s_axis_tlast),
            self.s_axis_tready.eq(first.tready),
            self.m_axis_tdata.eq(out.tdata),
            self.m_axis_tvalid.eq(out.tvalid),
            self.m_axis_tlast.eq(out.tlast),
            out.tready.eq(self.m_axis_tready),
            self.frame_error.eq(first.frame_error),
        ]
        return m


def _port_lines(name: str, port: AxiPort) -> list[str]:
    layout, tensor = port.layout, port.layout.tensor
    sign = "signed" if tensor.signed else "unsigned"
    shape = "x".join(map(str, tensor.shape))
    return [
        f"{name}: {shape} codes of {tensor.width} bits, {sign}, {layout.beats} beats a frame;",
        f"  pixels row by row, {layout.lanes} of {tensor.channels} channels a beat, lowest first;",
        f"  {port.lane_bytes} byte(s) a lane, extended by its sign where it has one;",
        f"  tdata has {port.data_bytes} byte(s), tlast marks the last beat of a frame.",
    ]


def header(dataflow: Dataflow) -> str:
    """What a reader of the Verilog must know of its ports, as comment lines."""
    lines = [
        f"{dataflow.name}: {dataflow.interval} cycles a frame, {dataflow.multipliers} multipliers.",
        *_port_lines("s_axis", dataflow.input),
        *_port_lines("m_axis", dataflow.output),
        "frame_error stays 1 after an input tlast that came early or late, until reset.",
    ]
    return "".join(f"// {line}\n" for line in lines)


def generate(dataflow: Dataflow) -> Design:
    """Render a dataflow as one Verilog file.

    The same dataflow gives the same text, byte for byte.
    """
    probes = tuple(
        Probe(instance=s.stage, tensor=s.tensor, layout=s.layout)
        for s in dataflow.streams
        if s.stage != "classify_argmax"
    )
    top = dataflow.name
    try:
        text = emit_verilog(Top(dataflow), top)
    except ValueError:  # a keyword of Verilog, such as a network called "small"
        top = f"{top}_net"
        text = emit_verilog(Top(dataflow), top)
    return Design(
        top=top,
        verilog=header(dataflow) + text,
        input=dataflow.input,
        output=dataflow.output,
        probes=probes,
    )
