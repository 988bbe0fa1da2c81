"""Memories: a writable one with one write and one read port, and a read-only one for constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from amaranth.hdl import (
    Const,
    MemoryData,
    MemoryInstance,
    Module,
    Signal,
    unsigned,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Rom", "add_ram", "add_rom", "add_table", "as_bits"]


def as_bits(value: Any) -> Any:
    """The bits of a value or of a view."""
    return value.as_value() if hasattr(value, "as_value") else value


def add_ram(
    m: Module,
    name: str,
    width: int,
    depth: int,
    *,
    w_en: Any,
    w_addr: Any,
    w_data: Any,
    r_addr: Any,
    latency: Literal[0, 1] = 1,
) -> Signal:
    """Add a writable memory to a module; its submodule's name is that of the array in Verilog.

    Reading a word in the cycle that writes it is left to the device: no stage uses such a word.

    Parameters
    ----------
    name : str
        Of the array.
    width, depth : int
        Bits of a word; words, at least 1. They are 0 at power-up.
    w_en, w_addr, w_data, r_addr : Value
        What is written in cycle ``t`` can be addressed from ``t + 1``.
    latency : 0 or 1
        Cycles from ``r_addr`` to the word.

    Returns
    -------
    Signal ``<name>_data``
    """
    if depth < 1:
        raise ValueError(f"the depth of a memory must be at least 1, not {depth}")
    # The primitive below Memory: the ports of that one would name the nets of the stage.
    contents = MemoryData(shape=unsigned(width), depth=depth, init=())
    m.submodules[name] = memory = MemoryInstance(data=contents)
    word = Signal(width, name=f"{name}_data", reset_less=True)
    memory.write_port(domain="sync", addr=w_addr, data=w_data, en=w_en)
    domain = "sync" if latency else "comb"
    memory.read_port(domain=domain, addr=r_addr, data=word, en=Const(1), transparent_for=())
    return word


def add_rom(
    m: Module, name: str, words: Sequence[int], width: int, addr: Any, move: Any = None
) -> Any:
    """Add a read-only memory to a module, or nothing where all words are alike.

    Returns
    -------
    Signal ``<name>_data`` or Const
        Word at the ``addr`` of the last cycle with ``move``, of the cycle before without; a
        constant where all words are alike.
    """
    if len(set(words)) == 1:
        return Const(words[0], width)
    contents = MemoryData(shape=unsigned(width), depth=len(words), init=words)
    m.submodules[name] = memory = MemoryInstance(data=contents)
    word = Signal(width, name=f"{name}_data", reset_less=True)
    en = Const(1) if move is None else move
    memory.read_port(domain="sync", addr=addr, data=word, en=en, transparent_for=())
    return word


def add_table(m: Module, name: str, words: Sequence[int], width: int, addr: Any) -> Signal:
    """Add a read-only memory that is read without a clock: its word is that at ``addr``.

    Returns
    -------
    Signal ``<name>_data``
    """
    contents = MemoryData(shape=unsigned(width), depth=len(words), init=words)
    m.submodules[name] = memory = MemoryInstance(data=contents)
    word = Signal(width, name=f"{name}_data")
    memory.read_port(domain="comb", addr=addr, data=word, en=Const(1), transparent_for=())
    return word


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
        m.d.comb += self.data.eq(add_rom(m, "rom", self.words, self.width, self.addr))
        return m
