"""A search of seconds: a small network on digits, few candidates, parts of epochs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from quant import graph as fg
from quant.checkpoints import load_checkpoint, shipped_checkpoint
from quant.datasets import load_dataset
from quant.graph import FloatGraph
from quant.methods.evolve import OBJECTIVES, EvolveOptions, Objective, evolve
from quant.methods.evolve_individual import Individual
from quant.methods.result import Result
from quant.models import Preprocess
from quant.splits import Splits

__all__ = ["OPTIONS", "case", "objectives", "search"]

OPTIONS: dict[str, Any] = {
    "trials": 6,
    "population": 3,
    "epochs": 0.2,
    "final_epochs": 0.4,
    "finalists": 2,
    "rate": 5e-3,
    "batch": 32,
    "ratio": 2.5,
}


@cache
def case() -> tuple[FloatGraph, Preprocess, Splits]:
    """The network, its preprocessing and the images."""
    data = load_dataset("digits")
    saved = load_checkpoint(shipped_checkpoint("digits-tiny", "digits"))
    pool: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2)}

    def constants(layer: str) -> dict[str, Any]:
        return {kind: saved.state[f"{layer}.{kind}"].numpy() for kind in ("weight", "bias")}

    # By hand: the importer takes seconds to load, and every worker is a process of its own.
    nodes = (
        fg.Input(name="input", inputs=(), size=(1, 32, 32)),
        fg.Conv(name="conv1", inputs=("input",), stride=(2, 2), **constants("conv1")),
        fg.Relu(name="relu1", inputs=("conv1",)),
        fg.MaxPool(name="pool1", inputs=("relu1",), **pool),
        fg.Conv(name="conv2", inputs=("pool1",), **constants("conv2")),
        fg.Relu(name="relu2", inputs=("conv2",)),
        fg.MaxPool(name="pool2", inputs=("relu2",), **pool),
        fg.Flatten(name="flatten", inputs=("pool2",)),
        fg.Linear(name="fc", inputs=("flatten",), **constants("fc")),
    )
    graph = fg.FloatGraph(nodes=nodes, output="fc")
    return graph, saved.preprocess, Splits.of(data, held_out=saved.held_out)


def search(seed: int = 3, **arguments: Any) -> Result:
    """The search, with other options or other arguments of :func:`evolve`."""
    graph, preprocess, splits = case()
    options = {name: arguments.pop(name) for name in list(arguments) if name in CHANGES}
    return evolve(
        arguments.pop("graph", graph),
        preprocess=preprocess,
        splits=splits,
        options=EvolveOptions(**{**OPTIONS, **options}),
        seed=seed,
        **arguments,
    )


CHANGES = set(EvolveOptions.__dataclass_fields__)


def objectives(watch: Callable[[Individual], object]) -> dict[str, Objective]:
    """The default objectives, with a look at every candidate."""

    def error(candidate: Individual) -> float:
        watch(candidate)
        return OBJECTIVES["error"](candidate)

    return {**OBJECTIVES, "error": error}


SHORT: dict[str, Any] = {"trials": 2, "epochs": 0.05, "final_epochs": 0}
"""A search as short as can be."""


def states(study: Path) -> list[str]:
    """States of a study's trials, as SQLite tells them."""
    with sqlite3.connect(study) as file:
        rows = file.execute("SELECT state FROM trials ORDER BY number").fetchall()
    file.close()
    return [row[0] for row in rows]
