"""The dataflow as data, for ``dataflow.json``."""

from __future__ import annotations

from typing import Any

from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stages import Mac, Stage, WidthConvert, Window

__all__ = ["describe_dataflow"]


def _stage(stage: Stage) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": stage.name,
        "kind": type(stage).__name__,
        "layer": stage.layer,
        "in": {"lanes": stage.i.lanes, "width": stage.i.width, "signed": stage.i.signed},
        "out": {"lanes": stage.o.lanes, "width": stage.o.width, "signed": stage.o.signed},
        "beats_in": stage.frame,
        "beats_out": stage.beats_out,
        "cycles": stage.cycles,
        "latency": stage.latency,
        "out_depth": stage.out_depth,
    }
    if isinstance(stage, Window):
        entry |= {"mode": stage.walk.mode.value, "ring_words": stage.words}
    if isinstance(stage, WidthConvert):
        entry |= {"vector_in": stage.vector_in, "vector_out": stage.vector_out}
    if isinstance(stage, Mac):
        entry |= {
            "multipliers": stage.multipliers,
            "words": stage.words,
            "folds": stage.folds,
            "vectors": stage.vectors,
            "ring_words": stage.capacity,
            "weight_width": stage.weight_width,
            "stored_weight_width": stage.stored_width,
            "accumulator_width": stage.accumulator_width,
        }
    return entry


def describe_dataflow(dataflow: Dataflow) -> dict[str, Any]:
    """Stages with lanes, cycles, latencies and buffer sizes; AXI ports; the schedule's two figures."""

    def port(which: Any) -> dict[str, Any]:
        layout = which.layout
        return {
            "shape": list(layout.tensor.shape),
            "width": layout.tensor.width,
            "signed": layout.tensor.signed,
            "lanes": layout.lanes,
            "beats": layout.beats,
            "lane_bytes": which.lane_bytes,
            "tdata_bytes": which.data_bytes,
        }

    return {
        "name": dataflow.name,
        "input": port(dataflow.input),
        "output": port(dataflow.output),
        "interval": dataflow.interval,
        "latency": dataflow.latency,
        "multipliers": dataflow.multipliers,
        "stages": [_stage(stage) for stage in dataflow.stages],
    }
