"""The window stage: a line buffer that turns a stream of pixels into windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.timing import MEMORY_READ
from hwgen.ir.walk import Walk, WindowMode
from rtl.address import Loop, LoopNest, RingAddress, held, level_deltas, select
from rtl.buffer import OutputBuffer
from rtl.memory import as_bits
from rtl.requant import interval_shape
from rtl.rescale import delayed
from rtl.ring import BankedRing, RingLevel, TapRing

__all__ = ["Window"]


class Window(wiring.Component):
    """Delivers the windows of an image, tap by tap, column by column or whole.

    Its actors, their steps and what each needs are those of the design page: writing needs room in
    the ring; a step needs that the last pixel of its segment was written in an earlier cycle, and
    a credit where it delivers. Words leave ``MEMORY_READ`` cycles later: the memory's own
    register, then one more; turning of banks and masking of taps outside the image come after it.

    Parameters
    ----------
    walk : Walk
        Geometry, mode, and words per pixel.
    shape : Shape
        One code.
    lanes : int
        Codes of a word.
    depth : int
        Ring size: words in TAP mode, image rows, a multiple of the kernel's, otherwise. At least
        ``walk.minimum_depth()``.
    pad_code : int
        Code of a tap outside the image.
    group_major : bool
        Whether a position's words run group by group (pools) or tap by tap (convolutions).
    out_depth : int
        Beats of the output buffer.

    Members
    -------
    i : ``In(stream.Signature(ArrayLayout(shape, lanes)))``
        Pixels, row-major, ``walk.groups`` words each.
    o : ``Out(stream.Signature(ArrayLayout(shape, taps * lanes)))``
        ``taps`` is 1, the kernel's rows, or all of the kernel, by the mode.

    Raises
    ------
    ValueError
        If ``depth`` would deadlock or is no whole number of kernel rows, if FULL mode has several
        words a pixel, or if ``pad_code`` does not fit ``shape``.
    """

    def __init__(
        self,
        walk: Walk,
        shape: Shape,
        lanes: int,
        depth: int,
        pad_code: int,
        group_major: bool,
        out_depth: int,
    ) -> None:
        rows, columns = walk.geometry.kernel
        if walk.mode is WindowMode.FULL and walk.groups != 1:
            raise ValueError(f"a FULL window must have 1 word a pixel, not {walk.groups}")
        least, unit = walk.minimum_depth(), "words"
        if walk.mode is not WindowMode.TAP:
            unit = f"image rows, a multiple of {rows}"
        if depth < least or (walk.mode is not WindowMode.TAP and depth % rows):
            raise ValueError(f"a window's depth must be at least {least} {unit}, not {depth}")
        if Const(pad_code, shape).value != pad_code:
            raise ValueError(f"the pad code must fit {shape!r}, not be {pad_code}")
        self.walk = walk
        self.shape = shape
        self.lanes = lanes
        self.depth = depth
        self.pad_code = pad_code
        self.group_major = group_major
        self.out_depth = out_depth
        self.taps = {WindowMode.TAP: 1, WindowMode.COLUMN: rows, WindowMode.FULL: rows * columns}[
            walk.mode
        ]
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(shape, lanes))),
                "o": Out(stream.Signature(data.ArrayLayout(shape, lanes * self.taps))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a step to the output buffer."""
        return MEMORY_READ

    @property
    def words(self) -> int:
        """Ring size in words."""
        if self.walk.mode is WindowMode.TAP:
            return self.depth
        return self.depth * self.walk.geometry.width * self.walk.groups

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The read actor's loops, innermost first; the last two run over the segments."""
        rows, columns = self.walk.geometry.kernel
        group = Loop("group", self.walk.groups)
        taps = {
            WindowMode.TAP: (Loop("tap_column", columns), Loop("tap_row", rows)),
            WindowMode.COLUMN: (Loop("tap_column", columns),),
            WindowMode.FULL: (),
        }[self.walk.mode]
        inner = (*taps, group) if self.group_major else (group, *taps)
        return (*inner, Loop("column", self.walk.columns), Loop("row", self.walk.rows))

    def elaborate(self, platform: object) -> Any:
        m = Module()
        loops = self.loops
        m.submodules.nest = nest = LoopNest(loops)
        m.submodules.buffer = buffer = OutputBuffer(self.o.payload.shape(), self.out_depth)
        m.submodules.level = level = RingLevel(
            self.walk, self.words, len(loops) - 2, nest.first_move
        )
        write = Signal()
        step = Signal()
        emits = self._emits(m, step, nest)
        m.d.comb += [
            self.i.ready.eq(level.writable),
            write.eq(self.i.valid & level.writable),
            step.eq(level.readable & (buffer.available | ~emits)),
            nest.step.eq(step),
            level.write.eq(write),
            level.step.eq(step),
            level.moves.eq(nest.moves),
            level.column.eq(nest.column),
            level.row.eq(nest.row),
            buffer.reserve.eq(step & emits),
        ]
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        outside = Cat(self._outside(m, step, nest))
        if self.walk.mode is WindowMode.TAP:
            words = [self._tap_ring(m, write, step, nest, outside)]
        else:
            words = self._banked_ring(m, write, step, nest, outside)
        self._deliver(m, words, step, emits, buffer)
        return m

    def _strides(self, per_column: int, per_row: int, per_tap_row: int = 0) -> dict[str, int]:
        """Strides of a linear function of (image column, image row) for the loops."""
        down, across = self.walk.geometry.stride
        return {
            "tap_column": per_column,
            "tap_row": per_tap_row,
            "column": per_column * (1 if self.walk.mode is WindowMode.FULL else across),
            "row": per_row * down,
        }

    def _emits(self, m: Module, step: Any, nest: LoopNest) -> Any:
        """Whether the current step delivers: counts down to the next complete window of the row."""
        columns, across = self.walk.geometry.kernel[1], self.walk.geometry.stride[1]
        if self.walk.mode is not WindowMode.FULL or columns == across == 1:
            return Const(1)
        # Registered beside the countdown, so that firing does not wait for a comparison.
        due = Signal(range(max(columns, across)), init=columns - 1)
        emits = Signal(name="emits", init=int(columns == 1))
        following = Signal.like(due, name="due_next")
        row_ends = held(
            m,
            step,
            select(nest.moves, [0, 0, 1, 1], Shape(1)),
            int(nest.first_move > 1),
            Shape(1),
            "row_ends",
        )
        m.d.comb += following.eq(Mux(row_ends, columns - 1, Mux(emits, across - 1, due - 1)))
        with m.If(step):
            m.d.sync += [due.eq(following), emits.eq(following == 0)]
        return emits

    def _coordinate(
        self,
        m: Module,
        step: Any,
        nest: LoopNest,
        name: str,
        strides: dict[str, int],
        start: int,
        high: int,
    ) -> Any:
        """Image column or row of the current step's tap, as a signed register."""
        deltas = level_deltas(self.loops, strides)
        shape = interval_shape((min(deltas), max(deltas)))
        delta = held(
            m,
            step,
            select(nest.moves, deltas, shape),
            deltas[nest.first_move],
            shape,
            f"{name}_delta",
        )
        place = Signal(interval_shape((min(start, -1), high)), name=name, init=start)
        with m.If(step):
            m.d.sync += place.eq(place + delta)
        return place

    def _outside(self, m: Module, step: Any, nest: LoopNest) -> list[Any]:
        """For each kernel row in a word: whether it lies outside, a cycle after the step."""
        g = self.walk.geometry
        top, left, bottom, right = g.overhang
        x_out: list[Any] = []
        if left or right:
            x = self._coordinate(
                m, step, nest, "x", self._strides(1, 0), -g.padding[1], g.width - 1 + right
            )
            x_out = ([x < 0] if left else []) + ([x >= g.width] if right else [])
        y: Any = None
        tap = self.walk.mode is WindowMode.TAP
        if top or bottom:
            y = self._coordinate(
                m, step, nest, "y", self._strides(0, 1, 1), -g.padding[0], g.height - 1 + bottom
            )
        flags = []
        for ky in [0] if tap else range(g.kernel[0]):
            y_out = [y < -ky] if top > ky else []
            if bottom and (tap or ky >= g.kernel[0] - bottom):
                y_out.append(y >= g.height - ky)
            if not (x_out or y_out):
                flags.append(Const(0))
                continue
            flag = Signal(name=f"outside_{ky}", reset_less=True)
            m.d.sync += flag.eq(reduce(or_, x_out + y_out))
            flags.append(flag)
        return flags

    def _tap_ring(self, m: Module, write: Any, step: Any, nest: LoopNest, outside: Any) -> Any:
        g, groups = self.walk.geometry, self.walk.groups
        strides = self._strides(groups, groups * g.width, groups * g.width) | {"group": 1}
        frame = g.height * g.width * groups
        m.submodules.tap_address = address = RingAddress(
            self.depth,
            -(g.padding[0] * g.width + g.padding[1]) * groups,
            level_deltas(self.loops, strides, frame),
            nest.first_move,
        )
        m.submodules.ring = ring = TapRing(self.i.payload.shape(), self.depth, self._pad_word)
        m.d.comb += [
            address.step.eq(step),
            address.moves.eq(nest.moves),
            ring.w_en.eq(write),
            ring.w_data.eq(self.i.payload),
            ring.r_addr.eq(address.address),
            ring.outside.eq(outside),
        ]
        return ring.r_data

    def _banked_ring(
        self, m: Module, write: Any, step: Any, nest: LoopNest, outside: Any
    ) -> list[Any]:
        g, groups = self.walk.geometry, self.walk.groups
        banks, row_words = g.kernel[0], g.width * groups
        slots = self.depth // banks
        slot, turn = divmod(-g.padding[0], banks)
        # Rows by which the window's top row moves on at the end of a row and of a frame.
        jumps = (g.stride[0], g.height - g.first_row(g.out_height - 1) - g.padding[0])
        moves, now = self._turns(m, step, nest, turn, jumps)
        across = level_deltas(self.loops, self._strides(groups, 0) | {"group": 1})
        deltas = list(across[:-2])
        for back, jump in zip(across[-2:], jumps, strict=True):
            deltas += [back + (jump // banks + turned) * row_words for turned in (0, 1)]
        first = nest.first_move
        if first >= len(self.loops) - 1:
            k = first - (len(self.loops) - 1)
            first += k + int(turn + jumps[k] % banks >= banks)
        m.submodules.ring = ring = BankedRing(
            self.i.payload.shape(), banks, row_words, slots, self._pad_word
        )
        for name, ahead in (("low", 0), ("high", 1)):
            if ahead and (banks == 1 or slots == 1):
                m.d.comb += ring.high.eq(ring.low)
                continue
            start = (slot + ahead) * row_words - g.padding[1] * groups
            address = RingAddress(slots * row_words, start, deltas, first)
            m.submodules[f"{name}_address"] = address
            m.d.comb += [
                address.step.eq(step),
                address.moves.eq(moves),
                getattr(ring, name).eq(address.address),
            ]
        m.d.comb += [
            ring.w_en.eq(write),
            ring.w_data.eq(self.i.payload),
            ring.turn.eq(now),
            ring.outside.eq(outside),
        ]
        return [ring.r_data[ky] for ky in range(banks)]

    def _turns(
        self, m: Module, step: Any, nest: LoopNest, turn: int, jumps: Sequence[int]
    ) -> tuple[Any, Any]:
        """Bank of the window's top row, and the moves split by whether it turns past the last bank.

        Returns
        -------
        moves
            Those of the nest, but two bits each for the row and the frame: not turned, turned.
        now
            Bank of the current step.
        """
        banks, inner = self.walk.geometry.kernel[0], len(self.loops) - 1
        row, frame = nest.moves[inner], nest.moves[inner + 1]
        if banks == 1:
            zero = Const(0, 1)
            return Cat(nest.moves[:inner], row, zero, frame, zero), Const(0, 0)
        # Like the loop counters, the bank is known a step ahead.
        first = turn if nest.first_move < inner else turn + jumps[nest.first_move - inner]
        ahead = Signal(range(banks), name="turn_next", init=first % banks)
        now = Signal(range(banks), name="turn", init=turn)
        turned = Signal(2, name="turned")
        with m.If(step):
            m.d.sync += now.eq(ahead)
        for k, (moves, jump) in enumerate(zip((row, frame), jumps, strict=True)):
            by = jump % banks
            if by == 0:
                continue
            m.d.comb += turned[k].eq(ahead >= banks - by)
            with m.If(step & moves):
                m.d.sync += ahead.eq(Mux(turned[k], ahead - (banks - by), ahead + by))
        split = [row & ~turned[0], row & turned[0], frame & ~turned[1], frame & turned[1]]
        return Cat(nest.moves[:inner], *split), now

    @property
    def _pad_word(self) -> int:
        mask = (1 << self.shape.width) - 1
        return sum((self.pad_code & mask) << (k * self.shape.width) for k in range(self.lanes))

    def _deliver(
        self, m: Module, words: Sequence[Any], step: Any, emits: Any, buffer: OutputBuffer
    ) -> None:
        """Hand out what the ring read two cycles ago, in FULL mode beside the older columns."""
        older = self.walk.geometry.kernel[1] - 1 if self.walk.mode is WindowMode.FULL else 0
        reads = delayed(m, step, MEMORY_READ, "reads") if older else Const(0)
        window = []
        for ky, word in enumerate(as_bits(word) for word in words):
            taps = [
                Signal(len(word), name=f"tap_{ky}_{kx}", reset_less=True) for kx in range(older)
            ]
            if older:
                # Only a shift register must tell steps from waiting.
                with m.If(reads):
                    m.d.sync += [
                        tap.eq(newer) for tap, newer in zip(taps, [*taps[1:], word], strict=True)
                    ]
            window += [*taps, word]
        m.d.comb += [
            buffer.w_en.eq(delayed(m, step & emits, MEMORY_READ, "delivered")),
            buffer.w_data.eq(Cat(window)),
        ]
