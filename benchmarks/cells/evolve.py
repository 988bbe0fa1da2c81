"""NSGA-II over widths and channels, against uniform widths, random search and float training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cells.common import Cases, Cell, markdown_table, percent
from quant.baseline import with_preprocessing
from quant.finetune import finetune
from quant.methods.evolve import EvolveOptions, Sampler, evolve
from quant.methods.result import float_accuracy

VERSION = 2
"""Of the method: raise it when its results change, so that all cells are measured again."""

REFERENCE = 0.7348
"""Test accuracy of the reference LeNet-5 on CIFAR-10. It was trained on all training images, so that
search images flatter candidates that are trained for a short time: the search starts from the
project's own LeNet-5, of the same accuracy, which never saw them."""

HEADLINE = "lenet5-own-cifar10"
RATIO, GAIN, MINUTES, CORES = 6.0, 1.0, 60, 2
"""What is expected of it: times smaller, points above the best float network, minutes on cores."""

FULL = {
    HEADLINE: EvolveOptions(mirror=True),
    "lenet5-mnist": EvolveOptions(
        trials=32, population=8, epochs=0.25, finalists=1, final_epochs=3, final_rate=2e-3
    ),
    "resnet8-cifar10": EvolveOptions(
        trials=10,
        population=5,
        epochs=0.1,
        rate=5e-4,
        finalists=1,
        final_epochs=2,
        final_rate=1e-3,
        mirror=True,
    ),
}
QUICK = {
    "lenet5-digits": EvolveOptions(
        trials=8, population=4, epochs=1, finalists=2, final_epochs=4, batch=32
    ),
}
SAMPLERS = {
    HEADLINE: tuple(Sampler),
    "lenet5-mnist": tuple(Sampler),
    "resnet8-cifar10": (Sampler.NSGA2,),
    "lenet5-digits": tuple(Sampler),
}
FLOAT_RATES = (1.0, 0.25)
"""Rates of the float network's fine-tuning over that of the finalists; the better one counts."""

TITLES = {"nsga2": "NSGA-II", "random": "random search", "uniform": "uniform widths"}
SEED = 0


def cells(quick: bool) -> list[Cell]:
    """A cell for each network and sampler, and one for each network trained on in float."""
    found = []
    for network, options in (QUICK if quick else FULL).items():
        for sampler in SAMPLERS[network]:
            chosen = replace(options, sampler=sampler)
            found.append(
                Cell(
                    name=f"evolve-{network}-{sampler.value}",
                    run=partial(_search, network=network, options=chosen),
                    config={"options": chosen.record(), "seed": SEED},
                )
            )
        found.append(
            Cell(
                name=f"evolve-{network}-float",
                run=partial(_float, network=network, options=options),
                config={"options": options.record(), "seed": SEED, "rates": list(FLOAT_RATES)},
            )
        )
    return found


def _search(cases: Cases, *, network: str, options: EvolveOptions) -> dict[str, Any]:
    """A search; an unfinished one goes on."""
    case = cases.case(network)
    name = f"evolve/{network}-{options.sampler.value}"
    study = cases.state(name, VERSION, options.record(), suffix=".db")
    result = evolve(
        case.graph,
        preprocess=case.preprocess,
        splits=case.splits,
        options=options,
        seed=SEED,
        name=network,
        progress=cases.progress,
        state=study,
    )
    table = cases.keep(result)
    study.unlink()
    return {"network": network, "kind": options.sampler.value, **table}


def _float(cases: Cases, *, network: str, options: EvolveOptions) -> dict[str, Any]:
    """The float network fine-tuned for as many epochs; the rate is chosen on the search set."""
    case = cases.case(network)
    splits, whole = case.splits, with_preprocessing(case.graph, case.preprocess)
    tuned = []
    for share in FLOAT_RATES:
        recipe = replace(
            options.recipe(), epochs=round(options.final_epochs), rate=options.final_rate * share
        )
        graph = finetune(
            whole,
            images=splits.train_images,
            labels=splits.train_labels,
            recipe=recipe,
            seed=SEED,
            progress=cases.progress,
        )
        reached = float_accuracy(graph, splits.search_images, splits.search_labels)
        tuned.append((reached, recipe.rate, graph))
    search, rate, graph = max(tuned, key=lambda item: item[0])
    return {
        "network": network,
        "kind": "float",
        "epochs": round(options.final_epochs),
        "rate": rate,
        "by_rate": {f"{item[1]:g}": item[0] for item in tuned},
        "search": search,
        "test": float_accuracy(graph, splits.test_images, splits.test_labels),
        "seen": case.seen,
    }


def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """A table and plots for each network."""
    networks = list(dict.fromkeys(result["network"] for result in results.values()))
    text = (
        "Re-implemented from the published abstract of MOGAQNN. Every candidate is resized from the"
        " trained network, fine-tuned on its integer grids and scored on the search images; the one"
        " that is chosen is trained for longer and looks at the test images once. The controls have"
        " as many candidates (uniform widths at most as many as there are) with the same short"
        " training, and as many finalists that are trained for longer in rounds, by successive"
        " halving. Hypervolumes count short training alone. Whether the time was kept is known from"
        " `timing.json`: processor seconds, of one thread."
    )
    parts = [text]
    for network in networks:
        mine = {r["kind"]: r for r in results.values() if r["network"] == network}
        parts.append(_section(network, mine, out))
    return "\n\n".join(parts)


