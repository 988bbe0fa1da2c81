"""Uniform post-training quantisation with power-of-two scales per tensor: the baseline.

Formats of activations come from the float network's values on calibration images, formats of
weights from the weights. Biases are integers at the accumulator's scale, shifted left where their
width is short. A ReLU becomes a saturation bound; a batch norm behind a ReLU, an average and a
normalisation become a requantiser with multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import floor, log2

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.errors import BadInput, UnsupportedLayer
from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Bias,
    Concat,
    Conv,
    Fixed,
    Flatten,
    Geometry,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    Rescale,
    TensorType,
    Weights,
)
from quant import graph as fg
from quant.config import QuantConfig
from quant.formats import choose_format, quantize_to
from quant.importers import fold
from quant.models import Preprocess

__all__ = ["quantize_linear", "with_preprocessing"]

NORMALISE = "normalise"
"""Name of the layer that maps raw pixels to the network's input where that cannot be folded."""

SAMPLES = 200_000
"""Values of a tensor that calibration looks at, spread evenly over images and positions."""

_FORMAT_KEEPING = (fg.MaxPool, fg.GlobalMaxPool, fg.Flatten, fg.Concat)


def with_preprocessing(graph: fg.FloatGraph, preprocess: Preprocess) -> fg.FloatGraph:
    """The network of raw pixels: ``graph`` behind ``x = pixel * scale + offset``, folded where exact.

    Raises
    ------
    BadInput
        If the number of channels differs.
    """
    channels = graph.input_shape[0]
    if len(preprocess.scale) != channels:
        raise BadInput(
            f"preprocessing has {len(preprocess.scale)} channels, the network's input has {channels}"
        )
    normalise = fg.ChannelAffine(
        name=NORMALISE,
        inputs=(INPUT,),
        scale=np.array(preprocess.scale),
        offset=np.array(preprocess.offset),
    )

    def moved(node: fg.Node) -> fg.Node:
        inputs = tuple(NORMALISE if i == INPUT else i for i in node.inputs)
        return replace(node, inputs=inputs)

    nodes = (graph.nodes[0], normalise, *(moved(node) for node in graph.nodes[1:]))
    return fold(fg.FloatGraph(nodes=nodes, output=graph.output, notes=graph.notes))


@dataclass(kw_only=True)
class _Group:
    """A node that makes codes, with the ReLU and affine that its requantiser does too."""

    node: fg.Node
    relu: fg.Relu | None = None
    affine: fg.ChannelAffine | None = None

    @property
    def last(self) -> fg.Node:
        """The float node whose tensor the codes stand for."""
        return self.affine or self.relu or self.node

    @property
    def keeps_format(self) -> bool:
        return isinstance(self.node, _FORMAT_KEEPING)


def _groups(graph: fg.FloatGraph) -> list[_Group]:
    """Nodes joined with what their requantisers can do: [ReLU] [affine], each read by the next alone."""
    groups: list[_Group] = []
    done: set[str] = set()
    for node in graph.nodes[1:]:
        if node.name in done:
            continue
        group = _Group(node=node)
        groups.append(group)
        if isinstance(node, _FORMAT_KEEPING):
            continue
        if isinstance(node, fg.Relu):
            group.relu = node  # of a tensor whose maker cannot take it in
        for kind in (fg.Relu, fg.ChannelAffine):
            readers = graph.consumers(group.last.name)
            if len(readers) != 1 or group.last.name == graph.output:
                break
            reader = readers[0]
            if kind is fg.Relu and isinstance(reader, fg.Relu) and group.relu is None:
                group.relu = reader
                done.add(reader.name)
            elif (
                isinstance(reader, fg.ChannelAffine)
                and group.affine is None
                and isinstance(node, fg.Conv | fg.Linear)
                and group.relu is not None
                and kind is fg.ChannelAffine
            ):
                group.affine = reader
                done.add(reader.name)
    return groups


