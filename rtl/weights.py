"""The read-only memory of a MAC stage's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from amaranth.hdl import Const, Module, Mux, Shape, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from hwgen.ir.memory import rom_chunks
from rtl.memory import add_rom

__all__ = ["WeightMemory"]


class WeightMemory(wiring.Component):
    """The weights of each step, in the order of the steps.

    One memory ``weights`` where :func:`hwgen.ir.memory.rom_chunks` does not split it, else a memory
    ``weights_<k>`` for each chunk with a register behind it, and the choice between the chunks
    after the registers. These take a cycle more, so the memories are read a step ahead: as a step
    fires its word is at their outputs already, and the next one is read.

    The first word is read in the cycle after reset. No step can fire in it: the first step needs a
    word of the vector that was written in an earlier cycle, and reset has emptied the vector ring.

    Parameters
    ----------
    weights : int64 array
        ``(folds, words, out_lanes, in_lanes)``.
    weight_shape : Shape
        Format of a stored weight.

    Members
    -------
    step : ``In(1)``
        The current step fires; not in the first cycle after reset.
    data : ``Out(ArrayLayout(weight_shape, out_lanes * in_lanes))``
        Of the step of the cycle before; weight ``out * in_lanes + in``.
    """

    def __init__(self, weights: NDArray[np.int64], weight_shape: Shape) -> None:
        folds, words, out_lanes, in_lanes = weights.shape
        lanes, width = out_lanes * in_lanes, weight_shape.width
        mask = (1 << width) - 1
        self.words = [
            sum((int(code) & mask) << (k * width) for k, code in enumerate(row))
            for row in weights.reshape(folds * words, lanes)
        ]
        self.width = lanes * width
        super().__init__({"step": In(1), "data": Out(data.ArrayLayout(weight_shape, lanes))})

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
        m.d.comb += self.data.as_value().eq(word)
        return m

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
