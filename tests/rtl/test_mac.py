"""The MAC stage against plain loops, and its handshakes against the model of its actors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Shape, signed
from numpy.typing import NDArray

from hwgen.ir.formats import signed_width
from hwgen.ir.requant import Requant, Rounding
from rtl.mac import MacArray, MacStage
from rtl.requant import shape_interval
from rtl.weights import StoredWeights
from tests.rtl.bench import StreamRun, run_stream
from tests.rtl.models import Later, MacModel, ResetInMidFrame, mac_beats

Array = NDArray[np.int64]


def accumulator_width(weights: Array, bias: Array, shape: Shape) -> int:
    """Smallest width that holds every channel's final value."""
    low, high = shape_interval(shape)
    least = bias + np.where(weights > 0, weights * low, weights * high).sum(axis=(1, 3))
    most = bias + np.where(weights > 0, weights * high, weights * low).sum(axis=(1, 3))
    return signed_width(int(least.min()), int(most.max()))


def check(
    weights: Array,
    bias: Array,
    vectors: Array,
    *,
    shape: Shape,
    weight_shape: Shape,
    capacity: int,
    codebook: tuple[int, ...] | None = None,
    requant: Requant | None = None,
    shape_out: Shape | None = None,
    out_depth: int = 8,
    gaps: float | None = None,
    stalls: float | None = None,
    seed: int = 0,
    reset_after: int | None = None,
) -> StreamRun:
    folds, words, out_lanes, in_lanes = weights.shape
    acc_width = accumulator_width(weights, bias, shape)
    stage = MacStage(
        shape,
        in_lanes,
        out_lanes,
        words,
        folds,
        capacity,
        weights,
        weight_shape,
        bias,
        acc_width,
        requant,
        signed(acc_width) if shape_out is None else shape_out,
        out_depth,
        codebook,
    )
    # Lanes beyond the requantiser's channels are don't-care.
    channels = folds * out_lanes
    if requant is not None and requant.channels > 1:
        channels = requant.channels
    expected = mac_beats(vectors, weights, bias, requant)
    model: Any = MacModel(in_lanes, words, folds, capacity, requant, out_depth)
    dut: Any = stage
    if reset_after is not None:
        dut = ResetInMidFrame(stage, reset_after)
        model = Later(model, dut.start)
    run = run_stream(
        dut,
        [tuple(word) for word in vectors.reshape(-1, in_lanes).tolist()],
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        count=len(expected),
        reference=model,
    )
    assert cut(run.outputs, folds, channels) == cut(expected, folds, channels)
    return run


def cut(beats: Sequence[Any], folds: int, channels: int) -> list[Any]:
    """Beats without lanes beyond the channels."""
    lanes = len(beats[0])
    return [beat[: channels - k % folds * lanes] for k, beat in enumerate(beats)]


def random_requant(rng: random.Random, channels: int, acc_width: int) -> tuple[Requant, Shape]:
    out = Shape(rng.randint(1, 6), rng.random() < 0.5)
    low, high = shape_interval(out)
    shift = rng.randint(0, acc_width)
    scaled, per_channel = rng.random() < 0.4, rng.random() < 0.5
    n = channels if per_channel else 1
    return (
        Requant(
            mult=tuple(rng.randint(-7, 7) for _ in range(n)) if scaled else (1,),
            add=tuple(rng.randint(-50, 50) for _ in range(n)) if scaled else (0,),
            shift=(shift,),
            low=(low,),
            high=(high,),
            zero=rng.randint(low, high),
            rounding=rng.choice(list(Rounding)),
            relu=rng.random() < 0.3,
        ),
        out,
    )


@pytest.mark.parametrize("seed", range(120))
def test_random(seed: int) -> None:
    rng, data = random.Random(seed), np.random.default_rng(seed)
    folds, words = rng.choice([1, 1, 2, 3]), rng.choice([1, 2, 3, 5])
    out_lanes, in_lanes = rng.randint(1, 3), rng.randint(1, 7)
    shape = Shape(rng.randint(1, 5), rng.random() < 0.5)
    weight_shape = Shape(rng.randint(1, 5), rng.random() < 0.7)
    low, high = shape_interval(weight_shape)
    weights = data.integers(low, high + 1, (folds, words, out_lanes, in_lanes))
    if rng.random() < 0.3:
        weights[:] = weights[0, 0]  # constant multipliers
    if rng.random() < 0.3:
        weights[-1, :, -1] = 0  # channels do not divide
    bias = data.integers(-200, 200, (folds, out_lanes))
    low, high = shape_interval(shape)
    vectors = data.integers(low, high + 1, (rng.randint(3, 6), words, in_lanes))
    requant, shape_out = None, None
    if rng.random() < 0.6:
        channels = folds * out_lanes - rng.randrange(out_lanes)
        acc_width = accumulator_width(weights, bias, shape)
        requant, shape_out = random_requant(rng, channels, acc_width)
    check(
        weights,
        bias,
        vectors,
        shape=shape,
        weight_shape=weight_shape,
        capacity=(1 if folds == 1 else words) + rng.choice([0, 0, 1, 2, words]),
        requant=requant,
        shape_out=shape_out,
        out_depth=rng.choice([1, 2, 4, 9]),
        gaps=rng.choice([None, 0.3, 0.7]),
        stalls=rng.choice([None, 0.3, 0.7]),
        seed=seed,
    )


