"""Integer network to a chain of stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwgen.errors import BadInput, UnsupportedLayer
from hwgen.ir.formats import Fixed, TensorType, width_of
from hwgen.ir.geometry import Geometry
from hwgen.ir.network import Network
from hwgen.ir.ops import (
    AvgPool,
    Conv,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MacOp,
    MaxPool,
    Op,
)
from hwgen.ir.ops import (
    Rescale as RescaleOp,
)
from hwgen.ir.requant import Requant
from hwgen.ir.walk import Walk, WindowMode
from hwgen.lower.chain import Chain, Pins, module_name
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.folding import (
    Folding,
    cheapest,
    conv_foldings,
    linear_foldings,
    pinned,
)
from hwgen.lower.order import flatten_order, fold_bias, fold_weights, pack_words, window_order
from hwgen.lower.stages import (
    Argmax,
    Beat,
    Mac,
    Reduce,
    Rescale,
)
from hwgen.lower.stream import AxiPort, StreamLayout

__all__ = ["build_stages", "check_buildable"]


def check_buildable(network: Network) -> None:
    """Refuse what has no hardware yet, all layers in one message.

    Raises
    ------
    UnsupportedLayer
    """
    problems: list[str] = []
    previous = "input"
    flat_from: str | None = None
    for op in network.ops:
        kind = type(op).__name__
        reason = _why_not(op)
        if reason is None and op.inputs != (previous,):
            reason = f"it reads {', '.join(op.inputs)}, not only the layer before it; joins have no hardware yet"
        if reason is None and flat_from is not None and not isinstance(op, Linear):
            reason = f"it follows the flatten {flat_from}; only a linear layer can"
        if reason is not None:
            problems.append(f"layer {op.name} ({kind}): {reason}")
        flat_from = op.name if isinstance(op, Flatten) else None
        previous = op.name
    if flat_from is not None:
        problems.append(f"layer {flat_from} (Flatten): a flatten at the end; remove it")
    if network.output != previous:
        problems.append(
            f"output {network.output}: it must be the last layer {previous}; remove the rest"
        )
    if problems:
        raise UnsupportedLayer("no hardware can be built for:\n  " + "\n  ".join(problems))


def _why_not(op: Op) -> str | None:
    if isinstance(op, Conv) and op.groups != 1:
        return f"{op.groups} groups; use a convolution with groups=1, grouped ones have no hardware yet"
    if isinstance(op, AvgPool) and not op.uniform:
        return "its windows average different counts; use count_include_pad=True without ceil_mode, or no padding"
    if (
        isinstance(op, AvgPool | GlobalAvgPool | RescaleOp)
        and op.requant.relu
        and op.input.zero != 0
    ):
        return "a ReLU inside its requantiser and an input zero point; put the ReLU into the layer before"
    known = (Conv, Linear, MaxPool, AvgPool, GlobalAvgPool, GlobalMaxPool, Flatten, RescaleOp)
    if not isinstance(op, known):
        return "only sequential networks of convolution, linear, pooling and ReLU have hardware yet; remove it"
    return None


def _mac(
    chain: Chain, op: MacOp, folding: Folding, order: np.ndarray, vectors: int, elements: int
) -> None:
    name = f"{module_name(op.name)}_mac"
    words = order.shape[0]
    folds = -(-op.out_channels // folding.out_lanes)
    codebook, fill = op.weights.codebook, 0
    if op.weights.stored_width >= op.weights.width:
        codebook = None  # places would be no shorter than the weights themselves
    if codebook is not None:
        fill = min(codebook, key=abs)
    chain.stages.append(
        Mac(
            name=name,
            layer=op.name,
            i=chain.beat,
            o=Beat(width=op.output.width, signed=op.output.signed, lanes=folding.out_lanes),
            frame=chain.beats,
            out_depth=2,
            vectors=vectors,
            elements=elements,
            outputs=op.out_channels,
            capacity=2 if folds == 1 else 2 * words,
            weights=fold_weights(op.weights.codes, order, folding.out_lanes, fill),
            weight_width=op.weights.width,
            weight_signed=op.weights.signed,
            bias=fold_bias(op.code_bias, folding.out_lanes),
            accumulator_width=op.accumulator_width,
            requant=op.requant,
            codebook=codebook,
        )
    )
    chain.foldings[op.name] = folding
    chain.finish(op, folding.out_lanes)


def _conv(chain: Chain, op: Conv) -> None:
    geometry, channels = op.geometry, op.input.channels
    candidates = list(
        conv_foldings(
            geometry,
            channels,
            op.out_channels,
            weight_bits=op.weights.width,
            code_bits=op.input.width,
            acc_bits=op.accumulator_width,
            source_lanes=chain.lanes or None,
        )
    )
    if op.name in chain.pins:
        in_lanes, out_lanes = chain.pins[op.name]
        usable = [f for f in candidates if f.in_lanes == in_lanes or channels % f.window_lanes == 0]
        folding = pinned(
            op.name,
            usable,
            in_lanes,
            out_lanes,
            elements=channels * geometry.taps,
            outputs=op.out_channels,
            positions=geometry.positions,
        )
    else:
        folding = cheapest(op.name, candidates, chain.target)
    assert folding.mode is not None
    m, name = folding.window_lanes, module_name(op.name)
    chain.open_input(m)
    if chain.lanes != m:
        chain.convert(f"{name}_lanes", op.name, m, channels, channels)
        chain.lanes = m
    walk = chain.window(op, name, geometry, folding.mode, pad_code=op.input.zero, group_major=False)
    order = window_order(walk, channels, m)
    if order.shape[1] != folding.in_lanes:
        elements = order.reshape(-1)
        order = pack_words(elements, folding.in_lanes)
        chain.convert(f"{name}_pack", op.name, folding.in_lanes, len(elements), len(elements))
    _mac(chain, op, folding, order, geometry.positions, order.size)


def _linear(chain: Chain, op: Linear) -> None:
    shape = chain.flattened or op.input.shape
    channels, elements = shape[0], op.input.channels
    chain.open_input(channels if chain.flattened or chain.target <= elements else 1)
    candidates = list(
        linear_foldings(
            elements,
            op.out_channels,
            weight_bits=op.weights.width,
            code_bits=op.input.width,
            acc_bits=op.accumulator_width,
            source_lanes=chain.lanes if elements == channels or channels % chain.lanes == 0 else 0,
            source_beats=chain.beats,
        )
    )
    if op.name in chain.pins:
        in_lanes, out_lanes = chain.pins[op.name]
        folding = pinned(
            op.name,
            candidates,
            in_lanes,
            out_lanes,
            elements=elements,
            outputs=op.out_channels,
            positions=1,
        )
        folding = replace(folding, in_lanes=in_lanes)
    else:
        folding = cheapest(op.name, candidates, chain.target)
    aligned = elements == channels or channels % chain.lanes == 0
    if folding.in_lanes != chain.lanes or not aligned:
        chain.convert(
            f"{module_name(op.name)}_lanes", op.name, folding.in_lanes, channels, elements
        )
    order = pack_words(flatten_order(shape), folding.in_lanes)
    _mac(chain, op, folding, order, 1, elements)
    chain.flattened = None


def _pool(chain: Chain, op: MaxPool | AvgPool | GlobalAvgPool | GlobalMaxPool) -> None:
    if isinstance(op, MaxPool | AvgPool):
        geometry = op.geometry
    else:
        _, height, width = op.input.shape
        geometry = Geometry(height=height, width=width, kernel=(height, width))
    channels, name = op.input.channels, module_name(op.name)
    chain.open_input(channels)
    mode, lanes = _pool_lanes(chain, geometry, channels)
    if lanes != chain.lanes:
        chain.convert(f"{name}_lanes", op.name, lanes, channels, channels)
        chain.lanes = lanes
    maximum = isinstance(op, MaxPool | GlobalMaxPool)
    pad_code = op.input.minimum if maximum else op.input.zero
    walk = chain.window(op, name, geometry, mode, pad_code=pad_code, group_major=True)
    rows = geometry.kernel[0] if mode is WindowMode.COLUMN else 1
    requant = None
    if isinstance(op, AvgPool | GlobalAvgPool):
        requant = _of_codes(op.requant, op.input.zero, geometry.taps)
    low, high = op.input.minimum, op.input.maximum
    if not maximum:
        low, high = min(geometry.taps * low, 0), max(geometry.taps * high, 0)
    acc_width, acc_signed = (op.input.width, op.input.signed) if maximum else width_of(low, high)
    chain.stages.append(
        Reduce(
            name=f"{name}_reduce",
            layer=op.name,
            i=chain.beat,
            o=Beat(width=op.output.width, signed=op.output.signed, lanes=lanes),
            frame=chain.beats,
            out_depth=2,
            rows=rows,
            steps=walk.steps // walk.groups,
            groups=walk.groups,
            maximum=maximum,
            accumulator_width=acc_width,
            accumulator_signed=acc_signed,
            requant=requant,
        )
    )
    chain.finish(op, lanes)


def _of_codes(requant: Requant, zero: int, taps: int = 1) -> Requant:
    """The requantiser for a sum of ``taps`` codes instead of a sum of ``code - zero``."""
    if zero == 0:
        return requant
    count = max(len(requant.mult), len(requant.add))
    mult = requant.mult * count if len(requant.mult) == 1 else requant.mult
    add = requant.add * count if len(requant.add) == 1 else requant.add
    return replace(requant, add=tuple(a - taps * zero * m for a, m in zip(add, mult, strict=True)))


def _pool_lanes(chain: Chain, geometry: Geometry, channels: int) -> tuple[WindowMode, int]:
    """Cheapest window mode and lanes that meet the target, else the fastest."""
    options = [(WindowMode.TAP, chain.lanes), (WindowMode.COLUMN, chain.lanes)]
    options += [
        (mode, channels) for mode in (WindowMode.TAP, WindowMode.COLUMN) if chain.lanes != channels
    ]
    best: tuple[int, WindowMode, int] | None = None
    for mode, lanes in options:
        walk = Walk(geometry=geometry, mode=mode, groups=-(-channels // lanes))
        cycles = walk.rows * walk.columns * walk.steps
        if cycles <= chain.target:
            return mode, lanes
        if best is None or cycles < best[0]:
            best = (cycles, mode, lanes)
    assert best is not None
    return best[1], best[2]


def _rescale(chain: Chain, op: RescaleOp, following: Op | None) -> None:
    channels = op.input.channels
    chain.open_input(channels if not isinstance(following, Linear) else 1)
    chain.stages.append(
        Rescale(
            name=f"{module_name(op.name)}_rescale",
            layer=op.name,
            i=chain.beat,
            o=Beat(width=op.output.width, signed=op.output.signed, lanes=chain.lanes),
            frame=chain.beats,
            out_depth=2,
            groups=chain.groups,
            requant=_of_codes(op.requant, op.input.zero),
        )
    )
    chain.finish(op, chain.lanes)


def build_stages(network: Network, *, target: int, pins: Pins, argmax: bool, name: str) -> Dataflow:
    """The stages that compute ``network`` in about ``target`` cycles a frame.

    Rings and output buffers come out deep enough for full rate; ``sizing`` reduces them.

    Parameters
    ----------
    network : Network
    target : int
        Cycles a frame that every layer must meet by its own steps.
    pins : mapping of str to (int, int)
        Layer to ``(in_lanes, out_lanes)``.
    argmax : bool
        Whether to deliver the class instead of the outputs.
    name : str
        Name of the top module.

    Raises
    ------
    UnsupportedLayer, DoesNotFit, BadInput
    """
    check_buildable(network)
    macs = [op.name for op in network.ops if isinstance(op, MacOp)]
    unknown = [layer for layer in pins if layer not in macs]
    if unknown:
        raise BadInput(f"pinned layers must be among {', '.join(macs)}, not {', '.join(unknown)}")
    chain = Chain(target=target, pins=pins, tensor=network.input)
    for index, op in enumerate(network.ops):
        following = network.ops[index + 1] if index + 1 < len(network.ops) else None
        if isinstance(op, Conv):
            _conv(chain, op)
        elif isinstance(op, Linear):
            _linear(chain, op)
        elif isinstance(op, Flatten):
            chain.flattened = op.input.shape
            chain.tensor = op.output if op.input.pixels == 1 else op.input
        elif isinstance(op, RescaleOp):
            _rescale(chain, op, following)
        else:
            assert isinstance(op, MaxPool | AvgPool | GlobalAvgPool | GlobalMaxPool)
            _pool(chain, op)
    if argmax:
        _argmax(chain)
    dataflow = Dataflow(
        name=name,
        network=network,
        stages=tuple(chain.stages),
        input=AxiPort(layout=StreamLayout(tensor=network.input, lanes=chain.stages[0].i.lanes)),
        output=AxiPort(layout=StreamLayout(tensor=chain.tensor, lanes=chain.lanes)),
        streams=tuple(chain.streams),
        argmax=argmax,
    )
    return dataflow.with_full_rate_buffers()


def _argmax(chain: Chain) -> None:
    elements = chain.tensor.channels
    if chain.tensor.pixels != 1:
        raise BadInput(
            f"argmax needs a vector of classes, not the shape {chain.tensor.shape}; leave it off"
        )
    width = Fixed(width=max(1, (elements - 1).bit_length()), frac=0, signed=False).width
    chain.stages.append(
        Argmax(
            name="classify_argmax",
            layer="argmax",
            i=chain.beat,
            o=Beat(width=width, signed=False, lanes=1),
            frame=chain.beats,
            out_depth=2,
            elements=elements,
        )
    )
    chain.tensor, chain.lanes = TensorType(shape=(1,), width=width, signed=False), 1
