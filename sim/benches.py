"""The cocotb side of the benches: runs inside the simulator, reads and writes files in its folder.

``job.json`` holds the settings and ``stimulus.bin`` the input beats, as :mod:`sim.bench` lays them
out. ``result.json`` is written last, so its presence means that the bench ran to its end. Only what
every run needs is imported at the top: the start takes most of a short run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotb.utils import get_sim_time

PERIOD = 2
"""Of the clock, in ns."""


@cocotb.test()
async def bench(dut: Any) -> None:
    """Run the job in the working directory."""
    job = json.loads(Path("job.json").read_text())
    for port in ("aresetn", "s_axis_tdata", "s_axis_tvalid", "s_axis_tlast", "m_axis_tready"):
        getattr(dut, port).value = 0
    dut.lean.value = int(job["mode"] == "lean")
    # Multiplicative hashing spreads small seeds over all bits; xorshift must not start at 0.
    dut.seed.value = job["seed"] * 2654435769 % 0xFFFFFFFF + 1
    dut.gaps.value = round(job["gaps"] * 65536)
    dut.stalls.value = round(job["stalls"] * 65536)
    dut.frames.value = job["frames"]
    dut.patience.value = job["patience"]
    Clock(dut.aclk, PERIOD, unit="ns", impl="gpi").start(start_high=False)
    if job["mode"] == "lean":
        # Everything happens in the Verilog bench: Python sleeps to the end.
        await ClockCycles(dut.aclk, 4)
        dut.aresetn.value = 1
        await RisingEdge(dut.done)
    else:
        await _axi(dut, job)
    result = {"cycles": int(get_sim_time("ns")) // PERIOD}
    Path("result.json").write_text(json.dumps(result))


async def _axi(dut: Any, job: dict[str, Any]) -> None:
    """Drive with cocotbext-axi; reset once after ``reset_after`` input beats where not 0."""
    from cocotbext.axi import AxiStreamBus, AxiStreamSink, AxiStreamSource

    ports = {"clock": dut.aclk, "reset": dut.aresetn, "reset_active_level": False, "byte_size": 8}
    source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), **ports)
    sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), **ports)
    noise = random.Random(job["seed"])
    if job["gaps"]:
        source.set_pause_generator(_pauses(noise, job["gaps"]))
    if job["stalls"]:
        sink.set_pause_generator(_pauses(noise, job["stalls"]))
    packets = list(_packets(len(dut.s_axis_tdata) // 8))
    await ClockCycles(dut.aclk, 4)
    dut.aresetn.value = 1
    if job["reset_after"]:
        for packet in packets:
            source.send_nowait(packet)
        await _accepted(dut, job["reset_after"], job["patience"])
        dut.aresetn.value = 0
        source.clear()
        await ClockCycles(dut.aclk, 3)
        sink.clear()
        dut.aresetn.value = 1
    for packet in packets:
        source.send_nowait(packet)
    await RisingEdge(dut.done)
    with Path("sink.bin").open("wb") as file:
        while not sink.empty():
            file.write(bytes(sink.recv_nowait(compact=False).tdata))


async def _accepted(dut: Any, beats: int, patience: int) -> None:
    """Wait until the design has accepted so many beats, or none for ``patience`` cycles."""
    quiet = 0
    edge = RisingEdge(dut.aclk)
    while beats and quiet < patience:
        await edge
        quiet += 1
        if dut.s_axis_tvalid.value == 1 and dut.s_axis_tready.value == 1:
            beats, quiet = beats - 1, 0


def _packets(width: int) -> Iterator[bytes]:
    """The stimulus cut after each beat with ``tlast``."""
    records = Path("stimulus.bin").read_bytes()
    packet = bytearray()
    for start in range(0, len(records), width + 1):
        packet += records[start + width : start : -1]
        if records[start] & 1:
            yield bytes(packet)
            packet.clear()


def _pauses(noise: random.Random, share: float) -> Iterator[bool]:
    """Pause in ``share`` of all cycles."""
    while True:
        yield noise.random() < share
