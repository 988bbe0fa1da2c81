"""The stage that finds the index of a vector's largest element."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.timing import accumulate_latency, tree_latency
from rtl.buffer import OutputBuffer
from rtl.requant import shape_interval
from rtl.rescale import delayed

__all__ = ["Argmax"]


class Argmax(wiring.Component):
    """Index of the largest element of a vector, the lowest on a tie.

    A registered tree over the lanes, then the best so far. Takes a beat a cycle; the last of a
    vector needs a credit.

    Parameters
    ----------
    shape : Shape
        Format of an element.
    lanes : int
        Elements of a beat.
    vector : int
        Elements of a vector; the free lanes of its last beat are ignored.
    out_depth : int
        Indices the output buffer holds.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape, lanes)))``
    o : ``Out(stream.Signature(ArrayLayout(unsigned(max(1, bits)), 1)))``
        ``bits`` is that of ``vector - 1``.

    Attributes
    ----------
    latency : int
    """

    def __init__(self, shape: Shape, lanes: int, vector: int, out_depth: int) -> None:
        self.shape = Shape.cast(shape)
        self.lanes = lanes
        self.vector = vector
        self.beats = -(-vector // lanes)
        self.latency = tree_latency(lanes) + accumulate_latency()
        self.index = unsigned(max(1, (vector - 1).bit_length()))
        layout = data.ArrayLayout(self.index, 1)
        self.buffer = OutputBuffer(layout, out_depth)
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(self.shape, lanes))),
                "o": Out(stream.Signature(layout)),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.buffer = buffer = self.buffer
        fire = Signal()
        first = Signal(init=1)
        last = Signal(init=int(self.beats == 1))
        base = Signal(range(max(1, (self.beats - 1) * self.lanes + 1)))
        m.d.comb += [
            self.i.ready.eq(buffer.available | ~last),
            fire.eq(self.i.valid & self.i.ready),
            buffer.reserve.eq(fire & last),
        ]
        if self.beats > 1:
            with m.If(fire):
                m.d.sync += [
                    first.eq(last),
                    last.eq(~last & (base == (self.beats - 2) * self.lanes)),
                    base.eq(Mux(last, 0, base + self.lanes)),
                ]
        levels = tree_latency(self.lanes)
        value, lane = self._tree(m, last)
        for k in range(levels):
            later = Signal.like(base, name=f"base_{k + 1}", reset_less=True)
            m.d.sync += later.eq(base)
            base = later
        best = Signal(self.shape, reset_less=True)
        index = Signal(self.index, reset_less=True)
        begins = delayed(m, fire & first, levels, "begins")
        with m.If(begins | (delayed(m, fire, levels, "fired") & (value > best))):
            m.d.sync += [best.eq(value), index.eq(base + lane)]
        m.d.comb += [
            buffer.w_data[0].eq(index),
            buffer.w_en.eq(delayed(m, fire & last, self.latency, "made")),
        ]
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        return m

    def _tree(self, m: Module, last: Signal) -> tuple[Any, Any]:
        """Largest element of a beat and its lane, ``tree_latency(lanes)`` cycles later."""
        # A free lane counts as the lowest code: it loses ties, for it stands after every element.
        lowest = shape_interval(self.shape)[0]
        filled = self.vector - (self.beats - 1) * self.lanes
        nodes: list[tuple[Any, Any]] = []
        for k in range(self.lanes):
            element = self.i.payload[k]
            nodes.append((element if k < filled else Mux(last, lowest, element), C(0, 0)))
        for level in range(tree_latency(self.lanes)):
            merged = []
            for k in range(0, len(nodes), 2):
                if k + 1 < len(nodes):
                    higher = nodes[k + 1][0] > nodes[k][0]
                    best = Mux(higher, nodes[k + 1][0], nodes[k][0])
                    # The lane within this subtree: its top bit says which half.
                    place = Cat(Mux(higher, nodes[k + 1][1], nodes[k][1]), higher)
                else:
                    best, place = nodes[k]
                value = Signal(self.shape, name=f"value_{level}_{k // 2}", reset_less=True)
                lane = Signal(len(place), name=f"lane_{level}_{k // 2}", reset_less=True)
                m.d.sync += [value.eq(best), lane.eq(place)]
                merged.append((value, lane))
            nodes = merged
        return nodes[0]
