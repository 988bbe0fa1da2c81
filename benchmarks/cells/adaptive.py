"""Adaptive quantisation by an evolution strategy, against its controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.cells.common import Cases, Cell, markdown_table, percent, points
from quant.config import LayerBits, QuantConfig
from quant.methods.adaptive import AdaptiveOptions, Control, Form, adaptive
from quant.methods.linear import linear

VERSION = 2
"""Of the method: raise it when its results change, so that all cells are measured again."""


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy, from the choice of the images: differences up to that are taken for noise.

    >>> f"{standard_error(0.73, 10_000):.4f}"
    '0.0044'
    """
    return sqrt(accuracy * (1 - accuracy) / images)


PLAIN = (Control.LINEAR, Control.MSE, Control.LLOYD)
"""Controls that are a quantiser of their own."""


PLAIN_NAMES = ("uncorrected", "linear", "baseline", "mse", "lloyd")
"""Quantisers that need no search: linear without and with corrected biases, and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is measured on one network.

    Parameters
    ----------
    network : str
    bits : tuple of int
    seeds : int
        Of the evolution strategy; the controls that draw samples have seed 0.
    evaluations, images : int
        Of each search.
    search : int, optional
        Search images in all, among which the finalists are compared; all by default.
    sampled : tuple of Control
        Controls that get as many evaluations as the strategy.
    """

    network: str
    bits: tuple[int, ...]
    seeds: int
    evaluations: int
    images: int
    search: int | None = None
    sampled: tuple[Control, ...] = (Control.RANDOM,)

    def options(self, bits: int) -> AdaptiveOptions:
        return AdaptiveOptions(bits=bits, evaluations=self.evaluations, images=self.images)


FULL = (
    Study(
        network="lenet5-cifar10",
        bits=(8, 6, 5, 4, 3, 2),
        seeds=3,
        evaluations=200,
        images=3000,
        sampled=(Control.RANDOM, *PLAIN),
    ),
    Study(network="lenet5-mnist", bits=(8, 4, 3, 2), seeds=1, evaluations=200, images=2000),
    Study(
        network="resnet8-cifar10",
        bits=(5, 4),
        seeds=1,
        evaluations=40,
        images=500,
        search=1000,
    ),
    Study(  # much is lost here: longer, and by more images
        network="resnet8-cifar10",
        bits=(3,),
        seeds=1,
        evaluations=100,
        images=1000,
        search=2000,
    ),
)
QUICK = (
    Study(
        network="lenet5-digits",
        bits=(3, 2),
        seeds=1,
        evaluations=60,
        images=200,
        sampled=(Control.RANDOM, *PLAIN),
    ),
)


def cells(quick: bool) -> list[Cell]:
    """A cell for each search; one for each width with the plain quantisers."""
    return [cell for study in (QUICK if quick else FULL) for cell in _cells(study)]


def _cells(study: Study) -> Iterator[Cell]:
    for bits in study.bits:
        begin = f"adaptive-{study.network}-b{bits}"
        yield Cell(
            name=f"{begin}-plain",
            run=partial(_plain, network=study.network, bits=bits, search=study.search),
            config={"bits": bits, "search": study.search, "quantisers": [*PLAIN_NAMES]},
        )
        base = study.options(bits)
        for form in Form:
            for seed in range(study.seeds):
                yield _search_cell(f"{begin}-{form.value}-s{seed}", study, form, base, seed)
        for control in study.sampled:
            forms = tuple(Form) if control is Control.RANDOM else (_form(control),)
            for form in forms:
                name = control.value if control in PLAIN else f"{control.value}-{form.value}"
                options = replace(base, control=control)
                yield _search_cell(f"{begin}-{name}-s0", study, form, options, 0)


def _form(control: Control) -> Form:
    return Form.CODEBOOK if control is Control.LLOYD else Form.CLIP


def _search_cell(name: str, study: Study, form: Form, options: AdaptiveOptions, seed: int) -> Cell:
    options = replace(options, form=form)
    return Cell(
        name=name,
        run=partial(_search, study=study, options=options, seed=seed, name=name),
        config={"options": options.record(), "seed": seed, "search": study.search},
    )


def _search(
    cases: Cases, *, study: Study, options: AdaptiveOptions, seed: int, name: str
) -> dict[str, Any]:
    case = cases.case(study.network, study.search)
    state = cases.state(name, VERSION, options.record(), seed, study.search)
    result = adaptive(
        case.graph,
        preprocess=case.preprocess,
        splits=case.splits,
        options=options,
        seed=seed,
        progress=cases.progress,
        state=state,
    )
    state.unlink(missing_ok=True)
    return {"network": study.network, "bits": options.bits, "kind": "search", **cases.keep(result)}


