"""The baseline: uniform quantisation of the reference networks, nothing searched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cells.common import Cases, Cell, markdown_table, percent, points
from quant.config import LayerBits, QuantConfig
from quant.methods.linear import linear

VERSION = 1
"""Of the method: raise it when its results change, so that all cells are measured again."""

BITS = (8, 6, 5, 4, 3)
FULL = ("lenet5-cifar10", "lenet5-mnist", "resnet8-cifar10")
QUICK = ("lenet5-digits", "digits-tiny")


def cells(quick: bool) -> list[Cell]:
    """A cell for each network and width."""
    return [
        Cell(
            name=f"linear-{network}-b{bits}",
            run=partial(_run, network=network, bits=bits),
            config={"bits": bits},
        )
        for network in (QUICK if quick else FULL)
        for bits in BITS
    ]


def _run(cases: Cases, *, network: str, bits: int) -> dict[str, Any]:
    case = cases.case(network)
    config = QuantConfig(bits=LayerBits(weights=bits, biases=16, activations=8))
    result = linear(
        case.graph, preprocess=case.preprocess, splits=case.splits, config=config, name=network
    )
    return {"network": network, "bits": bits, **cases.keep(result)}


def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """The accuracies of the widths."""
    rows = [
        (
            result["network"],
            result["bits"],
            percent(result["test"]["float"]),
            percent(result["test"]["integer"]),
            points(result["test"]["drop"]),
            percent(result["search"]["float"]) + (" *" if seen else ""),
            points(result["search"]["drop"]),
        )
        for result in results.values()
        for seen in [result["search"]["seen_in_training"]]
    ]
    text = (
        "Weights of the given width, biases of 16 bits, activations of 8; a power-of-two scale for each"
        " tensor. Drops in percentage points.\n\n"
    )
    header = (
        *("network", "bits", "float, test", "integer, test", "drop, test"),
        *("float, search", "drop, search"),
    )
    text += markdown_table(header, rows)
    if any(result["search"]["seen_in_training"] for result in results.values()):
        text += (
            "\n\n\\* The network was trained on its search images, or may have been: its accuracy on"
            " them is no estimate for new images."
        )
    return text
