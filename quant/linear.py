"""Uniform post-training quantisation with power-of-two scales per tensor: the baseline.

Formats of activations come from the float network's values on calibration images; formats of
weights from the least error at the layer's outputs. Biases are integers at the accumulator's scale,
shifted left where their width is short. A ReLU becomes a saturation bound; a batch norm behind a
ReLU, an average and a normalisation become a requantiser with multipliers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import INPUT, Network
from quant import graph as fg
from quant.builder import NORMALISE, Builder
from quant.calibrate import observe
from quant.config import QuantConfig
from quant.grouping import Group, check_vectors, group_nodes, joint_formats
from quant.importers import fold
from quant.models import Preprocess

__all__ = ["quantize_linear", "with_preprocessing"]


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
    wanted = ", ".join(map(str, ("N", *graph.input_shape)))
    images = np.asarray(calibration)
    if images.dtype != np.uint8 or images.shape[1:] != graph.input_shape or len(images) == 0:
        raise BadInput(
            f"calibration needs raw images, uint8 of shape ({wanted}) with N at least 1, not"
            f" {images.dtype} of shape {images.shape}"
        )
    whole = with_preprocessing(graph, preprocess)
    check_vectors(whole)
    groups = group_nodes(whole)
    _check_layers(config, groups)
    names = [INPUT, *(group.last.name for group in groups)]
    builder = Builder(
        graph=whole,
        config=config,
        groups=groups,
        joint=joint_formats(groups),
        seen=observe(whole, torch.tensor(images, dtype=torch.float64), names),
    )
    for group in groups:
        builder.build(group)
    return Network(
        name=name,
        input=builder.types[INPUT],
        ops=tuple(builder.ops),
        output=builder.tensors[whole.output],
    )


def _check_layers(config: QuantConfig, groups: tuple[Group, ...]) -> None:
    known = [g.node.name for g in groups if not g.keeps_format]
    unknown = [name for name in config.layers if name not in known]
    if unknown:
        raise BadInput(
            f"widths are given for {', '.join(unknown)}, but the layers with widths are"
            f" {', '.join(known)}"
        )
