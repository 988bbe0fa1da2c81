"""The requantiser: scales, rounds and saturates accumulators, a beat a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hwgen.ir.formats import width_of
from hwgen.ir.requant import Requant, Rounding
from hwgen.ir.timing import requant_latency
from rtl.memory import Rom

__all__ = ["Requantizer"]

Interval = tuple[int, int]


def interval_shape(interval: Interval) -> Shape:
    """Smallest shape that holds an interval of integers."""
    width, signed = width_of(*interval)
    return Shape(width, signed)


def shape_interval(shape: Shape) -> Interval:
    """Smallest and largest value of a shape."""
    if shape.signed:
        return -(1 << (shape.width - 1)), (1 << (shape.width - 1)) - 1
    return 0, (1 << shape.width) - 1


def above(value: Value, interval: Interval, bound: int) -> Value:
    """``value > bound``: one gate where the bound is one below a power of two."""
    if interval[1] <= bound:
        return C(0)
    if bound >= 0 and (bound + 1) & bound == 0:
        sign = value[-1] if value.shape().signed else C(0)
        upper = value[(bound + 1).bit_length() - 1 :]
        return upper.any() & ~sign
    return value > bound


def below(value: Value, interval: Interval, bound: int) -> Value:
    """``value < bound``: one gate where the bound is 0 or minus a power of two."""
    if interval[0] >= bound:
        return C(0)
    if bound <= 0 and value.shape().signed and -bound & (-bound - 1) == 0:
        return value[-1] & ~value[(-bound).bit_length() - 1 :].all() if bound else value[-1]
    return value < bound


class _Lane:
    """Parameters and intervals of one lane; a table has an entry for each fold."""

    def __init__(self, requant: Requant, acc: Interval, channels: Sequence[int]) -> None:
        def table(values: tuple[int, ...]) -> list[int]:
            return [values[c] if len(values) > 1 else values[0] for c in channels]

        self.shift = requant.shift[0]
        half = (1 << self.shift) >> 1
        self.zero = requant.zero
        # The offset rounds ties up or down; where that was wrong, `up` mends by adding 1, `down` by
        # taking 1 away. To even, both touch the lowest bit alone: `zero`, which the offset holds
        # too, decides whether even codes are even here, and so which of the two does without carry.
        self.up = half > 0 and (
            requant.rounding is Rounding.HALF_AWAY
            or (requant.rounding is Rounding.HALF_EVEN and self.zero % 2 == 1)
        )
        self.away = requant.rounding is Rounding.HALF_AWAY
        self.down = half > 0 and not self.up and requant.rounding is Rounding.HALF_EVEN
        offset = 0 if requant.rounding is Rounding.FLOOR else half - self.up
        offset += self.zero << self.shift
        self.mult = table(requant.mult)
        # Powers of two, as channels of other scales have: their logarithms shift instead.
        powers = all(m > 0 and m.bit_count() == 1 for m in self.mult)
        self.shifts = powers and len(set(self.mult)) > 1
        logs = [m.bit_length() - 1 for m in self.mult]
        self.least = min(logs)
        self.factor = [log - self.least for log in logs] if self.shifts else self.mult
        self.add = [a + offset for a in table(requant.add)]
        self.low, self.high = table(requant.low), table(requant.high)
        self.relu = requant.relu
        if requant.relu and not requant.scaled:
            # Rounding is monotone and keeps 0, so the ReLU may come after it, as a bound.
            self.relu = False
            self.low = [
                max(lo, min(self.zero, hi)) for lo, hi in zip(self.low, self.high, strict=True)
            ]
        self.operand = (max(acc[0], 0), max(acc[1], 0)) if self.relu else acc
        products = [[m * v for v in self.operand] for m in self.mult]
        self.product = min(map(min, products)), max(map(max, products))
        sums = [[p + a for p in ps] for ps, a in zip(products, self.add, strict=True)]
        self.sum = min(map(min, sums)), max(map(max, sums))
        self.kept = self.sum[0] >> self.shift, self.sum[1] >> self.shift


def _times(lane: _Lane, x: Value, factor: Any) -> Value:
    """``x`` times a lane's multiplier, ``factor`` being the entry of ``lane.factor``."""
    return (x << factor).shift_left(lane.least) if lane.shifts else x * factor


