"""Layers and networks refuse what contradicts itself, and accumulator intervals are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from hwgen.errors import BadInput, BadNetwork
from hwgen.ir import (
    INPUT,
    Add,
    AvgPool,
    Bias,
    Concat,
    Conv,
    Flatten,
    Geometry,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    MacOp,
    MaxPool,
    Network,
    Op,
    Requant,
    Rescale,
    TensorType,
    Weights,
    mac_interval,
)
from hwgen.ir.ops.base import union_width
from tests.strategies import networks, random_codes, random_network


@given(networks(hardware_only=False))
def test_accumulators_stay_in_their_interval(network: Network) -> None:
    values = network.values(random_codes(network, 6))
    for op in network.ops:
        if isinstance(op, (Flatten, MaxPool, GlobalMaxPool, Concat)):
            continue
        acc = op.acc(*(values[name] for name in op.inputs))  # type: ignore[attr-defined]
        low, high = op.accumulator_interval()  # type: ignore[attr-defined]
        assert low.dtype == high.dtype == np.int64
        assert low.shape == high.shape == (acc.shape[1],)
        column = (-1, *[1] * (acc.ndim - 2))
        assert (low.reshape(column) <= acc).all()
        assert (acc <= high.reshape(column)).all()
        width = op.accumulator_width  # type: ignore[attr-defined]
        ends = min(low.min(), 0), max(high.max(), 0)
        assert -(2 ** (width - 1)) <= ends[0] <= ends[1] < 2 ** (width - 1)
        assert width == 1 or not -(2 ** (width - 2)) <= ends[0] <= ends[1] < 2 ** (width - 2)


@given(networks())
def test_interval_ends_are_reached(network: Network) -> None:
    """Without padding each end belongs to codes that can occur."""
    for op in network.ops:
        if not isinstance(op, MacOp) or (isinstance(op, Conv) and op.geometry.padded):
            continue
        low, high = op.accumulator_interval()
        for channel, weights in enumerate(op.weights.codes):
            for end, rising in ((low, False), (high, True)):
                best = np.where((weights > 0) == rising, op.input.maximum, op.input.minimum).astype(
                    np.int64
                )
                if isinstance(op, Conv):
                    image = np.full(op.input.shape, op.input.minimum)
                    image[:, : weights.shape[1], : weights.shape[2]] = best
                    acc = op.acc(image[None])[0, channel, 0, 0]
                else:
                    acc = op.acc(best[None])[0, channel]
                assert acc == end[channel]


@given(networks(hardware_only=False))
def test_biases_of_dot_products_of_codes(network: Network) -> None:
    """What a layer makes of codes 0, where no padding stands for other codes."""
    for op in network.ops:
        if isinstance(op, MacOp):
            assert op.code_bias.dtype == np.int64
            assert op.code_bias.shape == (op.out_channels,)
            if not isinstance(op, Conv) or not op.geometry.padded or not op.input.zero:
                acc = op.acc(np.zeros((1, *op.input.shape), dtype=np.int64))[0]
                first = acc.reshape(len(acc), -1)[:, 0]
                np.testing.assert_array_equal(op.code_bias, first)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_biases_behind_a_zero_point(biased: bool, padding: int) -> None:
    """With padding by the code of 0, as hardware does it."""
    rng = np.random.default_rng(padding)
    codes, x = rng.integers(-2, 2, (3, 2, 2, 2)), rng.integers(0, 16, (1, 2, 4, 4))
    bias = Bias(codes=np.array([1, -2, 3]), width=3, shift=2) if biased else None
    source = replace(PIXELS, zero=5)
    weights = Weights(codes=codes, width=2)
    geometry = replace(WINDOW, padding=(padding,) * 4)
    low, high = mac_interval(source, weights, bias, padded=padding > 0)
    width = union_width(low, high)
    op = Conv(
        name="conv",
        inputs=(INPUT,),
        input=source,
        weights=weights,
        bias=bias,
        geometry=geometry,
        output=TensorType(shape=(3, 2 + padding, 2 + padding), width=width, signed=True),
    )
    added = np.array([4, -8, 12] if biased else [0, 0, 0])
    np.testing.assert_array_equal(op.code_bias, added - 5 * codes.sum((1, 2, 3)))
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=5)
    steps = range(0, 4 + 2 * padding, 2)
    dots = np.array(
        [
            [(codes * padded[0, :, i : i + 2, j : j + 2]).sum((1, 2, 3)) for j in steps]
            for i in steps
        ]
    )
    np.testing.assert_array_equal(op.acc(x)[0], (dots + op.code_bias).transpose(2, 0, 1))


def test_padded_taps_may_be_zero() -> None:
    """Codes 1..3 under a 3x3 kernel with padding: only the middle tap is never padded."""
    kind = TensorType(shape=(1, 3, 3), width=2, signed=False, low=1)
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        input=kind,
        weights=Weights(codes=np.ones((1, 1, 3, 3), dtype=np.int64), width=2),
        geometry=Geometry(height=3, width=3, kernel=(3, 3), padding=(1, 1, 1, 1)),
        output=TensorType(shape=(1, 3, 3), width=6, signed=True),
    )
    assert conv.padded_taps().tolist() == [[True] * 3, [True, False, True], [True] * 3]
    low, high = conv.accumulator_interval()
    assert (low.tolist(), high.tolist()) == ([1], [27])
    assert conv.accumulator_width == 6
    assert conv.macs == 81


PIXELS = TensorType(shape=(2, 4, 4), width=4, signed=False)
VECTOR = TensorType(shape=(3,), width=4, signed=False)
CLIP = Requant(low=(0,), high=(15,))
WINDOW = Geometry(height=4, width=4, kernel=(2, 2), stride=(2, 2))


def conv(**change: Any) -> Op:
    return Conv(
        **{
            "name": "conv",
            "inputs": (INPUT,),
            "input": PIXELS,
            "weights": Weights(codes=np.ones((3, 2, 2, 2), dtype=np.int64), width=2),
            "bias": Bias(codes=np.zeros(3, dtype=np.int64), width=1),
            "geometry": WINDOW,
            "requant": CLIP,
            "output": replace(PIXELS, shape=(3, 2, 2)),
            **change,
        }
    )


def linear(**change: Any) -> Op:
    return Linear(
        **{
            "name": "linear",
            "inputs": (INPUT,),
            "input": VECTOR,
            "weights": Weights(codes=np.ones((2, 3), dtype=np.int64), width=2),
            "requant": CLIP,
            "output": replace(VECTOR, shape=(2,)),
            **change,
        }
    )


def unary(kind: type[Op], shape: tuple[int, ...], **change: Any) -> Op:
    return kind(
        **{
            "name": "layer",
            "inputs": (INPUT,),
            "input": PIXELS,
            "output": replace(PIXELS, shape=shape),
            **change,
        }
    )


def join(kind: type[Op], **change: Any) -> Op:
    channels = 2 if kind is Add else 4
    return kind(
        **{
            "name": "join",
            "inputs": (INPUT, "other"),
            "types": (PIXELS, PIXELS),
            "output": replace(PIXELS, shape=(channels, 4, 4)),
            **change,
        }
    )


def test_the_examples_are_valid() -> None:
    made = [
        conv(),
        linear(),
        unary(MaxPool, (2, 2, 2), geometry=WINDOW),
        unary(AvgPool, (2, 2, 2), geometry=WINDOW, requant=CLIP, count_include_pad=True),
        unary(GlobalMaxPool, (2,)),
        unary(GlobalAvgPool, (2,), requant=CLIP),
        unary(Flatten, (32,)),
        unary(Rescale, PIXELS.shape, requant=CLIP),
        join(Add, mult=(1, 1), requant=CLIP),
        join(Concat),
    ]
    assert len({hash(op) for op in made}) == len(made)


def weights(shape: tuple[int, ...], width: int = 2) -> Weights:
    return Weights(codes=np.ones(shape, dtype=np.int64), width=width)


REFUSED: list[tuple[Any, str]] = [
    (lambda: conv(name=""), "name must be printable"),
    (lambda: conv(name=INPUT), "name must be printable"),
    (lambda: conv(name="a\0"), "name must be printable"),
    (lambda: conv(inputs=()), "layer 'conv' .Conv. takes 1 tensors, not 0"),
    (lambda: conv(weights=weights((3, 2))), "'conv'.*needs weights .out, in / groups"),
    (lambda: conv(weights=weights((3, 2, 3, 3))), "'conv'.*a kernel .3, 3."),
    (lambda: conv(weights=weights((3, 1, 2, 2))), "'conv'.*groups must divide both"),
    (lambda: conv(groups=2), "'conv'.*groups must divide both"),
    (lambda: conv(geometry=replace(WINDOW, ceil_mode=True)), "'conv'.*without ceil_mode"),
    (lambda: conv(geometry=replace(WINDOW, height=5)), "'conv'.*geometry of .4, 4. pixels"),
    (lambda: conv(output=PIXELS), "'conv'.*makes the shape .3, 2, 2."),
    (lambda: conv(bias=Bias(codes=np.zeros(2, dtype=np.int64), width=1)), "3 output.*2 biases"),
    (lambda: conv(requant=None), "'conv'.*has no requantiser.*8 bits"),
    (lambda: conv(requant=Requant(low=(0,), high=(16,))), "'conv'.*saturates to 0..16"),
    (lambda: conv(requant=replace(CLIP, zero=1)), "'conv'.*zero point 1"),
    (lambda: conv(requant=replace(CLIP, mult=(1, 2))), "3 channels, but its requantiser has 2"),
    (lambda: conv(requant=replace(CLIP, mult=(1 << 55,))), "'conv'.*bits to requantise channel 0"),
    (lambda: conv(requant=replace(CLIP, shift=(62,))), "'conv'.*bits to requantise channel 0"),
    (lambda: conv(requant=replace(CLIP, add=(0, 0, 1 << 61))), "'conv'.*requantise channel 2"),
    (lambda: linear(weights=weights((2, 4))), "'linear'.*needs weights .out, in."),
    (lambda: linear(input=PIXELS), "'linear'.*flatten images first"),
    (
        lambda: linear(input=replace(VECTOR, width=32, high=None), weights=weights((2, 3), 30)),
        "'linear'.*may need 65 bits of accumulator",
    ),
    (lambda: unary(MaxPool, (2, 4, 4), geometry=WINDOW), "makes the shape .2, 2, 2."),
    (
        lambda: unary(
            MaxPool,
            (2, 2, 2),
            geometry=WINDOW,
            output=TensorType(shape=(2, 2, 2), width=3, signed=False),
        ),
        "input and output in one format",
    ),
    (lambda: unary(MaxPool, (2, 2, 2), geometry=replace(WINDOW, width=6)), "its geometry's size"),
    (lambda: unary(GlobalMaxPool, (2,), input=VECTOR), "needs an input .channels, height, width."),
    (lambda: unary(Flatten, (31,)), "makes the shape .32,."),
    (lambda: unary(Rescale, (2,), requant=CLIP), "makes the shape .2, 4, 4."),
    (lambda: join(Add, mult=(1, 1), requant=CLIP, types=(PIXELS, VECTOR)), "inputs of one shape"),
    (lambda: join(Add, mult=(1, 1 << 60), requant=CLIP), "accumulators of .*more than 62 bits"),
    (lambda: join(Concat, types=(PIXELS, replace(PIXELS, zero=1))), "in one format"),
    (lambda: join(Concat, types=(PIXELS, VECTOR)), "inputs of one height and width"),
    (lambda: Weights(codes=np.array([[2]]), width=2), "weights of 2 bits.*-2..1, not 2 at .0, 0."),
    (lambda: Weights(codes=np.array([[0.5, np.nan]]), width=2), "float64 with nan at .0, 1."),
    (lambda: Weights(codes=np.array([[np.inf]]), width=2), "with inf at .0, 0."),
    (lambda: Weights(codes=np.zeros((0, 3), dtype=int), width=2), "at least one entry"),
    (lambda: weights((1, 1), 0), "1 to 32 bits, not 0"),
    (lambda: weights((1, 1), 33), "1 to 32 bits, not 33"),
    (lambda: Weights(codes=np.array([[1]]), width=2, scale=(float("inf"),)), "positive and finite"),
    (lambda: Bias(codes=np.array([[1]]), width=2), "shape .out,."),
    (lambda: Bias(codes=np.array([1]), width=2, shift=61), "shift of a bias"),
    (lambda: Bias(codes=np.array([1]), width=63), "1 to 62 bits, not 63"),
    (lambda: Geometry(height=4, width=4, kernel=(5, 5)), "does not fit"),
    (lambda: Geometry(height=4, width=4, kernel=(2, 2), padding=(2, 0, 0, 0)), "smaller than"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_layers_refuse(make: Any, message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        make()


def chain(*ops: Op, output: str, source: TensorType = PIXELS) -> Network:
    return Network(name="chain", input=source, ops=ops, output=output)


POOL = unary(MaxPool, (2, 2, 2), geometry=WINDOW)

REFUSED_NETWORKS: list[tuple[Any, str]] = [
    (lambda: chain(conv(), conv(), output="conv"), "unique, but two are 'conv'"),
    (lambda: chain(conv(inputs=("x",)), output="conv"), "'x', which no layer makes"),
    (
        lambda: chain(conv(inputs=("layer",)), POOL, output="conv"),
        "'layer', which is made later; move",
    ),
    (lambda: chain(conv(), output="conv", source=replace(PIXELS, zero=1)), "takes 'input' as"),
    (lambda: chain(conv(), output="other"), "output must be a layer, not 'other'"),
    (lambda: chain(conv(), output=INPUT), "output must be a layer"),
    (lambda: chain(conv(), POOL, output="conv"), r"not: \['layer'\]; remove"),
    (lambda: chain(POOL, output="layer"), "no multiply-accumulate layer"),
    (lambda: replace(chain(conv(), output="conv"), name=""), "name must not be empty"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED_NETWORKS)
def test_networks_refuse(make: Any, message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        make()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 2, 4, 4)), "must be integers, not float64"),
        (np.zeros((1, 2, 4, 4), dtype=bool), "must be integers, not bool"),
        (np.zeros((2, 4, 4), dtype=int), r"shape \(N, 2, 4, 4\), not \(2, 4, 4\)"),
        (np.zeros((1, 2, 4, 5), dtype=int), "must have the shape"),
        (np.full((1, 2, 4, 4), 16), "within 0..15, not 16..16"),
        (np.full((1, 2, 4, 4), -1, dtype=np.int8), "within 0..15, not -1..-1"),
    ],
)
def test_input_codes_are_checked(codes: Any, message: str) -> None:
    network = chain(conv(), output="conv")
    for method in (network.evaluate, network.reference, network.values, network.classify):
        with pytest.raises(BadInput, match=message):
            method(codes)


def test_batches_hold_frames() -> None:
    with pytest.raises(BadInput, match="at least 1 frame, not 0"):
        chain(conv(), output="conv").evaluate(np.zeros((1, 2, 4, 4), dtype=int), batch=0)


def test_lookup_and_comparison() -> None:
    network = chain(conv(), output="conv")
    assert network.op("conv") == conv()
    assert network.tensor(INPUT) == PIXELS
    assert network.output_type == network.tensor("conv") == replace(PIXELS, shape=(3, 2, 2))
    with pytest.raises(BadInput, match="no layer 'x'"):
        network.op("x")
    assert network.same(chain(conv(), output="conv"))
    other = conv(weights=Weights(codes=np.zeros((3, 2, 2, 2), dtype=np.int64), width=2))
    assert not network.same(chain(other, output="conv"))
    assert conv() != conv(bias=None)


def test_constants_cannot_change() -> None:
    mine = np.ones((2, 3), dtype=np.int64)
    constants = Weights(codes=mine, width=2)
    mine[0, 0] = 0
    assert constants.codes.all()
    with pytest.raises(ValueError, match="read-only"):
        constants.codes[0, 0] = 0


def test_ties_go_to_the_lowest_class() -> None:
    kind = TensorType(shape=(2,), width=1, signed=False)
    eye = Weights(codes=np.array([[1, 0], [0, 1], [1, 0]]), width=2)
    low, high = mac_interval(kind, eye, None)
    assert (low.tolist(), high.tolist()) == ([0, 0, 0], [1, 1, 1])
    op = Linear(
        name="linear",
        inputs=(INPUT,),
        input=kind,
        weights=eye,
        output=TensorType(shape=(3,), width=2, signed=True),
    )
    network = chain(op, output="linear", source=kind)
    assert network.classify(np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).tolist() == [0, 1, 0, 0]


def test_hardware_networks_keep_to_what_is_built() -> None:
    for seed in range(60):
        for op in random_network(seed).ops:
            assert isinstance(op, (Conv, Linear, MaxPool, AvgPool, Rescale, Flatten))
            assert not isinstance(op, Conv) or op.groups == 1
            assert not isinstance(op, AvgPool) or op.uniform
