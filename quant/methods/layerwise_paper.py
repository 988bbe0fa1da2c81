"""The paper's search on the float network, and the integer network of its formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.ir import Fixed, Network, Rounding
from quant import graph as fg
from quant.assemble import Assembler
from quant.formats import Calibration, choose_format
from quant.grouping import group_nodes, never_negative
from quant.methods.layerwise_float import RoundedFloat
from quant.methods.layerwise_walk import START, WIDER, Kind, Symmetric, allowed, start_format, walk
from quant.plan import LayerPlan, Plan, tensor_scale

__all__ = ["PaperSearch", "largest_values", "paper_assembler", "paper_cost", "paper_network"]

Formats = dict[tuple[Kind, str], Symmetric]

NORM_BITS = 16
"""Width of what the integer network keeps where the paper keeps floats: batch norms and joins."""


@dataclass(kw_only=True, eq=False)
class PaperSearch:
    """The walk through weights, biases and activations; resumable after every layer.

    Parameters
    ----------
    judge : RoundedFloat
        Anything with its ``correct``, ``choose``, ``restart`` and ``float_correct``.
    layers : tuple of str
        Convolutions and linear layers, in order.
    largest : mapping
        Largest magnitude by kind and layer.
    tolerance : float
        The paper's T.
    """

    judge: RoundedFloat
    layers: tuple[str, ...]
    largest: Mapping[tuple[Kind, str], float]
    tolerance: float
    chosen: Formats = field(default_factory=dict)
    drops: list[dict[str, Any]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    evaluations: int = 0

    def state(self) -> dict[str, Any]:
        """How far the search is, as JSON values."""
        return {"drops": self.drops, "starts": self.starts, "evaluations": self.evaluations}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.drops, self.starts = list(state["drops"]), dict(state["starts"])
        self.evaluations = state["evaluations"]
        for entry in self.drops:
            form = Symmetric(width=entry["width"], frac=entry["frac"])
            self.chosen[Kind(entry["kind"]), entry["layer"]] = form

    def binding(self) -> str:
        """The layer whose choice came closest to its limit, or went furthest above it."""

        def excess(entry: Mapping[str, Any]) -> float:
            return float(entry["drop"] - entry["allowed"])

        return str(max(self.drops, key=excess)["layer"])

    def run(self, save: Callable[[], object], advance: Callable[[int, int, str], object]) -> None:
        """Search, from where the state stands; ``save`` is called after every layer."""
        total = len(Kind) * len(self.layers)
        for (kind, layer), form in self.chosen.items():
            self.judge.choose(kind, layer, form)
        for kind in Kind:
            if kind.value not in self.starts:
                self.starts[kind.value] = self._start(kind)
                save()
            self.judge.restart()
            for index, layer in enumerate(self.layers, 1):
                if (kind, layer) in self.chosen:
                    continue
                self._layer(kind, layer, index)
                save()
                done = self.drops[-1]
                text = f"{kind.value} of {layer}: {done['width']} bits"
                advance(len(self.chosen), total, text)

    def drop(self, correct: int) -> float:
        """The relative drop of so many right answers."""
        base = self.judge.float_correct
        return (base - correct) / base if base else 0.0

    def floor(self, limit: float) -> int:
        """The fewest right answers that a relative drop allows."""
        base = self.judge.float_correct
        return base - int(np.floor(limit * base + 1e-9))

    def _start(self, kind: Kind) -> int:
        """The starting width: wider where the kind alone, at its start, loses more than T."""
        for layer in self.layers:
            self.judge.choose(kind, layer, start_format(self.largest[kind, layer], START[kind]))
        alone = self._alone(kind)
        return START[kind] + (0 if alone else WIDER)

    def _alone(self, kind: Kind) -> bool:
        others = {key: form for key, form in self.chosen.items() if key[0] is not kind}
        self.judge.clear(keep=frozenset({kind}))
        self.judge.restart()
        self.evaluations += 1
        first = self.layers[0]
        floor = self.floor(self.tolerance)
        enough = self.judge.correct(kind, first, self._first(kind), floor) is not None
        self.judge.clear()
        for (other, layer), form in others.items():
            self.judge.choose(other, layer, form)
        return enough

    def _first(self, kind: Kind) -> Symmetric:
        return start_format(self.largest[kind, self.layers[0]], START[kind])

    def _layer(self, kind: Kind, layer: str, index: int) -> None:
        start = start_format(self.largest[kind, layer], self.starts[kind.value])
        tried: dict[Symmetric, tuple[float, float | None]] = {}

        def trial(form: Symmetric, limit: float) -> float | None:
            known = tried.get(form)
            if known is not None and (known[1] is not None or limit <= known[0]):
                drop = known[1]
                return drop if drop is None or drop <= limit + 1e-12 else None
            self.evaluations += 1
            correct = self.judge.correct(kind, layer, form, self.floor(limit))
            drop = None if correct is None else self.drop(correct)
            tried[form] = (limit, drop)
            return drop

        limit = allowed(kind, index, len(self.layers), self.tolerance)
        form, drop = walk(trial, start, limit)
        self.judge.choose(kind, layer, form)
        self.chosen[kind, layer] = form
        self.drops.append(
            {
                "kind": kind.value,
                "layer": layer,
                "width": form.width,
                "frac": form.frac,
                "allowed": limit,
                "drop": drop,
                "evaluations": self.evaluations,
            }
        )


def largest_values(
    graph: fg.FloatGraph, images: NDArray[np.uint8]
) -> dict[tuple[Kind, str], float]:
    """Largest magnitudes by kind and layer; of activations on calibration images."""
    largest: dict[tuple[Kind, str], float] = {}
    outputs = {}
    for group in group_nodes(graph):
        if isinstance(group.node, fg.Conv | fg.Linear):
            largest[Kind.WEIGHTS, group.node.name] = float(np.abs(group.node.weight).max())
            largest[Kind.BIASES, group.node.name] = float(np.abs(group.node.bias).max())
            outputs[group.node.name] = (group.relu or group.node).name
    seen = dict.fromkeys(outputs, 0.0)
    batches = graph.activations(torch.tensor(images), dtype=torch.float32, batch_size=50)
    for values in batches:
        for layer, tensor in outputs.items():
            seen[layer] = max(seen[layer], float(values[tensor].abs().max()))
    return largest | {(Kind.ACTIVATIONS, layer): value for layer, value in seen.items()}


def paper_cost(graph: fg.FloatGraph, chosen: Formats) -> dict[str, float]:
    """What the paper counts: memory in bits and cost of multiplications, and savings against 8 bits.

    Memory: width times count over weights, biases and output activations. Multiplication: width of
    the weights times width of the layer's own output times multiply-accumulates.
    """
    bits = full = work = whole = 0
    for node in graph.mac_nodes:
        w, b, a = (chosen[kind, node.name].width for kind in Kind)
        shape = graph.shape(node.name)
        made = int(np.prod(shape))
        macs = node.weight[0].size * made
        bits += w * node.weight.size + b * node.bias.size + a * made
        full += 8 * (node.weight.size + node.bias.size + made)
        work += w * a * macs
        whole += 64 * macs
    return {
        "memory": bits,
        "multiplication": work,
        "memory_saved": 1 - bits / full,
        "multiplication_saved": 1 - work / whole,
    }


def paper_assembler(graph: fg.FloatGraph) -> Assembler:
    """Of integer networks that round where the paper does: before a batch norm, ties to even."""
    return Assembler(graph, rounding=Rounding.HALF_EVEN, norms_apart=True)


def paper_network(
    assembler: Assembler, chosen: Formats, images: NDArray[np.uint8], name: str
) -> tuple[Network, Plan]:
    """The integer network of the paper's formats.

    Batch norms, which the paper keeps in float, are layers of their own with 16-bit outputs. The
    last layer hands out its accumulators: its output is not rounded. A bias that is finer than the
    accumulator is rounded to that.

    Parameters
    ----------
    assembler : Assembler
        See :func:`paper_assembler`.
    chosen : dict
        A format for every kind and layer.
    images : uint8 array
        Calibrates what has no format.
    name : str
    """
    graph = assembler.graph
    layers, outputs = {}, {}
    for node in graph.mac_nodes:
        weights, biases = chosen[Kind.WEIGHTS, node.name], chosen[Kind.BIASES, node.name]
        layers[node.name] = LayerPlan(
            codes=weights.codes(node.weight),
            width=weights.width,
            scale=tensor_scale(2.0**-weights.frac),
            bias=biases.nearest(node.bias),
            bias_width=biases.width,
            bias_step=2.0**-biases.frac,
        )
    roots: dict[str, Fixed] = {}
    seen: dict[str, list[torch.Tensor]] = {}
    wide = [g for g in assembler.makers if not isinstance(g.node, fg.Conv | fg.Linear)]
    for values in graph.activations(torch.tensor(images), dtype=torch.float64, batch_size=50):
        for group in wide:
            seen.setdefault(group.last.name, []).append(values[group.last.name].reshape(-1))
    for group in assembler.makers:
        if assembler.hands_out_accumulators(group):
            continue
        layer, tensor = group.node.name, group.last.name
        if isinstance(group.node, fg.Conv | fg.Linear):
            form = chosen[Kind.ACTIVATIONS, layer]
            made = Fixed(width=form.width, frac=form.frac, signed=True)
        else:
            made = choose_format(
                torch.cat(seen[tensor]).numpy(),
                width=NORM_BITS,
                signed=not never_negative(graph, tensor),
                calibration=Calibration.MAX,
                what=f"the activations of layer {layer}",
            )
        outputs[layer] = roots.setdefault(assembler.joint[tensor], made)
    plan = Plan(layers=layers, outputs=outputs)
    return assembler.assemble(plan, name), plan
