"""The report on clustering: accuracies against 8 bits beside the sums of squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.cells.common import markdown_table, percent, points

__all__ = ["report"]

INTRODUCTION = (
    "Pruned once to 80 % with fine-tuning (one seed), then clustered layer by layer; activations of"
    " 8 bits, biases of 16. Differences in percentage points against 8-bit quantisation of the same"
    " pruned network. *Squares* is the within-cluster sum of squares as a multiple of the least that"
    " there is, averaged over the layers. *none* puts each weight on the grid by itself, with the"
    " step of the least error at the layer's outputs. *Fitted*: levels, codes and biases are then fitted"
    " to the layers' outputs on calibration images, and biases make up for rounding in fine-tuning;"
    " without the fit the step of the grid still has the least error at the outputs, and biases make"
    " up for the mean error. Several seeds: mean, least to most."
)
NOISE = 0.005
"""About one standard error of the accuracy on 10,000 images."""

EXPECTED = {5: 0.01, 4: 0.03}
"""Most points lost against 8 bits, by width."""


def report(results: Mapping[str, dict[str, Any]], out: Path) -> str:
    """The accuracies against 8 bits, beside the sums of squares."""
    parts = [INTRODUCTION]
    eights = {r["network"]: r for r in results.values() if "options" not in r}
    for network, eight in eights.items():
        mine = [
            {**r, "cell": name}
            for name, r in results.items()
            if r["network"] == network and "options" in r
        ]
        parts.append(_heading(eight, mine))
        parts.append(_table(mine, eight, tuned=False))
        parts.append(_table(mine, eight, tuned=True))
        parts.append(_verdict(mine, eight))
    _plot(results, eights, out)
    parts.append("![Squares and accuracy of the starts](cluster.png)")
    return "\n\n".join(part for part in parts if part)


def _heading(eight: Mapping[str, Any], mine: list[dict[str, Any]]) -> str:
    layers = ", ".join(
        f"{name} {percent(layer['zero'] / layer['weights'], 0)}"
        for name, layer in eight["layers"].items()
    )
    text = (
        f"### {eight['network']}\n\nPruned, in floats: {percent(eight['test']['float'])} on test;"
        f" at 8 bits: {percent(eight['test']['integer'])}. Zero by layer: {layers}."
    )
    if mine:
        text += (
            f" The network before pruning: {percent(mine[0]['test']['float'])} on test,"
            f" {percent(mine[0]['search']['float'])} on the search set"
        )
        seen = mine[0]["search"]["seen_in_training"]
        text += ", which it saw in training." if seen else "."
        found = next((r for r in mine if _kind(r).form == "4 bits, linear"), None)
        if found:
            store = found["storage"]
            text += (
                f" Weights of `{found['cell']}`: {store['dense']:,} bits stored ({store['float32']:,} in"
                f" float32); with a bit for each weight that tells zeros, {store['bitmap']:,}. The"
                " generated hardware stores and multiplies zeros like other codes."
            )
    return text


class _Kind(NamedTuple):
    """What results of several seeds have in common."""

    bits: int
    codebook: bool
    refit: bool
    seeding: str
    tuned: bool
    power_of_two: bool

    @property
    def form(self) -> str:
        """In words, without the start."""
        words = [f"{self.bits} bits", "codebook" if self.codebook else "linear"]
        words += ["step 2^n"] if self.power_of_two else []
        return ", ".join([*words, *(["tuned"] if self.tuned else [])])


def _kind(result: Mapping[str, Any]) -> _Kind:
    o = result["options"]
    return _Kind(
        bits=o["bits"],
        codebook=o["codebook"],
        refit=o.get("refit", False),  # results from before there was a fit do not tell
        seeding=o["seeding"],
        tuned=o["tune_epochs"] > 0,
        power_of_two=o["power_of_two"],
    )


def _groups(results: Iterable[dict[str, Any]]) -> dict[_Kind, list[dict[str, Any]]]:
    groups: dict[_Kind, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(_kind(result), []).append(result)
    return groups


def _test(found: Iterable[dict[str, Any]]) -> float:
    return mean(result["test"]["integer"] for result in found)


def _squares(result: Mapping[str, Any]) -> float:
    return mean(
        layer["within_cluster_squares"] / layer["least_squares"] if layer["least_squares"] else 1.0
        for layer in result["layers"].values()
    )


def _table(mine: Iterable[dict[str, Any]], eight: Mapping[str, Any], *, tuned: bool) -> str:
    groups = {kind: found for kind, found in _groups(mine).items() if kind.tuned == tuned}
    if not groups:
        return ""
    rows = []
    for kind, found in sorted(
        groups.items(), key=lambda item: (item[0].codebook, -item[0].bits, item[0].refit)
    ):
        tests = [r["test"]["integer"] for r in found]
        spread = f" ({percent(min(tests))} to {percent(max(tests))})" if len(tests) > 1 else ""
        rows.append(
            (
                ("codebook" if kind.codebook else "linear")
                + (", step 2^n" if kind.power_of_two else ""),
                kind.bits,
                "yes" if kind.refit else "no",
                kind.seeding,
                "-" if kind.seeding == "none" else f"{mean(_squares(r) for r in found):.3f}",
                percent(mean(tests)) + spread,
                points(eight["test"]["integer"] - mean(tests)),
                points(eight["search"]["integer"] - mean(r["search"]["integer"] for r in found)),
            )
        )
    title = "With quantisation-aware fine-tuning" if tuned else "Without further training"
    header = ("form", "bits", "fitted", "start", "squares", "test", "lost, test", "lost, search")
    return f"{title}:\n\n{markdown_table(header, rows)}"


def _verdict(mine: list[dict[str, Any]], eight: Mapping[str, Any]) -> str:
    """The expectations, and where the swarm stands."""
    groups, lines = _groups(mine), []
    for bits, most in EXPECTED.items():
        for tuned in (False, True):
            for refit in (False, True):
                found = groups.get(_Kind(bits, False, refit, "pso", tuned, False))
                if found:
                    lost = eight["test"]["integer"] - _test(found)
                    lines.append(
                        f"- {bits} bits, particle swarm, linear, {_how(refit)},"
                        f" {'tuned' if tuned else 'not tuned'}: {points(lost)} points lost, expected"
                        f" at most {points(most, 0)}: {'met' if lost <= most else 'missed'}."
                    )
    for refit in (False, True):
        lines += _swarm(groups, refit=refit)
    lines += _alone(groups)
    return "\n".join(lines)


def _how(refit: bool) -> str:
    return "fitted" if refit else "without the fit"


class _Places:
    """Where something is more accurate, is not, or hardly differs."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {"It is": [], "It is not": [], "It hardly differs": []}

    def add(self, gain: float, where: str) -> None:
        """Count a gain of accuracy."""
        word = "It hardly differs" if abs(gain) <= NOISE else "It is" if gain > 0 else "It is not"
        self._found[word].append(where)

    def __str__(self) -> str:
        return ". ".join(f"{word} at {'; '.join(f)}" for word, f in self._found.items() if f)


