"""The buffer at a stage's output: a FIFO whose free places are handed out as credits."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.memory import add_ram, as_bits

__all__ = ["OutputBuffer"]

SHIFTED_DEPTH = 3
"""Depth up to which shifting registers are no larger than a memory with a read multiplexer."""


class OutputBuffer(wiring.Component):
    """FIFO of a stage's output beats, with the credit counter of its producer.

    A producing step fires in a cycle with ``available`` and raises ``reserve``; its beat comes
    with ``w_en`` in that cycle or any later one, in order. A beat written at cycle ``t`` is at
    ``o`` from ``t + 1``. A beat taken at ``t`` gives its credit back at ``t + 1``.

    Parameters
    ----------
    shape : shape-like
        Payload of a beat.
    depth : int
        Beats it holds and credits at reset, at least 1.

    Members
    -------
    reserve : ``In(1)``
        A producing step fires. Only while ``available``.
    available : ``Out(1)``
        Whether there is a credit; depends on registers alone.
    w_en, w_data : ``In(1)``, ``In(shape)``
        Write port.
    o : ``Out(stream.Signature(shape))``
    """

    def __init__(self, shape: ShapeLike, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"the depth of an output buffer must be at least 1, not {depth}")
        self.shape = shape
        self.depth = depth
        super().__init__(
            {
                "reserve": In(1),
                "available": Out(1),
                "w_en": In(1),
                "w_data": In(shape),
                "o": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        credit = Signal(range(self.depth + 1), init=self.depth)
        level = Signal(range(self.depth + 1))
        taken = Signal()
        m.d.comb += [
            self.available.eq(credit != 0),
            self.o.valid.eq(level != 0),
            taken.eq(self.o.valid & self.o.ready),
        ]
        with m.If(self.reserve & ~taken):
            m.d.sync += credit.eq(credit - 1)
        with m.Elif(~self.reserve & taken):
            m.d.sync += credit.eq(credit + 1)
        with m.If(self.w_en & ~taken):
            m.d.sync += level.eq(level + 1)
        with m.Elif(~self.w_en & taken):
            m.d.sync += level.eq(level - 1)
        if self.depth <= SHIFTED_DEPTH:
            self._shift(m, level, taken)
        else:
            self._ring(m, taken)
        return m

    def _shift(self, m: Module, level: Signal, taken: Signal) -> None:
        """Entry 0 is the oldest; a free entry may load anything, the level tells what counts."""
        width = Shape.cast(self.shape).width
        entries = [Signal(width, name=f"entry_{k}", reset_less=True) for k in range(self.depth)]
        m.d.comb += as_bits(self.o.payload).eq(entries[0])
        fresh = as_bits(self.w_data)
        for k, entry in enumerate(entries):
            # An entry loads when it is free or moves on: the beat above it if there is one, which
            # there is not where it is free, so that the choice needs the level alone.
            above = level > k + 1
            with m.If(taken | (level <= k)):
                m.d.sync += entry.eq(
                    Mux(above, entries[k + 1], fresh) if entry is not entries[-1] else fresh
                )

    def _ring(self, m: Module, taken: Signal) -> None:
        w_index = Signal(range(self.depth))
        r_index = Signal(range(self.depth))
        word = add_ram(
            m,
            "fifo",
            Shape.cast(self.shape).width,
            self.depth,
            w_en=self.w_en,
            w_addr=w_index,
            w_data=as_bits(self.w_data),
            r_addr=r_index,
            latency=0,
        )
        m.d.comb += as_bits(self.o.payload).eq(word)
        for index, step in ((w_index, self.w_en), (r_index, taken)):
            with m.If(step):
                m.d.sync += index.eq(Mux(index == self.depth - 1, 0, index + 1))
