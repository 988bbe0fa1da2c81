"""Integer networks from a float graph and a plan, group of nodes by group of nodes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Concat,
    Conv,
    Fixed,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Network,
    Op,
    Rescale,
    Rounding,
    TensorType,
    Weights,
    mac_interval,
)
from hwgen.ir.ops.base import union_width
from hwgen.ir.ops.windows import outside_taps
from quant import graph as fg
from quant.grouping import Group, check_vectors, group_nodes, is_result, joint_formats
from quant.layer_constants import check_layer, fraction_bits, integer_bias
from quant.plan import LayerPlan, Plan
from quant.requantisers import scaled_requant, shift_requant

__all__ = ["PIXEL", "Assembler"]

PIXEL = Fixed(width=8, frac=0, signed=False)
"""Format of the network's input: raw pixels."""

REMEMBERED = 64
"""Layers of each group that an assembler remembers."""


def _type(shape: tuple[int, ...], form: Fixed) -> TensorType:
    return TensorType(
        shape=shape, width=form.width, signed=form.signed, scale=form.scale, zero=form.zero
    )


def _with_offset(group: Group, layer: LayerPlan) -> Group:
    """The group with the plan's offset behind its batch norm."""
    if layer.offset is None:
        return group
    if group.affine is None:
        raise BadInput(
            f"no batch norm follows the ReLU of layer {group.node.name}; leave the offset of its"
            " plan out"
        )
    return replace(group, affine=replace(group.affine, offset=layer.offset))


@dataclass(kw_only=True, eq=False)
class _State:
    """A network under construction.

    ``tensors`` gives the integer tensor that stands for a float node's, ``types`` and ``fracs``
    (fraction bits) describe integer tensors.
    """

    ops: list[Op] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=lambda: {INPUT: INPUT})
    types: dict[str, TensorType] = field(default_factory=dict)
    fracs: dict[str, int] = field(default_factory=lambda: {INPUT: PIXEL.frac})

    def append(self, group: Group, op: Op, frac: int) -> None:
        """Add a layer that stands for a group."""
        self.ops.append(op)
        self.types[op.name], self.fracs[op.name] = op.output, frac
        self.tensors[group.last.name] = op.name


