"""From widths and clips of tensors to a plan whose accumulators fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import INPUT, Fixed
from hwgen.ir.formats import signed_width
from quant import graph as fg
from quant.assemble import PIXEL, Assembler
from quant.formats import Calibration, Floats, choose_format
from quant.grouping import never_negative
from quant.methods.accumulator_bounds import (
    Bound,
    Pair,
    formats_width,
    maximal_pairs,
    needed_width,
)
from quant.methods.accumulator_fit import (
    BIAS_BITS,
    Fit,
    Moments,
    bias_unit,
    moments,
)
from quant.methods.accumulator_project import Real
from quant.methods.accumulator_samples import Samples, best_clips, joint_values, tie_units
from quant.methods.accumulator_scales import (
    Observed,
    best_scales,
    best_single,
    plain_fit,
    seen_interval,
)
from quant.methods.accumulator_setting import NARROWEST, PIXELS_LOG2, Rules, Setting, is_pixels
from quant.plan import LayerPlan, Plan

__all__ = ["Designer", "Source"]

Mac = fg.Conv | fg.Linear


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """How a layer's input is coded: its format and what a code of 1 stands for, by tap."""

    form: Fixed
    unit: Floats = field(repr=False)


class Designer:
    """Makes plans from settings; remembers layers.

    Parameters
    ----------
    graph : FloatGraph
        Of raw pixels.
    samples : Samples
    rules : Rules
    plain : bool
        Whether to keep to what is usual: one power-of-two scale a layer, nearest integers, no units
        of channels, and weights as wide as the accumulator allows. Else weights are fitted.
    """

    def __init__(
        self, graph: fg.FloatGraph, samples: Samples, rules: Rules, *, plain: bool
    ) -> None:
        self.graph, self.samples, self.rules, self.plain = graph, samples, rules, plain
        self.assembler = Assembler(graph)
        self.ties = tie_units(graph)
        if plain:
            self.ties = replace(self.ties, free=frozenset())
        joint = self.assembler.joint
        groups = [g for g in self.assembler.makers if joint[g.last.name] != joint[INPUT]]
        self.makers = {
            g.last.name: g for g in groups if not self.assembler.hands_out_accumulators(g)
        }
        self.keys = tuple(dict.fromkeys(joint[name] for name in self.makers))
        self.groups = {g.node.name: g for g in self.assembler.makers}
        self._layers: dict[tuple[object, ...], LayerPlan] = {}
        self._clips: dict[tuple[str, int], Floats] = {}
        self._forms: dict[tuple[object, ...], Fixed] = {}
        self._needed: dict[tuple[str, Fixed, int], int] = {}
        self._plain_fits: dict[tuple[str, Fixed, int], list[Fit]] = {}

    def start(self, bits: int = 8) -> Setting:
        """All tensors at one width."""
        return Setting(
            bits=tuple((key, bits) for key in self.keys),
            clips=tuple((key, 0) for key in self.keys),
        )

    def names(self, key: str) -> list[str]:
        """Tensors that share a format."""
        return [name for name, root in self.assembler.joint.items() if root == key]

    def feeds(self, key: str) -> list[str]:
        """Those of them that layers read."""
        read = {node.inputs[0] for node in self.graph.mac_nodes}
        return [name for name in self.names(key) if name in read]

    def signed(self, key: str) -> bool:
        """Whether a format needs negative codes."""
        made = [name for name in self.names(key) if name in self.makers]
        return not all(never_negative(self.graph, name) for name in made)

    def _tied(self, root: str) -> tuple[str, ...]:
        """Keys whose tensors share a unit and feed layers."""
        return tuple(
            key
            for key in self.keys
            if self.feeds(key) and self.ties.root[self.feeds(key)[0]] == root
        )

    def unit(self, name: str, setting: Setting) -> Floats:
        """Unit of each channel of a tensor, ``(channels,)``."""
        channels = self.graph.shape(name)[0]
        root = self.ties.root[name]
        keys = self._tied(root)
        if root not in self.ties.free or not keys:
            return np.ones(channels)
        widths, clips = dict(setting.bits), dict(setting.clips)
        bits = max(widths[key] for key in keys)
        known = (root, bits)
        if known not in self._clips:
            names = [name for key in keys for name in self.feeds(key)]
            tied = [n for n, other in self.ties.root.items() if other == root]
            base = min(self.graph.shape(n)[0] for n in tied)
            values, signed = joint_values(self.graph, self.samples, names, base)
            self._clips[known] = best_clips(values, bits, signed=signed)
        unit = self._clips[known] * 2.0 ** (clips[keys[0]] / 2)
        return np.repeat(unit, channels // len(unit))

    def form(self, key: str, setting: Setting) -> Fixed:
        """Format of tensors that share one."""
        bits, clip = dict(setting.bits)[key], dict(setting.clips)[key]
        signed = self.signed(key)
        feeds = self.feeds(key)
        root = self.ties.root[(feeds or self.names(key))[0]]
        free = root in self.ties.free
        keys = self._tied(root)
        if free and keys == (key,):
            return Fixed(width=bits, frac=bits - signed, signed=signed)
        if is_pixels(self.graph, key):
            return Fixed(width=bits, frac=bits - PIXELS_LOG2, signed=False)
        unit_key = tuple((k, dict(setting.bits)[k], dict(setting.clips)[k]) for k in keys)
        known = (key, bits, clip, unit_key if free else ())
        if known not in self._forms:
            self._forms[known] = self._best_form(key, bits, 0 if free else clip, signed, setting)
        return self._forms[known]

    def _best_form(self, key: str, bits: int, clip: int, signed: bool, setting: Setting) -> Fixed:
        parts = []
        for name in self.names(key):
            if name in self.samples.values:
                values = self.samples.values[name].astype(np.float64)
                parts.append((values / self.unit(name, setting)).ravel())
        form = choose_format(
            np.concatenate(parts),
            width=bits,
            signed=signed,
            calibration=Calibration.MSE,
            what=f"the activations {key}",
            finest=30,
        )
        return replace(form, frac=form.frac - clip // 2)

    def clip_step(self, key: str) -> int:
        """By how many half-octaves the range of a tensor may change; 0 if it is given."""
        if not self.feeds(key) or is_pixels(self.graph, key):
            return 0
        root = self.ties.root[self.feeds(key)[0]]
        if root not in self.ties.free:
            return 2
        return int(self._tied(root)[0] == key)

    def source(self, node: Mac, setting: Setting) -> Source:
        """How a layer's input is coded."""
        name = node.inputs[0]
        key = self.assembler.joint[name]
        if key == self.assembler.joint[INPUT]:
            return Source(form=PIXEL, unit=np.ones(len(self.samples.channels[node.name])))
        form = self.form(key, setting)
        unit = self.unit(name, setting)[self.samples.channels[node.name]]
        return Source(form=form, unit=unit * form.scale)

    def plan(self, setting: Setting) -> Plan:
        """The plan of a setting."""
        layers = {}
        for group in self.assembler.makers:
            if isinstance(group.node, fg.Conv | fg.Linear):
                layers[group.node.name] = self._layer(group.node, setting)
        outputs = {}
        for name, group in self.makers.items():
            outputs[group.node.name] = self.form(self.assembler.joint[name], setting)
        return Plan(layers=layers, outputs=outputs)

    def _layer(self, node: Mac, setting: Setting) -> LayerPlan:
        source, out = self.source(node, setting), self.out_unit(node, setting)
        key = (node.name, source.form, source.unit.tobytes(), out.tobytes())
        if key not in self._layers:
            if self.plain:
                bits = max(self.weight_bits(node, source), NARROWEST)
                self._layers[key] = self._plan(
                    node, source, self.plain_fits(node, source, bits), bits
                )
            else:
                self._layers[key] = self.fit(node, source, out, self.codes(node, source))
        return self._layers[key]

    def out_unit(self, node: Mac, setting: Setting) -> Floats:
        """Units of a layer's outputs, ``(out,)``."""
        group = self.groups[node.name]
        if self.assembler.hands_out_accumulators(group):
            return np.ones(len(node.bias))
        return self.unit(group.last.name, setting)

    def codes(self, node: Mac, source: Source) -> Floats:
        """Codes of the samples of a layer's inputs, float32 ``(rows, taps)``."""
        scaled = self.samples.taps[node.name] / source.unit.astype(np.float32)
        return np.clip(np.floor(scaled + np.float32(0.5)), source.form.low, source.form.high)

    def moments(
        self, node: Mac, source: Source, out: Floats, codes: Floats, *, compensate: bool
    ) -> list[Moments]:
        """Moments of each group of a layer's channels."""
        weight = node.weight.reshape(len(node.weight), -1) / out[:, None]
        bias, inputs = node.bias / out, self.samples.taps[node.name]
        groups = getattr(node, "groups", 1)
        taps, rows = weight.shape[1], len(weight) // groups
        known = []
        for g in range(groups):
            part, mine = slice(g * taps, (g + 1) * taps), slice(g * rows, (g + 1) * rows)
            known.append(
                moments(
                    weight[mine],
                    bias[mine],
                    inputs[:, part],
                    codes[:, part],
                    source.unit[part],
                    compensate=compensate,
                )
            )
        return known

    def fit(self, node: Mac, source: Source, out: Floats, codes: Floats) -> LayerPlan:
        """Fitted constants of a layer for inputs that have these codes on the samples."""
        rules, form = self.rules, source.form
        known = self.moments(node, source, out, codes, compensate=True)
        bits = rules.widest
        if rules.bound is Bound.FORMATS:
            bits = max(self.weight_bits(node, source), NARROWEST)
        limits = rules.limits(form, known[0].target.shape[1], bits)
        observed = None
        if rules.bound is Bound.CALIBRATED:
            taps = known[0].target.shape[1]
            margin = rules.bits - rules.margins.get(node.name, 0)
            observed = [
                Observed(codes[:, g * taps : (g + 1) * taps], margin) for g in range(len(known))
            ]
        if self.assembler.hands_out_accumulators(self.groups[node.name]):
            return self._plan(
                node, source, best_single(known, limits, rules.effort, observed), bits
            )
        fits = [
            best_scales(one, limits, rules.scales, rules.effort, observed[g] if observed else None)
            for g, one in enumerate(known)
        ]
        return self._plan(node, source, fits, bits)

    def _plan(self, node: Mac, source: Source, fits: list[Fit], bits: int) -> LayerPlan:
        found = np.concatenate([f.codes for f in fits])
        bias: Real = np.concatenate([f.bias for f in fits]).astype(np.float64)
        unit = bias_unit(bias)
        if unit > 1:  # one shift for all groups, within what their weights leave
            limits = self.rules.limits(source.form, found.shape[1], bits)
            limits = replace(limits, bias_unit=unit)
            bias = limits.clip_bias(bias, *limits.room(found.astype(np.float64)))
        single = self.plain or self.assembler.hands_out_accumulators(self.groups[node.name])
        scale = np.concatenate([f.scale for f in fits])
        return LayerPlan(
            codes=found.reshape(node.weight.shape),
            width=signed_width(min(int(found.min()), 0), max(int(found.max()), 0)),
            scale=(scale[:1] if single else scale) / source.form.scale,
            bias=(bias * scale).astype(np.float64),
            bias_width=min(BIAS_BITS, self.rules.bits),
        )

    def plain_fits(self, node: Mac, source: Source, bits: int) -> list[Fit]:
        """Nearest integers of a width; remembered."""
        key = (node.name, source.form, bits)
        if key not in self._plain_fits:
            out = np.ones(len(node.bias))
            known = self.moments(node, source, out, self.codes(node, source), compensate=False)
            limits = self.rules.limits(source.form, known[0].target.shape[1], bits)
            self._plain_fits[key] = plain_fit(known, limits)
        return self._plain_fits[key]

    def intervals(self, node: Mac, source: Source, bits: int) -> tuple[Floats, Floats]:
        """What accumulators of nearest integers of a width need under the bound, ``(out,)``."""
        form = source.form
        fits = self.plain_fits(node, source, bits)
        if self.rules.bound is Bound.CALIBRATED:
            codes, taps = self.codes(node, source), fits[0].codes.shape[1]
            pairs = [
                seen_interval(codes[:, g * taps : (g + 1) * taps], fit)
                for g, fit in enumerate(fits)
            ]
        else:
            pairs = [_interval(fit, form) for fit in fits]
        return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])

    def needed(self, node: Mac, source: Source, bits: int) -> int:
        """Accumulator that weights of a width need under the bound, in bits."""
        form = source.form
        key = (node.name, form, bits)
        if key not in self._needed:
            if self.rules.bound is Bound.FORMATS:
                self._needed[key] = formats_width(node.weight[0].size, form, bits)
            else:
                low, high = self.intervals(node, source, bits)
                self._needed[key] = int(needed_width(low, high).max())
        return self._needed[key]

    def weight_bits(self, node: Mac, source: Source) -> int:
        """Widest weights that fit; 0 if none do."""
        for bits in range(self.rules.widest, NARROWEST - 1, -1):
            if self.needed(node, source, bits) <= self.rules.bits:
                return bits
        return 0

    def pairs(self, node: Mac) -> tuple[Pair, ...]:
        """The pairs of widths that fill the accumulator of a layer."""
        key = self.assembler.joint[node.inputs[0]]
        fixed = key == self.assembler.joint[INPUT]
        needed = {}
        for data in [PIXEL.width] if fixed else range(1, self.rules.widest + 1):
            setting = self.start() if fixed else self.start().changed(key, bits=data)
            source = self.source(node, setting)
            for bits in range(NARROWEST, self.rules.widest + 1):
                needed[data, bits] = self.needed(node, source, bits)
        found = maximal_pairs(needed, self.rules.bits)
        if not found:
            self._refuse(node, needed)
        return found

    def _refuse(self, node: Mac, needed: dict[tuple[int, int], int]) -> None:
        least = min(needed.values())
        data, bits = min(pair for pair, width in needed.items() if width == least)
        where, channel = "", "any channel"
        if self.rules.bound is not Bound.FORMATS:
            key = self.assembler.joint[node.inputs[0]]
            setting = self.start()
            if key in self.keys:
                setting = setting.changed(key, bits=data)
            low, high = self.intervals(node, self.source(node, setting), bits)
            worst = int(needed_width(low, high).argmax())
            channel = f"channel {worst}"
            where = f", whose accumulators reach {int(low[worst])}..{int(high[worst])}"
        raise BadInput(
            f"no widths of data and weights make {channel} of layer {node.name} fit an accumulator"
            f" of {self.rules.bits} bits{where}; the narrowest that works for this layer is {least}"
            f" (data of {data} bits, weights of {bits}): give at least {least}"
            + ("" if self.rules.bound is Bound.WEIGHTS else ", or bound the weights themselves")
        )


def _interval(fit: Fit, form: Fixed) -> tuple[Floats, Floats]:
    plus, minus = np.maximum(fit.codes, 0).sum(1), np.maximum(-fit.codes, 0).sum(1)
    low, high = min(form.low, 0), form.high
    return plus * low - minus * high + fit.bias, plus * high - minus * low + fit.bias