@dataclass(kw_only=True)
class _State:
    """What the quantiser knows while it walks the groups."""

    graph: fg.FloatGraph
    config: QuantConfig
    samples: dict[str, NDArray[np.float64]]
    joint: dict[str, str]
    aliases: dict[str, str] = field(default_factory=lambda: {INPUT: INPUT})
    types: dict[str, TensorType] = field(default_factory=dict)
    fracs: dict[str, int] = field(default_factory=dict)
    formats: dict[str, Fixed] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def source(self, node: fg.Node) -> tuple[tuple[str, ...], list[TensorType]]:
        """Integer tensors that stand for a float node's inputs."""
        names = tuple(self.aliases[i] for i in node.inputs)
        return names, [self.types[n] for n in names]

    def add(self, group: _Group, op: Op, frac: int) -> None:
        self.ops.append(op)
        self.types[op.name], self.fracs[op.name] = op.output, frac
        for node in (group.node, group.relu, group.affine):
            if node is not None:
                self.aliases[node.name] = op.name


def _sample(graph: fg.FloatGraph, images: torch.Tensor, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """About ``SAMPLES`` values of each tensor, its extremes among them."""
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for values in graph.activations(images, dtype=torch.float64, batch_size=64):
        for name in names:
            flat = values[name].reshape(-1)
            share = max(1, int(flat.numel() * len(images) / len(values[name]) / SAMPLES))
            parts[name].append(np.array(flat[::share].numpy()))
            parts[name].append(np.array([flat.min().item(), flat.max().item()]))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _joint_formats(graph: fg.FloatGraph, groups: list[_Group]) -> dict[str, str]:
    """Each tensor's representative: tensors that must share one format have the same."""
    parent = {INPUT: INPUT}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for group in groups:
        name = group.last.name
        parent[name] = name
        for part in (group.node, group.relu):
            if part is not None:
                parent.setdefault(part.name, name)
        if group.keeps_format:
            for source in group.node.inputs:
                parent[root(source)] = root(name)
    return {name: root(name) for name in parent}


def _output_format(state: _State, group: _Group) -> Fixed:
    """The format of a group's codes, from all tensors that share it."""
    root = state.joint[group.last.name]
    if root not in state.formats:
        tied = [n for n, r in state.joint.items() if r == root and n in state.samples]
        values = np.concatenate([state.samples[n] for n in tied])
        makers = [g for g in _groups(state.graph) if g.last.name in tied and not g.keeps_format]
        bits = max(state.config.of(g.node.name).activations for g in makers)
        positive = all(g.relu is not None and g.affine is None for g in makers)
        state.formats[root] = choose_format(
            values,
            width=bits,
            signed=not (positive or float(values.min()) >= 0 and _never_negative(state.graph, makers)),
            calibration=state.config.activations,
            what=f"the activations of layer {group.node.name}",
        )
    return state.formats[root]


def _never_negative(graph: fg.FloatGraph, makers: list[_Group]) -> bool:
    """Whether every maker gives at least 0 for any input: averages of what a ReLU made."""

    def positive(name: str) -> bool:
        node = graph.node(name)
        if isinstance(node, fg.Relu):
            return True
        keeps = fg.MaxPool | fg.AvgPool | fg.GlobalAvgPool | fg.GlobalMaxPool | fg.Flatten | fg.Concat
        return isinstance(node, keeps) and all(positive(i) for i in node.inputs)

    return all(g.relu is not None or positive(g.node.name) for g in makers if g.affine is None) and all(
        g.affine is None for g in makers
    )


def _type(shape: tuple[int, ...], form: Fixed) -> TensorType:
    return TensorType(shape=shape, width=form.width, signed=form.signed, scale=form.scale)


def _bounds(state: _State, group: _Group, form: Fixed, channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Saturation bounds of a group's codes, with its ReLU's limits."""
    low, high = form.low, form.high
    relu, affine = group.relu, group.affine
    if relu is None:
        return (low,), (high,)
    if affine is None:
        limit = high if relu.max is None else min(high, floor(np.ldexp(relu.max, form.frac) + 0.5))
        return (max(low, 0),), (max(limit, 0),)
    if relu.max is None:
        return (low,), (high,)
    lows, highs = [], []
    for scale, offset in zip(affine.scale, affine.offset, strict=True):
        end = floor(np.ldexp(relu.max * scale + offset, form.frac) + 0.5)
        end = min(max(end, low), high)
        lows.append(low if scale >= 0 else end)
        highs.append(end if scale >= 0 else high)
    return tuple(lows), tuple(highs)


def _shift_requant(state: _State, group: _Group, form: Fixed, frac: int, mult: int = 1) -> Requant:
    """From an accumulator of ``frac`` fraction bits to ``form``, by a shift alone."""
    shift = frac - form.frac
    low, high = _bounds(state, group, form, 1)
    return Requant(
        mult=(mult << max(-shift, 0),),
        shift=(max(shift, 0),),
        low=low,
        high=high,
        rounding=state.config.rounding,
    )


def _scaled_requant(
    state: _State,
    group: _Group,
    form: Fixed,
    factors: NDArray[np.float64],
    offsets: NDArray[np.float64] | None,
    *,
    relu: bool = False,
) -> Requant:
    """Codes ``acc * factor + offset``, per channel, with multipliers of ``scale_bits`` bits.

    ``factors`` are in output steps per accumulator step, ``offsets`` in output steps.
    """
    top = float(np.abs(factors).max())
    shift = 0 if top == 0 else max(0, state.config.scale_bits - 1 - floor(log2(top)) - 1)
    mult = tuple(int(m) for m in np.floor(np.ldexp(factors, shift) + 0.5))
    add: tuple[int, ...] = (0,)
    if offsets is not None:
        add = tuple(int(a) for a in np.floor(np.ldexp(offsets, shift) + 0.5))
    low, high = _bounds(state, group, form, len(mult))
    if len(set(mult)) == 1 and len(set(add)) == 1:
        mult, add = mult[:1], add[:1]
        # An exact power of two needs no multiplier.
        while shift > 0 and mult[0] % 2 == 0 and add[0] % 2 == 0 and mult[0] != 0:
            mult, add, shift = (mult[0] // 2,), (add[0] // 2,), shift - 1
    return Requant(
        mult=mult,
        add=add,
        shift=(shift,),
        low=low,
        high=high,
        rounding=state.config.rounding,
        relu=relu,
    )


def _bias(state: _State, layer: str, values: NDArray[np.float64], frac: int) -> Bias | None:
    """Integer biases at the accumulator's scale; the lowest bits go where the width is short."""
    if not values.any():
        return None
    width = state.config.of(layer).biases
    codes = np.floor(np.ldexp(values, frac) + 0.5)
    shift = 0
    form = Fixed(width=width, frac=0, signed=True)
    while codes.max() > form.high or codes.min() < form.low:
        shift += 1
        codes = np.floor(np.ldexp(values, frac - shift) + 0.5)
    return Bias(codes=codes.astype(np.int64), width=width, shift=shift)


def _mac(state: _State, group: _Group) -> None:
    node = group.node
    assert isinstance(node, fg.Conv | fg.Linear)
    (source,), (kind,) = state.source(node)
    bits = state.config.of(node.name)
    form = choose_format(
        node.weight,
        width=bits.weights,
        signed=True,
        calibration=state.config.weights,
        what=f"the weights of layer {node.name}",
    )
    weights = Weights(codes=quantize_to(node.weight, form), width=form.width, scale=form.scale)
    frac = state.fracs[source] + form.frac
    bias = _bias(state, node.name, node.bias, frac)
    shape = state.graph.shape(node.name)
    common = {"name": node.name, "inputs": (source,), "input": kind, "weights": weights, "bias": bias}
    if isinstance(node, fg.Conv):
        common |= {"geometry": state.graph.geometry(node.name), "groups": node.groups}
    make = Conv if isinstance(node, fg.Conv) else Linear
    if group.last.name == state.graph.output and group.relu is None:
        state.add(group, _accumulators(make, common, shape, frac), frac)
        return
    out = _output_format(state, group)
    if group.affine is None:
        requant = _shift_requant(state, group, out, frac)
    else:
        factors = np.ldexp(group.affine.scale, out.frac - frac)
        offsets = np.ldexp(group.affine.offset, out.frac)
        requant = _scaled_requant(state, group, out, factors, offsets, relu=True)
    state.add(group, make(**common, requant=requant, output=_type(shape, out)), out.frac)


def _accumulators(make: type[Conv] | type[Linear], common: dict[str, object], shape: tuple[int, ...], frac: int) -> Op:
    """The last layer, which hands out its accumulators."""
    wide = TensorType(shape=shape, width=40, signed=True, scale=2.0**-frac)
    probe = Requant(low=(wide.minimum,), high=(wide.maximum,))
    width = make(**common, requant=probe, output=wide).accumulator_width  # type: ignore[arg-type]
    output = TensorType(shape=shape, width=width, signed=True, scale=2.0**-frac)
    return make(**common, requant=None, output=output)  # type: ignore[arg-type]


def _average(state: _State, group: _Group) -> None:
    node = group.node
    assert isinstance(node, fg.AvgPool | fg.GlobalAvgPool)
    (source,), (kind,) = state.source(node)
    out = _output_format(state, group)
    shape = state.graph.shape(node.name)
    if isinstance(node, fg.GlobalAvgPool):
        shape, divisor = shape[:1], kind.pixels
    else:
        geometry = state.graph.geometry(node.name)
        counts = node.counts(kind.shape)
        divisor = int(np.lcm.reduce(np.unique(counts)))
    factor = np.array([2.0 ** (out.frac - state.fracs[source]) / divisor])
    requant = _scaled_requant(state, group, out, factor, None)
    common = {"name": node.name, "inputs": (source,), "input": kind, "requant": requant, "output": _type(shape, out)}
    if isinstance(node, fg.GlobalAvgPool):
        state.add(group, GlobalAvgPool(**common), out.frac)
    else:
        state.add(
            group,
            AvgPool(**common, geometry=geometry, count_include_pad=node.count_include_pad),
            out.frac,
        )


def _rescale(state: _State, group: _Group) -> None:
    """An affine or ReLU on its own."""
    node = group.node
    (source,), (kind,) = state.source(node)
    out = _output_format(state, group)
    if isinstance(node, fg.ChannelAffine):
        step = float(kind.scale)
        factors = np.ldexp(node.scale * step, out.frac)
        requant = _scaled_requant(state, group, out, factors, np.ldexp(node.offset, out.frac))
    else:
        requant = _shift_requant(state, group, out, state.fracs[source])
    op = Rescale(
        name=node.name, inputs=(source,), input=kind, requant=requant, output=_type(kind.shape, out)
    )
    state.add(group, op, out.frac)


def _add(state: _State, group: _Group) -> None:
    names, kinds = state.source(group.node)
    fracs = [state.fracs[n] for n in names]
    fine = max(fracs)
    out = _output_format(state, group)
    op = Add(
        name=group.node.name,
        inputs=names,
        types=(kinds[0], kinds[1]),
        mult=(1 << (fine - fracs[0]), 1 << (fine - fracs[1])),
        requant=_shift_requant(state, group, out, fine),
        output=_type(kinds[0].shape, out),
    )
    state.add(group, op, out.frac)


def _keep(state: _State, group: _Group) -> None:
    """Layers whose output has the format of their input."""
    node = group.node
    names, kinds = state.source(node)
    kind, frac = kinds[0], state.fracs[names[0]]
    if isinstance(node, fg.Flatten) and len(kind.shape) == 1:
        state.aliases[node.name] = names[0]  # a vector already
        return
    shape = state.graph.shape(node.name)
    if isinstance(node, fg.GlobalMaxPool):
        shape = shape[:1]
    common = {"name": node.name, "inputs": names, "output": replace(kind, shape=shape)}
    if isinstance(node, fg.MaxPool):
        state.add(group, MaxPool(**common, input=kind, geometry=state.graph.geometry(node.name)), frac)
    elif isinstance(node, fg.GlobalMaxPool):
        state.add(group, GlobalMaxPool(**common, input=kind), frac)
    elif isinstance(node, fg.Flatten):
        state.add(group, Flatten(**common, input=kind), frac)
    else:
        _concat(state, group, names, kinds, shape)


def _concat(
    state: _State, group: _Group, names: tuple[str, ...], kinds: list[TensorType], shape: tuple[int, ...]
) -> None:
    form = _output_format(state, group)
    ready: list[str] = []
    for name, kind in zip(names, kinds, strict=True):
        wanted = _type(kind.shape, form)
        if kind == wanted:
            ready.append(name)
            continue
        bridge = f"{group.node.name}_{name}"
        requant = _shift_requant(state, _Group(node=group.node), form, state.fracs[name])
        op = Rescale(name=bridge, inputs=(name,), input=kind, requant=requant, output=wanted)
        state.ops.append(op)
        state.types[bridge], state.fracs[bridge] = wanted, form.frac
        ready.append(bridge)
    types = tuple(state.types[name] for name in ready)
    op = Concat(name=group.node.name, inputs=tuple(ready), types=types, output=_type(shape, form))
    state.add(group, op, form.frac)


def _check_layers(config: QuantConfig, groups: list[_Group]) -> None:
    known = [g.node.name for g in groups if not g.keeps_format]
    unknown = [name for name in config.layers if name not in known]
    if unknown:
        raise BadInput(
            f"widths are given for {', '.join(unknown)}, but the layers with widths are {', '.join(known)}"
        )


def _check_vectors(graph: fg.FloatGraph) -> None:
    """A global pool makes a vector here: only layers that take vectors may follow."""
    problems = []
    for node in graph.nodes:
        if isinstance(node, fg.GlobalAvgPool | fg.GlobalMaxPool):
            problems += [
                f"{type(reader).__name__} '{reader.name}': it takes the 1x1 image of the global pool"
                f" '{node.name}'; put a flatten between them and use a linear layer"
                for reader in graph.consumers(node.name)
                if isinstance(reader, fg.Conv | fg.MaxPool | fg.AvgPool | fg.GlobalAvgPool | fg.GlobalMaxPool)
            ]
    if problems:
        raise UnsupportedLayer("cannot quantise:\n  " + "\n  ".join(problems))


def quantize_linear(
    graph: fg.FloatGraph,
    *,
    preprocess: Preprocess,
    calibration: NDArray[np.uint8],
    config: QuantConfig | None = None,
    name: str = "network",
) -> Network:
    """Quantise a float network to fixed point.

    Parameters
    ----------
    graph : FloatGraph
        Takes preprocessed images.
    preprocess : Preprocess
        What makes them of raw pixels; becomes part of the integer network.
    calibration : uint8 array
        Raw images ``(N, C, H, W)``, N at least 1. Never test images.
    config : QuantConfig, optional
        Widths, calibration and rounding; 8 bits by default.
    name : str
        Name of the integer network.

    Returns
    -------
    Network
        Takes raw pixels (uint8); its last convolution or linear layer hands out accumulators.

    Raises
    ------
    BadInput
        If the calibration images have another shape, or a width is given for a layer that is not there.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    config = config or QuantConfig()
    if calibration.dtype != np.uint8 or calibration.ndim != 4 or len(calibration) == 0:
        raise BadInput(
            "calibration needs at least one uint8 image of shape (N, C, H, W), not"
            f" {calibration.dtype} of shape {calibration.shape}"
        )
    whole = with_preprocessing(graph, preprocess)
    _check_vectors(whole)
    groups = _groups(whole)
    _check_layers(config, groups)
    needed = [group.last.name for group in groups]
    images = torch.tensor(calibration, dtype=torch.float64)
    state = _State(
        graph=whole,
        config=config,
        samples=_sample(whole, images, [INPUT, *needed]),
        joint=_joint_formats(whole, groups),
    )
    state.types[INPUT] = TensorType(shape=whole.input_shape, width=8, signed=False)
    state.fracs[INPUT] = 0
    for group in groups:
        node = group.node
        if isinstance(node, fg.Conv | fg.Linear):
            _mac(state, group)
        elif isinstance(node, fg.AvgPool | fg.GlobalAvgPool):
            _average(state, group)
        elif isinstance(node, fg.ChannelAffine | fg.Relu):
            _rescale(state, group)
        elif isinstance(node, fg.Add):
            _add(state, group)
        else:
            _keep(state, group)
    return Network(
        name=name,
        input=state.types[INPUT],
        ops=tuple(state.ops),
        output=state.aliases[whole.output],
    )