def _section(network: str, mine: Mapping[str, dict[str, Any]], out: Path) -> str:
    """One network."""
    searches = {kind: mine[kind] for kind in TITLES if kind in mine}
    rows: list[tuple[object, ...]] = []
    floats = [REFERENCE] if network == HEADLINE else []
    if searches:
        given = next(iter(searches.values()))
        size = given["float_bits"]
        floats.append(given["test"]["float"])
        reached = (percent(given["search"]["float"]), percent(given["test"]["float"]))
        rows.append(("float32, as given", size, "1.0", *reached, "-"))
        if "float" in mine:
            tuned = mine["float"]
            floats.append(tuned["test"])
            title = f"float32, {tuned['epochs']} epochs more"
            rows.append((title, size, "1.0", percent(tuned["search"]), percent(tuned["test"]), "-"))
    for kind, result in searches.items():
        rows.append(
            (
                f"{TITLES[kind]}, {result['evaluations']} candidates",
                result["bits"],
                f"{result['ratio']:.1f}",
                percent(result["search"]["integer"]),
                percent(result["test"]["integer"]),
                f"{result['hypervolume'][-1]:.4f}",
            )
        )
    header = ("network", "bits", "times smaller", "search", "test", "hypervolume")
    text = f"### {network}\n\n{markdown_table(header, rows)}"
    if "nsga2" in searches:
        text += "\n\n" + _verdict(network, searches, floats if "float" in mine else [], out)
        text += f"\n\n![candidates and hypervolume]({_plot(network, searches, out)})"
    if network == HEADLINE:
        text += (
            "\n\nThe search starts from the LeNet-5 that ships with the project: the reference LeNet-5"
            f" ({percent(REFERENCE)} on the test images, counted among the float networks) was trained"
            " on the search images."
        )
    if any(result["search"]["seen_in_training"] for result in searches.values()):
        text += "\n\nThe network as given was trained on the search images, or may have been."
    return text


def _verdict(
    network: str, searches: Mapping[str, dict[str, Any]], floats: Sequence[float], out: Path
) -> str:
    """What was reached beside what was expected, and the network that was found."""
    found = searches["nsga2"]
    expected = network == HEADLINE

    def row(what: str, least: float, reached: float, digits: int) -> tuple[str, ...]:
        values = (f"{value:.{digits}f}" for value in (least, reached))
        return (what, *values, "met" if reached >= least else "missed")

    rows = [row("times smaller than float32", RATIO, found["ratio"], 1)]
    if expected and floats:
        gain = 100 * (found["test"]["integer"] - max(floats))
        rows.append(row("points above the best float network, test images", GAIN, gain, 2))
    volume = found["hypervolume"][-1]
    for kind, result in searches.items():
        if kind != "nsga2":
            other = result["hypervolume"][-1]
            verdict = "met" if volume > other else "missed"
            what = f"hypervolume above that of {TITLES[kind]}"
            rows.append((what, f"{other:.4f}", f"{volume:.4f}", verdict))
    if expected:
        rows.append((f"minutes on {CORES} cores", str(MINUTES), *_in_time(network, out)))
    genes = ", ".join(
        f"{layer} {weights}/{activations} x{factor:g}"
        for layer, (weights, activations, factor) in found["chosen"]["genes"].items()
    )
    table = markdown_table(("NSGA-II", "expected", "reached", ""), rows)
    return (
        f"{table}\n\nIt is candidate {found['chosen']['place'] + 1} of {found['evaluations']}, of which"
        " the first ones are points to start from. Its weights/activations in bits and channel"
        f" factors: {genes}."
    )


def _in_time(network: str, out: Path) -> tuple[str, str]:
    """The processor minutes of NSGA-II by ``timing.json``, and whether it kept the time.

    Cells train on one thread, so that processor time is what they take where nothing else runs.
    """
    try:
        timing = json.loads((out / "timing.json").read_text(encoding="utf-8"))
        taken = timing[f"evolve-{network}-nsga2"]
    except (OSError, ValueError, KeyError):
        return "-", "not measured"
    if "unfinished" in taken:
        return "-", "not measured"
    minutes = taken["cpu_seconds"] / 60
    return f"{minutes:.0f} of one", "met" if minutes <= MINUTES else "missed"


def _plot(network: str, searches: Mapping[str, dict[str, Any]], out: Path) -> str:
    """Candidates and hypervolumes of a network; the file's name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for kind, result in searches.items():
        trials = result["trials"]
        size = [trial["bits"] / 1000 for trial in trials]
        left.scatter(size, [100 * trial["error"] for trial in trials], s=14, label=TITLES[kind])
        volumes = result["hypervolume"]
        right.plot(range(1, len(volumes) + 1), volumes, drawstyle="steps-post", label=TITLES[kind])
    limit = next(iter(searches.values()))["limit"]["max_bits"]
    left.axvline(limit / 1000, color="0.6", linewidth=1, linestyle="--")
    left.set(xlabel="size in 1000 bits", ylabel="error on the search images, %", title=network)
    right.set(xlabel="candidates", ylabel="hypervolume", title="short training only")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    name = f"evolve-{network}.png"
    figure.savefig(out / name, dpi=120, metadata={"Software": None})
    return name
