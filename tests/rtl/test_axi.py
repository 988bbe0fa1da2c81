"""AXI4-Stream ends: packing, framing and resynchronisation, cycle by cycle."""

from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth.hdl import Module, Shape, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from rtl.axi import AxiStreamIn, AxiStreamOut, data_bytes, lane_bytes
from rtl.requant import shape_interval
from tests.rtl.bench import Beat, OutputModel, run_stream


class Slave(wiring.Component):
    """An :class:`AxiStreamIn` as a stream component: ``i`` is ``(tdata, tlast)``.

    ``error`` rides along with the output, so that it is seen in the cycle of a beat.
    """

    def __init__(self, shape: Shape, lanes: int, beats: int, depth: int) -> None:
        self.dut = AxiStreamIn(shape, lanes, beats, depth)
        self.bits = 8 * data_bytes(shape.width, lanes)
        super().__init__(
            {
                "i": In(stream.Signature(unsigned(self.bits + 1))),
                "o": Out(stream.Signature(data.ArrayLayout(shape, lanes))),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.dut = dut = self.dut
        m.d.comb += [
            dut.tdata.eq(self.i.payload[: self.bits]),
            dut.tlast.eq(self.i.payload[self.bits]),
            dut.tvalid.eq(self.i.valid),
            self.i.ready.eq(dut.tready),
            self.error.eq(dut.frame_error),
        ]
        wiring.connect(m, wiring.flipped(self.o), dut.o)
        return m


class SlaveModel:
    """The framing rules, one beat at a time."""

    def __init__(self, beats: int, depth: int, bits: int) -> None:
        self.beats, self.bits = beats, bits
        self.out = OutputModel(depth, 0)
        self.at = 0
        self.filling = self.dropping = self.error = False
        self.frames: list[int | None] = []  # tdata of each beat, None for a zero beat

    def ready(self) -> bool:
        return self.dropping or (not self.filling and self.out.available)

    def valid(self) -> bool:
        return self.out.valid

    def _produce(self, item: int | None) -> None:
        self.frames.append(item)
        self.out.fire()
        self.at = (self.at + 1) % self.beats

    def tick(self, beat: Beat | None, taken: bool) -> None:
        if self.filling:
            if self.out.available:
                self._produce(None)
                self.filling = self.at != 0
        elif beat is not None:
            assert isinstance(beat, int)
            last = bool(beat >> self.bits)
            if self.dropping:
                self.dropping = not last
            else:
                self._produce(beat & ((1 << self.bits) - 1))
                if last and self.at != 0:
                    self.filling = self.error = True
                elif not last and self.at == 0:
                    self.dropping = self.error = True
        self.out.tick(taken)


def word(shape: Shape, codes: list[int], rng: random.Random) -> int:
    """TDATA of a beat; what lies beyond the width of a lane is noise."""
    step, total = 8 * lane_bytes(shape.width), 8 * data_bytes(shape.width, len(codes))
    bits = rng.getrandbits(total)
    for lane, code in enumerate(codes):
        mask = (1 << shape.width) - 1
        bits = bits & ~(mask << (lane * step)) | (code & mask) << (lane * step)
    return bits


def check_slave(
    shape: Shape, lanes: int, beats: int, sent: list[int], rng: random.Random,
    gaps: float | None = None, stalls: float | None = None, depth: int = 2,
) -> None:  # fmt: skip
    """Send frames of ``sent`` beats each."""
    low, high = shape_interval(shape)
    bits = 8 * data_bytes(shape.width, lanes)
    stimulus, codes = [], {}
    for count in sent:
        for k in range(count):
            values = [rng.choice([low, high, rng.randint(low, high)]) for _ in range(lanes)]
            item = word(shape, values, rng)
            codes[item] = tuple(values)
            stimulus.append(item | (k == count - 1) << bits)
    model = SlaveModel(beats, depth, bits)
    dut = Slave(shape, lanes, beats, depth)
    run = run_stream(
        dut, stimulus, gaps=gaps, stalls=stalls, seed=rng.randrange(1 << 30), reference=model
    )
    expected = [(0,) * lanes if item is None else codes[item] for item in model.frames]
    assert run.outputs == expected
    assert len(run.outputs) % beats == 0
    assert model.error == any(count != beats for count in sent)


@pytest.mark.parametrize("shape", [unsigned(8), signed(8), signed(11), unsigned(3), signed(17)])
@pytest.mark.parametrize("lanes", [1, 3])
def test_whole_frames(shape: Shape, lanes: int) -> None:
    rng = random.Random(shape.width * lanes)
    for gaps, stalls in ((None, None), (0.4, None), (None, 0.5), (0.3, 0.3)):
        check_slave(shape, lanes, 5, [5] * 4, rng, gaps, stalls)


@pytest.mark.parametrize(
    "beats, sent",
    [
        (5, [5, 3, 5, 5]), (5, [5, 8, 5, 5]), (5, [1, 5]), (5, [6, 5]), (5, [4, 5]), (5, [17, 5]),
        (1, [1, 2, 1]), (1, [4, 1]), (2, [1, 3, 2, 1, 1, 2]), (4, [2, 9, 1, 4, 7, 4]),
    ],
)  # fmt: skip
def test_resynchronises(beats: int, sent: list[int]) -> None:
    rng = random.Random(beats)
    for gaps, stalls in ((None, None), (0.4, None), (None, 0.5), (0.3, 0.3)):
        for depth in (1, 2, 4):
            check_slave(unsigned(32), 1, beats, sent, rng, gaps, stalls, depth)


def test_one_beat_a_cycle() -> None:
    dut = Slave(unsigned(8), 1, 4, 2)
    run = run_stream(dut, [k | (k % 4 == 3) << 8 for k in range(40)], count=40)
    assert run.output_cycles == list(range(1, 41))


@pytest.mark.parametrize("sent, error", [([4, 4], 0), ([3, 4], 1), ([5, 4], 1)])
def test_frame_error_sticks(sent: list[int], error: int) -> None:
    dut = AxiStreamIn(unsigned(8), 1, 4)

    async def testbench(ctx: Any) -> None:
        ctx.set(dut.o.ready, 1)
        assert ctx.get(dut.frame_error) == 0
        ctx.set(dut.tvalid, 1)
        for count in sent:
            for k in range(count):
                ctx.set(dut.tlast, k == count - 1)
                await ctx.tick().until(dut.tready)
        ctx.set(dut.tvalid, 0)
        await ctx.tick().repeat(10)
        assert ctx.get(dut.frame_error) == error

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


class Master(wiring.Component):
    """An :class:`AxiStreamOut` as a stream component: ``o`` is ``(tdata, tlast)``."""

    def __init__(self, shape: Shape, lanes: int, beats: int) -> None:
        self.dut = AxiStreamOut(shape, lanes, beats)
        self.bits = 8 * data_bytes(shape.width, lanes)
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(shape, lanes))),
                "o": Out(stream.Signature(unsigned(self.bits + 1))),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.dut = dut = self.dut
        m.d.comb += [
            self.o.payload.eq(dut.tdata | dut.tlast << self.bits),
            self.o.valid.eq(dut.tvalid),
            dut.tready.eq(self.o.ready),
        ]
        wiring.connect(m, wiring.flipped(self.i), dut.i)
        return m