def _swarm(groups: Mapping[_Kind, list[dict[str, Any]]], *, refit: bool) -> list[str]:
    """Where the swarm's start does better than exact clusters, with or without the fit."""
    lines, places = [], _Places()
    for kind, other in groups.items():
        swarm = groups.get(kind._replace(seeding="pso"))
        if kind.seeding != "exact" or kind.refit != refit or swarm is None:
            continue
        gain = _test(swarm) - _test(other)
        places.add(gain, kind.form)
        lines.append(
            f"- {kind.form}, {_how(refit)}: the swarm's clusters have"
            f" {mean(_squares(r) for r in swarm):.3f} times the squares of exact clusters"
            f"{' before the fit' if refit else ''}, and {points(abs(gain))} points"
            f" {'more' if gain >= 0 else 'less'} accuracy on test."
        )
    if lines:
        lines.append(
            f"- Is the swarm more accurate on test than exact clusters, {_how(refit)}, by more than"
            f" {points(NOISE, 1)} points? {places}. In squares it never is"
            " better, as exact clusters have the least."
        )
    return lines


def _alone(groups: Mapping[_Kind, list[dict[str, Any]]]) -> list[str]:
    """Where each weight on the grid by itself does better than the best start of clusters."""
    places = _Places()
    for kind, found in groups.items():
        others = [
            other
            for start, other in groups.items()
            if start.seeding != "none" and start._replace(seeding="none") == kind
        ]
        if kind.seeding != "none" or not others:
            continue
        best = max(others, key=_test)
        gain = _test(found) - _test(best)
        more = (
            f"{points(abs(gain))} {'more' if gain >= 0 else 'less'} than {_kind(best[0]).seeding}"
        )
        places.add(gain, f"{kind.form}, {_how(kind.refit)} ({more})")
    if not str(places):
        return []
    text = (
        "- Is each weight on the grid by itself (*none*) more accurate on test than the best start of"
        f" clusters, by more than {points(NOISE, 1)} points? {places}."
    )
    return [text]


COLOURS = {
    (5, False): "tab:blue",
    (4, False): "tab:orange",
    (5, True): "tab:cyan",
    (4, True): "tab:red",
}
"""Of a plot's dots, by bits and by whether there is a codebook."""

MARKERS = {"pso": "o", "exact": "s", "k-means++": "^", "uniform": "D", "random": "v"}
"""Of a plot's dots, by the start of K-means."""


def _plot(
    results: Mapping[str, dict[str, Any]], eights: Mapping[str, dict[str, Any]], out: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * max(1, len(eights)), 4), layout="constrained")
    axes = figure.subplots(1, max(1, len(eights)), squeeze=False)[0]
    for axis, (network, eight) in zip(axes, eights.items(), strict=False):
        shown = [
            r
            for r in results.values()
            if r["network"] == network
            and "options" in r
            and not _kind(r).tuned
            and not _kind(r).refit
        ]
        for (bits, codebook), colour in COLOURS.items():
            alike = [r for r in shown if _kind(r)[:2] == (bits, codebook)]
            for seeding, marker in MARKERS.items():
                dots = [
                    (_squares(r), 100 * r["test"]["integer"])
                    for r in alike
                    if r["options"]["seeding"] == seeding
                ]
                if dots:
                    axis.scatter(*zip(*dots, strict=True), marker=marker, color=colour, s=24)
            if alike:  # an entry of the legend alone
                label = f"{bits} bits, {'codebook' if codebook else 'linear'}"
                axis.plot([], [], color=colour, linewidth=4, label=label)
        for seeding, marker in MARKERS.items():
            if any(r["options"]["seeding"] == seeding for r in shown):
                settings = {"marker": marker, "linestyle": "", "markersize": 5}
                axis.plot([], [], color="grey", label=f"start: {seeding}", **settings)
        axis.axhline(100 * eight["test"]["integer"], color="grey", linestyle=":", label="8 bits")
        axis.set(
            title=f"{network}, without the fit", xlabel="squares / least", ylabel="test accuracy, %"
        )
        axis.legend(fontsize=7)
    figure.savefig(out / "cluster.png", dpi=120, metadata={"Software": None})
