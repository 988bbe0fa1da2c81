"""The stage that requantises a stream."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.requant import Requant
from rtl.buffer import OutputBuffer
from rtl.requant import Requantizer

__all__ = ["Rescale", "delayed"]


def delayed(m: Module, pulse: Any, cycles: int, name: str) -> Any:
    """A one-bit signal ``cycles`` later; 0 after reset."""
    for k in range(1, cycles + 1):
        stage = Signal(name=f"{name}_{k}")
        m.d.sync += stage.eq(pulse)
        pulse = stage
    return pulse


class Rescale(wiring.Component):
    """Requantise every code by its channel: one beat a cycle.

    Parameters
    ----------
    shape_in, shape_out : Shape
        Formats of a lane.
    lanes : int
    groups : int
        Beats of a pixel.
    requant : Requant
        With one entry for the tensor or one for each channel.
    out_depth : int
        Beats of the output buffer.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape_in, lanes)))``
    o : ``Out(stream.Signature(ArrayLayout(shape_out, lanes)))``

    Attributes
    ----------
    latency : int
        That of the requantiser.
    """

    def __init__(
        self,
        shape_in: Shape,
        lanes: int,
        groups: int,
        requant: Requant,
        shape_out: Shape,
        out_depth: int,
    ) -> None:
        self.groups = groups
        self.requantizer = Requantizer(requant, shape_in, shape_out, lanes, groups)
        self.buffer = OutputBuffer(data.ArrayLayout(shape_out, lanes), out_depth)
        self.latency = self.requantizer.latency
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(shape_in, lanes))),
                "o": Out(stream.Signature(data.ArrayLayout(shape_out, lanes))),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.requantizer = requantizer = self.requantizer
        m.submodules.buffer = buffer = self.buffer
        fire = Signal()
        m.d.comb += [
            self.i.ready.eq(buffer.available),
            fire.eq(self.i.valid & buffer.available),
            buffer.reserve.eq(fire),
            requantizer.i.eq(self.i.payload),
            buffer.w_data.eq(requantizer.o),
            buffer.w_en.eq(delayed(m, fire, self.latency, "made")),
        ]
        if self.groups > 1:
            group = Signal(range(self.groups))
            m.d.comb += requantizer.fold.eq(group)
            with m.If(fire):
                m.d.sync += group.eq(Mux(group == self.groups - 1, 0, group + 1))
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        return m
