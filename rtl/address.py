"""Address generators: nested loops, and addresses moved by a constant that the loop decides.

All of it looks one step ahead. While step ``k`` is current, the loop counters already stand at step
``k + 1``; what step ``k`` does at its end (how far an address moves, what is released) was worked
out a step earlier and waits in registers. So no path runs from a counter through a choice of
constants and an adder within one cycle, and still a step can fire every cycle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Const, Module, Mux, Shape, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "Loop",
    "LoopNest",
    "RingAddress",
    "held",
    "level_deltas",
    "lookup",
    "select",
]


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of a nest."""

    name: str
    count: int


class LoopNest(wiring.Component):
    """Counters of nested loops, one step ahead of the step that is current outside.

    Parameters
    ----------
    loops : tuple of Loop
        Innermost first; each count at least 1.

    Members
    -------
    step : ``In(1)``
        The current step fires.
    moves : ``Out(len(loops) + 1)``
        One-hot: which loop goes on after the *next* step; the top bit starts the nest over.
    <loop's name> : ``Out(range(count))``
        Counters of the *next* step.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        if any(loop.count < 1 for loop in loops):
            raise ValueError(f"every loop must run at least once, not {list(loops)}")
        self.loops = tuple(loops)
        super().__init__(
            {"step": In(1), "moves": Out(len(loops) + 1)}
            | {loop.name: Out(range(loop.count)) for loop in loops}
        )

    @property
    def first_move(self) -> int:
        """Which bit of ``moves`` stands for the end of the very first step."""
        running = [k for k, loop in enumerate(self.loops) if loop.count > 1]
        return running[0] if running else len(self.loops)

    def elaborate(self, platform: object) -> Any:
        m = Module()
        carry: Any = Const(1)
        for k, loop in enumerate(self.loops):
            if loop.count == 1:
                continue
            counter = Signal(
                range(loop.count), name=f"{loop.name}_next", init=int(k == self.first_move)
            )
            at_end = Signal(name=f"{loop.name}_at_end")
            m.d.comb += [
                getattr(self, loop.name).eq(counter),
                at_end.eq(counter == loop.count - 1),
                self.moves[k].eq(carry & ~at_end),
            ]
            with m.If(self.step & carry):
                m.d.sync += counter.eq(Mux(at_end, 0, counter + 1))
            carry = carry & at_end
        m.d.comb += self.moves[-1].eq(carry)
        return m


def level_deltas(
    loops: Sequence[Loop], strides: dict[str, int], start_over: int = 0
) -> tuple[int, ...]:
    """How far a linear index moves at the end of a step, for each loop that may go on.

    The index is ``sum(stride * counter)``; a loop that goes on sets the loops inside it back to 0.

    Parameters
    ----------
    loops : sequence of Loop
        Innermost first.
    strides : dict
        By loop name; 0 where absent.
    start_over : int
        Stride of the nest as a whole.

    Returns
    -------
    tuple of int, one for each loop and one for starting over.
    """
    deltas, inner = [], 0
    for loop in loops:
        stride = strides.get(loop.name, 0)
        deltas.append(stride - inner)
        inner += stride * (loop.count - 1)
    return (*deltas, start_over - inner)


def select(one_hot: Any, choices: Sequence[Any], shape: Shape) -> Any:
    """The choice whose bit of ``one_hot`` is set, as AND and OR.

    ``choices`` are integers or values of ``shape``. An integer where all choices are that integer.
    """
    if isinstance(choices[0], int) and all(isinstance(c, int) and c == choices[0] for c in choices):
        return choices[0]
    bits_of: dict[Any, list[int]] = {}
    for k, choice in enumerate(choices):
        bits_of.setdefault(choice if isinstance(choice, int) else id(choice), []).append(k)
    terms = []
    for bits in bits_of.values():
        choice = choices[bits[0]]
        word = Const(choice, shape) if isinstance(choice, int) else choice
        chosen = reduce(or_, (one_hot[k] for k in bits))
        terms.append(Mux(chosen, word.as_unsigned(), 0))
    value = reduce(or_, terms)[: shape.width]
    return value.as_signed() if shape.signed else value


def lookup(m: Module, index: Any, values: Sequence[int], shape: Shape, name: str) -> Any:
    """``values[index]`` where most values are alike: the usual one, and a case for each other."""
    usual = Counter(values).most_common(1)[0][0]
    others = {k: value for k, value in enumerate(values) if value != usual}
    if not others:
        return usual
    result = Signal(shape, name=name, init=usual)
    with m.Switch(index):
        for value in dict.fromkeys(others.values()):
            with m.Case(*(k for k, other in others.items() if other == value)):
                m.d.comb += result.eq(value)
        with m.Default():
            m.d.comb += result.eq(usual)
    return result


def held(m: Module, step: Any, value: Any, first: int, shape: Shape, name: str) -> Any:
    """Register that takes the next step's ``value`` as a step fires; an integer stays one.

    ``first`` is the value of the very first step.
    """
    if isinstance(value, int):
        return value
    register = Signal(shape, name=name, init=first)
    with m.If(step):
        m.d.sync += register.eq(value)
    return register


class RingAddress(wiring.Component):
    """Address in a ring, moved at the end of each step by the constant of the loop that goes on.

    Parameters
    ----------
    depth : int
        Words of the ring.
    start : int
        Address of the first step, taken modulo ``depth``.
    deltas : sequence of int
        For each bit of ``moves``, taken modulo ``depth``.
    first_move : int
        Bit of ``moves`` of the first step, :attr:`LoopNest.first_move`.

    Members
    -------
    step : ``In(1)``
        The current step fires.
    moves : ``In(len(deltas))``
        One-hot, of the step after the current one.
    address : ``Out(range(depth))``
        Of the current step; a register.
    """

    def __init__(self, depth: int, start: int, deltas: Sequence[int], first_move: int) -> None:
        self.depth = depth
        self.start = start % depth
        self.deltas = tuple(delta % depth for delta in deltas)
        self.first_move = first_move
        super().__init__({"step": In(1), "moves": In(len(deltas)), "address": Out(range(depth))})

    def elaborate(self, platform: object) -> Any:
        m = Module()
        if self.depth == 1:
            return m
        shape = Shape.cast(range(self.depth))
        place = Signal(shape, name="place", init=self.start)
        m.d.comb += self.address.eq(place)

        def move(name: str, deltas: Sequence[int], of: Shape) -> Any:
            chosen = select(self.moves, deltas, of)
            return held(m, self.step, chosen, deltas[self.first_move], of, name)

        ahead = place + move("delta", self.deltas, shape)
        if self.depth & (self.depth - 1):
            # Both candidates side by side: wrapping costs a multiplexer, no second carry chain.
            backwards = [delta - self.depth for delta in self.deltas]
            wrapped = Signal(signed(shape.width + 2), name="wrapped")
            m.d.comb += wrapped.eq(place + move("delta_back", backwards, signed(shape.width + 1)))
            ahead = Mux(wrapped[-1], ahead, wrapped[: shape.width])
        with m.If(self.step):
            m.d.sync += place.eq(ahead)
        return m