def _plain(cases: Cases, *, network: str, bits: int, search: int | None) -> dict[str, Any]:
    """The quantisers themselves, one evaluation each, and the baseline at the same widths."""
    case = cases.case(network, search)
    given = {"preprocess": case.preprocess, "splits": case.splits}
    alone = AdaptiveOptions(bits=bits, evaluations=1)
    options = {control.value: replace(alone, control=control) for control in PLAIN}
    options["uncorrected"] = replace(alone, control=Control.LINEAR, correct_biases=False)
    found = {
        name: adaptive(case.graph, **given, options=asked).table()
        for name, asked in options.items()
    }
    widths = QuantConfig(bits=LayerBits(weights=bits, biases=bits, activations=8))
    found["baseline"] = linear(case.graph, **given, config=widths).table()
    kept = {
        name: {"test": table["test"], "search": table["search"]} for name, table in found.items()
    }
    return {"network": network, "bits": bits, "kind": "plain", "quantisers": kept}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was reached at one width of one network: tables of results."""

    network: str
    bits: int
    plain: Mapping[str, Any]
    searches: tuple[Mapping[str, Any], ...]

    def runs(self, form: Form, control: Control | None = None) -> list[Mapping[str, Any]]:
        """The searches of a form, by the strategy or by a control."""
        value = None if control is None else control.value
        return [
            run
            for run in self.searches
            if run["options"]["form"] == form.value and run["options"]["control"] == value
        ]

    def tests(self, form: Form, control: Control | None = None) -> list[float]:
        return [run["test"]["integer"] for run in self.runs(form, control)]

    def controls(self, form: Form) -> dict[str, float]:
        """Test accuracies that a form has to reach, by control."""
        names = ("linear", "baseline", "mse", *(("lloyd",) if form is Form.CODEBOOK else ()))
        found = {name: self.plain[name]["test"]["integer"] for name in names if self.plain}
        for control in Control:
            own = form if control is Control.RANDOM else _form(control)
            if own is not form and control is Control.LLOYD:
                continue
            tests = self.tests(own, control)
            if tests:
                found[f"{control.value}, searched"] = mean(tests)
        return found

    @property
    def images(self) -> int:
        """Test images."""
        tables = [*self.plain.values(), *self.searches]
        return int(tables[0]["test"]["images"])

    @property
    def exact(self) -> float:
        """Test accuracy of the float network."""
        tables = [*self.plain.values(), *self.searches]
        return float(tables[0]["test"]["float"])


def rows_of(results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The results by network and width, widths falling."""
    found = list(results)
    keys = dict.fromkeys((r["network"], r["bits"]) for r in found)
    networks = list(dict.fromkeys(network for network, _ in keys))
    rows = []
    for network, bits in sorted(keys, key=lambda key: (networks.index(key[0]), -key[1])):
        mine = [r for r in found if (r["network"], r["bits"]) == (network, bits)]
        plain = [r["quantisers"] for r in mine if r["kind"] == "plain"]
        rows.append(
            Row(
                network=network,
                bits=bits,
                plain=plain[0] if plain else {},
                searches=tuple(r for r in mine if r["kind"] == "search"),
            )
        )
    return rows


def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """Accuracies of forms and controls, the expectations, the curves."""
    rows = rows_of(results.values())
    parts = [INTRODUCTION, _table(rows), _budget_table(rows), _expectations(rows)]
    plot = out / "adaptive.png"
    if any(row.searches for row in rows):
        _curves(rows, plot)
        parts.append(
            f"![Cross-entropy on the search images of the best network so far]({plot.name})\n\n"
            "Cross-entropy, by which candidates are ranked, of the best network so far on the images"
            " that the search looks at, for each width; left clip bounds, right codebooks."
        )
    return "\n\n".join(part for part in parts if part)


INTRODUCTION = """Re-implemented from the published abstract. Weights and biases have the given width,
activations 8 bits. *Clip*: the bounds of each tensor evolve, levels are uniform with a real scale, what
is stored is multiplied. *Codebook*: all boundaries between the 2^b bins of a tensor evolve, entries have
8 bits and a power-of-two scale. All, controls too, have biases that make up for the mean error of the
weights and of the layers before on 100 calibration images, but for *linear, uncorrected*. *Linear*: the
range without saturation.
*Baseline*: the `linear` method with biases of the same width, a power-of-two scale with the least error
of the layer's outputs. *Random*: samples around the best start of the strategy, as many as the strategy
evaluates, with the strategy's first steps. Searches, random ones too, rank by cross-entropy on a part of
the search images; of the eight best the most accurate on all search images is taken. Accuracies on the
test set; several seeds as mean ± standard deviation; the controls have one seed."""


def _spread(tests: list[float]) -> str:
    if not tests:
        return "-"
    text = percent(mean(tests))
    return text if len(tests) == 1 else f"{text} ± {points(stdev(tests))}"


DROPS = (("search", "drop"), ("test", "drop"), ("test", "relative_drop"))


