"""What calibration measures, and requantisers from real factors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwgen.ir import INPUT, Fixed, Rounding
from quant import calibrate
from quant.calibrate import BATCH, SAMPLES, Observed, observe
from quant.formats import decode, quantize_to
from quant.graph import ChannelAffine, Conv, Relu
from quant.grouping import Group
from quant.requantisers import PRODUCT_BITS, scaled_requant
from tests.quant.floatgraphs import Maker

# --- statistics -------------------------------------------------------------------------------


def test_observed_extremes_and_an_even_sample() -> None:
    seen = Observed()
    channels, size, images = 16, 32, 200
    batch = torch.arange(channels * size).reshape(1, channels, 1, size).repeat(50, 1, 1, 1).double()
    for start in range(0, images, 50):
        shifted = batch + (0.5 if start else 0.0)
        shifted[3, 2, 0, 1] = -7.0 - start
        seen.add(shifted, images)
    assert (seen.low, seen.high) == (-157.0, channels * size - 0.5)
    small = np.concatenate(seen.parts)
    assert len(small) == channels * size * images  # fewer than SAMPLES: all
    large = Observed()
    many = torch.arange(1024).repeat(800, 1).double()
    large.add(many, 800)  # a step of 4 would see every fourth position alone
    kept = np.concatenate(large.parts)
    assert SAMPLES / 2 < len(kept) < SAMPLES * 1.1
    assert len(np.unique(kept)) == 1024  # every position
    counts = np.unique(kept, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_errors_of_rounded_weights_are_those_of_the_outputs(
    stride: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "POSITIONS", 2000)
    rng = np.random.default_rng(3)
    maker = Maker((2, 12, 20), rng)
    conv = maker.put(
        Conv,
        INPUT,
        weight=rng.normal(size=(4, 2 // groups, 3, 3)),
        bias=rng.normal(size=4),
        stride=(stride, stride),
        padding=(1, 0, 1, 2),
        groups=groups,
    )
    graph = maker.graph(conv)
    images = torch.tensor(rng.normal(1.0, 1.0, (3 * BATCH + 5, 2, 12, 20)))
    layer = observe(graph, images, [conv]).layers[conv]
    form = Fixed(width=3, frac=1, signed=True)
    node = graph.node(conv)
    assert isinstance(node, Conv)
    exact = node.evaluate(images)
    rounded = torch.tensor(decode(quantize_to(node.weight, form), form))
    padded = torch.nn.functional.pad(images, (0, 2, 1, 1))
    bias = torch.tensor(node.bias)
    made = torch.nn.functional.conv2d(padded, rounded, bias, (stride, stride), groups=groups)
    error = (made - exact).numpy()
    np.testing.assert_allclose(
        layer.mean_error(layer.rounding(form)), error.mean((0, 2, 3)), atol=1e-12
    )
    np.testing.assert_allclose(layer.mean_input, images.mean(0, keepdim=True), atol=1e-12)
    kept = error[:: layer.every]
    plain = layer.squared_error(layer.rounding(form), corrected=False)
    np.testing.assert_allclose(plain, (kept**2).sum(), rtol=1e-9)
    centred = kept - kept.mean((0, 2, 3), keepdims=True)
    corrected = layer.squared_error(layer.rounding(form), corrected=True)
    np.testing.assert_allclose(corrected, (centred**2).sum(), rtol=1e-9)
    assert layer.every > 1
    assert corrected < plain


# --- requantisers -----------------------------------------------------------------------------

FORM = Fixed(width=8, frac=4, signed=True)
NODE = Relu(name="relu", inputs=(INPUT,))


@given(
    st.lists(st.floats(-4, 4).filter(lambda v: v == 0 or abs(v) > 1e-30), min_size=1, max_size=4),
    st.floats(-300, 300),
    st.integers(2, 24),
    st.integers(4, 50),
    st.sampled_from([1.0, 2.0**-20, 1e-12, 2.0**30]),
)
def test_multipliers_are_close_and_fit(
    factors: list[float], offset: float, scale_bits: int, width: int, unit: float
) -> None:
    values = np.array(factors) * unit
    rule = scaled_requant(
        values,
        np.full(len(factors), offset),
        FORM,
        group=Group(node=NODE),
        width=width,
        scale_bits=scale_bits,
        rounding=Rounding.HALF_UP,
    )
    bits = max(2, min(scale_bits, PRODUCT_BITS - width))
    top = np.abs(values).max()
    step = 2.0 ** -rule.shift[0]
    assert rule.shift[0] <= 58
    for channel, factor in enumerate(values):
        single = rule.channel(channel if rule.channels > 1 else 0)
        mult, add = single.mult[0], single.add[0]
        assert abs(float(Fraction(mult) * Fraction(step)) - factor) <= step / 2 * (1 + 1e-9)
        assert abs(add * step - offset) <= step / 2 * (1 + 1e-9)
        # The full sum stays in range for every accumulator of that width.
        if top < 2.0 ** (bits - 2):
            assert abs(mult) <= 1 << (bits - 1)
            assert abs(mult) * (1 << (width - 1)) + abs(add) < 1 << (PRODUCT_BITS + 1)


@pytest.mark.parametrize("scale_bits", [4, 8, 12, 16, 24])
def test_multipliers_use_their_bits(scale_bits: int) -> None:
    factors = np.array([1 / 3, -1 / 7])
    rule = scaled_requant(
        factors,
        np.zeros(2),
        FORM,
        group=Group(node=NODE),
        width=16,
        scale_bits=scale_bits,
        rounding=Rounding.FLOOR,
    )
    made = np.array(rule.mult) / 2.0 ** rule.shift[0]
    assert np.abs(made - factors).max() < 2.0**-scale_bits
    assert max(map(abs, rule.mult)) < 2 ** (scale_bits - 1)
    assert max(map(abs, rule.mult)) >= 2 ** (scale_bits - 2)
    assert rule.rounding is Rounding.FLOOR


def test_powers_of_two_need_no_multiplier() -> None:
    rule = scaled_requant(
        np.full(3, 1 / 64),
        np.zeros(3),
        FORM,
        group=Group(node=NODE),
        width=16,
        scale_bits=16,
        rounding=Rounding.HALF_UP,
    )
    assert (rule.mult, rule.add, rule.shift) == ((1,), (0,), (6,))
    assert not rule.scaled


def test_limits_of_a_relu_in_front_of_a_batch_norm() -> None:
    affine = ChannelAffine(
        name="norm", inputs=("relu",), scale=np.array([0.5, -0.5, 9.0]), offset=np.array([1, 1, 0])
    )
    relu = Relu(name="relu", inputs=("conv",), max=6.0)
    weight, bias = np.ones((3, 1, 1, 1)), np.zeros(3)
    conv = Conv(name="conv", inputs=(INPUT,), weight=weight, bias=bias)
    rule = scaled_requant(
        affine.scale,
        affine.offset * 16,
        FORM,
        group=Group(node=conv, relu=relu, affine=affine),
        width=16,
        scale_bits=16,
        rounding=Rounding.HALF_UP,
    )
    assert rule.relu
    # 6 * 0.5 + 1 = 4 from above, 6 * -0.5 + 1 = -2 from below, 54 is beyond the format.
    assert rule.low == (-128, -32, -128)
    assert rule.high == (64, 127, 127)
