"""The reducing stage: maximum or sum over windows, for pooling."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.requant import Requant
from hwgen.ir.timing import accumulate_latency, tree_latency
from rtl.adder_tree import node_shape, registered_tree, sum_intervals
from rtl.buffer import OutputBuffer
from rtl.requant import Requantizer, shape_interval
from rtl.rescale import delayed

__all__ = ["Reduce"]


class Reduce(wiring.Component):
    """Maximum or sum of each channel over a window's rows, then over its steps.

    Takes a beat a cycle; the last of a window needs a credit.

    Parameters
    ----------
    shape_in : Shape
        One code.
    lanes : int
        Channels of a beat.
    rows : int
        Kernel rows in a beat, row by row.
    steps : int
        Beats of a window.
    groups : int
        Windows after which the channels start anew.
    kind : "max" or "sum"
    acc_shape : Shape
        The accumulators; holds every final value.
    requant : Requant or None
        None hands out accumulators.
    shape_out : Shape
        One code of the output; ``acc_shape`` without ``requant``.
    out_depth : int
        Beats of the output buffer.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape_in, rows * lanes)))``
        Channel ``c`` of row ``ky`` in lane ``ky * lanes + c``.
    o : ``Out(stream.Signature(ArrayLayout(shape_out, lanes)))``

    Attributes
    ----------
    latency : int
    """

    def __init__(
        self,
        shape_in: Shape,
        lanes: int,
        rows: int,
        steps: int,
        groups: int,
        kind: Literal["max", "sum"],
        acc_shape: Shape,
        requant: Requant | None,
        shape_out: Shape,
        out_depth: int,
    ) -> None:
        if kind not in ("max", "sum"):
            raise ValueError(f"the kind of a reduction must be 'max' or 'sum', not {kind!r}")
        if requant is None and Shape.cast(shape_out) != Shape.cast(acc_shape):
            raise ValueError(f"accumulators go out as {acc_shape!r}, not {shape_out!r}")
        self.shape_in = Shape.cast(shape_in)
        self.lanes = lanes
        self.rows = rows
        self.steps = steps
        self.groups = groups
        self.kind = kind
        self.acc_shape = Shape.cast(acc_shape)
        self.requantizer = (
            None if requant is None else Requantizer(requant, acc_shape, shape_out, lanes, groups)
        )
        self.buffer = OutputBuffer(data.ArrayLayout(shape_out, lanes), out_depth)
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(shape_in, rows * lanes))),
                "o": Out(stream.Signature(data.ArrayLayout(shape_out, lanes))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a window's last beat to the output buffer."""
        return tree_latency(self.rows) + accumulate_latency() + self._requant_latency

    @property
    def _requant_latency(self) -> int:
        return 0 if self.requantizer is None else self.requantizer.latency

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.buffer = buffer = self.buffer
        take = Signal()
        reach = tree_latency(self.rows)
        last = self._last(m, take)
        m.d.comb += [
            self.i.ready.eq(buffer.available | ~last),
            take.eq(self.i.valid & self.i.ready),
            buffer.reserve.eq(take & last),
        ]
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        arrives = delayed(m, take, reach, "arrives")
        ends = delayed(m, take & last, reach, "ends")
        begins = Signal(init=1)
        with m.If(arrives):
            m.d.sync += begins.eq(ends)
        accumulators = []
        for lane in range(self.lanes):
            acc = Signal(self.acc_shape, name=f"acc_{lane}", reset_less=True)
            value = self._rows(m, lane)
            both = value if self.steps == 1 else Mux(begins, value, self._combine(acc, value))
            with m.If(arrives):
                m.d.sync += acc.eq(both)
            accumulators.append(acc)
        done = delayed(m, ends, accumulate_latency(), "done")
        if self.requantizer is None:
            results: Any = accumulators
        else:
            m.submodules.requantizer = requantizer = self.requantizer
            results = requantizer.o
            m.d.comb += [requantizer.fold.eq(self._group(m, done))]
            m.d.comb += [requantizer.i[k].eq(acc) for k, acc in enumerate(accumulators)]
        m.d.comb += [buffer.w_data[lane].eq(results[lane]) for lane in range(self.lanes)]
        m.d.comb += buffer.w_en.eq(delayed(m, done, self._requant_latency, "requantized"))
        return m

    def _combine(self, a: Any, b: Any) -> Any:
        return Mux(a > b, a, b) if self.kind == "max" else a + b

    def _last(self, m: Module, take: Any) -> Any:
        """Whether the current beat is its window's last: a register."""
        last = Signal(name="last", init=int(self.steps == 1))
        if self.steps > 1:
            step = Signal(range(self.steps))
            with m.If(take):
                m.d.sync += [
                    step.eq(Mux(last, 0, step + 1)),
                    last.eq(~last & (step == self.steps - 2)),
                ]
        return last

    def _rows(self, m: Module, lane: int) -> Any:
        """Reduction of a lane over the rows of a beat, ``tree_latency(rows)`` cycles later."""
        leaves = [self.i.payload[ky * self.lanes + lane] for ky in range(self.rows)]
        ends = [np.full(self.rows, end, dtype=np.int64) for end in shape_interval(self.shape_in)]
        most = self.acc_shape.width + (not self.acc_shape.signed)
        shapes = [
            [
                self.shape_in if self.kind == "max" else node_shape(int(low), int(high), most)
                for low, high in zip(lows, highs, strict=True)
            ]
            for lows, highs in sum_intervals(*ends)
        ]
        return registered_tree(m, leaves, shapes[1:], self._combine, f"{self.kind}_{lane}")

    def _group(self, m: Module, done: Any) -> Any:
        """Counts windows as they leave the accumulators."""
        group = Signal(range(self.groups))
        if self.groups > 1:
            with m.If(done):
                m.d.sync += group.eq(Mux(group == self.groups - 1, 0, group + 1))
        return group