class Assembler:
    """Makes integer networks from plans.

    A layer whose plan, input type and output format stay the same is the same object in the next
    network, so that nothing is checked or computed twice in a search.

    Parameters
    ----------
    graph : FloatGraph
        Takes raw pixels: see :func:`quant.baseline.with_preprocessing`. Its weights do not count,
        the plan's do.
    rounding : Rounding
        Of all requantisers.
    scale_bits : int
        Most bits of a requantiser's multiplier, 2 to 24.
    norms_apart : bool
        Whether a batch norm behind a ReLU is a layer of its own, its input in the format of the
        convolution before it.
    """

    def __init__(
        self,
        graph: fg.FloatGraph,
        *,
        rounding: Rounding = Rounding.HALF_UP,
        scale_bits: int = 16,
        norms_apart: bool = False,
    ) -> None:
        check_vectors(graph)
        self.graph, self.rounding, self.scale_bits = graph, rounding, scale_bits
        self.groups = group_nodes(graph, norms_apart=norms_apart)
        self.joint = joint_formats(self.groups)
        self._made: OrderedDict[tuple[object, ...], tuple[Op, int]] = OrderedDict()

    @property
    def makers(self) -> tuple[Group, ...]:
        """The groups that make codes of a format of their own; the others pass codes on."""
        return tuple(group for group in self.groups if not group.keeps_format)

    def hands_out_accumulators(self, group: Group) -> bool:
        """Whether a group's accumulators are the network's result."""
        node = group.node
        mac = isinstance(node, fg.Conv | fg.Linear)
        return mac and group.last is node and is_result(self.graph, node.name)

    def assemble(self, plan: Plan, name: str = "network") -> Network:
        """The integer network of a plan.

        Raises
        ------
        BadInput
            If the plan lacks a layer or a format, or asks for what cannot be built.
        """
        state = _State(types={INPUT: _type(self.graph.input_shape, PIXEL)})
        formats = self._formats(plan)
        for group in self.groups:
            self._group(group, plan, formats, state)
        return Network(
            name=name,
            input=state.types[INPUT],
            ops=tuple(state.ops),
            output=state.tensors[self.graph.output],
        )

    def _formats(self, plan: Plan) -> dict[str, Fixed]:
        """The format of each set of tensors that share one, by representative."""
        formats: dict[str, Fixed] = {self.joint[INPUT]: PIXEL}
        for group in self.makers:
            if self.hands_out_accumulators(group):
                continue
            layer, root = group.node.name, self.joint[group.last.name]
            if layer not in plan.outputs:
                raise BadInput(f"the plan lacks the output format of layer {layer}; add it")
            if formats.setdefault(root, plan.outputs[layer]) != plan.outputs[layer] and (
                root != self.joint[INPUT]
            ):
                raise BadInput(
                    f"layer {layer} shares its output format with another layer, but the plan says"
                    f" {plan.outputs[layer]} and {formats[root]}; give both the same"
                )
            formats[root] = plan.outputs[layer]
        return formats

    def _group(self, group: Group, plan: Plan, formats: dict[str, Fixed], state: _State) -> None:
        """Append the layers of a group."""
        node = group.node
        sources = tuple(state.tensors[i] for i in node.inputs)
        kinds = tuple(state.types[n] for n in sources)
        raw = self.hands_out_accumulators(group)
        out = None if raw else formats.get(self.joint[group.last.name])
        layer = plan.layer(node.name) if isinstance(node, fg.Conv | fg.Linear) else None
        if isinstance(node, fg.Flatten) and len(kinds[0].shape) == 1:
            state.tensors[node.name] = sources[0]  # a vector already
            return
        if isinstance(node, fg.Concat):
            assert out is not None
            sources, kinds = self._bridges(group, sources, kinds, out, state)
        fracs = tuple(state.fracs[n] for n in sources)
        key = (node.name, layer, sources, kinds, fracs, out)
        made = self._made.get(key)
        if made is None:
            made = self._make(group, layer, sources, kinds, fracs, out)
            self._made[key] = made
            while len(self._made) > REMEMBERED * len(self.groups):
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(key)
        op, frac = made
        state.append(group, op, frac)

    def _make(
        self,
        group: Group,
        layer: LayerPlan | None,
        sources: tuple[str, ...],
        kinds: tuple[TensorType, ...],
        fracs: tuple[int, ...],
        out: Fixed | None,
    ) -> tuple[Op, int]:
        """The layer of a group, and the fraction bits of its codes."""
        node = group.node
        if layer is not None:
            assert isinstance(node, fg.Conv | fg.Linear)
            return self._mac(group, node, layer, sources, kinds[0], fracs[0], out)
        if isinstance(node, fg.MaxPool | fg.GlobalMaxPool | fg.Flatten):
            return self._select(node, sources, kinds[0]), fracs[0]
        assert out is not None
        match node:
            case fg.AvgPool() | fg.GlobalAvgPool():
                return self._average(group, node, sources, kinds[0], fracs[0], out), out.frac
            case fg.ChannelAffine() | fg.Relu():
                return self._rescale(group, node, sources, kinds[0], fracs[0], out), out.frac
            case fg.Add():
                return self._add(group, sources, kinds, fracs, out), out.frac
            case fg.Concat():
                shape = (sum(t.channels for t in kinds), *kinds[0].shape[1:])
                op = Concat(name=node.name, inputs=sources, types=kinds, output=_type(shape, out))
                return op, out.frac
            case _:
                raise AssertionError(f"no integer layer for {type(node).__name__}")

    def _mac(
        self,
        group: Group,
        node: fg.Conv | fg.Linear,
        layer: LayerPlan,
        sources: tuple[str, ...],
        kind: TensorType,
        source_frac: int,
        out: Fixed | None,
    ) -> tuple[Op, int]:
        check_layer(node, layer)
        group = _with_offset(group, layer)
        shape, codes = self.graph.shape(node.name), layer.codes
        geometry = None
        if isinstance(node, fg.Conv) and len(kind.shape) == 1:  # a point of a 1x1 image
            codes, shape = codes[:, :, 0, 0], shape[:1]
        elif isinstance(node, fg.Conv):
            geometry = self.graph.geometry(node.name)
        steps = np.ldexp(layer.scale, -source_frac)
        weights = Weights(
            codes=codes,
            width=layer.width,
            scale=tuple(layer.scale.tolist()),
            codebook=layer.codebook,
        )
        bias = integer_bias(layer, steps, what=f"the biases of layer {node.name}")
        padded = False if geometry is None else outside_taps(geometry)
        width = union_width(*mac_interval(kind, weights, bias, padded=padded))
        common: dict[str, Any] = {
            "name": node.name,
            "inputs": sources,
            "input": kind,
            "weights": weights,
            "bias": bias,
        }
        if geometry is not None:
            common |= {"geometry": geometry, "groups": getattr(node, "groups", 1)}
        make = Linear if geometry is None else Conv
        if out is None:
            if len(steps) > 1:
                raise BadInput(
                    f"layer {node.name} hands out accumulators, so that its weights need one scale,"
                    f" not {len(steps)}; give the tensor one"
                )
            output = TensorType(shape=shape, width=width, signed=True, scale=float(steps[0]))
            return make(**common, output=output), 0
        fracs = fraction_bits(steps)
        if group.affine is None and fracs is not None:
            requant = shift_requant(fracs, out, rounding=self.rounding, group=group)
        else:
            factors, offsets = np.ldexp(steps, out.frac), np.zeros(1)
            if group.affine is not None:
                factors = factors * group.affine.scale
                offsets = np.ldexp(group.affine.offset, out.frac)
            requant = scaled_requant(
                factors,
                offsets,
                out,
                group=group,
                width=width,
                scale_bits=self.scale_bits,
                rounding=self.rounding,
            )
        return make(**common, requant=requant, output=_type(shape, out)), out.frac

    def _average(
        self,
        group: Group,
        node: fg.AvgPool | fg.GlobalAvgPool,
        inputs: tuple[str, ...],
        kind: TensorType,
        source_frac: int,
        out: Fixed,
    ) -> Op:
        # Accumulators are this many times the average.
        divisor = kind.pixels
        if isinstance(node, fg.AvgPool):
            divisor = lcm(*(int(c) for c in np.unique(node.counts(kind.shape))))
        requant = scaled_requant(
            np.array([2.0 ** (out.frac - source_frac) / divisor]),
            np.zeros(1),
            out,
            group=group,
            width=kind.width + 1 + divisor.bit_length(),
            scale_bits=self.scale_bits,
            rounding=self.rounding,
        )
        shape = self.graph.shape(node.name)
        if isinstance(node, fg.GlobalAvgPool):
            return GlobalAvgPool(
                name=node.name,
                inputs=inputs,
                input=kind,
                requant=requant,
                output=_type(shape[:1], out),
            )
        return AvgPool(
            name=node.name,
            inputs=inputs,
            input=kind,
            requant=requant,
            output=_type(shape, out),
            geometry=self.graph.geometry(node.name),
            count_include_pad=node.count_include_pad,
        )

    def _rescale(
        self,
        group: Group,
        node: fg.ChannelAffine | fg.Relu,
        inputs: tuple[str, ...],
        kind: TensorType,
        source_frac: int,
        out: Fixed,
    ) -> Op:
        """An affine or a ReLU on its own."""
        if isinstance(node, fg.Relu):
            requant = shift_requant((source_frac,), out, rounding=self.rounding, group=group)
        else:
            requant = scaled_requant(
                np.ldexp(node.scale, out.frac - source_frac),
                np.ldexp(node.offset, out.frac),
                out,
                group=group,
                width=kind.width + 1,
                scale_bits=self.scale_bits,
                rounding=self.rounding,
            )
        output = _type(kind.shape, out)
        return Rescale(name=node.name, inputs=inputs, input=kind, requant=requant, output=output)

    def _add(
        self,
        group: Group,
        inputs: tuple[str, ...],
        kinds: tuple[TensorType, ...],
        fracs: tuple[int, ...],
        out: Fixed,
    ) -> Op:
        fine = max(fracs)
        return Add(
            name=group.node.name,
            inputs=inputs,
            types=(kinds[0], kinds[1]),
            mult=(1 << (fine - fracs[0]), 1 << (fine - fracs[1])),
            requant=shift_requant((fine,), out, rounding=self.rounding, group=group),
            output=_type(kinds[0].shape, out),
        )

    def _select(self, node: fg.Node, inputs: tuple[str, ...], kind: TensorType) -> Op:
        """A layer whose codes are codes of its input."""
        shape = self.graph.shape(node.name)
        common: dict[str, Any] = {"name": node.name, "inputs": inputs, "input": kind}
        if isinstance(node, fg.MaxPool):
            geometry = self.graph.geometry(node.name)
            return MaxPool(**common, geometry=geometry, output=replace(kind, shape=shape))
        if isinstance(node, fg.GlobalMaxPool):
            return GlobalMaxPool(**common, output=replace(kind, shape=shape[:1]))
        return Flatten(**common, output=replace(kind, shape=shape))

    def _bridges(
        self,
        group: Group,
        sources: tuple[str, ...],
        kinds: tuple[TensorType, ...],
        form: Fixed,
        state: _State,
    ) -> tuple[tuple[str, ...], tuple[TensorType, ...]]:
        """The inputs of a concatenation in its format: all have it already, but for pixels."""
        ready = []
        for name, kind in zip(sources, kinds, strict=True):
            wanted = _type(kind.shape, form)
            if kind == wanted:
                ready.append(name)
                continue
            bridge = f"{group.node.name}.{name}"
            if bridge not in state.types:
                requant = shift_requant((state.fracs[name],), form, rounding=self.rounding)
                state.ops.append(
                    Rescale(name=bridge, inputs=(name,), input=kind, requant=requant, output=wanted)
                )
                state.types[bridge], state.fracs[bridge] = wanted, form.frac
            ready.append(bridge)
        return tuple(ready), tuple(state.types[name] for name in ready)
