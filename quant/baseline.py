"""Uniform post-training quantisation with power-of-two scales per tensor: the baseline.

Formats of activations come from the float network's values on calibration images; formats of
weights from the least error at the layer's outputs. Biases are integers at the accumulator's scale,
shifted left where their width is short. A ReLU becomes a saturation bound; a batch norm behind a
ReLU, an average and a normalisation become a requantiser with multipliers.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import INPUT, Fixed, Network
from quant import graph as fg
from quant.assemble import PIXEL, Assembler
from quant.calibrate import Statistics, observe
from quant.config import QuantConfig
from quant.formats import choose_format, quantize_to
from quant.grouping import Group, never_negative
from quant.importers import fold
from quant.models import Preprocess
from quant.plan import LayerPlan, Plan

__all__ = ["NORMALISE", "linear_plan", "observe_graph", "quantize_linear", "with_preprocessing"]

NORMALISE = "normalise"
"""Name of the layer that maps raw pixels to the network's input where that cannot be folded."""

FINEST_ACTIVATION = 30
"""Most fraction bits of an activation: a tensor without values above some 1e-9 counts as 0."""

FINEST_ACCUMULATOR = 46
"""Most fraction bits of an accumulator, less the integer bits that its bias needs: so that every
shift and every stored value fits the network's 62 bits. Fainter weights become 0."""


def with_preprocessing(graph: fg.FloatGraph, preprocess: Preprocess) -> fg.FloatGraph:
    """The network of raw pixels: ``graph`` behind ``x = pixel * scale + offset``, folded if exact.

    Raises
    ------
    BadInput
        If the number of channels differs.
    """
    channels = graph.input_shape[0]
    if len(preprocess.scale) != channels:
        raise BadInput(
            f"preprocessing must have {channels} channels, as the network's input does, and has"
            f" {len(preprocess.scale)}"
        )
    if any(node.name == NORMALISE for node in graph.nodes):
        raise BadInput(f"a layer is named '{NORMALISE}', the name of preprocessing; rename it")
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


def observe_graph(graph: fg.FloatGraph, calibration: NDArray[np.uint8]) -> Statistics:
    """What raw images ``(N, C, H, W)`` tell of the network of raw pixels; see :func:`.observe`.

    Raises
    ------
    BadInput
        If the images have another shape or type, or there are none.
    """
    wanted = ", ".join(map(str, ("N", *graph.input_shape)))
    images = np.asarray(calibration)
    if images.dtype != np.uint8 or images.shape[1:] != graph.input_shape or len(images) == 0:
        raise BadInput(
            f"calibration needs raw images, uint8 of shape ({wanted}) with N at least 1, not"
            f" {images.dtype} of shape {images.shape}"
        )
    assembler = Assembler(graph)
    names = [INPUT, *(group.last.name for group in assembler.groups)]
    return observe(graph, torch.tensor(images, dtype=torch.float64), names)


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
        Takes raw pixels (uint8). Its last convolution or linear layer, if nothing but pools that
        select and flatten follow, hands out accumulators.

    Raises
    ------
    BadInput
        If the calibration images have another shape or type, or a width is given for a layer that
        is not there.
    UnsupportedLayer
        If a layer has no integer meaning.
    """
    config = config or QuantConfig()
    whole = with_preprocessing(graph, preprocess)
    assembler = Assembler(whole, rounding=config.rounding, scale_bits=config.scale_bits)
    plan = linear_plan(assembler, observe_graph(whole, calibration), config)
    return assembler.assemble(plan, name)


def linear_plan(assembler: Assembler, seen: Statistics, config: QuantConfig) -> Plan:
    """The baseline's choices.

    Parameters
    ----------
    assembler : Assembler
        Of the network of raw pixels.
    seen : Statistics
        What :func:`observe_graph` saw of that network.
    config : QuantConfig

    Raises
    ------
    BadInput
        If a width is given for a layer that is not there.
    """
    _check_layers(config, assembler.makers)
    formats: dict[str, Fixed] = {assembler.joint[INPUT]: PIXEL}
    outputs = {}
    for group in assembler.makers:
        if not assembler.hands_out_accumulators(group):
            root = assembler.joint[group.last.name]
            if root not in formats or root == assembler.joint[INPUT]:
                formats[root] = _output_format(assembler, seen, config, group)
            outputs[group.node.name] = formats[root]
    layers = {}
    for group in assembler.makers:
        node = group.node
        if isinstance(node, fg.Conv | fg.Linear):
            source = formats[assembler.joint[node.inputs[0]]]
            layers[node.name] = _layer_plan(node, source.frac, seen, config)
    return Plan(layers=layers, outputs=outputs)


def _activation_bits(config: QuantConfig, layer: str) -> int:
    """Pixels keep their 8 bits unless the user says otherwise, as where they are folded."""
    bits = config.of(layer).activations
    pixels = layer == NORMALISE and layer not in config.layers
    return max(bits, PIXEL.width) if pixels else bits


def _output_format(
    assembler: Assembler, seen: Statistics, config: QuantConfig, group: Group
) -> Fixed:
    """The format of a group's codes, from all tensors that share it."""
    root = assembler.joint[group.last.name]
    tied = [name for name, other in assembler.joint.items() if other == root]
    makers = [g for g in assembler.makers if g.last.name in tied]
    tensors = [seen.tensors[name] for name in tied]
    return choose_format(
        np.concatenate([part for tensor in tensors for part in tensor.parts]),
        width=max(_activation_bits(config, g.node.name) for g in makers),
        signed=not all(never_negative(assembler.graph, g.last.name) for g in makers),
        calibration=config.activations,
        what=f"the activations of layer {group.node.name}",
        extremes=(min(t.low for t in tensors), max(t.high for t in tensors)),
        finest=FINEST_ACTIVATION,
    )


def _layer_plan(
    node: fg.Conv | fg.Linear, source_frac: int, seen: Statistics, config: QuantConfig
) -> LayerPlan:
    """Weights and biases of a layer."""
    bits, inputs = config.of(node.name), seen.layers[node.name]
    corrected = config.correct_biases
    far = float(np.abs(node.bias).max())
    finest = FINEST_ACCUMULATOR - max(0, ceil(log2(far)) if far else 0)
    form = choose_format(
        node.weight,
        width=bits.weights,
        signed=True,
        calibration=config.weights,
        what=f"the weights of layer {node.name}",
        finest=finest - source_frac,
        error=lambda f: inputs.squared_error(inputs.rounding(f), corrected=corrected),
    )
    values = node.bias - inputs.mean_error(inputs.rounding(form)) if corrected else node.bias
    step = None
    if values.any():
        step = choose_format(
            values,
            width=bits.biases,
            signed=True,
            calibration=config.weights,
            what=f"the biases of layer {node.name}",
            finest=source_frac + form.frac,
        ).scale
    return LayerPlan(
        codes=quantize_to(node.weight, form),
        width=form.width,
        scale=np.array([form.scale]),
        bias=values,
        bias_width=bits.biases,
        bias_step=step,
    )


def _check_layers(config: QuantConfig, makers: tuple[Group, ...]) -> None:
    known = [g.node.name for g in makers]
    unknown = [name for name in config.layers if name not in known]
    if unknown:
        raise BadInput(
            f"widths are given for {', '.join(unknown)}, but the layers with widths are"
            f" {', '.join(known)}"
        )
