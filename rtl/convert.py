"""The stage that regroups a stream's elements into beats of another number of lanes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import C, Module, Mux, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.buffer import OutputBuffer

__all__ = ["WidthConverter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Which amounts a converter can hold, from its fixed sequence of beats; counts are in units.

    Parameters
    ----------
    unit : int
        Elements that always travel together.
    lanes_in, lanes_out : int
        Units of a full beat.
    tail_in, tail_out : int
        Units of a vector's last beat.
    places : int
        Most units held.
    left : frozenset of (int, int)
        ``(units emitted, units left)`` of every possible cycle, ``0`` emitted included.
    joined : frozenset of int
        Units left in the cycles that can accept a beat.
    """

    unit: int
    lanes_in: int
    lanes_out: int
    tail_in: int
    tail_out: int
    places: int
    left: frozenset[tuple[int, int]]
    joined: frozenset[int]


def _plan(lanes_in: int, lanes_out: int, vector_in: int, vector_out: int) -> _Plan:
    beats_in, beats_out = -(-vector_in // lanes_in), -(-vector_out // lanes_out)
    tail_in = vector_in - (beats_in - 1) * lanes_in
    tail_out = vector_out - (beats_out - 1) * lanes_out
    unit = math.gcd(lanes_in, lanes_out, tail_in, tail_out)
    lanes_in, lanes_out, tail_in, tail_out = (
        n // unit for n in (lanes_in, lanes_out, tail_in, tail_out)
    )
    most = lanes_in + lanes_out - 1
    # Where every beat is full, the place in the vector does not matter.
    beats_in = 1 if tail_in == lanes_in else beats_in
    beats_out = 1 if tail_out == lanes_out else beats_out
    start = (0, 0, 0)
    known, todo = {start}, [start]
    left, joined, places = set(), set(), 0
    while todo:
        held, k_in, k_out = todo.pop()
        take = tail_in if k_in == beats_in - 1 else lanes_in
        give = tail_out if k_out == beats_out - 1 else lanes_out
        for gone in (0, give) if held >= give else (0,):
            rest = held - gone
            left.add((gone, rest))
            next_out = (k_out + 1) % beats_out if gone else k_out
            follow = [(rest, k_in, next_out)]
            if rest + take <= most:
                joined.add(rest)
                follow.append((rest + take, (k_in + 1) % beats_in, next_out))
            for state in follow:
                places = max(places, state[0])
                if state not in known:
                    known.add(state)
                    todo.append(state)
    return _Plan(
        unit=unit,
        lanes_in=lanes_in,
        lanes_out=lanes_out,
        tail_in=tail_in,
        tail_out=tail_out,
        places=places,
        left=frozenset(left),
        joined=frozenset(joined),
    )


class WidthConverter(wiring.Component):
    """Regroup elements: one beat in and one beat out a cycle at most.

    Its store holds at most ``lanes_in + lanes_out - 1`` elements, the oldest at the bottom (in
    units of elements that always travel together, so often fewer can be there). *emit*
    fires with enough elements and a credit, and moves the others down; *accept* fires with a beat
    and room for it beside what is left, and puts it on top.

    Parameters
    ----------
    shape : Shape
        Format of an element.
    lanes_in, lanes_out : int
    vector_in, vector_out : int
        Elements of an input and of an output vector. The last beat of an input vector is partly
        filled, that of an output vector is filled up with zeros.
    out_depth : int
        Beats of the output buffer.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape, lanes_in)))``
    o : ``Out(stream.Signature(ArrayLayout(shape, lanes_out)))``
    """

    latency = 0

    def __init__(
        self,
        shape: Shape,
        lanes_in: int,
        lanes_out: int,
        vector_in: int,
        vector_out: int,
        out_depth: int,
    ) -> None:
        self.shape = Shape.cast(shape)
        self.vector_in = vector_in
        self.vector_out = vector_out
        self.plan = _plan(lanes_in, lanes_out, vector_in, vector_out)
        self.buffer = OutputBuffer(data.ArrayLayout(self.shape, lanes_out), out_depth)
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(self.shape, lanes_in))),
                "o": Out(stream.Signature(data.ArrayLayout(self.shape, lanes_out))),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        plan = self.plan
        m.submodules.buffer = buffer = self.buffer
        emit = Signal()
        accept = Signal()
        last_in = self._last(m, "in", self.vector_in, plan.lanes_in, plan.tail_in, accept)
        last_out = self._last(m, "out", self.vector_out, plan.lanes_out, plan.tail_out, emit)
        held = Signal(range(plan.places + 1))
        left = Signal(range(plan.places + 1))
        give = Signal(range(plan.lanes_out + 1))
        take = Signal(range(plan.lanes_in + 1))
        enough = Signal()
        room = Signal()
        room_after = Signal()
        most = plan.lanes_in + plan.lanes_out - 1
        m.d.comb += [
            give.eq(Mux(last_out, plan.tail_out, plan.lanes_out)),
            take.eq(Mux(last_in, plan.tail_in, plan.lanes_in)),
            enough.eq(held >= give),
            emit.eq(enough & buffer.available),
            left.eq(Mux(emit, held - give, held)),
            room.eq(held + take <= most),
            room_after.eq(held + take <= most + give),
            # Both rooms come from registers: the credit passes two gates on its way to i.ready.
            self.i.ready.eq(room | (emit & room_after)),
            accept.eq(self.i.valid & self.i.ready),
            buffer.reserve.eq(emit),
            buffer.w_en.eq(emit),
        ]
        m.d.sync += held.eq(Mux(accept, left + take, left))
        store = self._store(m, emit, last_out, left)
        width = self.shape.width
        bits = buffer.w_data.as_value()
        for k in range(plan.lanes_out):
            unit = store[k] if k < plan.tail_out else Mux(last_out, 0, store[k])
            step = width * plan.unit
            m.d.comb += bits[k * step : (k + 1) * step].eq(unit)
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        return m

    def _last(self, m: Module, name: str, vector: int, lanes: int, tail: int, step: Signal) -> Any:
        """Whether the next beat is the last of its vector; 0 where that makes no difference."""
        if tail == lanes:
            return C(0)
        beats = -(-vector // (lanes * self.plan.unit))
        last = Signal(name=f"last_{name}")
        if beats == 1:
            m.d.comb += last.eq(1)
            return last
        beat = Signal(range(beats), name=f"beat_{name}")
        m.d.comb += last.eq(beat == beats - 1)
        with m.If(step):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        return last

    def _store(self, m: Module, emit: Signal, last_out: Any, left: Signal) -> list[Signal]:
        """The units held, oldest first.

        What stands at or above ``left`` after a cycle without a beat is never read, so the beat may
        be put on top whether it was accepted or not.
        """
        plan = self.plan
        step = self.shape.width * plan.unit
        beat = self.i.payload.as_value()
        store = [
            Signal(step, name=f"unit_{s}", reset_less=True)
            for s in range(max(plan.places, plan.lanes_out))
        ]
        for s, unit in enumerate(store):
            with m.Switch(left):
                for rest in sorted(plan.joined):
                    if rest <= s < rest + plan.lanes_in:
                        with m.Case(rest):
                            m.d.sync += unit.eq(beat[(s - rest) * step : (s - rest + 1) * step])
                # The moves that keep this place in use.
                moves = sorted({gone for gone, rest in plan.left if s < rest})
                with m.Default():
                    if moves:
                        m.d.sync += unit.eq(self._moved(store, s, moves, emit, last_out))
        return store

    def _moved(
        self, store: list[Signal], s: int, moves: list[int], emit: Signal, last_out: Any
    ) -> Any:
        plan = self.plan
        full, tail = plan.lanes_out in moves, plan.tail_out in moves
        if not (full or tail):
            return store[s]
        if full and tail and plan.tail_out != plan.lanes_out:
            moved = Mux(last_out, store[s + plan.tail_out], store[s + plan.lanes_out])
        else:
            moved = store[s + (plan.lanes_out if full else plan.tail_out)]
        return Mux(emit, moved, store[s]) if 0 in moves else moved
