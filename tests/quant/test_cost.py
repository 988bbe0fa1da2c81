"""Costs counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwgen.errors import BadInput
from hwgen.ir import (
    INPUT,
    Bias,
    Conv,
    Flatten,
    Geometry,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Network,
    Requant,
    TensorType,
    Weights,
    mac_interval,
    signed_width,
)
from quant.cost import model_bits, network_cost

RNG = np.random.default_rng(0)


def network(requant: Requant, *, codebook: bool = False) -> Network:
    """3x6x6 pixels, a 3x3 convolution of 4 channels (5-bit weights, 6-bit output), a max pool and a
    linear layer that hands out accumulators."""
    pixels = TensorType(shape=(3, 6, 6), width=8, signed=False)
    book = (-9, -1, 0, 4, 12)
    codes = RNG.choice(np.array(book), (4, 3, 3, 3))
    wide = TensorType(shape=(4, 4, 4), width=6, signed=True)
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        input=pixels,
        weights=Weights(codes=codes, width=5, codebook=book if codebook else None),
        bias=Bias(codes=np.array([1, -2, 3, -4]), width=7),
        geometry=Geometry(height=6, width=6, kernel=(3, 3)),
        requant=requant,
        output=wide,
    )
    pool = MaxPool(
        name="pool",
        inputs=("conv",),
        input=wide,
        geometry=Geometry(height=4, width=4, kernel=(2, 2), stride=(2, 2)),
        output=replace(wide, shape=(4, 2, 2)),
    )
    flat = Flatten(
        name="flat", inputs=("pool",), input=pool.output, output=replace(wide, shape=(16,))
    )
    weights = Weights(codes=RNG.integers(-4, 4, (10, 16)), width=3)
    low, high = mac_interval(flat.output, weights, None)
    width = signed_width(int(low.min()), int(high.max()))
    fc = Linear(
        name="fc",
        inputs=("flat",),
        input=flat.output,
        weights=weights,
        output=TensorType(shape=(10,), width=width, signed=True),
    )
    return Network(name="n", input=pixels, ops=(conv, pool, flat, fc), output="fc")


SHIFT = Requant(shift=(8,), low=(-32,), high=(31,))


def test_counts_by_hand() -> None:
    net = network(SHIFT)
    width = net.output_type.width
    cost = network_cost(net)
    constants = 108 * 5 + 4 * 7 + 160 * 3
    assert cost.constants == constants == model_bits(net)
    assert cost.memory == constants + 64 * 6 + 10 * width
    assert cost.base_memory == 8 * (108 + 4 + 64 + 160 + 10)  # the linear layer has no biases
    macs = 108 * 16, 160
    assert cost.output_product == 5 * 6 * macs[0] + 3 * width * macs[1]
    assert cost.input_product == 5 * 8 * macs[0] + 3 * 6 * macs[1]
    assert cost.base_product == 64 * sum(macs)
    assert cost.memory_saved == 1 - cost.memory / cost.base_memory
    assert cost.output_product_saved == 1 - cost.output_product / cost.base_product
    assert cost.input_product_saved == 1 - cost.input_product / cost.base_product
    assert [layer.name for layer in cost.layers] == ["conv", "fc"]
    assert set(cost.table()) >= {"memory", "constants", "memory_saved"}


def test_a_given_output_width_replaces_the_accumulators() -> None:
    cost = network_cost(network(SHIFT), output_bits={"fc": 4})
    assert cost.layers[1].activations == 40
    assert cost.layers[1].output_product == 3 * 4 * 160
    assert cost.layers[1].input_product == 3 * 6 * 160


def test_a_codebook_stores_places_and_entries() -> None:
    plain, coded = (network_cost(network(SHIFT, codebook=b)).layers[0] for b in (False, True))
    assert (plain.weights, plain.codebook) == (108 * 5, 0)
    assert (coded.weights, coded.codebook) == (108 * 3, 5 * 5)
    assert coded.input_product == plain.input_product


@pytest.mark.parametrize(
    "requant, bits",
    [
        (Requant(mult=(3,), shift=(10,), low=(-32,), high=(31,)), 2 + 4),
        (Requant(mult=(3,), add=(-5,), shift=(10,), low=(-32,), high=(31,)), 2 + 4 + 4),
        (Requant(shift=(8, 9, 7, 8), low=(-32,), high=(31,)), 4 * 4),
        (Requant(mult=(9, -1, 5, 2), shift=(8,), low=(-32,), high=(31,)), 4 * 5 + 4),
        (Requant(shift=(8,), low=(-32, 0, 0, 0), high=(31,)), 4 * 6),
    ],
)
def test_constants_of_requantisers(requant: Requant, bits: int) -> None:
    net = network(requant)
    assert network_cost(net).layers[0].requantiser == bits
    assert network_cost(net, paper=True).layers[0].requantiser == 0


@pytest.mark.parametrize("biased", [True, False])
def test_zero_points_are_stored(biased: bool) -> None:
    """In the requantiser that adds one, and in the biases behind it."""
    plain = network(SHIFT)
    conv, pool, flat, fc = plain.ops
    assert isinstance(conv, Conv)
    assert isinstance(pool, MaxPool)
    assert isinstance(flat, Flatten)
    assert isinstance(fc, Linear)
    zero = -7
    wide = replace(conv.output, zero=zero)
    small = replace(pool.output, zero=zero)
    vector = replace(flat.output, zero=zero)
    bias = Bias(codes=np.arange(10), width=9, shift=2) if biased else None
    low, high = mac_interval(vector, fc.weights, bias)
    out = replace(fc.output, width=signed_width(int(low.min()), int(high.max())))
    net = replace(
        plain,
        ops=(
            replace(conv, output=wide, requant=replace(SHIFT, zero=zero)),
            replace(pool, input=wide, output=small),
            replace(flat, input=small, output=vector),
            replace(fc, input=vector, bias=bias, output=out),
        ),
    )
    first, second = network_cost(net).layers
    assert first.requantiser == 4
    stored = [7 * sum(row) + (4 * k if biased else 0) for k, row in enumerate(fc.weights.codes)]
    assert second.biases == 10 * max(
        int(value).bit_length() + (min(stored) < 0)
        if value >= 0
        else (~int(value)).bit_length() + 1
        for value in stored
    )
    assert second.numbers == 160 + 10 + (10 if biased else 0)


def test_averages_count_but_not_on_the_papers_terms() -> None:
    net = network(SHIFT)
    conv = net.ops[0]
    pool = GlobalAvgPool(
        name="mean",
        inputs=("conv",),
        input=conv.output,
        requant=Requant(mult=(5,), shift=(6,), low=(-8,), high=(7,)),
        output=TensorType(shape=(4,), width=4, signed=True),
    )
    net = Network(name="n", input=net.input, ops=(conv, pool), output="mean")
    ours = network_cost(net).layers[1]
    assert (ours.activations, ours.requantiser, ours.numbers, ours.macs) == (16, 3 + 3, 4, 0)
    assert len(network_cost(net, paper=True).layers) == 1


@pytest.mark.parametrize(
    "bits, text", [({"fc2": 4}, "given for fc2, but the layers are conv"), ({"fc": -1}, "fc must")]
)
def test_wrong_output_widths_are_refused(bits: dict[str, int], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        network_cost(network(SHIFT), output_bits=bits)
