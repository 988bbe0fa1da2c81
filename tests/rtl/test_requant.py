"""The requantiser against ``Requant.apply``, bit for bit and at its exact latency."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.sim import Simulator

from hwgen.ir.requant import Requant, Rounding
from hwgen.ir.timing import requant_latency
from rtl.emit import emit_verilog
from rtl.requant import Requantizer, above, below, interval_shape, shape_interval
from tests.rtl.bench import decode, encode


def run(dut: Requantizer, beats: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Feed ``(fold, accumulators)`` a cycle; the output ``latency`` cycles after each."""
    out: list[Any] = []

    async def testbench(ctx: Any) -> None:
        for cycle in range(len(beats) + dut.latency):
            if cycle >= dut.latency:
                out.append(decode(dut.o.shape(), ctx.get(dut.o.as_value())))
            if cycle < len(beats):
                fold, accs = beats[cycle]
                ctx.set(dut.i.as_value(), encode(dut.i.shape(), accs))
                ctx.set(dut.fold, fold)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return out


def check(
    requant: Requant,
    acc: Shape,
    out: Shape,
    lanes: int,
    folds: int,
    rng: random.Random,
    n: int = 40,
) -> None:
    dut = Requantizer(requant, acc, out, lanes, folds)
    assert dut.latency == requant_latency(scaled=requant.scaled)
    low, high = shape_interval(acc)
    # Ties, bounds and the extremes of the format, and codes spread over it.
    step = max(1, (1 << max(requant.shift)) // 2)
    special = [low, low + 1, high, high - 1, 0, -1, 1]
    special += [s * step for s in range(-9, 10)] + [s * step + 1 for s in range(-4, 5)]
    special = [v for v in special if low <= v <= high]
    beats = []
    for k in range(n):
        pool = special if k % 2 else range(low, high + 1)
        beats.append((rng.randrange(folds), tuple(rng.choice(pool) for _ in range(lanes))))
    for (fold, accs), got in zip(beats, run(dut, beats), strict=True):
        for lane, value in enumerate(accs):
            channel = fold * lanes + lane
            if 1 < requant.channels <= channel:
                continue
            one = requant.channel(min(channel, requant.channels - 1))
            expected = int(one.apply(np.array([[value]]))[0, 0])
            assert got[lane] == expected, (fold, lane, value, got[lane], expected, requant)


def random_requant(rng: random.Random, channels: int, out: Shape, *, scaled: bool) -> Requant:
    def table(pick: Any) -> tuple[int, ...]:
        return tuple(pick() for _ in range(rng.choice([1, channels])))

    least, most = shape_interval(out)
    bounds = [sorted((rng.randint(least, most), rng.randint(least, most))) for _ in range(channels)]
    if rng.random() < 0.5:
        bounds = [[least, most]] * channels
    top = rng.choice([0, 1, 2, 5, 9, 14])
    return Requant(
        mult=table(lambda: rng.randint(-40, 200)) if scaled else (1,),
        add=table(lambda: rng.randint(-5000, 5000)) if scaled else (0,),
        shift=table(lambda: rng.randint(0, top)) if scaled else (top,),
        low=tuple(b[0] for b in bounds),
        high=tuple(b[1] for b in bounds),
        zero=rng.choice([0, 0, 1, 3, -2, 7]),
        rounding=rng.choice(list(Rounding)),
        relu=rng.random() < 0.3,
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_random_sweep(scaled: bool) -> None:
    rng = random.Random(5 + scaled)
    for _ in range(150):
        lanes, folds = rng.randint(1, 4), rng.randint(1, 5)
        channels = max(1, lanes * folds - rng.randrange(lanes))
        acc = rng.choice([signed(9), signed(16), signed(21), unsigned(12), signed(3), unsigned(1)])
        out = rng.choice([unsigned(8), signed(8), unsigned(1), signed(1), unsigned(4), signed(16)])
        check(random_requant(rng, channels, out, scaled=scaled), acc, out, lanes, folds, rng)


@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("shift", [0, 1, 3, 7])
@pytest.mark.parametrize("zero", [0, 1, -4])
def test_every_accumulator(rounding: Rounding, shift: int, zero: int) -> None:
    acc = signed(7)
    requant = Requant(shift=(shift,), low=(-8,), high=(7,), zero=zero, rounding=rounding)
    dut = Requantizer(requant, acc, signed(4), 1, 1)
    codes = list(range(-64, 64))
    got = [o[0] for o in run(dut, [(0, (v,)) for v in codes])]
    assert got == requant.apply(np.array(codes)[:, None])[:, 0].tolist()


def test_lanes_without_a_channel_leave_tables_constant() -> None:
    # 3 channels on 2 lanes: lane 1 has one channel, so it needs no table.
    requant = Requant(mult=(3, 5, 7), shift=(2,), low=(0,), high=(255,))
    dut = Requantizer(requant, signed(10), unsigned(8), 2, 2)
    assert dut.lanes[0].mult == [3, 7]
    assert dut.lanes[1].mult == [5, 5]
    check(requant, signed(10), unsigned(8), 2, 2, random.Random(1))


def test_shifts_of_channels_take_no_multiplier() -> None:
    """Multipliers that are powers of two, from scales of channels or given as such, shift."""
    rng = random.Random(9)
    for number in range(60):
        lanes, folds = rng.randint(1, 3), rng.randint(2, 4)
        channels = lanes * folds - rng.randrange(lanes)
        acc = rng.choice([signed(12), signed(20), unsigned(9), signed(2)])
        out = rng.choice([unsigned(8), signed(5)])
        powers = [1 << rng.randint(0, 4) for _ in range(channels)]
        requant = Requant(
            mult=tuple(powers) if number % 3 == 0 else (1,),
            add=tuple(rng.randint(-999, 999) for _ in powers) if number % 2 else (0,),
            shift=tuple(rng.randint(1, 9) for _ in powers),
            low=(shape_interval(out)[0],),
            high=(shape_interval(out)[1],),
            zero=rng.choice([0, 1, -3]),
            rounding=rng.choice(list(Rounding)),
            relu=rng.random() < 0.3,
        )
        check(requant, acc, out, lanes, folds, rng)
    text = emit_verilog(Requantizer(requant, acc, out, lanes, folds), "requant")
    assert " * " not in text


def test_more_lanes_than_channels() -> None:
    requant = Requant(low=(0, 1), high=(3, 2))
    check(requant, signed(5), unsigned(2), 5, 1, random.Random(1))


def test_bounds_must_fit_the_output() -> None:
    with pytest.raises(ValueError, match=r"bounds 0\.\.256 must fit"):
        Requantizer(Requant(low=(0,), high=(256,)), signed(12), unsigned(8), 1, 1)


def test_wide_products() -> None:
    # 62-bit sums, the limit of the definition.
    rng = random.Random(3)
    for rounding in Rounding:
        requant = Requant(
            mult=((1 << 31) - 1,), add=(-(1 << 40),), shift=(45,), low=(-128,), high=(127,),
            rounding=rounding,
        )  # fmt: skip
        check(requant, signed(30), signed(8), 2, 1, rng)


def test_comparisons_with_constants() -> None:
    for shape in (unsigned(3), signed(4), unsigned(1), signed(1)):
        interval = shape_interval(shape)
        value = Signal(shape)
        bounds = range(interval[0] - 2, interval[1] + 3)
        tests = [(f(value, interval, b), b, f is above) for b in bounds for f in (above, below)]

        async def testbench(
            ctx: Any, value: Any = value, interval: Any = interval, tests: Any = tests
        ) -> None:
            for code in range(interval[0], interval[1] + 1):
                ctx.set(value, code)
                for expression, bound, is_above in tests:
                    want = code > bound if is_above else code < bound
                    assert bool(ctx.get(expression)) == want, (value.shape(), code, bound, is_above)

        m = Module()
        m.d.comb += Signal().eq(value[0])
        simulator = Simulator(m)
        simulator.add_testbench(testbench)
        simulator.run()
    assert interval_shape((0, 255)) == unsigned(8)
    assert interval_shape((-1, 0)) == signed(1)
