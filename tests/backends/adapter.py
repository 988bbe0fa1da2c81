"""A whole design behind plain streams, for Amaranth's simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import DomainRenamer, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from hwgen.backends.rtl.top import Top
from hwgen.lower.dataflow import Dataflow
from tests.rtl.bench import StreamRun, run_stream

__all__ = ["run_design"]


class _Framed(wiring.Component):
    """The top module with TLAST counted, its clock taken from the domain ``sync``."""

    def __init__(self, dataflow: Dataflow) -> None:
        self.dataflow = dataflow
        super().__init__(
            {
                "i": In(stream.Signature(8 * dataflow.input.data_bytes)),
                "o": Out(stream.Signature(8 * dataflow.output.data_bytes)),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.top = top = DomainRenamer("sync")(Top(self.dataflow, own_clock=False))
        beats = self.dataflow.input.layout.beats
        beat = Signal(range(max(beats, 2)))
        last = beat == beats - 1
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += beat.eq(0)
            with m.If(~last):
                m.d.sync += beat.eq(beat + 1)
        m.d.comb += [
            top.s_axis_tdata.eq(self.i.payload),
            top.s_axis_tvalid.eq(self.i.valid),
            top.s_axis_tlast.eq(last),
            self.i.ready.eq(top.s_axis_tready),
            self.o.payload.eq(top.m_axis_tdata),
            self.o.valid.eq(top.m_axis_tvalid),
            top.m_axis_tready.eq(self.o.ready),
        ]
        return m


def _words(data: NDArray[np.uint8]) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in data]


def run_design(
    dataflow: Dataflow,
    codes: NDArray[np.int64],
    *,
    gaps: float | None = None,
    stalls: float | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.int64], StreamRun]:
    """Outputs ``(N, *shape)`` for input codes ``(N, *shape)``, and the cycle of each handshake."""
    count = len(codes) * dataflow.output.layout.beats
    run = run_stream(
        _Framed(dataflow),
        _words(dataflow.input.encode(codes)),
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        count=count,
        patience=dataflow.latency + dataflow.interval + 64,
        limit=1_000_000,
    )
    size = dataflow.output.data_bytes
    data = np.array(
        [list(int(word).to_bytes(size, "little")) for word in run.outputs], dtype=np.uint8
    ).reshape(-1, size)
    return dataflow.output.decode(data), run
