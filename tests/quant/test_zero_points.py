"""Formats whose code for 0 is not 0: codes and values, and every layer between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwgen.errors import BadInput, BadNetwork
from hwgen.ir import INPUT, Fixed
from quant.assemble import Assembler
from quant.formats import decode, quantize_to
from quant.graph import (
    Add,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Flatten,
    FloatGraph,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Relu,
)
from quant.plan import LayerPlan, Plan
from tests.quant.floatgraphs import Maker


@st.composite
def formats(draw: st.DrawFn) -> Fixed:
    width, signed = draw(st.integers(1, 8)), draw(st.booleans())
    plain = Fixed(width=width, frac=draw(st.integers(-4, 8)), signed=signed)
    return replace(plain, zero=draw(st.sampled_from(plain.codes)))


@given(formats(), st.floats(-100, 100))
def test_codes_are_the_nearest(form: Fixed, value: float) -> None:
    code = int(quantize_to(np.array([value]), form)[0])
    missed = abs(decode(np.array([code]), form)[0] - value)
    every = decode(np.array(form.codes), form)
    assert missed == np.abs(every - value).min()
    assert decode(np.array([form.zero]), form)[0] == 0


@pytest.mark.parametrize(("zero", "signed"), [(8, True), (-9, True), (16, False), (-1, False)])
def test_the_code_of_0_is_a_code(zero: int, signed: bool) -> None:
    with pytest.raises(BadNetwork, match="code of 0"):
        Fixed(width=4, frac=0, signed=signed, zero=zero)


# --- networks ---------------------------------------------------------------------------------


def graph(rng: np.random.Generator) -> FloatGraph:
    """Every kind of layer that makes or passes codes, with factors that integers hold exactly."""
    m = Maker((2, 8, 8), rng)

    def norm(x: str) -> str:
        count = m.shapes[x][0]
        scale = rng.integers(1, 100, count) * rng.choice([1, 1, -1], count) / 64
        return m.put(ChannelAffine, x, scale=scale, offset=rng.integers(-80, 40, count) / 32)

    x = norm(m.put(Relu, m.conv(INPUT, 4, same=True)))
    x = m.put(MaxPool, x, kernel=(2, 2), stride=(2, 2))
    y = norm(m.put(Relu, m.conv(x, 3, same=True), max=6.0))
    z = m.put(Relu, m.conv(x, 3, same=True))  # its ReLU is a bound of the codes
    x = m.put(Relu, m.put(Add, y, z))
    x = m.put(Concat, m.conv(x, 2, same=True), m.conv(x, 4, same=True, groups=1))
    x = m.put(AvgPool, x, kernel=(2, 2), stride=(2, 2), count_include_pad=True)
    x = norm(x)  # a layer of its own
    x = m.put(Concat, m.put(Flatten, m.put(GlobalAvgPool, x)), m.put(Flatten, x))
    return m.graph(m.linear(x, 5))


def plan(assembler: Assembler, rng: np.random.Generator) -> Plan:
    """Small random codes, scales that are powers of two, formats with the code of 0 anywhere."""
    layers = {}
    for node in assembler.graph.mac_nodes:
        layers[node.name] = LayerPlan(
            codes=rng.integers(-8, 8, node.weight.shape),
            width=4,
            scale=np.array([2.0**-5]),
            bias=rng.integers(-50, 50, len(node.bias)) * 2.0**-5,
            bias_width=16,
        )
    forms: dict[str, Fixed] = {}
    outputs = {}
    for group in assembler.makers:
        if assembler.hands_out_accumulators(group):
            continue
        root = assembler.joint[group.last.name]
        if root not in forms:
            forms[root] = Fixed(width=6, frac=int(rng.integers(0, 3)), signed=bool(rng.integers(2)))
            forms[root] = replace(forms[root], zero=int(rng.choice(forms[root].codes)))
        outputs[group.node.name] = forms[root]
        if group.affine is not None and rng.integers(2):
            layer, count = layers[group.node.name], len(group.affine.offset)
            offset = rng.integers(-20, 20, count) / 4
            layers[group.node.name] = replace(layer, offset=offset)
    return Plan(layers=layers, outputs=outputs)


def expected(assembler: Assembler, plan: Plan, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the network stands for: the float graph in float64 with rounded tensors."""
    values = {INPUT: torch.tensor(images, dtype=torch.float64)}
    for group in assembler.groups:
        node, affine = group.node, group.affine
        if isinstance(node, Conv | Linear):
            layer = plan.layers[node.name]
            node = replace(node, weight=layer.weights, bias=layer.bias)
            if layer.offset is not None:
                assert affine is not None
                affine = replace(affine, offset=layer.offset)
        made = node.evaluate(*(values[name] for name in node.inputs))
        for part in (group.relu, affine):
            if part is not None and part is not group.node:
                made = part.evaluate(made)
        form = plan.outputs.get(group.node.name)
        if form is not None and not group.keeps_format:
            made = torch.tensor(decode(quantize_to(made.numpy(), form), form))
        values[group.last.name] = made
    out: NDArray[np.float64] = values[assembler.graph.output].numpy()
    return out


@pytest.mark.parametrize("seed", range(12))
def test_every_layer_computes_what_its_codes_stand_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assembler = Assembler(graph(rng))
    chosen = plan(assembler, rng)
    network = assembler.assemble(chosen)
    images = rng.integers(0, 256, (5, 2, 8, 8), dtype=np.uint8)
    assert any(op.output.zero for op in network.ops)
    codes = network.evaluate(images.astype(np.int64))
    np.testing.assert_array_equal(
        codes * network.output_type.scale, expected(assembler, chosen, images)
    )


def test_an_offset_needs_a_batch_norm() -> None:
    rng = np.random.default_rng(0)
    assembler = Assembler(graph(rng))
    chosen = plan(assembler, rng)
    with_norm = assembler.groups[0].node.name
    without = assembler.graph.mac_nodes[-1].name
    for name, shape, message in (
        (without, 5, "no batch norm follows"),
        (with_norm, 3, "as many finite entries"),
    ):
        layer = replace(chosen.layers[name], offset=np.zeros(shape))
        with pytest.raises(BadInput, match=message):
            assembler.assemble(chosen.with_layers(**{name: layer}))
