"""What the layer-wise search chooses from: widths, formats of activations, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hwgen.ir import INPUT, Fixed
from quant import graph as fg
from quant.assemble import PIXEL, Assembler
from quant.calibrate import Statistics
from quant.formats import Calibration, choose_format
from quant.grouping import never_negative
from quant.methods.layerwise_grids import Norm

__all__ = ["NARROWEST", "WIDEST", "Price", "Space", "Widths"]

NARROWEST, WIDEST = 2, 8
"""Widths in bits that the search chooses from."""


@dataclass(frozen=True, slots=True, order=True)
class Widths:
    """Bits of each layer's weights and of each set of tensors that share a format, in order."""

    weights: tuple[int, ...]
    outputs: tuple[int, ...]

    def moved(self, place: int, width: int) -> Widths:
        """One width changed; outputs are counted after the weights."""
        if place < len(self.weights):
            weights = (*self.weights[:place], width, *self.weights[place + 1 :])
            return replace(self, weights=weights)
        place -= len(self.weights)
        return replace(self, outputs=(*self.outputs[:place], width, *self.outputs[place + 1 :]))

    def at(self, place: int) -> int:
        """The width in a place."""
        return (*self.weights, *self.outputs)[place]

    @property
    def places(self) -> int:
        """How many widths there are."""
        return len(self.weights) + len(self.outputs)

    def key(self) -> str:
        """A name for the journal."""
        return "|".join(",".join(map(str, part)) for part in (self.weights, self.outputs))


class Space:
    """What can be chosen in a network.

    Parameters
    ----------
    assembler : Assembler
    seen : Statistics
        Values of the float network on calibration images: formats of activations have the least
        squared error.
    norms : mapping of str to Norm
        Outputs with formats of their own kind, by layer.
    """

    def __init__(
        self, assembler: Assembler, seen: Statistics, norms: Mapping[str, Norm] | None = None
    ) -> None:
        self.assembler, self.norms, self._seen = assembler, dict(norms or {}), seen
        graph = assembler.graph
        self.layers = tuple(node.name for node in graph.mac_nodes)
        pixel = assembler.joint[INPUT]
        roots: dict[str, list[str]] = {}
        for group in assembler.makers:
            if not assembler.hands_out_accumulators(group):
                roots.setdefault(assembler.joint[group.last.name], []).append(group.node.name)
        self._pixels = roots.pop(pixel, [])
        self.tensors = tuple(tuple(makers) for makers in roots.values())
        self.roots = tuple(roots)
        self._formats: dict[tuple[int, int], Fixed] = {}
        self._coarser: set[tuple[int, int]] = set()

    def label(self, place: int) -> str:
        """What a place of :class:`Widths` is, in words."""
        if place < len(self.layers):
            return f"the weights of {self.layers[place]}"
        return f"the output of {' and '.join(self.tensors[place - len(self.layers)])}"

    def layer(self, place: int) -> str:
        """The layer that a place of :class:`Widths` belongs to."""
        count = len(self.layers)
        return self.layers[place] if place < count else self.tensors[place - count][0]

    def uniform(self, width: int) -> Widths:
        """All widths alike."""
        return Widths((width,) * len(self.layers), (width,) * len(self.tensors))

    def coarsen(self, place: int, width: int) -> None:
        """From now on give an output of so many bits twice the step of the least squared error."""
        self._coarser.add((place - len(self.layers), width))

    def key(self, widths: Widths) -> str:
        """A name of what widths stand for now: also of the outputs that were given coarser steps."""
        coarser = [i for i, bits in enumerate(widths.outputs) if (i, bits) in self._coarser]
        return widths.key() + (f" coarser {','.join(map(str, coarser))}" if coarser else "")

    def formats(self, widths: Widths) -> dict[str, Fixed]:
        """Output formats by layer."""
        out = dict.fromkeys(self._pixels, PIXEL)
        for index, makers in enumerate(self.tensors):
            form = self._format(index, widths.outputs[index])
            out |= dict.fromkeys(makers, form)
        return out

    def _format(self, index: int, width: int, coarser: bool = False) -> Fixed:
        key = (index, width)
        coarser = coarser or key in self._coarser
        norm = self.norms.get(self.tensors[index][0])
        if norm is not None:
            return norm.best(width, int(coarser))
        if key not in self._formats:
            joint, graph = self.assembler.joint, self.assembler.graph
            tied = [name for name, root in joint.items() if root == self.roots[index]]
            makers = [g for g in self.assembler.makers if g.last.name in tied]
            # What a max pool drops needs no good format.
            tensors = [self._seen.tensors[n] for n in tied if _is_used(graph, n)]
            self._formats[key] = choose_format(
                np.concatenate([part for tensor in tensors for part in tensor.parts]),
                width=width,
                signed=not all(never_negative(graph, g.last.name) for g in makers),
                calibration=Calibration.MSE,
                what=f"the activations of {self.tensors[index][0]}",
                extremes=(min(t.low for t in tensors), max(t.high for t in tensors)),
            )
        form = self._formats[key]
        return replace(form, frac=form.frac - 1) if coarser else form

    def coarser(self, widths: Widths, place: int) -> dict[str, Fixed]:
        """:meth:`formats` with twice the step for one output."""
        index = place - len(self.layers)
        form = self._format(index, widths.outputs[index], coarser=True)
        return self.formats(widths) | dict.fromkeys(self.tensors[index], form)


