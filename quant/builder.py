"""Integer layers from groups of float nodes, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil, lcm, log2
from typing import Any

import numpy as np

from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Bias,
    Concat,
    Conv,
    Fixed,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Op,
    Rescale,
    TensorType,
    Weights,
    mac_interval,
)
from hwgen.ir.ops.base import union_width
from hwgen.ir.ops.windows import outside_taps
from quant import graph as fg
from quant.calibrate import Statistics
from quant.config import QuantConfig
from quant.formats import Floats, choose_format, quantize_to
from quant.grouping import Group, is_result, never_negative
from quant.requantisers import scaled_requant, shift_requant

__all__ = ["NORMALISE", "Builder"]

NORMALISE = "normalise"
"""Name of the layer that maps raw pixels to the network's input where that cannot be folded."""

PIXEL = Fixed(width=8, frac=0, signed=False)
"""Format of the network's input: raw pixels."""

FINEST_ACTIVATION = 30
"""Most fraction bits of an activation: a tensor without values above some 1e-9 counts as 0."""

FINEST_ACCUMULATOR = 46
"""Most fraction bits of an accumulator, less the integer bits that its bias needs: so that every
shift and every stored value fits the network's 62 bits. Fainter weights become 0."""


def _type(shape: tuple[int, ...], form: Fixed) -> TensorType:
    return TensorType(shape=shape, width=form.width, signed=form.signed, scale=form.scale)


