"""The audit's facts, derived from the stages, hold for emitted designs and fail for changed ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwgen.backends.rtl import generate
from hwgen.cost.audit import audit
from hwgen.errors import Mismatch
from hwgen.flow.facts import audit_facts
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stages import Mac, Window
from tests.backends.test_design import buildable, random_dataflow


def a_dataflow(seed: int) -> Dataflow | None:
    network = buildable(seed)
    return None if network is None else random_dataflow(network, seed)


def test_facts_hold_for_random_designs() -> None:
    multipliers = memories = 0
    for seed in range(40):
        dataflow = a_dataflow(seed)
        if dataflow is None:
            continue
        design = generate(dataflow)
        report = audit(design.verilog, audit_facts(dataflow, design.top))
        multipliers += report.multipliers
        memories += report.memories
    assert multipliers > 100
    assert memories > 100


@pytest.mark.parametrize(
    "what", ["accumulator", "weight", "weight width", "vector ring", "window ring"]
)
def test_a_changed_dataflow_is_told_from_its_text(what: str) -> None:
    """The text of one dataflow against the facts of another that differs in one thing."""
    dataflow = a_dataflow(10)
    assert dataflow is not None
    design = generate(dataflow)
    stages = list(dataflow.stages)
    kind = Window if what == "window ring" else Mac
    place = max(k for k, s in enumerate(stages) if isinstance(s, kind))
    stage = stages[place]
    if isinstance(stage, Window):
        stages[place] = replace(stage, depth=stage.depth + 1)
    elif isinstance(stage, Mac) and what == "accumulator":
        stages[place] = replace(stage, accumulator_width=stage.accumulator_width - 1)
    elif isinstance(stage, Mac) and what == "weight":
        weights = stage.weights.copy()
        weights.reshape(-1)[0] ^= 1
        stages[place] = replace(stage, weights=weights)
    elif isinstance(stage, Mac) and what == "weight width":
        stages[place] = replace(stage, weight_width=stage.weight_width + 1)
    elif isinstance(stage, Mac):
        stages[place] = replace(stage, capacity=stage.capacity + 1)
    with pytest.raises(Mismatch, match=stage.name):
        audit(design.verilog, audit_facts(replace(dataflow, stages=tuple(stages)), design.top))
