"""A ring of vectors that replays each for every output fold."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Const, Module, Mux, Shape, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from rtl.address import Loop, LoopNest, held, select
from rtl.memory import add_ram

__all__ = ["VectorBuffer"]


class VectorBuffer(wiring.Component):
    """Stores vectors of ``vector`` words and reads each ``folds`` times.

    Words are read as they come in the first fold and released as they are read in the last; so with
    one fold it is a FIFO. Both actors follow the design page.

    Parameters
    ----------
    shape : Shape
        One code.
    lanes : int
        Codes of a word.
    vector, folds : int
        Words of a vector, times each is read.
    capacity : int
        Words of the ring.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape, lanes)))``
    readable : ``Out(1)``
        Whether the current step's word is there; depends on registers alone.
    step : ``In(1)``
        The current step fires; only while ``readable``.
    last, ends : ``Out(1)``
        Registers: whether the current step is the last of its fold, of its vector.
    data : ``Out(ArrayLayout(shape, lanes))``
        Word of the step of the cycle before.

    Raises
    ------
    ValueError
        If the capacity would deadlock.
    """

    def __init__(self, shape: Shape, lanes: int, vector: int, folds: int, capacity: int) -> None:
        least = vector if folds > 1 else 1
        if capacity < least:
            raise ValueError(
                f"the capacity of a vector ring must be at least {least} words, not {capacity}"
            )
        self.vector = vector
        self.folds = folds
        self.capacity = capacity
        self.word = data.ArrayLayout(shape, lanes)
        super().__init__(
            {
                "i": In(stream.Signature(self.word)),
                "readable": Out(1),
                "step": In(1),
                "last": Out(1),
                "ends": Out(1),
                "data": Out(self.word),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.nest = nest = LoopNest([Loop("word", self.vector), Loop("fold", self.folds)])

        def flag(name: str, next_value: Any, first: bool) -> Any:
            return held(m, self.step, next_value, int(first), Shape(1), name)

        def by_move(name: str, *choices: int) -> Any:
            shape = Shape(1)
            return flag(name, select(nest.moves, choices, shape), bool(choices[nest.first_move]))

        replay: Any = Const(0)
        first_fold: Any = Const(1)
        last_fold: Any = Const(1)
        if self.folds > 1:
            replay = by_move("replay", 0, 1, 0)
            first_fold = flag("first_fold", nest.fold == 0, True)
            last_fold = flag("last_fold", nest.fold == self.folds - 1, False)
        m.d.comb += [
            nest.step.eq(self.step),
            self.last.eq(by_move("word_last", 0, 1, 1)),
            self.ends.eq(by_move("vector_ends", 0, 0, 1)),
        ]
        write = Signal()
        consume = Signal()
        release = Signal()
        shape = signed((self.capacity - 1).bit_length() + 1)
        # Words not yet read, and free words, each less one: the sign is the flag.
        ahead = Signal(shape, init=-1)
        space = Signal(shape, init=self.capacity - 1)
        m.d.comb += [
            self.i.ready.eq(~space[-1]),
            self.readable.eq(~ahead[-1] | ~first_fold),
            write.eq(self.i.valid & self.i.ready),
            consume.eq(self.step & first_fold),
            release.eq(self.step & last_fold),
        ]
        m.d.sync += [ahead.eq(ahead + write - consume), space.eq(space - write + release)]
        self._memory(m, write, replay)
        return m

    def _memory(self, m: Module, write: Any, replay: Any) -> None:
        def after(address: Signal) -> Any:
            return Mux(address == self.capacity - 1, 0, address + 1)

        w_addr, r_addr, begin = (
            Signal(range(self.capacity), name=name) for name in ("w_addr", "r_addr", "begin")
        )
        with m.If(write):
            m.d.sync += w_addr.eq(after(w_addr))
        with m.If(self.step):
            m.d.sync += r_addr.eq(Mux(replay, begin, after(r_addr)))
            with m.If(self.ends):
                m.d.sync += begin.eq(after(r_addr))
        word = add_ram(
            m,
            "ram",
            self.word.size,
            self.capacity,
            w_en=write,
            w_addr=w_addr,
            w_data=self.i.payload.as_value(),
            r_addr=r_addr,
        )
        m.d.comb += self.data.as_value().eq(word)