@pytest.mark.parametrize(
    "shape, lanes, beats",
    [
        (signed(21), 1, 10),
        (unsigned(4), 1, 1),
        (signed(5), 3, 4),
        (signed(16), 2, 3),
        (unsigned(9), 3, 2),
    ],
)
def test_packs_and_marks_the_last_beat(shape: Shape, lanes: int, beats: int) -> None:
    rng = random.Random(lanes)
    low, high = shape_interval(shape)
    items = [
        tuple(rng.choice([low, high, rng.randint(low, high)]) for _ in range(lanes))
        for _ in range(3 * beats)
    ]
    step, bits = lane_bytes(shape.width), 8 * data_bytes(shape.width, lanes)
    expected = []
    for k, item in enumerate(items):
        tdata = b"".join(code.to_bytes(step, "little", signed=shape.signed) for code in item)
        expected.append(int.from_bytes(tdata, "little") | (k % beats == beats - 1) << bits)
    for gaps, stalls in ((None, None), (0.4, None), (None, 0.5), (0.3, 0.3)):
        run = run_stream(
            Master(shape, lanes, beats), items, gaps=gaps, stalls=stalls, count=len(items)
        )
        assert run.outputs == expected
        assert run.accept_cycles == run.output_cycles


@pytest.mark.parametrize(
    "width, lanes, lane, total",
    [(1, 1, 1, 1), (8, 1, 1, 1), (8, 3, 1, 4), (9, 3, 2, 8), (21, 1, 3, 4), (8, 16, 1, 16)],
)
def test_bytes(width: int, lanes: int, lane: int, total: int) -> None:
    assert (lane_bytes(width), data_bytes(width, lanes)) == (lane, total)