def _is_used(graph: fg.FloatGraph, name: str) -> bool:
    """Whether a tensor is read by more than pools that select, or is the output."""
    readers = graph.consumers(name)
    return not readers or any(
        not isinstance(node, fg.MaxPool | fg.GlobalMaxPool | fg.Flatten) for node in readers
    )


class Price:
    """What widths cost: memory and multiplications as fractions of 8 bits everywhere.

    Parameters
    ----------
    space : Space
    multiplications : float
        What the cost of multiplications counts against memory.
    """

    def __init__(self, space: Space, multiplications: float) -> None:
        self._multiplications = multiplications
        assembler, graph = space.assembler, space.assembler.graph
        index = {name: i for i, makers in enumerate(space.tensors) for name in makers}
        roots = {space.roots[i]: i for i in range(len(space.tensors))}
        count, outs = len(space.layers), len(space.tensors)
        self._memory = np.zeros(count + outs)
        biases = 0
        self._own: list[tuple[int, int | None, int]] = []
        self._true: list[tuple[int, int | None, int]] = []
        for group in assembler.makers:
            node = group.node
            size = int(np.prod(graph.shape(node.name)))
            if node.name in index:
                self._memory[count + index[node.name]] += size
            if isinstance(node, fg.Conv | fg.Linear):
                place = space.layers.index(node.name)
                self._memory[place] += node.weight.size
                biases += node.bias.size
                macs = node.weight[0].size * size
                source = roots.get(assembler.joint[node.inputs[0]])
                self._own.append((place, index.get(node.name), macs))
                self._true.append((place, source, macs))
        self._whole = 8.0 * (self._memory.sum() + biases)
        self._work = 64.0 * sum(macs for _, _, macs in self._own)

    def memory(self, widths: Widths) -> float:
        """Weights and output activations, as a fraction of all at 8 bits."""
        bits = np.array((*widths.weights, *widths.outputs), dtype=np.float64)
        return float((self._memory * bits).sum() / self._whole)

    def work(self, widths: Widths, *, own: bool) -> float:
        """Width of weights times width of outputs (``own``) or inputs times their number."""
        total = 0
        for place, tensor, macs in self._own if own else self._true:
            other = 8 if tensor is None else widths.outputs[tensor]
            total += widths.weights[place] * other * macs
        return total / self._work

    def total(self, widths: Widths) -> float:
        """What the search makes small: memory, and the mean of both kinds of multiplication cost."""
        work = self.work(widths, own=True) + self.work(widths, own=False)
        return self.memory(widths) + self._multiplications * work / 2
