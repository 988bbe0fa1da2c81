"""The read-only memory of a MAC stage's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.hdl import (
    Cat,
    Const,
    Module,
    Mux,
    Shape,
    Signal,
)
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from hwgen.ir.memory import rom_chunks
from rtl.memory import add_rom, add_table

__all__ = ["StoredWeights", "WeightMemory"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredWeights:
    """What memory holds of the weights, and what of it becomes an operand.

    Parameters
    ----------
    weights : int64 array
        ``(folds, words, out_lanes, in_lanes)``, what multiplies: 0 in input lanes left over.
    shape : Shape
        Format of a weight.
    codebook : tuple of int, optional
        Rising values; memory then holds a weight's place among them. Without 0 among them, an input
        lane that is left over in a word has no weight that multiplies what it carries to 0; see
        ``free``.

    Attributes
    ----------
    steps : int
        Words of memory, ``folds * words``.
    lanes : int
        Weights of a word, ``out_lanes * in_lanes``.
    width : int
        Bits of a stored weight.
    fields : int64 array
        ``(steps, lanes)``, weights or their places; 0 where ``free``.
    operands : int64 array
        ``(folds, words, out_lanes, in_lanes)``, what the multipliers get for them.
    free : tuple of int
        Input lanes that are left over in some word and whose operands there are not 0. A word has a
        bit for each, 1 where the lane is left over; it makes the lane's input 0, so that its
        products are 0 with whatever weights. So the sums are exactly those of ``weights``, for one
        bit a lane instead of a wider place in the codebook for every weight.
    marks : int64 array
        ``(steps, len(free))``, those bits.

    Raises
    ------
    ValueError
        If a weight does not fit its format, or is neither in the codebook nor 0 in all output lanes.
    """

    weights: NDArray[np.int64]
    shape: Shape
    codebook: tuple[int, ...] | None = None
    steps: int = field(init=False)
    lanes: int = field(init=False)
    width: int = field(init=False)
    fields: NDArray[np.int64] = field(init=False)
    operands: NDArray[np.int64] = field(init=False)
    free: tuple[int, ...] = field(init=False)
    marks: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        folds, words, out_lanes, in_lanes = self.weights.shape
        lanes, low, high = out_lanes * in_lanes, *_interval(self.shape)
        least, most = int(self.weights.min()), int(self.weights.max())
        if least < low or most > high:
            raise ValueError(f"the weights must fit {self.shape!r}, not be {least}..{most}")
        steps, width = folds * words, self.shape.width
        places, operands = self.weights, self.weights
        left_over = np.zeros((steps, in_lanes), dtype=np.bool_)
        if self.codebook is not None:
            entries = np.array(self.codebook, dtype=np.int64)
            if not len(entries) or entries[0] < low or entries[-1] > high:
                raise ValueError(f"a codebook must fit {self.shape!r}, not be {self.codebook}")
            left_over = (self.weights == 0).all(axis=2).reshape(steps, in_lanes) & (
                0 not in entries
            )
            free = left_over.reshape(folds, words, 1, in_lanes)
            places = np.where(free, 0, np.searchsorted(entries, self.weights))
            operands = entries[np.minimum(places, len(entries) - 1)]
            if (np.diff(entries) <= 0).any() or (~free & (operands != self.weights)).any():
                raise ValueError(f"weights must be of the rising codebook {self.codebook}")
            width = max(1, (len(entries) - 1).bit_length())
        set_field = object.__setattr__
        set_field(self, "steps", steps)
        set_field(self, "lanes", lanes)
        set_field(self, "width", width)
        set_field(self, "fields", places.reshape(steps, lanes))
        set_field(self, "operands", operands)
        set_field(self, "free", tuple(np.flatnonzero(left_over.any(axis=0)).tolist()))
        set_field(self, "marks", left_over[:, list(self.free)].astype(np.int64))

    @property
    def word_width(self) -> int:
        """Bits of a word of memory."""
        return self.lanes * self.width + len(self.free)

    @property
    def words(self) -> list[int]:
        """Words of memory: field ``out * in_lanes + in`` lowest first, then the marks."""
        mask = (1 << self.width) - 1
        return [
            sum((int(code) & mask) << (k * self.width) for k, code in enumerate(row))
            | sum(int(mark) << (self.lanes * self.width + k) for k, mark in enumerate(marks))
            for row, marks in zip(self.fields, self.marks, strict=True)
        ]


def _interval(shape: Shape) -> tuple[int, int]:
    half = 1 << (shape.width - 1)
    return (-half, half - 1) if shape.signed else (0, 2 * half - 1)


class WeightMemory(wiring.Component):
    """The weights of each step, in the order of the steps.

    One memory ``weights`` where :func:`hwgen.ir.memory.rom_chunks` does not split it, else a memory
    ``weights_<k>`` for each chunk with a register behind it, and the choice between the chunks
    after the registers. These take a cycle more, so the memories are read a step ahead: as a step
    fires its word is at their outputs already, and the next one is read.

    The first word is read in the cycle after reset. No step can fire in it: the first step needs a
    word of the vector that was written in an earlier cycle, and reset has emptied the vector ring.

    With a codebook a table ``codebook_<k>`` of its entries, read without a clock, stands between
    these memories and output ``k``. Each output has its own: Yosys cannot map one memory with many
    read ports.

    Parameters
    ----------
    stored : StoredWeights

    Members
    -------
    step : ``In(1)``
        The current step fires; not in the first cycle after reset.
    data : ``Out(ArrayLayout(stored.shape, out_lanes * in_lanes))``
        Of the step of the cycle before; weight ``out * in_lanes + in``.
    free : ``Out(len(stored.free))``
        Likewise its marks; absent where there are none.
    """

    def __init__(self, stored: StoredWeights) -> None:
        self.stored = stored
        self.words = stored.words
        self.width = stored.word_width
        members = {"step": In(1), "data": Out(data.ArrayLayout(stored.shape, stored.lanes))}
        if stored.free:
            members["free"] = Out(len(stored.free))
        super().__init__(members)

    def elaborate(self, platform: object) -> Any:
        m = Module()
        chunks, last = rom_chunks(len(self.words), self.width), len(self.words) - 1
        address = Signal(range(len(self.words)))
        move: Any = self.step
        if len(chunks) == 1:
            word = add_rom(m, "rom", self.words, self.width, address)
        else:
            primed = Signal()
            move = Signal(name="move")
            m.d.sync += primed.eq(1)
            m.d.comb += move.eq(self.step | ~primed)
            word = self._choose(m, chunks, address, move)
        if last:
            wraps = Signal()
            with m.If(move):
                m.d.sync += [
                    address.eq(Mux(wraps, 0, address + 1)),
                    wraps.eq(address == last - 1),
                ]
        if self.stored.free:
            m.d.comb += self.free.eq(word[self.stored.lanes * self.stored.width :])
        if self.stored.codebook is None:
            m.d.comb += self.data.as_value().eq(word)
        else:
            self._decode(m, self.stored.codebook, word)
        return m

    def _decode(self, m: Module, codebook: Sequence[int], word: Any) -> None:
        """Look up the entries of the places in ``word``; constant ones need no table."""
        stored, mask = self.stored, (1 << self.stored.shape.width) - 1
        varying = (stored.fields != stored.fields[0]).any(axis=0)
        entries = [entry & mask for entry in codebook]
        values: list[Any] = []
        for k in range(stored.lanes):
            value: Any = Const(entries[stored.fields[0, k]], stored.shape.width)
            if varying[k]:
                place = word[k * stored.width : (k + 1) * stored.width]
                value = add_table(m, f"codebook_{k}", entries, stored.shape.width, place)
            values.append(value)
        m.d.comb += self.data.as_value().eq(Cat(*values))

    def _choose(self, m: Module, chunks: Sequence[range], address: Any, move: Any) -> Any:
        """The word read two moves ago: that of the step of the cycle before."""
        words: list[Any] = []
        for k, chunk in enumerate(chunks):
            # Beyond a short last chunk the address runs free: that word is not chosen.
            word = add_rom(
                m,
                f"rom_{k}",
                self.words[chunk.start : chunk.stop],
                self.width,
                address[: (len(chunk) - 1).bit_length()],
                move,
            )
            if not isinstance(word, Const):
                register = Signal(self.width, name=f"word_{k}", reset_less=True)
                m.d.sync += register.eq(word)
                word = register
            words.append(word)
        read = Signal(range(len(chunks)), name="chunk_read", reset_less=True)
        chosen = Signal.like(read, name="chunk", reset_less=True)
        with m.If(move):
            m.d.sync += read.eq(address[(len(chunks[0]) - 1).bit_length() :])
        m.d.sync += chosen.eq(read)
        for bit in chosen:
            words = [
                Mux(bit, words[k + 1], words[k]) if k + 1 < len(words) else words[k]
                for k in range(0, len(words), 2)
            ]
        return words[0]