def _table(rows: list[Row]) -> str:
    """Test accuracies: plain quantisers, then both forms."""
    header = (
        *("network", "bits", "float", "linear, uncorrected", "linear", "baseline", "MSE clip"),
        "Lloyd-Max",
        *("clip, random", "clip, evolved", "codebook, random", "codebook, evolved"),
    )

    def plain(row: Row, name: str) -> str:
        return percent(row.plain[name]["test"]["integer"]) if row.plain else "-"

    lines = [
        (
            row.network,
            row.bits,
            percent(row.exact),
            *(plain(row, name) for name in PLAIN_NAMES),
            *(
                _spread(row.tests(form, control))
                for form in Form
                for control in (Control.RANDOM, None)
            ),
        )
        for row in rows
    ]
    text = markdown_table(header, lines)
    drops = [
        (
            row.network,
            row.bits,
            *(
                points(mean(values)) if values else "-"
                for form in Form
                for part, key in DROPS
                for values in ([run[part][key] for run in row.runs(form)],)
            ),
        )
        for row in rows
    ]
    header = (
        *("network", "bits"),
        *(
            f"{form.value}, {part}{' relative' * (key != 'drop')}"
            for form in Form
            for part, key in DROPS
        ),
    )
    seen = any(run["search"]["seen_in_training"] for row in rows for run in row.searches)
    note = (
        "\n\nThe float networks were trained on the search images, or may have been: accuracies on"
        " them are too good, so that the drop is given on both sets."
        if seen
        else ""
    )
    return (
        f"{text}\n\nPoints below the float network, all search images and test images, and the latter as"
        " percent of the float network's accuracy:\n\n"
        f"{markdown_table(header, drops)}{note}"
    )


def _budget_table(rows: list[Row]) -> str:
    """The plain quantisers with the strategy's budget spent on samples around them."""
    kept = [row for row in rows if any(row.tests(_form(c), c) for c in PLAIN)]
    if not kept:
        return ""
    lines = [
        (row.network, row.bits, *(_spread(row.tests(_form(c), c)) for c in PLAIN)) for row in kept
    ]
    header = ("network", "bits", "linear", "MSE clip", "Lloyd-Max")
    return (
        "The plain quantisers with as many evaluations as the strategy has, spent on random samples"
        f" around them:\n\n{markdown_table(header, lines)}"
    )


def _word(met: bool, *, whole: bool) -> str:
    """The verdict, where all is there that it is made of."""
    return ("met" if met else "missed") if whole else "not all run"


def _is_whole(row: Row, form: Form, study: Study) -> bool:
    """Whether all seeds and all controls of a form have been run."""
    controls = [
        c for c in study.sampled if form is Form.CODEBOOK or c is Control.RANDOM or _form(c) is form
    ]
    searched = all(
        row.runs(form if control is Control.RANDOM else _form(control), control)
        for control in controls
    )
    return bool(row.plain) and searched and len(row.tests(form)) == study.seeds


def _expectations(rows: list[Row]) -> str:
    """What was expected on LeNet-5 and CIFAR-10, and what came."""
    lines = []
    limits = {(8, Form.CLIP): 0.002, (8, Form.CODEBOOK): 0.002}
    limits |= {(4, Form.CLIP): 0.03, (4, Form.CODEBOOK): 0.015}
    studies = {study.network: study for study in (*FULL, *QUICK)}
    for row in rows:
        study = studies[row.network]
        for form in Form:
            tests = row.tests(form)
            if not tests:
                continue
            where = f"{row.network}, {row.bits} bits, {form.value}"
            limit = limits.get((row.bits, form))
            if limit is not None and row.network == "lenet5-cifar10":
                drop = row.exact - mean(tests)
                met = _word(drop <= limit, whole=len(tests) == study.seeds)
                wanted = f"drop at most {points(limit)}"
                lines.append((where, wanted, points(drop), len(tests), met))
            controls = row.controls(form)
            if controls:
                best = max(controls, key=lambda name: controls[name])
                gain = mean(tests) - controls[best]
                noise = standard_error(mean(tests), row.images)
                met = _word(gain >= -noise, whole=_is_whole(row, form, study))
                wanted = f"not below the best control ({best}) by more than {points(noise)}"
                lines.append((where, wanted, points(gain), len(tests), met))
    if not lines:
        return ""
    text = (
        "Against the best control, what is within one standard error of an accuracy on that many test"
        " images, sqrt(p (1 - p) / n), counts as met."
    )
    return f"{markdown_table(('on test', 'expected', 'points', 'seeds', ''), lines)}\n\n{text}"


def _curves(rows: list[Row], path: Path) -> None:
    """Draw the least cross-entropy so far over evaluations."""
    rows = [row for row in rows if row.searches]
    figure = Figure(figsize=(9, 2.0 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(Form), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, form in zip(line, Form, strict=True):
            for control, colour, label in (
                (Control.RANDOM, "0.55", "random"),
                (None, "tab:blue", "evolved"),
            ):
                for place, run in enumerate(row.runs(form, control)):
                    steps = [(p["evaluations"], p["loss"]) for p in run["history"]]
                    steps.append((run["evaluations"], steps[-1][1]))
                    axis.plot(
                        *zip(*steps, strict=True),
                        drawstyle="steps-post",
                        color=colour,
                        linewidth=1.2,
                        label=None if place else label,
                    )
            axis.set_title(f"{row.network}, {row.bits} bits, {form.value}", fontsize=8)
            axis.tick_params(labelsize=7)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7, frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("cross-entropy", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
