"""Descriptions of the same integers that must not differ in one code.

Plain loops, ``Op.evaluate``, the fast executor, fake-quantised torch and an exported ONNX model.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.golden_speed import golden_lenet
from hwgen.ir import (
    AvgPool,
    Bias,
    Concat,
    Conv,
    Flatten,
    Geometry,
    Linear,
    MaxPool,
    Network,
    Op,
    Requant,
    TensorType,
    Weights,
    kernels,
    mac_interval,
    signed_width,
)
from hwgen.ir.serial import LAYERS
from quant.export_onnx import to_onnx
from tests.ir import fake_quant, loops
from tests.strategies import networks, random_codes, random_network

ANY = networks(hardware_only=False)


def run_onnx(network: Network, codes: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Codes of every layer from ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        to_onnx(network, every_tensor=True).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": codes}), strict=True))


@settings(max_examples=300)
@given(ANY)
def test_layers_are_their_loops(network: Network) -> None:
    codes = random_codes(network, 4)
    values, expected = network.values(codes), loops.evaluate(network, codes)
    assert values.keys() == expected.keys()
    for name, array in values.items():
        kind = network.tensor(name)
        assert array.dtype == np.int64
        assert np.array_equal(array, expected[name]), name
        assert kind.minimum <= array.min() <= array.max() <= kind.maximum, name


@settings(max_examples=300)
@given(st.one_of(ANY, networks()), st.sampled_from([1, 3, 17, 40]))
def test_executor_is_the_reference(network: Network, frames: int) -> None:
    codes = random_codes(network, frames)
    expected = network.reference(codes)
    assert np.array_equal(network.evaluate(codes), expected)
    assert np.array_equal(network.evaluate(codes, batch=7), expected)


@given(ANY)
def test_torch_in_float64_agrees(network: Network) -> None:
    codes = random_codes(network, 6)
    made = fake_quant.evaluate(network, torch.tensor(codes))
    assert np.array_equal(made.numpy(), network.evaluate(codes))


@given(ANY)
def test_onnx_runtime_agrees(network: Network) -> None:
    codes = random_codes(network, 6)
    values = network.values(codes)
    for name, array in run_onnx(network, codes).items():
        assert np.array_equal(array, values[name]), name


def test_random_networks_have_every_layer_and_vary() -> None:
    drawn = [random_network(seed, hardware_only=False) for seed in range(100)]
    assert {type(op) for network in drawn for op in network.ops} == set(LAYERS)
    lively = [len(np.unique(n.evaluate(random_codes(n, 8)), axis=0)) > 2 for n in drawn]
    assert sum(lively) > 75
    assert random_network(5).same(random_network(5))


def mac_network(
    weights: NDArray[np.int64],
    *,
    bits: int,
    width: int,
    requant: Requant | None = None,
    bias: Bias | None = None,
    padding: int = 0,
) -> Network:
    """One convolution of ``(out, in, 3, 3)`` weights over 5x5 codes, or one linear layer."""
    constants = Weights(codes=weights, width=width)
    op: Op
    if weights.ndim == 2:
        kind = TensorType(shape=weights.shape[1:], width=bits, signed=False)
        interval, shape = mac_interval(kind, constants, bias), weights.shape[:1]
    else:
        kind = TensorType(shape=(weights.shape[1], 5, 5), width=bits, signed=False)
        g = Geometry(height=5, width=5, kernel=(3, 3), padding=(padding,) * 4)
        interval = mac_interval(kind, constants, bias, padded=padding > 0)
        shape = (weights.shape[0], g.out_height, g.out_width)
    if requant is None:
        wide = signed_width(min(0, int(interval[0].min())), max(0, int(interval[1].max())))
        output = TensorType(shape=shape, width=wide, signed=True)
    else:
        output = TensorType(shape=shape, width=16, signed=True, zero=requant.zero)
    common = {"name": "mac", "inputs": ("input",), "input": kind, "weights": constants}
    rest = {"bias": bias, "requant": requant, "output": output}
    if weights.ndim == 2:
        op = Linear(**common, **rest)  # type: ignore[arg-type]
    else:
        op = Conv(**common, **rest, geometry=g)  # type: ignore[arg-type]
    return Network(name="one", input=kind, ops=(op,), output="mac")


WIDE = [
    # taps, weight bits, activation bits: sums of about 2**22, 2**26, 2**36, 2**44, 2**54, 2**58
    (9, 8, 10),
    (9, 12, 11),
    (90, 16, 14),
    (2304, 16, 16),
    (9, 31, 20),
    (90, 31, 21),
]


@pytest.mark.parametrize(("taps", "width", "bits"), WIDE)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_sums_of_every_size(taps: int, width: int, bits: int, linear: bool, scaled: bool) -> None:
    rng = np.random.default_rng(taps)
    shape = (3, taps) if linear else (3, taps // 9, 3, 3)
    weights = rng.integers(-(2 ** (width - 1)), 2 ** (width - 1), shape)
    weights[0] = -(2 ** (width - 1))
    weights[1] = 2 ** (width - 1) - 1
    drop = max(width + bits + taps.bit_length() - 17, 0)
    requant = Requant(shift=(drop,), low=(-32768,), high=(32767,), zero=-5) if scaled else None
    bias = Bias(codes=np.array([-9, 8, 0]), width=5, shift=4)
    padding = 0 if linear else 1
    network = mac_network(
        weights, bits=bits, width=width, requant=requant, bias=bias, padding=padding
    )
    codes = random_codes(network, 5)
    expected = network.reference(codes)
    if taps < 2000:
        assert np.array_equal(loops.evaluate(network, codes)["mac"], expected)
    assert np.array_equal(network.evaluate(codes), expected)
    assert np.array_equal(run_onnx(network, codes)["mac"], expected)


@pytest.mark.parametrize("extra", [0, 1])
def test_largest_sum_that_float32_holds(extra: int) -> None:
    """Weights and codes whose sum is exactly 2**24 - 1 or 2**24 + 1 (the first odd one to be
    lost)."""
    limit = 2**24 - 1 + 2 * extra
    weights = np.array([[127 * 257 - 1, 0, 1]])
    rest = limit - 257 * int(weights[0, 0])
    weights[0, 2] = rest // 255
    codes = np.array([[257, 0, 255]])
    weights[0, 1] = limit - int((weights * codes).sum())
    codes[0, 1] = 1
    network = mac_network(weights, bits=9, width=18)
    assert int((weights * codes).sum()) == limit
    assert network.evaluate(codes).tolist() == [[limit]]


def pooled_network(mult: tuple[int, ...], *, relu: bool, pad: int, raw: bool) -> Network:
    """A convolution and the max pool behind it, which may run before the requantiser."""
    rng = np.random.default_rng(0)
    kind = TensorType(shape=(2, 7, 7), width=8, signed=True, zero=3)
    weights = Weights(codes=rng.integers(-8, 8, (3, 2, 3, 3)), width=4)
    g = Geometry(height=7, width=7, kernel=(3, 3), padding=(1, 1, 1, 1))
    bias = Bias(codes=np.array([60, -60, 5]), width=8, shift=3)
    output = TensorType(shape=(3, 7, 7), width=6, signed=True, zero=-2)
    requant: Requant | None = Requant(
        mult=mult, shift=(12,), low=(-32,), high=(31,), zero=-2, relu=relu
    )
    if raw:
        low, high = mac_interval(kind, weights, bias, padded=True)
        wide = signed_width(int(low.min()), int(high.max()))
        output, requant = TensorType(shape=(3, 7, 7), width=wide, signed=True), None
    conv = Conv(
        name="conv",
        inputs=("input",),
        input=kind,
        weights=weights,
        bias=bias,
        geometry=g,
        requant=requant,
        output=output,
    )
    window = Geometry(
        height=7, width=7, kernel=(3, 2), stride=(2, 2), padding=(pad,) * 4, ceil_mode=True
    )
    shape = (3, window.out_height, window.out_width)
    pool = MaxPool(
        name="pool",
        inputs=("conv",),
        input=output,
        geometry=window,
        output=TensorType(
            shape=shape, width=output.width, signed=True, zero=output.zero, low=output.low
        ),
    )
    return Network(name="pooled", input=kind, ops=(conv, pool), output="pool")


@pytest.mark.parametrize("mult", [(37,), (-37,), (40, -40, 0), (40, 1, 0)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pad", [0, 1])
def test_pooling_before_requantising(mult: tuple[int, ...], relu: bool, pad: int) -> None:
    for raw in (False, True):
        network = pooled_network(mult, relu=relu, pad=pad, raw=raw)
        codes = random_codes(network, 9)
        assert np.array_equal(loops.evaluate(network, codes)["pool"], network.evaluate(codes))


def test_average_over_windows_of_varying_count() -> None:
    kind = TensorType(shape=(2, 5, 5), width=8, signed=False)
    g = Geometry(
        height=5, width=5, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1), ceil_mode=True
    )
    output = TensorType(shape=(2, g.out_height, g.out_width), width=8, signed=False)
    pool = AvgPool(
        name="pool",
        inputs=("input",),
        input=kind,
        geometry=g,
        count_include_pad=False,
        # divide by 36 = lcm(4, 6, 9): 1820.4 / 65536
        requant=Requant(mult=(1820,), shift=(16,), low=(0,), high=(255,)),
        output=output,
    )
    assert pool.counts.tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert pool.divisor == 36
    assert not pool.uniform
    assert pool.acc(np.full((1, *kind.shape), 10)).tolist() == np.full((1, 2, 3, 3), 360).tolist()
    assert (pool.evaluate(np.full((1, *kind.shape), 100)) == 100).all()


def test_eight_bit_lenet_runs_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything has a float form, and codes of any integer type and memory order do."""

    def refuse(*_: object) -> None:
        raise AssertionError("a layer fell back to Op.evaluate")

    monkeypatch.setattr(kernels, "_direct", refuse)
    network = golden_lenet(np.random.default_rng(0))
    codes = random_codes(network, 50)
    expected = network.reference(codes)
    for given_codes in (
        codes,
        codes.astype(np.uint8),
        codes.astype(np.int16),
        np.asfortranarray(codes),
        codes.astype(">i4"),
    ):
        assert np.array_equal(network.evaluate(given_codes), expected)
    assert np.array_equal(network.classify(codes), expected.argmax(axis=1))
    assert network.evaluate(codes[:0]).shape == (0, 10)