def case(
    folds: int, words: int, out_lanes: int, in_lanes: int, vectors: int, seed: int = 0
) -> dict[str, Any]:
    data = np.random.default_rng(seed)
    return {
        "weights": data.integers(-8, 8, (folds, words, out_lanes, in_lanes)),
        "bias": data.integers(-99, 99, (folds, out_lanes)),
        "vectors": data.integers(0, 16, (vectors, words, in_lanes)),
        "shape": Shape(4),
        "weight_shape": signed(4),
    }


@pytest.mark.parametrize("reset_after", [3, 14, 40])
@pytest.mark.parametrize("folds", [1, 2])
def test_reset_in_mid_frame(folds: int, reset_after: int) -> None:
    check(**case(folds, 5, 2, 3, 4), capacity=7, reset_after=reset_after, stalls=0.2)


@pytest.mark.parametrize("folds,words,capacity", [(1, 1, 2), (1, 4, 2), (3, 4, 8), (3, 1, 2)])
def test_runs_without_bubbles(folds: int, words: int, capacity: int) -> None:
    run = check(**case(folds, words, 2, 3, 6), capacity=capacity, out_depth=8)
    # First word accepted in cycle 0, its step in 1; the last step of a fold is visible after
    # memory 2, product 1, tree 2, accumulator 1, buffer 1.
    assert run.output_cycles == [words + 7 + words * k for k in range(6 * folds)]


@pytest.mark.parametrize("words,interval", [(4, 8), (2, 4), (1, 3)])
def test_tight_ring(words: int, interval: int) -> None:
    """Room for one vector: a word is replaced one cycle after its last read, read again after two.

    So a vector of two words or more loses nothing, and one of a single word waits a cycle.
    """
    run = check(**case(2, words, 1, 1, 4), capacity=words, out_depth=8)
    assert np.diff(run.output_cycles[::2]).tolist() == [interval] * 3


@pytest.mark.parametrize("acc_high", [False, True])
@pytest.mark.parametrize("signed_in", [False, True])
@pytest.mark.parametrize("weight_width", [1, 2, 8])
def test_extremes(weight_width: int, signed_in: bool, acc_high: bool) -> None:
    """Every accumulator runs to one of its bounds: most negative times most negative included."""
    shape, weight_shape = Shape(8, signed_in), signed(weight_width)
    low, high = shape_interval(shape)
    least, most = shape_interval(weight_shape)
    data = np.random.default_rng(weight_width)
    weights = data.choice([least, most, 0], (2, 3, 2, 5)).astype(np.int64)
    weights[0, :, 0] = least
    bias = np.array([[-1, 1], [5, -5]], dtype=np.int64)
    vectors = []
    for fold in range(2):
        for out in range(2):
            w = weights[fold, :, out]
            vectors.append(np.where((w > 0) == acc_high, high, low))
    check(
        weights,
        bias,
        np.array(vectors, dtype=np.int64),
        shape=shape,
        weight_shape=weight_shape,
        capacity=3,
    )


def test_one_bit_less_is_wrong() -> None:
    """The accumulator's width is the least: its bounds are reached, and a bit less loses them."""
    weights = np.full((1, 1, 1, 4), -8, dtype=np.int64)
    bias = np.zeros((1, 1), dtype=np.int64)
    width = accumulator_width(weights, bias, signed(4))
    for acc_width, right in ((width, True), (width - 1, False)):
        stage = MacStage(
            signed(4),
            4,
            1,
            1,
            1,
            2,
            weights,
            signed(4),
            bias,
            acc_width,
            None,
            signed(acc_width),
            4,
        )
        run = run_stream(stage, [(-8, -8, -8, -8)], count=1)
        assert (run.outputs == [(256,)]) == right


def test_registers_are_minimal() -> None:
    """Products and sums have the width of what the weights in their place can make."""
    weights = np.array([[[[1, -1, 0, 3]], [[1, 0, 0, -3]]]], dtype=np.int64)  # (1, 2, 1, 4)
    stored = StoredWeights(weights=weights, shape=signed(3))
    array = MacArray(stored, np.zeros((1, 1), dtype=np.int64), Shape(4), 16)
    products, pairs, total = array.node_shapes()[0]
    assert products == [Shape(4), signed(5), Shape(1), signed(7)]
    assert pairs == [signed(5), signed(7)]
    assert total == [signed(7)]
    narrow = MacArray(stored, np.zeros((1, 1), dtype=np.int64), Shape(4), 4)
    assert max(shape.width for level in narrow.node_shapes()[0] for shape in level) == 4


def test_refusals() -> None:
    weights, bias = np.full((2, 3, 1, 1), 7, dtype=np.int64), np.zeros((2, 1), dtype=np.int64)

    def stage(**changes: Any) -> MacStage:
        values: dict[str, Any] = {
            "shape_in": Shape(4),
            "in_lanes": 1,
            "out_lanes": 1,
            "vector": 3,
            "folds": 2,
            "capacity": 3,
            "weights": weights,
            "weight_shape": signed(4),
            "bias": bias,
            "acc_width": 10,
            "requant": None,
            "shape_out": signed(10),
            "out_depth": 2,
        }
        return MacStage(**(values | changes))

    stage()
    with pytest.raises(ValueError, match="shape of the weights must be"):
        stage(in_lanes=2)
    with pytest.raises(ValueError, match="shape of the bias must be"):
        stage(bias=bias[:1])
    with pytest.raises(ValueError, match="weights must fit"):
        stage(weight_shape=signed(3))
    with pytest.raises(ValueError, match="must be at least 3 words, not 2"):
        stage(capacity=2)
    with pytest.raises(ValueError, match="accumulators go out as"):
        stage(shape_out=signed(9))
