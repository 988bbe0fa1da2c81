"""AXI4-Stream at the two ends of a design.

TDATA holds the lanes, the lowest channel in the lowest bytes, each extended by its sign (or zeros)
to whole bytes; TDATA is a power of two of bytes, the rest is zero. TLAST ends a frame.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.buffer import OutputBuffer

__all__ = ["AxiStreamIn", "AxiStreamOut", "data_bytes", "lane_bytes"]


def lane_bytes(width: int) -> int:
    """Bytes of a lane of ``width`` bits.

    >>> lane_bytes(1), lane_bytes(8), lane_bytes(21)
    (1, 1, 3)
    """
    return -(-width // 8)


def data_bytes(width: int, lanes: int) -> int:
    """Bytes of TDATA for ``lanes`` lanes of ``width`` bits.

    >>> data_bytes(8, 3), data_bytes(21, 1), data_bytes(8, 1)
    (4, 4, 1)
    """
    return 1 << (lane_bytes(width) * lanes - 1).bit_length()


def _index(count: int) -> Signal:
    return Signal(range(max(count, 2)), name="beat")


class AxiStreamIn(wiring.Component):
    """AXI4-Stream slave: hands whole frames of exactly ``beats`` beats to the design.

    An early ``tlast`` fills the frame up with zero beats; a missing one drops beats up to and
    including the next ``tlast``. Both set ``frame_error`` until reset.

    Parameters
    ----------
    shape : Shape
        Format of a lane.
    lanes : int
    beats : int
        Beats of a frame.
    out_depth : int
        Beats of the output buffer.

    Members
    -------
    tdata, tvalid, tready, tlast
        The AXI4-Stream signals.
    frame_error : ``Out(1)``
    o : ``Out(stream.Signature(ArrayLayout(shape, lanes)))``
    """

    latency = 0

    def __init__(self, shape: Shape, lanes: int, beats: int, out_depth: int = 2) -> None:
        self.shape = Shape.cast(shape)
        self.lanes = lanes
        self.beats = beats
        layout = data.ArrayLayout(self.shape, lanes)
        self.buffer = OutputBuffer(layout, out_depth)
        super().__init__(
            {
                "tdata": In(8 * data_bytes(self.shape.width, lanes)),
                "tvalid": In(1),
                "tready": Out(1),
                "tlast": In(1),
                "frame_error": Out(1),
                "o": Out(stream.Signature(layout)),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.buffer = buffer = self.buffer
        filling = Signal()
        dropping = Signal()
        error = Signal()
        accept = Signal()
        produce = Signal()
        last = Signal()
        beat = _index(self.beats)
        m.d.comb += [
            self.frame_error.eq(error),
            self.tready.eq(dropping | (buffer.available & ~filling)),
            accept.eq(self.tvalid & self.tready & ~dropping),
            produce.eq(accept | (filling & buffer.available)),
            last.eq(beat == self.beats - 1),
            buffer.reserve.eq(produce),
            buffer.w_en.eq(produce),
        ]
        step = 8 * lane_bytes(self.shape.width)
        for lane in range(self.lanes):
            code = self.tdata[lane * step : lane * step + self.shape.width]
            m.d.comb += buffer.w_data[lane].eq(Mux(filling, 0, code))
        with m.If(produce):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        with m.If(accept & (self.tlast != last)):
            m.d.sync += [error.eq(1), filling.eq(self.tlast), dropping.eq(last)]
        with m.If(filling & produce & last):
            m.d.sync += filling.eq(0)
        with m.If(dropping & self.tvalid & self.tlast):
            m.d.sync += dropping.eq(0)
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        return m


class AxiStreamOut(wiring.Component):
    """AXI4-Stream master: packs the lanes and marks the last beat of a frame.

    Parameters
    ----------
    shape : Shape
        Format of a lane.
    lanes : int
    beats : int
        Beats of a frame.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape, lanes)))``
    tdata, tvalid, tready, tlast
        The AXI4-Stream signals.
    """

    def __init__(self, shape: Shape, lanes: int, beats: int) -> None:
        self.shape = Shape.cast(shape)
        self.lanes = lanes
        self.beats = beats
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(self.shape, lanes))),
                "tdata": Out(8 * data_bytes(self.shape.width, lanes)),
                "tvalid": Out(1),
                "tready": In(1),
                "tlast": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        beat = _index(self.beats)
        last = Signal()
        free = 8 * lane_bytes(self.shape.width) - self.shape.width
        parts: list[Any] = []
        for lane in range(self.lanes):
            code = self.i.payload[lane]
            parts += [code, (code[-1] if self.shape.signed else C(0)).replicate(free)]
        m.d.comb += [
            self.tdata.eq(Cat(*parts)),
            self.tvalid.eq(self.i.valid),
            self.i.ready.eq(self.tready),
            last.eq(beat == self.beats - 1),
            self.tlast.eq(last),
        ]
        with m.If(self.tvalid & self.tready):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        return m