def test_threads_do_not_disturb_one_another() -> None:
    network = golden_lenet(np.random.default_rng(1))
    parts = [random_codes(network, 70, seed) for seed in range(8)]
    expected = [network.reference(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(network.evaluate, parts))
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))


def test_memory_is_bounded() -> None:
    import tracemalloc

    network = golden_lenet(np.random.default_rng(0))
    codes = np.random.default_rng(0).integers(0, 256, (10_000, 3, 32, 32), dtype=np.uint8)
    done: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        out = network.evaluate(codes, progress=lambda now, total: done.append((now, total)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out.shape == (10_000, 10)
    assert peak < 64 << 20  # of the 2 GB that it may take
    assert done[-1] == (10_000, 10_000)
    assert done == sorted(set(done))


def test_one_tensor_read_with_several_paddings() -> None:
    """The border kept around a tensor is the widest that a reader wants; each takes its part."""
    rng = np.random.default_rng(0)
    kind = TensorType(shape=(2, 5, 6), width=4, signed=True, zero=1)
    form = TensorType(shape=(2, 5, 6), width=8, signed=True)
    rule = Requant(shift=(4,), low=(-128,), high=(127,))
    shapes: list[tuple[tuple[int, int], tuple[int, int, int, int]]] = [
        ((1, 1), (0, 0, 0, 0)),
        ((3, 3), (1, 1, 1, 1)),
        ((2, 4), (1, 0, 0, 3)),
        ((4, 1), (0, 0, 3, 0)),
    ]
    ops: list[Op] = [
        Conv(
            name=f"conv{index}",
            inputs=("input",),
            input=kind,
            weights=Weights(codes=rng.integers(-8, 8, (2, 2, *kernel)), width=4),
            geometry=Geometry(height=5, width=6, kernel=kernel, padding=padding),
            requant=rule,
            output=form,
        )
        for index, (kernel, padding) in enumerate(shapes)
    ]
    ops.append(
        Concat(
            name="all",
            inputs=tuple(op.name for op in ops),
            types=(form,) * len(ops),
            output=TensorType(shape=(8, 5, 6), width=8, signed=True),
        )
    )
    network = Network(name="paddings", input=kind, ops=tuple(ops), output="all")
    codes = random_codes(network, 9)
    expected = loops.evaluate(network, codes)["all"]
    assert np.array_equal(network.evaluate(codes), expected)
    assert np.array_equal(run_onnx(network, codes)["all"], expected)


def flat_chain(count: int) -> Network:
    """A flatten, then linear layers that hand accumulators on."""
    kind = TensorType(shape=(1, 2, 2), width=2, signed=False)
    vector = TensorType(shape=(4,), width=2, signed=False)
    ops: list[Op] = [Flatten(name="flat", inputs=("input",), input=kind, output=vector)]
    for index in range(count):
        weights = Weights(codes=np.ones((4, 4), dtype=np.int64), width=2)
        low, high = mac_interval(ops[-1].output, weights, None)
        output = TensorType(
            shape=(4,),
            width=signed_width(int(low.min()), int(high.max())),
            signed=True,
            low=int(low.min()),
            high=int(high.max()),
        )
        last = ops[-1]
        ops.append(
            Linear(
                name=f"linear{index}",
                inputs=(last.name,),
                input=last.output,
                weights=weights,
                output=output,
            )
        )
    return Network(name="chain", input=kind, ops=tuple(ops), output=ops[-1].name)


def test_accumulators_grow_through_all_number_types() -> None:
    """3 * 4**26 > 2**53: float32, then float64, then int64."""
    network = flat_chain(27)
    codes = random_codes(network, 5)
    expected = codes.sum(axis=(1, 2, 3)) * 4**26
    assert network.evaluate(codes).tolist() == [[int(total)] * 4 for total in expected]
