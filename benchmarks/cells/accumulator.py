"""Accumulators of a given width: the usual quantiser, pairs, fitted weights, fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.cells.common import Cases, Cell, markdown_table, percent, points
from quant.methods.accumulator import AccumulatorOptions, Bound, accumulator

VERSION = 1
"""Of the method: raise it when its results change, so that all cells are measured again."""

BITS = (16, 14, 12)
EPOCHS = {
    ("lenet5-cifar10", 14): 4,
    ("lenet5-cifar10", 12): 6,
    ("lenet5-mnist", 14): 2,
    ("lenet5-mnist", 12): 2,
    ("lenet5-digits", 12): 4,
}
EXPECTED: Mapping[int, tuple[float, float | None]] = {
    16: (0.01, None),
    14: (0.03, 0.015),
    12: (0.05, 0.05),
}
"""Largest drops asked for: without and with fine-tuning. At 12 bits fine-tuning may be used."""

NOTHING = 0.0005
"""A drop below which all networks are alike."""

AFTER = ("tuned",)
ROWS = ("control", "pairs", "post-training", "tuned")


def cells(quick: bool) -> list[Cell]:
    """Networks and widths under the weights' bound; the other two bounds on one network."""
    if quick:
        wanted = [
            ("lenet5-digits", 16, Bound.WEIGHTS),
            ("lenet5-digits", 12, Bound.WEIGHTS),
            ("lenet5-digits", 16, Bound.FORMATS),
            ("lenet5-digits", 12, Bound.CALIBRATED),
        ]
    else:
        networks = ("lenet5-cifar10", "lenet5-mnist", "resnet8-cifar10")
        wanted = [(network, bits, Bound.WEIGHTS) for network in networks for bits in BITS]
        others = (Bound.FORMATS, Bound.CALIBRATED)
        wanted += [("lenet5-cifar10", bits, bound) for bound in others for bits in BITS]
    return [_cell(network, bits, bound, quick) for network, bits, bound in wanted]


def _cell(network: str, bits: int, bound: Bound, quick: bool) -> Cell:
    deep = network.startswith("resnet")
    options = AccumulatorOptions(
        bits=bits,
        bound=bound,
        evaluations=20 if quick else 40 if deep else 100,
        beam=1 if quick or deep else 2,
        images=None if quick else 1000 if deep else 2000,
        epochs=EPOCHS.get((network, bits), 0) if bound is Bound.WEIGHTS else 0,
        mirror="cifar10" in network,
    )
    name = f"accumulator-{network}-p{bits}-{bound.value}"
    run = partial(_run, name=name, network=network, options=options)
    return Cell(name=name, run=run, config=options.json())


def _run(cases: Cases, *, name: str, network: str, options: AccumulatorOptions) -> dict[str, Any]:
    case = cases.case(network)
    state = cases.state(name, VERSION, options.json())
    result = accumulator(
        case.graph,
        preprocess=case.preprocess,
        splits=case.splits,
        options=options,
        name=network,
        progress=cases.progress,
        state=state,
    )
    state.unlink(missing_ok=True)
    return {"network": network, **cases.keep(result)}


def _drops(result: Mapping[str, Any]) -> dict[str, float]:
    """Drops on the test set: the control's, the pairs', the best post-training, the tuned."""
    exact = result["test"]["float"]
    stages = {stage["stage"]: stage for stage in result["stages"]}
    found = {r: exact - stages[r]["test"] for r in ("control", "pairs") if r in stages}
    trained = [stage for name, stage in stages.items() if name not in AFTER]
    # Of those without fine-tuning the best on the search set, as the method would choose.
    best = max(trained, key=lambda s: (s["search"]["accuracy"], -s["search"]["loss"]))
    if result["options"]["bound"] == Bound.CALIBRATED.value:  # the chosen one does not wrap
        best = stages[result["chosen"]]
    found["post-training"] = exact - best["test"]
    if "tuned" in stages:
        found["tuned"] = exact - stages["tuned"]["test"]
    return found


def _verdict(result: Mapping[str, Any], drops: Mapping[str, float]) -> str:
    """What was asked of a cell, and whether it was reached."""
    bits, bound = result["options"]["bits"], result["options"]["bound"]
    if bound != Bound.WEIGHTS.value or bits not in EXPECTED:
        return "-"
    plain, tuned = EXPECTED[bits]
    parts = [(drops["post-training"], plain, "post-training")]
    if bits == 12:
        how = "fine-tuned" if result["options"]["epochs"] else "without fine-tuning"
        parts = [(result["test"]["drop"], plain, how)]
    elif tuned is not None and "tuned" in drops:
        parts.append((result["test"]["drop"], tuned, "fine-tuned"))
    return "; ".join(
        f"{what} at most {points(limit, 1)}: {_word(drop <= limit)}" for drop, limit, what in parts
    )


