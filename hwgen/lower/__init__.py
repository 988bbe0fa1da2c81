"""Integer network to dataflow: stages, folding, buffer depths and the exact schedule."""

from __future__ import annotations

from hwgen.lower.dataflow import Dataflow, TensorStream
from hwgen.lower.reference import run_dataflow, run_stage
from hwgen.lower.schedule import Schedule
from hwgen.lower.sizing import lower, lower_to_multipliers
from hwgen.lower.stream import AxiPort, StreamLayout

__all__ = [
    "AxiPort",
    "Dataflow",
    "Schedule",
    "StreamLayout",
    "TensorStream",
    "lower",
    "lower_to_multipliers",
    "run_dataflow",
    "run_stage",
]
