"""Runs a stream component in Amaranth's simulator, with or without random gaps and stalls."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from amaranth.hdl import Shape
from amaranth.lib import data
from amaranth.sim import Simulator

Beat = int | tuple[int, ...]


class StreamRun(NamedTuple):
    """What left a component, and the cycle of each handshake, counted from reset."""

    outputs: list[Beat]
    accept_cycles: list[int]
    output_cycles: list[int]


class Reference(Protocol):
    """Cycle-exact model of a component with one input and one output stream."""

    def ready(self) -> bool:
        """``i.ready`` of this cycle."""

    def valid(self) -> bool:
        """``o.valid`` of this cycle."""

    def tick(self, beat: Beat | None, taken: bool) -> None:
        """End this cycle: ``beat`` was accepted, the output beat was taken."""


class OutputModel:
    """The output buffer's credits and delay, for a :class:`Reference`.

    A step that fires calls :meth:`fire` in its cycle; then :meth:`tick` ends the cycle.
    """

    def __init__(self, depth: int, latency: int) -> None:
        self.credit = depth
        self.now = 0
        self.latency = latency
        self.visible: deque[int] = deque()
        self._spent = 0

    @property
    def available(self) -> bool:
        return self.credit > 0

    @property
    def valid(self) -> bool:
        return bool(self.visible) and self.visible[0] <= self.now

    def fire(self) -> None:
        assert self.credit > 0
        self._spent += 1
        self.visible.append(self.now + self.latency + 1)

    def tick(self, taken: bool) -> None:
        if taken:
            self.visible.popleft()
        self.credit += int(taken) - self._spent
        self._spent = 0
        self.now += 1


def encode(layout: Any, beat: Beat) -> int:
    """Bits of a payload."""
    if isinstance(beat, int):
        bits: int = Shape.cast(layout).width
        return beat & ((1 << bits) - 1)
    width: int = Shape.cast(layout.elem_shape).width
    assert len(beat) == layout.length
    return sum((int(code) & ((1 << width) - 1)) << (k * width) for k, code in enumerate(beat))


def decode(layout: Any, bits: int) -> Beat:
    """Payload of bits: a tuple of codes for an array, else one code."""

    def code(shape: Shape, value: int) -> int:
        return value - (1 << shape.width) if shape.signed and value >> (shape.width - 1) else value

    if not isinstance(layout, data.ArrayLayout):
        shape = Shape.cast(layout)
        return code(shape, bits & ((1 << shape.width) - 1))
    shape = Shape.cast(layout.elem_shape)
    mask = (1 << shape.width) - 1
    return tuple(code(shape, (bits >> (k * shape.width)) & mask) for k in range(layout.length))


def payload_layout(port: Any) -> Any:
    """Shape of a stream's payload."""
    return port.payload.shape()


def _bits(value: Any) -> Any:
    return value.as_value() if hasattr(value, "as_value") else value


def run_stream(
    component: Any,
    beats: Iterable[Beat | Sequence[int]],
    *,
    gaps: float | None = None,
    stalls: float | None = None,
    seed: int = 0,
    count: int | None = None,
    reference: Reference | None = None,
    patience: int = 64,
    limit: int = 100_000,
) -> StreamRun:
    """Drive ``component.i`` with ``beats`` and collect ``component.o``.

    Parameters
    ----------
    component
        Elaboratable with streams ``i`` and ``o`` in the domain ``sync``.
    beats
        One int, or one sequence of codes per beat for an array payload.
    gaps, stalls : float, optional
        Probability that a cycle offers no new beat, and that the sink is not ready in a cycle. An
        offered beat stays until it is accepted.
    seed : int
        Of the gaps and stalls.
    count : int, optional
        Output beats expected; the run ends 16 cycles after the last. Without it, the run ends when
        everything was accepted and ``patience`` cycles brought no output.
    reference : Reference, optional
        Compared with ``i.ready`` and ``o.valid`` in every cycle.
    limit : int
        Cycles after which the run fails.
    """
    rng = random.Random(seed)
    i_layout, o_layout = payload_layout(component.i), payload_layout(component.o)
    words = [encode(i_layout, b if isinstance(b, int) else tuple(int(c) for c in b)) for b in beats]
    items = [decode(i_layout, w) for w in words]
    run = StreamRun([], [], [])
    i_payload, o_payload = _bits(component.i.payload), _bits(component.o.payload)

    async def testbench(ctx: Any) -> None:
        offered, idle, cycle = False, 0, 0
        while idle < (patience if count is None or len(run.outputs) < count else 16):
            assert cycle < limit, f"no end after {limit} cycles: {len(run.outputs)} outputs"
            left = len(run.accept_cycles) < len(words)
            offered = left and (offered or gaps is None or rng.random() >= gaps)
            ready = stalls is None or rng.random() >= stalls
            ctx.set(component.i.valid, offered)
            # Don't-care while nothing is offered: make a component that looks at it fail.
            ctx.set(
                i_payload,
                words[len(run.accept_cycles)] if offered else rng.getrandbits(len(i_payload)),
            )
            ctx.set(component.o.ready, ready)
            i_ready, o_valid = bool(ctx.get(component.i.ready)), bool(ctx.get(component.o.valid))
            if reference is not None:
                expected = reference.ready(), reference.valid()
                assert (i_ready, o_valid) == expected, (
                    f"cycle {cycle}: (i.ready, o.valid) is {(i_ready, o_valid)}, not {expected}"
                )
                reference.tick(
                    items[len(run.accept_cycles)] if offered and i_ready else None,
                    o_valid and ready,
                )
            idle = 0 if left or (o_valid and not ready) else idle + 1
            if offered and i_ready:
                run.accept_cycles.append(cycle)
                offered = False
            if o_valid and ready:
                run.outputs.append(
                    decode(o_layout, ctx.get(o_payload) & ((1 << len(o_payload)) - 1))
                )
                run.output_cycles.append(cycle)
                idle = 0
            await ctx.tick()
            cycle += 1

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    if count is not None:
        assert len(run.outputs) == count, f"{len(run.outputs)} output beats, expected {count}"
    return run
