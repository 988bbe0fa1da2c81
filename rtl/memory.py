"""Memories: a writable one with one write and one read port, and a read-only one for constants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from amaranth.hdl import Module, ShapeLike, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["Ram", "Rom"]


class Ram(wiring.Component):
    """Simple dual-port memory: what is written in cycle ``t`` can be addressed from ``t + 1``.

    ``r_data`` belongs to the ``r_addr`` of the cycle before. Reading a word in the cycle that
    writes it is left to the device: no stage uses such a word.

    Parameters
    ----------
    shape : shape-like
        A word.
    depth : int
        Words, at least 1.
    init : iterable, optional
        First contents; zeros without.

    Members
    -------
    w_en, w_addr, w_data : ``In(1)``, ``In(range(depth))``, ``In(shape)``
    r_addr, r_data : ``In(range(depth))``, ``Out(shape)``
    """

    def __init__(self, shape: ShapeLike, depth: int, *, init: Iterable[Any] | None = None) -> None:
        if depth < 1:
            raise ValueError(f"the depth of a memory must be at least 1, not {depth}")
        self.shape = shape
        self.depth = depth
        self.init = [] if init is None else list(init)
        super().__init__(
            {
                "w_en": In(1),
                "w_addr": In(range(depth)),
                "w_data": In(shape),
                "r_addr": In(range(depth)),
                "r_data": Out(shape),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.ram = ram = Memory(shape=self.shape, depth=self.depth, init=self.init)
        write, read = ram.write_port(), ram.read_port()
        m.d.comb += [
            write.en.eq(self.w_en),
            write.addr.eq(self.w_addr),
            write.data.eq(self.w_data),
            read.addr.eq(self.r_addr),
            self.r_data.eq(read.data),
        ]
        return m


class Rom(wiring.Component):
    """Read-only memory; a constant where it has one word. ``data`` belongs to the ``addr`` before.

    Parameters
    ----------
    words : sequence of int
        Contents, each in ``0 .. 2 ** width - 1``.
    width : int
        Bits of a word.

    Members
    -------
    addr, data : ``In(range(len(words)))``, ``Out(width)``
    """

    def __init__(self, words: Sequence[int], width: int) -> None:
        if not words:
            raise ValueError("a read-only memory must have at least one word")
        if min(words) < 0 or max(words).bit_length() > width:
            raise ValueError(f"the words of a read-only memory must fit {width} bits unsigned")
        self.words = tuple(words)
        self.width = width
        super().__init__({"addr": In(range(len(words))), "data": Out(width)})

    def elaborate(self, platform: object) -> Any:
        m = Module()
        if len(set(self.words)) == 1:
            m.d.comb += self.data.eq(self.words[0])
            return m
        m.submodules.rom = rom = Memory(
            shape=unsigned(self.width), depth=len(self.words), init=self.words
        )
        read = rom.read_port()
        m.d.comb += [read.addr.eq(self.addr), self.data.eq(read.data)]
        return m
