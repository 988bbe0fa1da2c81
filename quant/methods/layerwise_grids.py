"""Formats behind a batch norm: where 0 lies among the codes, and offsets in whole steps.

A batch norm behind a ReLU adds a constant to each channel, so that about half of a channel's values are
that constant. Formats here are asymmetric: their codes reach a bit below 0 and far above it. The constant
is rounded to whole steps, channel by channel, so that all these values have a code of their own; what
the rounding changes is a constant too, which the biases of the layers that read the tensor take back.
That is exact but where padding meets the image, whose values are no sums of a ReLU's and the constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, floor, log2

import numpy as np
from numpy.typing import NDArray

from hwgen.ir import Fixed
from quant import graph as fg
from quant.formats import Floats, decode, quantize_to
from quant.grouping import Group
from quant.methods.layerwise_equalise import channel_groups, channel_values
from quant.plan import LayerPlan, Plan

__all__ = ["Norm", "find_norms"]

SAMPLES = 2_000
"""Values of a channel by which a format is chosen."""

FINEST = 128
"""Places of 0 that are tried in the lower half of a format's codes."""

HALVINGS = 4
"""Ranges that are tried, each half the one before, from the one without saturation on."""


@dataclass(kw_only=True, eq=False)
class Norm:
    """The output of a layer with a batch norm behind its ReLU.

    Parameters
    ----------
    group : Group
    readers : tuple of Conv or Linear
        The layers that read it, at most pooled and flattened.
    values : float64 array
        A sample of it, ``(channels, n)``.
    importance : float64 array
        By how much an error of a channel is amplified, ``(channels,)``.
    """

    group: Group
    readers: tuple[fg.Conv | fg.Linear, ...]
    values: Floats = field(repr=False)
    importance: Floats = field(repr=False)
    _best: dict[tuple[int, int], Fixed] = field(default_factory=dict, repr=False)

    @property
    def _offset(self) -> Floats:
        assert self.group.affine is not None
        return self.group.affine.offset

    def offset(self, form: Fixed) -> Floats:
        """The batch norm's offset in whole steps of a format, ``(channels,)``."""
        return np.asarray(np.ldexp(np.rint(np.ldexp(self._offset, form.frac)), -form.frac))

    def rounded(self, form: Fixed) -> Floats:
        """:attr:`values` in a format."""
        moved = (self.offset(form) - self._offset)[:, None]
        return decode(quantize_to(self.values + moved, form), form)

    def best(self, width: int, coarser: int = 0) -> Fixed:
        """The format of so many bits that errs least where constants do not count.

        ``coarser``: with so many times twice the step of that one.
        """
        if (width, coarser) not in self._best:
            top = float(np.abs(self.values).max())
            if coarser:
                fracs = [self.best(width).frac - coarser]
            elif top == 0:
                fracs = [width - 1]
            else:
                start = width - ceil(log2(top))
                fracs = [start - 1 + k for k in range(HALVINGS + 1)]
            forms = [form for frac in fracs for form in self._zeros(width, frac)]
            self._best[width, coarser] = min(forms, key=self._error)
        return self._best[width, coarser]

    def _zeros(self, width: int, frac: int) -> list[Fixed]:
        """Formats with 0 at the codes that some channel's offset asks for."""
        below = -floor(float(np.ldexp(self.values.min(initial=0.0), frac)) + 0.5)
        half = 1 << (width - 1)
        return [
            Fixed(width=width, frac=frac, signed=False, zero=zero)
            for zero in range(0, min(max(below, 0), half) + 1, max(1, half // FINEST))
        ]

    def _error(self, form: Fixed) -> float:
        """Variance of what rounding changes, by importance."""
        return float(self.importance @ (self.rounded(form) - self.values).var(1))

    def moved(self, plan: Plan, old: Fixed, new: Fixed) -> Mapping[str, LayerPlan]:
        """Layers of a plan that change with the output's format: the layer, and its readers' biases."""
        name = self.group.node.name
        found = {name: replace(plan.layers[name], offset=self.offset(new))}
        change = self.rounded(new).mean(1) - self.rounded(old).mean(1)
        for reader in self.readers:
            layer = plan.layers[reader.name]
            found[reader.name] = replace(
                layer, bias=layer.bias - _sums(reader, layer.weights, change)
            )
        return found


def find_norms(graph: fg.FloatGraph, images: NDArray[np.uint8]) -> Mapping[str, Norm]:
    """The batch norms behind a ReLU whose offsets may move, by the name of the layer before.

    Parameters
    ----------
    graph : FloatGraph
        Takes raw pixels.
    images : uint8 array
        Calibration images ``(N, C, H, W)``.
    """
    found = {
        _used(graph, group.last.name): (group, readers)
        for group, readers in channel_groups(graph)
        if group.affine is not None
    }
    values = channel_values(graph, images, list(found), SAMPLES)
    return {
        group.node.name: Norm(
            group=group,
            readers=tuple(readers),
            values=values[tensor],
            importance=_importance(readers, len(values[tensor])),
        )
        for tensor, (group, readers) in found.items()
    }


def _used(graph: fg.FloatGraph, name: str) -> str:
    """The tensor, or what a max pool that alone reads it makes of it: what it drops does not count."""
    readers = graph.consumers(name)
    if len(readers) == 1 and isinstance(readers[0], fg.MaxPool | fg.GlobalMaxPool):
        return _used(graph, readers[0].name)
    return name


def _importance(readers: list[fg.Conv | fg.Linear], channels: int) -> Floats:
    """Sum of the squares of the weights that read each channel, ``(channels,)``."""
    total = np.zeros(channels)
    for reader in readers:
        total += _by_channel(reader, np.square(reader.weight), channels).sum(0)
    return total


def _sums(reader: fg.Conv | fg.Linear, weight: Floats, change: Floats) -> Floats:
    """What a constant on each input channel changes in each output channel, ``(out,)``."""
    return np.asarray(_by_channel(reader, weight, len(change)) @ change)


def _by_channel(reader: fg.Conv | fg.Linear, weight: Floats, channels: int) -> Floats:
    """Weights summed over the taps of each input channel, ``(out, channels)``."""
    if isinstance(reader, fg.Linear):
        return np.asarray(weight.reshape(len(weight), channels, -1).sum(2))
    taps = weight.sum((2, 3))
    out, per = taps.shape
    full = np.zeros((out, channels))
    each = out // reader.groups
    for index in range(reader.groups):
        rows = slice(index * each, (index + 1) * each)
        full[rows, index * per : (index + 1) * per] = taps[rows]
    return full
