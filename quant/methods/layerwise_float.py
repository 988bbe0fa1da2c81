"""A float network with some weights, biases and activations rounded: what the paper judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from quant import graph as fg
from quant.grouping import Group
from quant.methods.layerwise_walk import Kind, Symmetric

__all__ = ["Choices", "RoundedFloat"]

PIECE = 100
"""Images at a time."""

QUIET = 1_000
"""After so many images without a new miss the rest, which the float network finds easier, counts as
right."""

Choices = Mapping[tuple[Kind, str], Symmetric]
"""Formats by kind and layer; whatever is not named stays float."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Step:
    """A node, or the rounding of a layer's output where ``layer`` is given."""

    node: fg.Node
    layer: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return self.node.inputs if self.layer is None else (self.node.name,)


class RoundedFloat:
    """Counts right answers of a float network, in float32, with chosen tensors rounded.

    Images are looked at from the hardest for the float network (the least margin) to the easiest,
    so that what loses too much is soon known. What a layer takes is kept while the layers before
    it stay as they are: layers must be asked about in order, from the first after each
    :meth:`restart`.

    Parameters
    ----------
    graph : FloatGraph
        Takes raw pixels.
    groups : tuple of Group
        Of the graph. A layer's output is that of its ReLU, before a batch norm behind it.
    images : uint8 array
        ``(N, C, H, W)``.
    labels : int64 array
        ``(N,)``.
    presume : bool
        Whether counting stops where 1,000 images in a row brought no new miss.
    """

    def __init__(
        self,
        graph: fg.FloatGraph,
        groups: tuple[Group, ...],
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        presume: bool = False,
    ) -> None:
        self.graph, self.presume = graph, presume
        outputs = {
            (group.relu or group.node).name: group.node.name
            for group in groups
            if isinstance(group.node, fg.Conv | fg.Linear)
        }
        self._fused = {
            group.relu.name: group.node.name
            for group in groups
            if group.relu is not None and isinstance(group.node, fg.Conv | fg.Linear)
        }
        self._steps: list[_Step] = []
        for node in graph.nodes[1:]:
            self._steps.append(_Step(node=node))
            if node.name in outputs:
                self._steps.append(_Step(node=node, layer=outputs[node.name]))
        self._chosen: dict[tuple[Kind, str], Symmetric] = {}
        self._constants: dict[tuple[Kind, str], Tensor] = {}
        self._weights = {node.name: node for node in graph.mac_nodes}
        margins = self._margins(images, labels)
        order = np.argsort(margins, kind="stable")
        self.images = len(images)
        self.float_correct = int((margins > 0).sum())
        self._pixels = [torch.tensor(images[part]) for part in _parts(order)]
        self._labels = [torch.tensor(labels[part]) for part in _parts(order)]
        self._base = [int((margins[part] <= 0).sum()) for part in _parts(order)]
        self._kept: dict[int, tuple[int, dict[str, Tensor]]] = {}
        self.images_judged = 0

    def _margins(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """By how much the float network prefers the right class; never 0 where it is right."""
        parts = []
        for start in range(0, len(images), PIECE):
            part = torch.tensor(images[start : start + PIECE])
            out = self._run(0, {fg.INPUT: _ready(part)}, None)
            truth = torch.tensor(labels[start : start + PIECE])[:, None]
            own = out.gather(1, truth)[:, 0]
            rest = out.scatter(1, truth, float("-inf")).amax(1)
            right = out.argmax(1) == truth[:, 0]
            margin = torch.where(right, (own - rest).clamp(min=1e-30), (own - rest).clamp(max=0))
            parts.append(margin.double().numpy())
        return np.concatenate(parts)

    def choose(self, kind: Kind, layer: str, form: Symmetric) -> None:
        """Keep a tensor in a format from now on."""
        self._chosen[kind, layer] = form
        self._constants.pop((kind, layer), None)

    def clear(self, keep: frozenset[Kind] = frozenset()) -> None:
        """Take all formats back but those of some kinds."""
        self._chosen = {key: form for key, form in self._chosen.items() if key[0] in keep}
        self._constants.clear()

    def restart(self) -> None:
        """Forget what layers take: the next layer asked about may be the first again."""
        self._kept.clear()

    def correct(self, kind: Kind, layer: str, form: Symmetric | None, floor: int = 0) -> int | None:
        """Images classified right with one more tensor rounded.

        Parameters
        ----------
        kind : Kind
        layer : str
        form : Symmetric or None
            None: the tensor as it is.
        floor : int
            Give up where fewer are right.

        Returns
        -------
        int or None
            None where fewer than ``floor``.
        """
        cut = self._cut(kind, layer)
        trial = None if form is None else (kind, layer, form)
        constant = None
        if form is not None and kind is not Kind.ACTIVATIONS:
            constant = self._constant(kind, layer, form)
        wrong, quiet, seen = 0, 0, 0
        for index, labels in enumerate(self._labels):
            frontier = self._frontier(index, cut)
            out = self._run(cut, frontier, trial, constant)
            missed = int((out.argmax(1) != labels).sum())
            wrong += missed
            seen += len(labels)
            if self.images - wrong < floor:
                return None
            quiet = 0 if missed > self._base[index] or self._base[index] else quiet + len(labels)
            if self.presume and quiet >= QUIET:
                break
        self.images_judged += seen
        return self.images - wrong

    def exact(self) -> int:
        """Images classified right as all is chosen, none presumed; then :meth:`restart` is done."""
        self.restart()
        first = next(iter(self._weights))
        presume, self.presume = self.presume, False
        correct = self.correct(Kind.WEIGHTS, first, None)
        self.presume = presume
        self.restart()
        assert correct is not None
        return correct

    def _cut(self, kind: Kind, layer: str) -> int:
        """The step from which on a layer's tensor counts."""
        for place, step in enumerate(self._steps):
            rounds = step.layer == layer
            if kind is Kind.ACTIVATIONS and rounds:
                return place
            if kind is not Kind.ACTIVATIONS and step.layer is None and step.node.name == layer:
                return place
        raise AssertionError(f"no layer {layer}")

    def _frontier(self, index: int, cut: int) -> dict[str, Tensor]:
        """The tensors of a piece that steps from ``cut`` on take."""
        place, values = self._kept.get(index, (0, {}))
        if not values:
            values = {fg.INPUT: _ready(self._pixels[index])}
        if place != cut:
            assert place < cut, "layers must be asked about in order"
            values = self._until(place, cut, dict(values))
            self._kept[index] = (cut, values)
        return values

    def _until(self, start: int, stop: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            for step in self._steps[start:stop]:
                self._step(step, values, None, None)
        later = {name for step in self._steps[stop:] for name in step.reads}
        return {name: value for name, value in values.items() if name in later}

    def _run(
        self,
        start: int,
        frontier: dict[str, Tensor],
        trial: tuple[Kind, str, Symmetric] | None,
        constant: Tensor | None = None,
    ) -> Tensor:
        """Outputs ``(n, classes)`` from a frontier."""
        values = dict(frontier)
        with torch.no_grad():
            for step in self._steps[start:]:
                self._step(step, values, trial, constant)
        return values[self.graph.output].flatten(1)

    def _step(
        self,
        step: _Step,
        values: dict[str, Tensor],
        trial: tuple[Kind, str, Symmetric] | None,
        constant: Tensor | None,
    ) -> None:
        node, name = step.node, step.node.name
        if step.layer is not None:
            key = (Kind.ACTIVATIONS, step.layer)
            form = trial[2] if trial is not None and trial[:2] == key else self._chosen.get(key)
            if form is not None:
                values[name] = form.apply(values[name])
            return
        x = values[node.inputs[0]]
        if isinstance(node, fg.Conv | fg.Linear):
            weight, bias = (
                constant
                if constant is not None and trial is not None and trial[:2] == (kind, name)
                else self._constant(kind, name, None)
                for kind in (Kind.WEIGHTS, Kind.BIASES)
            )
            if isinstance(node, fg.Linear):
                values[name] = F.linear(x, weight, bias)
                return
            top, left, bottom, right = node.padding
            if (top, left) != (bottom, right):
                x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
            values[name] = F.conv2d(x, weight, bias, node.stride, (top, left), 1, node.groups)
        elif isinstance(node, fg.Relu) and name in self._fused:
            values[name] = x.clamp_(min=0, max=node.max)
        else:
            values[name] = node.evaluate(*(values[i] for i in node.inputs))

    def _constant(self, kind: Kind, layer: str, form: Symmetric | None) -> Tensor:
        """Weights or biases as float32: in a format, or as they are chosen."""
        key = (kind, layer)
        if form is None and key in self._constants:
            return self._constants[key]
        node = self._weights[layer]
        exact = node.weight if kind is Kind.WEIGHTS else node.bias
        chosen = form or self._chosen.get(key)
        values = exact if chosen is None else chosen.nearest(exact)
        tensor = torch.tensor(values, dtype=torch.float32)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        if form is None:
            self._constants[key] = tensor
        return tensor


def _ready(pixels: Tensor) -> Tensor:
    images = pixels.to(torch.float32)
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _parts(order: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [order[start : start + PIECE] for start in range(0, len(order), PIECE)]