def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """Drops of every stage beside what was expected, and what would wrap."""
    text = (
        "Drops on the test set in percentage points, from the float network. *Control*: one width of"
        " data everywhere, weights as wide as the accumulator allows, one power-of-two scale a layer,"
        " nearest integers, biases corrected. *Pairs*: the same quantiser, the pairs of widths that"
        " fill the accumulator searched jointly. *Post-training*: weights fitted to the bound, the"
        " best on the search set of all stages without fine-tuning. *Tuned*: short fine-tuning from"
        " there. Under the bounds from formats and from weights no input overflows.\n\n"
    )
    rows, marked = [], False
    for result in results.values():
        drops = _drops(result)
        seen = result["search"]["seen_in_training"]
        marked |= seen
        rows.append(
            (
                result["network"],
                result["options"]["bits"],
                result["options"]["bound"],
                percent(result["test"]["float"]),
                *(points(drops.get(row)) for row in ROWS),
                result["chosen"],
                points(result["test"]["drop"]),
                points(result["search"]["drop"]) + (" *" if seen else ""),
                _verdict(result, drops),
            )
        )
    header = (
        "network",
        "P",
        "bound",
        "float",
        *ROWS,
        "chosen",
        "its drop",
        "on search",
        "expected",
    )
    text += markdown_table(header, rows)
    if marked:
        text += (
            "\n\n\\* The network was trained on its search images, or may have been: its accuracy on"
            " them is no estimate for new images."
        )
    text += "\n\n" + "\n".join(_expectations(list(results.values())))
    text += _wraps(results)
    for network in dict.fromkeys(result["network"] for result in results.values()):
        name = _plot(network, [r for r in results.values() if r["network"] == network], out)
        text += f"\n\n![Drops of {network} by accumulator width]({name})"
    return text


def _expectations(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is asked of the method as a whole, computed from all cells."""
    mine = [r for r in results if r["options"]["bound"] == Bound.WEIGHTS.value]
    lines = []
    for bits in sorted({r["options"]["bits"] for r in mine}, reverse=True):
        alike = [(r, _drops(r)) for r in mine if r["options"]["bits"] == bits]
        told = [
            f"{r['network']} {points(drops['post-training'])} against {points(drops['control'])}"
            for r, drops in alike
        ]
        # Where the control loses next to nothing there is nothing to beat but noise.
        beaten = all(d["post-training"] < max(d["control"], NOTHING) for _, d in alike)
        lines.append(
            f"- {bits} bits, without fine-tuning less is lost than by the simple quantiser (up to"
            f" {points(NOTHING)} points count as nothing): {'; '.join(told)}: {_word(beaten)}."
        )
    sure = [r for r in results if r["options"]["bound"] != Bound.CALIBRATED.value]
    fit = all(r["accumulators"] <= r["options"]["bits"] for r in sure)
    if sure:
        lines.append(
            "- No accumulator of the networks under the bounds from formats and from weights is wider than"
            f" P, by the exact interval of every channel: {_word(fit)}."
        )
    return lines


def _word(met: bool) -> str:
    return "met" if met else "missed"


def _wraps(results: Mapping[str, dict[str, Any]]) -> str:
    """What the calibrated bound lets through."""
    rows = []
    for result in results.values():
        if "wraps" not in result:
            continue
        for kind, found in result["wraps"].items():
            rows.append(
                (
                    result["network"],
                    result["options"]["bits"],
                    result["accumulators"],
                    kind,
                    found["images"],
                    found["accumulators"],
                    found["images_touched"],
                    percent(found["accuracy_if_wrapped"]),
                )
            )
    if not rows:
        return ""
    header = (
        *("network", "P", "bits for any input", "images", "count"),
        *("accumulators beyond P", "images with any", "accuracy if they wrap"),
    )
    return (
        "\n\nThe calibrated bound holds on calibration images. The generated hardware has accumulators"
        " that hold any input; what P bits would not have held:\n\n" + markdown_table(header, rows)
    )


def _plot(network: str, results: list[dict[str, Any]], out: Path) -> str:
    """Drops over widths under the weights' bound; the file's name."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    mine = sorted(
        (r for r in results if r["options"]["bound"] == Bound.WEIGHTS.value),
        key=lambda r: int(r["options"]["bits"]),
    )
    for row in ROWS:
        places = [(r["options"]["bits"], _drops(r).get(row)) for r in mine]
        known = [(bits, 100 * drop) for bits, drop in places if drop is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=row)
    axes.set_xlabel("accumulator width, bits")
    axes.set_ylabel("drop on test, points")
    axes.set_title(network)
    axes.set_xticks([int(r["options"]["bits"]) for r in mine])
    axes.legend()
    axes.grid(alpha=0.3)
    name = f"accumulator-{network}.png"
    figure.savefig(out / name, dpi=120, metadata={"Software": None})
    return name