def _mend(lane: _Lane, kept: Signal, total: Signal) -> Value:
    """Correct a tie, which is seen from the dropped bits: all 1 below a half, all 0 at a half."""
    rest = total[: lane.shift]
    # A sum narrower than the shift goes on with its sign, 0 where it is unsigned.
    short = not total.shape().signed and len(total) < lane.shift
    if lane.away:
        # kept counts from `zero`, so its sign, that of the sum before rounding, is kept < zero.
        tie = C(0) if short else rest.all()
        return kept + (tie & ~below(kept, lane.kept, lane.zero)) if lane.up else kept
    if lane.up:
        mended = Cat(kept[0] | (C(0) if short else rest.all()), kept[1:])
    elif lane.down:
        mended = Cat(kept[0] & rest.any(), kept[1:])
    else:
        return kept
    return mended.as_signed() if kept.shape().signed else mended


class Requantizer(wiring.Component):
    """Free-running pipeline that computes :meth:`hwgen.ir.requant.Requant.apply` bit for bit.

    Unscaled (``mult`` 1, ``add`` 0): add the rounding constant; saturate. Scaled: operands,
    product, sum, saturate; the first three can be the registers of a DSP block. A lane whose
    multipliers are all powers of two shifts and takes none.

    Parameters
    ----------
    requant : Requant
        With one entry for the tensor or one for each channel.
    acc_shape, out_shape : Shape
        Formats of a lane. ``out_shape`` must hold every ``low`` and ``high``.
    lanes : int
        Lanes of a beat.
    folds : int
        Beats after which the channels start anew: channel ``fold * lanes + lane``. Lanes beyond the
        channels are don't-care.

    Members
    -------
    i : ``In(ArrayLayout(acc_shape, lanes))``
    fold : ``In(range(max(folds, 1)))``
        Belongs to ``i``.
    o : ``Out(ArrayLayout(out_shape, lanes))``
        ``latency`` cycles later.

    Attributes
    ----------
    latency : int
    """

    def __init__(
        self, requant: Requant, acc_shape: Shape, out_shape: Shape, lanes: int, folds: int
    ) -> None:
        self.acc_shape, self.out_shape = Shape.cast(acc_shape), Shape.cast(out_shape)
        low, high = shape_interval(self.out_shape)
        if min(requant.low) < low or max(requant.high) > high:
            raise ValueError(
                f"a requantiser's bounds {min(requant.low)}..{max(requant.high)} must fit its"
                f" output, {self.out_shape}"
            )
        self.requant = requant
        self.latency = requant_latency(scaled=requant.scaled)
        common, last = requant.common_shift(), requant.channels - 1
        # A lane without a channel in some fold repeats its last one: fewer different entries.
        self.lanes = [
            _Lane(
                common,
                shape_interval(self.acc_shape),
                [
                    min(fold * lanes + lane, last - (last - lane) % lanes if lane <= last else last)
                    for fold in range(max(folds, 1))
                ],
            )
            for lane in range(lanes)
        ]
        self.folds = max(folds, 1)
        super().__init__(
            {
                "i": In(data.ArrayLayout(self.acc_shape, lanes)),
                "fold": In(range(self.folds)),
                "o": Out(data.ArrayLayout(self.out_shape, lanes)),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        operands = [self.i[lane] for lane in range(len(self.lanes))]
        fold = self.fold
        if self.requant.scaled:
            factors = self._table(m, "mult", fold, [[lane.factor] for lane in self.lanes])
            operands = [self._operand(m, k, acc) for k, acc in enumerate(operands)]
            operands = [
                self._register(m, f"product_{k}", lane.product, _times(lane, x, factor))
                for k, (lane, x, (factor,)) in enumerate(
                    zip(self.lanes, operands, factors, strict=True)
                )
            ]
            fold = self._delay(m, fold, "fold_1")
            adds = self._table(m, "add", fold, [[lane.add] for lane in self.lanes])
            fold = self._delay(m, fold, "fold_2")
        else:
            adds = [[lane.add[0]] for lane in self.lanes]
        sums = [
            self._register(m, f"sum_{k}", lane.sum, x + add)
            for k, (lane, x, (add,)) in enumerate(zip(self.lanes, operands, adds, strict=True))
        ]
        bounds = self._table(m, "bounds", fold, [[lane.low, lane.high] for lane in self.lanes])
        for k, (value, (low, high)) in enumerate(zip(sums, bounds, strict=True)):
            self._saturate(m, k, value, low, high)
        return m

    def _register(self, m: Module, name: str, interval: Interval, value: Value) -> Signal:
        register = Signal(interval_shape(interval), name=name, reset_less=True)
        m.d.sync += register.eq(value)
        return register

    def _operand(self, m: Module, k: int, acc: Value) -> Signal:
        lane = self.lanes[k]
        rectified = acc
        if lane.relu and self.acc_shape.signed:
            rectified = Mux(acc < 0, 0, acc)
        return self._register(m, f"operand_{k}", lane.operand, rectified)

    def _delay(self, m: Module, fold: Value, name: str) -> Value:
        if self.folds == 1:
            return fold
        delayed = Signal(range(self.folds), name=name, reset_less=True)
        m.d.sync += delayed.eq(fold)
        return delayed

    def _table(
        self, m: Module, name: str, fold: Value, tables: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Any]]:
        """Entries of each lane's tables for the fold of the cycle before; ints where constant."""
        entries: list[list[Any]] = [[column[0] for column in columns] for columns in tables]
        words, width = [0] * self.folds, 0
        pieces: list[tuple[int, int, int, Shape]] = []
        for k, columns in enumerate(tables):
            for c, column in enumerate(columns):
                if len(set(column)) == 1:
                    continue
                shape = interval_shape((min(column), max(column)))
                mask = (1 << shape.width) - 1
                words = [
                    word | (value & mask) << width
                    for word, value in zip(words, column, strict=True)
                ]
                pieces.append((k, c, width, shape))
                width += shape.width
        if pieces:
            m.submodules[name] = rom = Rom(words, width)
            m.d.comb += rom.addr.eq(fold)
            for k, c, start, shape in pieces:
                bits = rom.data[start : start + shape.width]
                entries[k][c] = bits.as_signed() if shape.signed else bits
        return entries

    def _saturate(self, m: Module, k: int, total: Signal, low: Any, high: Any) -> None:
        """Drop the low bits, mend ties, saturate.

        The bounds are compared with the value before mending, beside it and not after it: where a
        tie may go up, ``kept >= high`` gives ``high`` either way; where it may go down,
        ``kept <= low`` gives ``low`` either way.
        """
        lane = self.lanes[k]
        kept = Signal(interval_shape(lane.kept), name=f"kept_{k}")
        m.d.comb += kept.eq(total.shift_right(lane.shift))
        mended = _mend(lane, kept, total)
        if isinstance(low, int):
            under = below(kept, lane.kept, low + lane.down)
        else:
            under = kept <= low if lane.down else kept < low
        if isinstance(high, int):
            over = above(kept, lane.kept, high - lane.up)
        else:
            over = kept >= high if lane.up else kept > high
        result = Signal(self.out_shape, name=f"result_{k}", reset_less=True)
        with m.If(under):
            m.d.sync += result.eq(low)
        with m.Elif(over):
            m.d.sync += result.eq(high)
        with m.Else():
            m.d.sync += result.eq(mended)
        m.d.comb += self.o[k].eq(result)
