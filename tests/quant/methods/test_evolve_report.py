"""What the benchmark says of the search: each figure beside what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cells.evolve import HEADLINE, report

CELL = f"evolve-{HEADLINE}-nsga2"


def searched(kind: str, volume: float, test: float) -> dict[str, Any]:
    """The parts of a search's result that the report reads."""
    return {
        "network": HEADLINE,
        "kind": kind,
        "float_bits": 6000,
        "bits": 900,
        "ratio": 6000 / 900,
        "search": {"float": 0.74, "integer": 0.76, "seen_in_training": False},
        "test": {"float": 0.7345, "integer": test},
        "hypervolume": [0.1, volume],
        "evaluations": 2,
        "trials": [{"bits": 900, "error": 0.3}, {"bits": 2000, "error": 0.25}],
        "limit": {"max_bits": 1000},
        "chosen": {"place": 1, "genes": {"conv1": [4, 8, 2.0]}},
    }


def results(test: float) -> dict[str, dict[str, Any]]:
    tuned = {"network": HEADLINE, "kind": "float", "epochs": 30, "search": 0.745, "test": 0.74}
    return {
        "a": searched("nsga2", 0.4, test),
        "b": searched("random", 0.3, 0.7),
        "c": searched("uniform", 0.45, 0.7),
        "d": tuned,
    }


@pytest.mark.parametrize(
    "timing, verdict",
    [
        ({"seconds": 9000.0, "cpu_seconds": 3599.0}, "60 of one | met"),
        ({"seconds": 9000.0, "cpu_seconds": 3661.0}, "61 of one | missed"),
        ({"seconds": 20.0, "cpu_seconds": 10.0, "unfinished": "abc"}, "- | not measured"),
        (None, "- | not measured"),
    ],
)
def test_every_expectation_is_met_or_missed(tmp_path: Path, timing: Any, verdict: str) -> None:
    if timing is not None:
        (tmp_path / "timing.json").write_text(json.dumps({CELL: timing}))
    text = report(results(test=0.7512), tmp_path)
    assert "| times smaller than float32 | 6.0 | 6.7 | met |" in text
    assert "| points above the best float network, test images | 1.00 | 1.12 | met |" in text
    assert "| hypervolume above that of random search | 0.3000 | 0.4000 | met |" in text
    assert "| hypervolume above that of uniform widths | 0.4500 | 0.4000 | missed |" in text
    assert f"| minutes on 2 cores | 60 | {verdict} |" in text
    assert "It is candidate 2 of 2" in text
    assert "conv1 4/8 x2" in text
    assert (tmp_path / f"evolve-{HEADLINE}.png").stat().st_size > 0


def test_a_gain_that_is_too_small(tmp_path: Path) -> None:
    """The fine-tuned float network counts where it is the better one."""
    text = report(results(test=0.7490), tmp_path)
    assert "| points above the best float network, test images | 1.00 | 0.90 | missed |" in text
    some = {key: value for key, value in results(test=0.75).items() if key != "d"}
    assert "points above" not in report(some, tmp_path)
