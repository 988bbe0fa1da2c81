"""Rings of pixels: how full one is, and the memories behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from amaranth.hdl import Const, Module, Mux, Shape, ShapeLike, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.walk import Walk
from rtl.address import held, lookup, select
from rtl.memory import add_ram, as_bits
from rtl.requant import interval_shape

__all__ = ["BankedRing", "RingLevel", "TapRing", "WalkDeltas"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkDeltas:
    """Differences of a walk's tables, in pixels: all that the hardware keeps of them.

    Parameters
    ----------
    need_column, need_row : tuple of int
        How far ``need`` moves at the end of a segment, by its column where the row goes on, by its
        row where a row ends.
    need_frame : int
        The same at the end of a frame.
    release_column, release_row : tuple of int
        What a segment releases, likewise; the columns' amounts count only in rows that release as
        they go.
    release_frame : int
    releasing : tuple of int
        1 for each row that releases as it goes.
    """

    need_column: tuple[int, ...]
    need_row: tuple[int, ...]
    need_frame: int
    release_column: tuple[int, ...]
    release_row: tuple[int, ...]
    release_frame: int
    releasing: tuple[int, ...]

    @classmethod
    def of(cls, walk: Walk) -> WalkDeltas:
        """Differences of ``walk.need()`` and ``walk.release()``, checked to be separable."""
        need, release = walk.need(), walk.release()
        across = np.diff(need, axis=1)
        freed = np.diff(release.reshape(-1), prepend=0).reshape(release.shape)
        releasing = np.array([walk.row_moves(row) for row in range(walk.rows)], dtype=np.int64)
        first = int(np.argmax(releasing))
        inside = freed[first, :-1] * releasing[first]
        if (across != across[:1]).any() or (freed[:, :-1] != releasing[:, None] * inside).any():
            raise AssertionError("the tables of a walk must be separable in row and column")
        pixels = walk.geometry.height * walk.geometry.width
        return cls(
            need_column=tuple(across[0].tolist()),
            need_row=tuple((need[1:, 0] - need[:-1, -1]).tolist()),
            need_frame=int(pixels + need[0, 0] - need[-1, -1]),
            release_column=tuple(inside.tolist()),
            release_row=tuple(freed[:-1, -1].tolist()),
            release_frame=int(freed[-1, -1]),
            releasing=tuple(releasing.tolist()),
        )


class RingLevel(wiring.Component):
    """How far writing may run ahead of what is released, and reading after what is written.

    Two signed differences: ``space``, free words less one, and ``ahead``, pixels written less those
    that the current segment needs. Neither knows of frames, so frames run on. Either may be
    negative or beyond the ring's size, because a segment may release what is not yet written.

    Parameters
    ----------
    walk : Walk
    words : int
        Ring size.
    inner : int
        Bits of ``moves`` below those of the segment's column, row and frame.
    first_move : int
        Bit of ``moves`` of the first step.

    Members
    -------
    write : ``In(1)``
        A word is written; only while ``writable``.
    step : ``In(1)``
        The current step fires; only while ``readable``.
    moves, column, row
        Of the step after the current one, from :class:`rtl.address.LoopNest`.
    writable, readable : ``Out(1)``
        Registers.
    """

    def __init__(self, walk: Walk, words: int, inner: int, first_move: int) -> None:
        self.walk = walk
        self.words = words
        self.inner = inner
        self.first_move = first_move
        super().__init__(
            {
                "write": In(1),
                "step": In(1),
                "moves": In(inner + 3),
                "column": In(range(walk.columns)),
                "row": In(range(walk.rows)),
                "writable": Out(1),
                "readable": Out(1),
            }
        )

    def bounds(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Reachable ranges of ``ahead`` (pixels) and ``space`` (words).

        A segment starts with ``ahead >= 0`` and ends by taking the difference of needs off. Words
        written never exceed words released by more than the ring, and are at least what the
        segment that released last needed.
        """
        need = self.walk.need().reshape(-1) + 1
        release = self.walk.release().reshape(-1)
        pixels = self.walk.geometry.height * self.walk.geometry.width
        following = np.append(need[1:], pixels + need[0])
        before = np.append(0, release[:-1])
        lowest = min(int((need - following).min()), -int(need[0]))
        highest = self.words // self.walk.groups + int((before - need).max())
        excess = max(int((release - need).max()), 0) * self.walk.groups
        return (lowest, max(highest, 0)), (-1, self.words - 1 + excess)

    def elaborate(self, platform: object) -> Any:
        m = Module()
        table, groups = WalkDeltas.of(self.walk), self.walk.groups
        consumed = self._delta(
            m, "need", table.need_column, table.need_row, table.need_frame, (1,) * self.walk.rows
        )
        released = self._delta(
            m,
            "release",
            [pixels * groups for pixels in table.release_column],
            [pixels * groups for pixels in table.release_row],
            table.release_frame * groups,
            table.releasing,
        )
        ahead_range, space_range = self.bounds()
        first_need = int(self.walk.need()[0, 0]) + 1
        ahead = Signal(_signed_shape(ahead_range), name="ahead", init=-first_need)
        space = Signal(_signed_shape(space_range), name="space", init=self.words - 1)
        m.d.comb += [self.readable.eq(~ahead[-1]), self.writable.eq(~space[-1])]
        m.d.sync += [
            ahead.eq(ahead + self._pixel(m) - Mux(self.step, consumed, 0)),
            space.eq(space - self.write + Mux(self.step, released, 0)),
        ]
        return m

    def _pixel(self, m: Module) -> Any:
        """Whether this cycle's word completes a pixel."""
        groups = self.walk.groups
        if groups == 1:
            return self.write
        word = Signal(range(groups), name="word")
        last = Signal(name="last_word")
        m.d.comb += last.eq(word == groups - 1)
        with m.If(self.write):
            m.d.sync += word.eq(Mux(last, 0, word + 1))
        return self.write & last

    def _delta(
        self,
        m: Module,
        name: str,
        by_column: Sequence[int],
        by_row: Sequence[int],
        by_frame: int,
        rows: Sequence[int],
    ) -> Any:
        """The current step's difference, 0 inside a segment; the columns' only in ``rows``."""
        every = (0, *by_column, *by_row, by_frame)
        shape = interval_shape((min(every), max(every)))
        column: Any = lookup(m, self.column, by_column or (0,), shape, f"{name}_column")
        row: Any = lookup(m, self.row, by_row or (0,), shape, f"{name}_row")
        counts: Any = lookup(m, self.row, rows, Shape(1), f"{name}_counts")
        if isinstance(counts, int):
            column = column if counts else 0
        else:
            gated = Signal(shape, name=f"{name}_gated")
            m.d.comb += gated.eq(Mux(counts, column, 0))
            column = gated
        first = (
            *[0] * self.inner,
            by_column[0] * rows[0] if by_column else 0,
            by_row[0] if by_row else 0,
            by_frame,
        )[self.first_move]
        value = select(self.moves, [*[0] * self.inner, column, row, by_frame], shape)
        return held(m, self.step, value, first, shape, f"{name}_delta")


