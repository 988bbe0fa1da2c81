"""Generated designs in Icarus and Verilator: codes, cycles, protocol, and what a fault leads to."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hwgen.backends.rtl import Design, generate
from hwgen.errors import BadInput, Mismatch
from hwgen.ir import (
    INPUT,
    Conv,
    Flatten,
    Geometry,
    Linear,
    MaxPool,
    Network,
    Requant,
    TensorType,
    Weights,
)
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.sizing import lower
from sim.simulate import Mode
from sim.tools import Simulator
from sim.verify import check_framing, check_reset, verify


@cache
def network() -> Network:
    """Convolution, pool and linear layer on 6x6 images of 3 channels."""
    rng = np.random.default_rng(0)
    pixels = TensorType(shape=(3, 6, 6), width=8, signed=False)
    hidden = TensorType(shape=(4, 6, 6), width=5, signed=False)
    pooled = replace(hidden, shape=(4, 3, 3))
    flat = replace(hidden, shape=(36,))
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        input=pixels,
        # More positive than negative, so that no channel is zero everywhere.
        weights=Weights(codes=rng.integers(-4, 8, (4, 3, 3, 3)), width=4),
        bias=None,
        geometry=Geometry(height=6, width=6, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)),
        requant=Requant(shift=(8,), low=(0,), high=(31,)),
        output=hidden,
    )
    pool = MaxPool(
        name="pool",
        inputs=("conv",),
        input=hidden,
        geometry=Geometry(height=6, width=6, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0)),
        output=pooled,
    )
    flatten = Flatten(name="flat", inputs=("pool",), input=pooled, output=flat)
    wide = TensorType(shape=(5,), width=32, signed=True, low=0, high=0)
    last = Linear(
        name="last",
        inputs=("flat",),
        input=flat,
        weights=Weights(codes=rng.integers(-8, 8, (5, 36)), width=4),
        bias=None,
        requant=Requant(low=(0,), high=(0,)),
        output=wide,
    )
    # The last layer gives its accumulators, whose width follows from the weights.
    sums = TensorType(shape=(5,), width=last.accumulator_width, signed=True)
    last = replace(last, requant=None, output=sums)
    return Network(name="trio", input=pixels, ops=(conv, pool, flatten, last), output="last")


@cache
def dataflow() -> Dataflow:
    """Lanes that do not divide the channels, to have partly filled beats."""
    return lower(network(), cycles=200, pins={"conv": (4, 3)})


@cache
def design() -> Design:
    """Its Verilog."""
    return generate(dataflow())


def codes(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Random images."""
    return np.random.default_rng(1).integers(0, 256, (count, 3, 6, 6), dtype=np.int64)


def test_verify(simulator: Simulator, cache_dir: Path) -> None:
    (outcome,) = verify(
        design(),
        network(),
        codes(5),
        images={simulator: 5},
        interval=dataflow().interval,
        cache_dir=cache_dir,
    )
    outcome.check()
    assert outcome.ok
    assert (outcome.images, outcome.mismatches) == (5, 0)
    assert outcome.bulk.interval == dataflow().interval
    assert outcome.bulk.latency == dataflow().latency
    assert outcome.axi is not None
    assert outcome.axi.images == 2


def test_reset(simulator: Simulator, cache_dir: Path) -> None:
    images = codes(3)
    result = check_reset(
        design(),
        images,
        network().evaluate(images),
        simulator=simulator,
        gaps=0.1,
        patience=10_000,
        cache_dir=cache_dir,
    )
    assert result.ok, result


@pytest.mark.parametrize("mode", Mode)
def test_framing(mode: Mode, simulator: Simulator, cache_dir: Path) -> None:
    result = check_framing(
        design(),
        codes(5),
        network().evaluate,
        simulator=simulator,
        mode=mode,
        patience=10_000,
        cache_dir=cache_dir,
    )
    assert result.ok, result


def wrong_weight(layer: str) -> Design:
    """The design with the lowest bit of a layer's first weight inverted."""
    text = design().verilog
    start = re.search(rf"\nmodule \w*{layer}\w*weights", text)
    assert start is not None
    word = re.compile(r"\[0\] = (\d+)'h([0-9a-f]+);").search(text, start.start())
    assert word is not None
    value = int(word[2], 16) ^ 1
    changed = f"[0] = {word[1]}'h{value:0{len(word[2])}x};"
    return replace(design(), verilog=text[: word.start()] + changed + text[word.end() :])


@pytest.mark.parametrize("layer", ["conv", "last"])
def test_names_the_faulty_layer(layer: str, cache_dir: Path) -> None:
    (outcome,) = verify(
        wrong_weight(layer),
        network(),
        codes(2),
        images={Simulator.ICARUS: 2},
        gaps=0,
        stalls=0,
        cache_dir=cache_dir,
    )
    assert outcome.axi is None
    assert outcome.mismatches
    divergence = outcome.divergence
    assert divergence is not None
    assert (divergence.layer, divergence.image) == (layer, outcome.bulk.wrong[0])
    first = divergence.differences[0]
    right = network().values(codes(2)[divergence.image][None])[layer].reshape(1, -1)
    shape = network().op(layer).output.shape
    place = (first.channel, first.row, first.column)[: len(shape)]
    assert first.expected == right.reshape(shape)[place]
    with pytest.raises(Mismatch, match=f"the first difference is in layer '{layer}'"):
        outcome.check()


def test_bad_counts(cache_dir: Path) -> None:
    with pytest.raises(BadInput, match="the images for icarus must be 1 to 2"):
        verify(design(), network(), codes(2), images={Simulator.ICARUS: 3}, cache_dir=cache_dir)
    with pytest.raises(BadInput, match="at least 5 frames"):
        check_framing(design(), codes(2), network().evaluate, cache_dir=cache_dir)
