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
from rtl.mac import MacStage
from rtl.requant import shape_interval
from tests.rtl.bench import StreamRun, run_stream
from tests.rtl.models import MacModel, mac_beats

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
    requant: Requant | None = None,
    shape_out: Shape | None = None,
    out_depth: int = 8,
    gaps: float | None = None,
    stalls: float | None = None,
    seed: int = 0,
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
    )
    # Lanes beyond the requantiser's channels are don't-care.
    channels = folds * out_lanes
    if requant is not None and requant.channels > 1:
        channels = requant.channels
    expected = mac_beats(vectors, weights, bias, requant)
    run = run_stream(
        stage,
        [tuple(word) for word in vectors.reshape(-1, in_lanes).tolist()],
        gaps=gaps,
        stalls=stalls,
        seed=seed,
        count=len(expected),
        reference=MacModel(in_lanes, words, folds, capacity, requant, out_depth),
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