def _signed_shape(interval: tuple[int, int]) -> Shape:
    """Smallest signed shape: the sign bit is the flag."""
    return interval_shape((min(interval[0], -1), interval[1]))


class TapRing(wiring.Component):
    """Ring of words, read one word a step.

    Parameters
    ----------
    word : shape-like
    depth : int
        Words.
    pad : int
        Word outside the image, as bits.

    Members
    -------
    w_en, w_data : ``In(1)``, ``In(word)``
    r_addr : ``In(range(depth))``
    outside : ``In(1)``
        Whether the address of the cycle before lies outside the image.
    r_data : ``Out(word)``
        Of the address two cycles ago, from registers through one level of gates.
    """

    def __init__(self, word: ShapeLike, depth: int, pad: int) -> None:
        self.word = word
        self.depth = depth
        self.pad = pad
        super().__init__(
            {
                "w_en": In(1),
                "w_data": In(word),
                "r_addr": In(range(depth)),
                "outside": In(1),
                "r_data": Out(word),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        w_addr = Signal(range(self.depth))
        with m.If(self.w_en):
            m.d.sync += w_addr.eq(Mux(w_addr == self.depth - 1, 0, w_addr + 1))
        bits = Shape.cast(self.word).width
        word = Signal(bits, reset_less=True)
        masked = Signal(reset_less=True)
        read = add_ram(
            m,
            "ram",
            bits,
            self.depth,
            w_en=self.w_en,
            w_addr=w_addr,
            w_data=as_bits(self.w_data),
            r_addr=self.r_addr,
        )
        m.d.sync += [word.eq(read), masked.eq(self.outside)]
        m.d.comb += [
            as_bits(self.r_data).eq(Mux(masked, Const(self.pad, bits), word)),
        ]
        return m


class BankedRing(wiring.Component):
    """Ring of image rows in one bank for each kernel row, read a column of the kernel a step.

    Image row ``r``, counted over all frames, lies in bank ``r % banks``, slot ``r // banks`` modulo
    the slots. The kernel's top row lies in bank ``turn`` and slot ``s``; so the banks below
    ``turn`` hold their row of the kernel in slot ``s + 1``.

    Behind each bank stands a register, because a block memory is slow; turning and masking, one
    AND-OR, come after it. ``r_data`` goes straight into the output buffer.

    Parameters
    ----------
    word : shape-like
    banks : int
        Kernel rows.
    row_words : int
        Words of an image row.
    slots : int
        Image rows in a bank.
    pad : int
        Word outside the image, as bits.

    Members
    -------
    w_en, w_data : ``In(1)``, ``In(word)``
    turn : ``In(range(banks))``
    low, high : ``In(range(slots * row_words))``
        Addresses in slots ``s`` and ``s + 1``.
    outside : ``In(banks)``
        Which kernel rows of the addresses of the cycle before lie outside the image.
    r_data : ``Out(ArrayLayout(word, banks))``
        Kernel rows, top first, of the addresses two cycles ago.
    """

    def __init__(self, word: ShapeLike, banks: int, row_words: int, slots: int, pad: int) -> None:
        self.word = word
        self.banks = banks
        self.row_words = row_words
        self.slots = slots
        self.pad = pad
        super().__init__(
            {
                "w_en": In(1),
                "w_data": In(word),
                "turn": In(range(banks)),
                "low": In(range(slots * row_words)),
                "high": In(range(slots * row_words)),
                "outside": In(banks),
                "r_data": Out(data.ArrayLayout(word, banks)),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        w_bank, w_addr = self._write_place(m)
        bits = Shape.cast(self.word).width
        words = []
        for b in range(self.banks):
            # The last bank never lies below the turn.
            last = b == self.banks - 1
            read = add_ram(
                m,
                f"ram_{b}",
                bits,
                self.slots * self.row_words,
                w_en=self.w_en & w_bank[b],
                w_addr=w_addr,
                w_data=as_bits(self.w_data),
                r_addr=self.low if last else Mux(self.turn > b, self.high, self.low),
            )
            word = Signal(bits, name=f"word_{b}", reset_less=True)
            m.d.sync += word.eq(read)
            words.append(word)
        turn = Signal(range(self.banks), name="turn_read", reset_less=True)
        m.d.sync += turn.eq(self.turn)
        for ky in range(self.banks):
            # One-hot, the pad code included, so that turning and masking are a single AND-OR.
            source = Signal(self.banks + 1, name=f"source_{ky}", reset_less=True)
            inside = ~self.outside[ky]
            m.d.sync += source[-1].eq(~inside)
            m.d.sync += [
                source[b].eq(inside & (turn == (b - ky) % self.banks)) for b in range(self.banks)
            ]
            terms = [Mux(source[b], word, 0) for b, word in enumerate(words)]
            if self.pad:
                terms.append(Mux(source[-1], Const(self.pad, bits), 0))
            m.d.comb += as_bits(self.r_data[ky]).eq(reduce(or_, terms))
        return m

    def _write_place(self, m: Module) -> tuple[Any, Any]:
        """Bank, one-hot, and address of the next word to write."""
        depth = self.slots * self.row_words
        address = Signal(range(depth), name="w_addr")
        if self.banks == 1:
            with m.If(self.w_en):
                m.d.sync += address.eq(Mux(address == depth - 1, 0, address + 1))
            return Const(1, 1), address
        bank = Signal(self.banks, name="w_bank", init=1)
        place = Signal(range(self.row_words), name="w_place")
        row_ends = Signal(name="w_row_ends")
        m.d.comb += row_ends.eq(place == self.row_words - 1)
        with m.If(self.w_en):
            m.d.sync += place.eq(Mux(row_ends, 0, place + 1))
            with m.If(row_ends):
                m.d.sync += bank.eq(bank.rotate_left(1))
            # Every bank gets its row of the slot before any gets the next slot's.
            with m.If(row_ends & ~bank[-1]):
                m.d.sync += address.eq(address - (self.row_words - 1))
            with m.Else():
                m.d.sync += address.eq(Mux(address == depth - 1, 0, address + 1))
        return bank, address
