"""The output buffer's order, credits and delay; the memories."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from rtl.buffer import OutputBuffer
from rtl.memory import Rom, add_ram
from tests.rtl.bench import Beat, OutputModel, run_stream


class Pipe(wiring.Component):
    """A stage that does nothing for ``latency`` cycles."""

    def __init__(self, shape: Any, depth: int, latency: int) -> None:
        self.shape, self.depth, self.latency = shape, depth, latency
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.buffer = buffer = OutputBuffer(self.shape, self.depth)
        fire, payload = self.i.valid & self.i.ready, self.i.payload
        m.d.comb += [self.i.ready.eq(buffer.available), buffer.reserve.eq(fire)]
        for _ in range(self.latency):
            fire_then, payload_then = Signal(), Signal.like(payload)
            m.d.sync += [fire_then.eq(fire), payload_then.eq(payload)]
            fire, payload = fire_then, payload_then
        m.d.comb += [buffer.w_en.eq(fire), buffer.w_data.eq(payload)]
        wiring.connect(m, wiring.flipped(self.o), buffer.o)
        return m


class PipeModel:
    def __init__(self, depth: int, latency: int) -> None:
        self.out = OutputModel(depth, latency)

    def ready(self) -> bool:
        return self.out.available

    def valid(self) -> bool:
        return self.out.valid

    def tick(self, beat: Beat | None, taken: bool) -> None:
        if beat is not None:
            self.out.fire()
        self.out.tick(taken)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("latency", [0, 1, 4])
def test_order_credits_and_delay(depth: int, latency: int) -> None:
    rng = random.Random(depth * 10 + latency)
    shape = data.ArrayLayout(signed(5), 3)
    beats = [tuple(rng.randint(-16, 15) for _ in range(3)) for _ in range(60)]
    for gaps, stalls in ((None, None), (0.4, None), (None, 0.5), (0.3, 0.3)):
        run = run_stream(
            Pipe(shape, depth, latency), beats, gaps=gaps, stalls=stalls, seed=depth, count=60,
            reference=PipeModel(depth, latency),
        )  # fmt: skip
        assert run.outputs == beats
        if gaps is stalls is None:
            assert run.output_cycles[0] == run.accept_cycles[0] + latency + 1
            # Full rate needs latency + 2 places, as the design page says.
            full = run.output_cycles[-1] == run.output_cycles[0] + 59
            assert full == (depth >= latency + 2)


def test_scalar_payload() -> None:
    beats: list[Beat] = list(range(16))
    assert run_stream(Pipe(unsigned(4), 2, 0), beats, stalls=0.5).outputs == beats


def test_depth_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        OutputBuffer(unsigned(1), 0)
    bit = Signal()
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        add_ram(Module(), "ram", 1, 0, w_en=bit, w_addr=bit, w_data=bit, r_addr=bit)


def simulate(dut: Any, testbench: Any) -> None:
    m = Module()
    m.submodules.dut = dut
    # A constant memory has no register: make the clock domain exist.
    m.d.sync += Signal(name="tick").eq(1)
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


class Ram(wiring.Component):
    def __init__(self, width: int, depth: int, latency: Literal[0, 1]) -> None:
        self.width, self.depth, self.latency = width, depth, latency
        super().__init__(
            {
                "w_en": In(1),
                "w_addr": In(range(depth)),
                "w_data": In(width),
                "r_addr": In(range(depth)),
                "r_data": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        word = add_ram(
            m, "ram", self.width, self.depth, w_en=self.w_en, w_addr=self.w_addr,
            w_data=self.w_data, r_addr=self.r_addr, latency=self.latency,
        )  # fmt: skip
        m.d.comb += self.r_data.eq(word)
        return m


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_ram_reads_a_word_the_cycle_after_it_was_written(
    depth: int, latency: Literal[0, 1]
) -> None:
    dut = Ram(6, depth, latency)

    async def testbench(ctx: Any) -> None:
        rng, words, written = random.Random(depth), [0] * depth, -1
        for _ in range(200):
            # Not the word being written in this very cycle: that one is the device's choice.
            address = rng.randrange(depth)
            enable = rng.random() < 0.6
            written = rng.randrange(depth)
            enable = enable and written != address
            value = rng.randrange(64)
            ctx.set(dut.w_en, enable)
            ctx.set(dut.w_addr, written)
            ctx.set(dut.w_data, value)
            ctx.set(dut.r_addr, address)
            expected = words[address]
            if not latency:
                assert ctx.get(dut.r_data) == expected
            if enable:
                words[written] = value
            await ctx.tick()
            if latency:
                assert ctx.get(dut.r_data) == expected

    simulate(dut, testbench)


@pytest.mark.parametrize("words", [[5], [1, 2, 3], [9] * 4, [(1 << 200) - 1, 1 << 199, 0]])
def test_rom(words: list[int]) -> None:
    dut = Rom(words, 200)

    async def testbench(ctx: Any) -> None:
        for address in [0, *reversed(range(len(words)))]:
            ctx.set(dut.addr, address)
            await ctx.tick()
            assert ctx.get(dut.data) == words[address]

    simulate(dut, testbench)


@pytest.mark.parametrize("words, width", [([], 4), ([16], 4), ([-1], 4)])
def test_rom_contents_must_fit(words: list[int], width: int) -> None:
    with pytest.raises(ValueError, match="read-only memory must"):
        Rom(words, width)