@dataclass(kw_only=True, eq=False)
class Builder:
    """Makes the integer layers, group by group.

    ``tensors`` gives the integer tensor that stands for a float node's, ``types`` and ``fracs``
    (fraction bits) describe integer tensors, ``formats`` those of the groups of tensors that share
    one.
    """

    graph: fg.FloatGraph
    config: QuantConfig
    groups: tuple[Group, ...]
    joint: dict[str, str]
    seen: Statistics
    ops: list[Op] = field(default_factory=list)
    formats: dict[str, Fixed] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=lambda: {INPUT: INPUT})
    types: dict[str, TensorType] = field(init=False)
    fracs: dict[str, int] = field(default_factory=lambda: {INPUT: PIXEL.frac})

    def __post_init__(self) -> None:
        self.types = {INPUT: _type(self.graph.input_shape, PIXEL)}

    def build(self, group: Group) -> None:
        """Append the layers of a group."""
        match group.node:
            case fg.Conv() | fg.Linear():
                self._mac(group, group.node)
            case fg.AvgPool() | fg.GlobalAvgPool():
                self._average(group, group.node)
            case fg.ChannelAffine() | fg.Relu():
                self._rescale(group, group.node)
            case fg.Add():
                self._add(group)
            case fg.Concat():
                self._concat(group)
            case _:
                self._select(group)

    def _append(self, group: Group, op: Op, frac: int) -> None:
        self.ops.append(op)
        self.types[op.name], self.fracs[op.name] = op.output, frac
        self.tensors[group.last.name] = op.name

    def _sources(self, group: Group) -> tuple[tuple[str, ...], tuple[TensorType, ...]]:
        """Integer tensors that stand for the inputs of a group's node."""
        names = tuple(self.tensors[i] for i in group.node.inputs)
        return names, tuple(self.types[n] for n in names)

    def _activation_bits(self, layer: str) -> int:
        """Pixels keep their 8 bits unless the user says otherwise, as where they are folded."""
        bits = self.config.of(layer).activations
        pixels = layer == NORMALISE and layer not in self.config.layers
        return max(bits, PIXEL.width) if pixels else bits

    def _output_format(self, group: Group) -> Fixed:
        """The format of a group's codes, from all tensors that share it."""
        root = self.joint[group.last.name]
        if root in self.formats:
            return self.formats[root]
        tied = [name for name, other in self.joint.items() if other == root]
        makers = [g for g in self.groups if g.last.name in tied and not g.keeps_format]
        if not makers:  # pixels alone
            return PIXEL
        seen = [self.seen.tensors[name] for name in tied]
        self.formats[root] = choose_format(
            np.concatenate([part for tensor in seen for part in tensor.parts]),
            width=max(self._activation_bits(g.node.name) for g in makers),
            signed=not all(never_negative(self.graph, g.last.name) for g in makers),
            calibration=self.config.activations,
            what=f"the activations of layer {group.node.name}",
            extremes=(min(t.low for t in seen), max(t.high for t in seen)),
            finest=FINEST_ACTIVATION,
        )
        return self.formats[root]

    def _constants(
        self, layer: fg.Conv | fg.Linear, source_frac: int
    ) -> tuple[Weights, Bias | None, int]:
        """Weights, biases and the accumulator's fraction bits."""
        bits, seen = self.config.of(layer.name), self.seen.layers[layer.name]
        corrected = self.config.correct_biases
        far = float(np.abs(layer.bias).max())
        finest = FINEST_ACCUMULATOR - max(0, ceil(log2(far)) if far else 0)
        form = choose_format(
            layer.weight,
            width=bits.weights,
            signed=True,
            calibration=self.config.weights,
            what=f"the weights of layer {layer.name}",
            finest=finest - source_frac,
            error=lambda f: seen.squared_error(f, corrected=corrected),
        )
        codes = quantize_to(layer.weight, form)
        weights = Weights(codes=codes, width=form.width, scale=form.scale)
        frac = source_frac + form.frac
        values = layer.bias - seen.mean_error(form) if corrected else layer.bias
        return weights, self._bias(layer.name, values, frac), frac

    def _bias(self, layer: str, values: Floats, frac: int) -> Bias | None:
        """Integer biases at the accumulator's scale; lowest bits go where the width is short."""
        if not values.any():
            return None
        form = choose_format(
            values,
            width=self.config.of(layer).biases,
            signed=True,
            calibration=self.config.weights,
            what=f"the biases of layer {layer}",
            finest=frac,
        )
        return Bias(codes=quantize_to(values, form), width=form.width, shift=frac - form.frac)

    def _mac(self, group: Group, layer: fg.Conv | fg.Linear) -> None:
        (source,), (kind,) = self._sources(group)
        raw = group.last is layer and is_result(self.graph, layer.name)
        out = None if raw else self._output_format(group)
        weights, bias, frac = self._constants(layer, self.fracs[source])
        shape = self.graph.shape(layer.name)
        geometry = None
        if isinstance(layer, fg.Conv) and len(kind.shape) == 1:  # a point of a 1x1 image
            weights = replace(weights, codes=weights.codes[:, :, 0, 0])
            shape = shape[:1]
        elif isinstance(layer, fg.Conv):
            geometry = self.graph.geometry(layer.name)
        padded = False if geometry is None else outside_taps(geometry)
        width = union_width(*mac_interval(kind, weights, bias, padded=padded))
        common: dict[str, Any] = {
            "name": layer.name,
            "inputs": (source,),
            "input": kind,
            "weights": weights,
            "bias": bias,
        }
        if geometry is not None:
            common |= {"geometry": geometry, "groups": getattr(layer, "groups", 1)}
        make = Linear if geometry is None else Conv
        if out is None:
            output = TensorType(shape=shape, width=width, signed=True, scale=2.0**-frac)
            self._append(group, make(**common, output=output), frac)
            return
        rounding = self.config.rounding
        if group.affine is None:
            requant = shift_requant(frac, out, rounding=rounding, group=group)
        else:
            requant = scaled_requant(
                np.ldexp(group.affine.scale, out.frac - frac),
                np.ldexp(group.affine.offset, out.frac),
                out,
                group=group,
                width=width,
                scale_bits=self.config.scale_bits,
                rounding=rounding,
            )
        self._append(group, make(**common, requant=requant, output=_type(shape, out)), out.frac)

    def _average(self, group: Group, node: fg.AvgPool | fg.GlobalAvgPool) -> None:
        (source,), (kind,) = self._sources(group)
        out = self._output_format(group)
        # Accumulators are this many times the average.
        divisor = kind.pixels
        if isinstance(node, fg.AvgPool):
            divisor = lcm(*(int(c) for c in np.unique(node.counts(kind.shape))))
        requant = scaled_requant(
            np.array([2.0 ** (out.frac - self.fracs[source]) / divisor]),
            np.zeros(1),
            out,
            group=group,
            width=kind.width + 1 + divisor.bit_length(),
            scale_bits=self.config.scale_bits,
            rounding=self.config.rounding,
        )
        inputs, shape = (source,), self.graph.shape(node.name)
        op: Op
        if isinstance(node, fg.GlobalAvgPool):
            op = GlobalAvgPool(
                name=node.name,
                inputs=inputs,
                input=kind,
                requant=requant,
                output=_type(shape[:1], out),
            )
        else:
            op = AvgPool(
                name=node.name,
                inputs=inputs,
                input=kind,
                requant=requant,
                output=_type(shape, out),
                geometry=self.graph.geometry(node.name),
                count_include_pad=node.count_include_pad,
            )
        self._append(group, op, out.frac)

    def _rescale(self, group: Group, node: fg.ChannelAffine | fg.Relu) -> None:
        """An affine or a ReLU on its own."""
        (source,), (kind,) = self._sources(group)
        out, frac = self._output_format(group), self.fracs[source]
        rounding = self.config.rounding
        if isinstance(node, fg.Relu):
            requant = shift_requant(frac, out, rounding=rounding, group=group)
        else:
            requant = scaled_requant(
                np.ldexp(node.scale, out.frac - frac),
                np.ldexp(node.offset, out.frac),
                out,
                group=group,
                width=kind.width + 1,
                scale_bits=self.config.scale_bits,
                rounding=rounding,
            )
        output = _type(kind.shape, out)
        op = Rescale(name=node.name, inputs=(source,), input=kind, requant=requant, output=output)
        self._append(group, op, out.frac)

    def _add(self, group: Group) -> None:
        names, kinds = self._sources(group)
        fracs = [self.fracs[n] for n in names]
        fine, out = max(fracs), self._output_format(group)
        op = Add(
            name=group.node.name,
            inputs=names,
            types=(kinds[0], kinds[1]),
            mult=(1 << (fine - fracs[0]), 1 << (fine - fracs[1])),
            requant=shift_requant(fine, out, rounding=self.config.rounding, group=group),
            output=_type(kinds[0].shape, out),
        )
        self._append(group, op, out.frac)

    def _select(self, group: Group) -> None:
        """Layers whose codes are codes of their input."""
        node = group.node
        (source,), (kind,) = self._sources(group)
        if isinstance(node, fg.Flatten) and len(kind.shape) == 1:
            self.tensors[node.name] = source  # a vector already
            return
        shape = self.graph.shape(node.name)
        common: dict[str, Any] = {"name": node.name, "inputs": (source,), "input": kind}
        op: Op
        if isinstance(node, fg.MaxPool):
            geometry = self.graph.geometry(node.name)
            op = MaxPool(**common, geometry=geometry, output=replace(kind, shape=shape))
        elif isinstance(node, fg.GlobalMaxPool):
            op = GlobalMaxPool(**common, output=replace(kind, shape=shape[:1]))
        else:
            op = Flatten(**common, output=replace(kind, shape=shape))
        self._append(group, op, self.fracs[source])

    def _concat(self, group: Group) -> None:
        """All inputs have the format already, but for pixels."""
        form = self._output_format(group)
        names, kinds = self._sources(group)
        ready = []
        for name, kind in zip(names, kinds, strict=True):
            wanted = _type(kind.shape, form)
            if kind == wanted:
                ready.append(name)
                continue
            bridge = f"{group.node.name}.{name}"
            if bridge not in self.types:
                requant = shift_requant(self.fracs[name], form, rounding=self.config.rounding)
                self.ops.append(
                    Rescale(name=bridge, inputs=(name,), input=kind, requant=requant, output=wanted)
                )
                self.types[bridge], self.fracs[bridge] = wanted, form.frac
            ready.append(bridge)
        types = tuple(self.types[name] for name in ready)
        shape = (sum(t.channels for t in types), *types[0].shape[1:])
        op = Concat(
            name=group.node.name, inputs=tuple(ready), types=types, output=_type(shape, form)
        )
        self._append(group, op, form.frac)
