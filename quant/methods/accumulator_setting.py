"""What holds for all layers, what a search varies, and the rescaling of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hwgen.ir import INPUT, Fixed
from quant import graph as fg
from quant.methods.accumulator_bounds import Bound
from quant.methods.accumulator_fit import Effort, Limits
from quant.methods.accumulator_scales import Scales

__all__ = ["NARROWEST", "PIXELS", "PIXELS_LOG2", "Rules", "Setting", "is_pixels", "with_pixels"]

NARROWEST = 2
"""Bits of the narrowest weights that are looked at: -2 to 1."""

PIXELS = "pixels"
"""Name of the layer that rescales raw pixels."""

PIXELS_LOG2 = 2
"""Rescaled pixels lie below this power of two: the size that normalised ones have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for all layers.

    Parameters
    ----------
    bits : int
        Width P of the accumulators.
    widest : int
        Most bits of data and of weights.
    bound : Bound
    scales : Scales
    effort : Effort
    margins : mapping of str to int
        By layer: bits less than P that observed accumulators may take.
    """

    bits: int
    widest: int
    bound: Bound
    scales: Scales
    effort: Effort = field(default_factory=Effort)
    margins: Mapping[str, int] = field(default_factory=dict)

    def limits(self, form: Fixed, taps: int, weights: int) -> Limits:
        """Limits of integer weights of a width on data of a format."""
        top = 1 << (self.bits - 1)
        bias_low, bias_high = -top, top - 1
        low = -(1 << (weights - 1))
        if self.bound is Bound.FORMATS:  # biases have what products leave
            ends = [w * x * taps for w in (low, -low - 1) for x in (form.low, form.high)]
            bias_low = max(bias_low, min(0, -top - min(ends)))
            bias_high = min(bias_high, max(0, top - 1 - max(ends)))
        else:
            low += 1
        bounded = self.bound is Bound.WEIGHTS
        return Limits(
            low=low,
            high=(1 << (weights - 1)) - 1,
            input_low=form.low,
            input_high=form.high,
            acc_low=-top if bounded else None,
            acc_high=top - 1 if bounded else None,
            bias_low=bias_low,
            bias_high=bias_high,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a search varies.

    Parameters
    ----------
    bits : tuple of (str, int)
        Width of the codes of each set of tensors that share a format, by representative.
    clips : tuple of (str, int)
        By representative too: half-octaves by which its range is wider than the one with the least
        squared error. Pairs of halves count where only octaves can be had.
    """

    bits: tuple[tuple[str, int], ...]
    clips: tuple[tuple[str, int], ...]

    def changed(self, name: str, *, bits: int | None = None, clip: int | None = None) -> Setting:
        """The same but for one tensor."""
        widths, clips = dict(self.bits), dict(self.clips)
        if bits is not None:
            widths[name] = bits
        if clip is not None:
            clips[name] = clip
        return Setting(bits=tuple(widths.items()), clips=tuple(clips.items()))


def is_pixels(graph: fg.FloatGraph, key: str) -> bool:
    return key == PIXELS and isinstance(graph.node(key), fg.ChannelAffine)


def with_pixels(graph: fg.FloatGraph) -> fg.FloatGraph:
    """Put a rescaling of the raw pixels in front of the layers that read them."""
    scale = 2.0 ** (PIXELS_LOG2 - 8)
    channels = graph.input_shape[0]
    node = fg.ChannelAffine(
        name=PIXELS, inputs=(INPUT,), scale=np.full(channels, scale), offset=np.zeros(channels)
    )

    def moved(old: fg.Node) -> fg.Node:
        if INPUT not in old.inputs:
            return old
        new = replace(old, inputs=tuple(PIXELS if i == INPUT else i for i in old.inputs))
        if isinstance(new, fg.Conv | fg.Linear):
            return replace(new, weight=new.weight / scale)
        return new

    nodes = (graph.nodes[0], node, *(moved(old) for old in graph.nodes[1:]))
    return replace(graph, nodes=nodes)
