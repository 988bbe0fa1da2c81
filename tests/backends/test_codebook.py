"""Networks with codebooks, shifts and multipliers of channels, and filled accumulators as hardware."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from hwgen.backends.rtl import Design, generate
from hwgen.cost.audit import audit
from hwgen.cost.lint import lint
from hwgen.errors import Mismatch
from hwgen.flow.facts import audit_facts
from hwgen.flow.hardware import cosimulate
from hwgen.flow.report import describe_layers
from hwgen.ir import (
    INPUT,
    Bias,
    Conv,
    Flatten,
    Geometry,
    Linear,
    MacOp,
    MaxPool,
    Network,
    Requant,
    Rounding,
    TensorType,
    Weights,
)
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.reference import run_dataflow
from hwgen.lower.sizing import lower
from hwgen.lower.stages import Mac
from sim.tools import Simulator
from sim.verify import verify
from tests.strategies import random_codes

M = TypeVar("M", bound=MacOp)

P = 21
"""Bits of every accumulator of the network."""

PINS = {"conv": (2, 3), "second": (5, 3), "last": (5, 4)}
"""Lanes left over of three channels, of five outputs, of sixteen elements."""


def coded(rng: np.random.Generator, shape: tuple[int, ...], book: tuple[int, ...]) -> Weights:
    """Random weights of 8 bits of a codebook."""
    return Weights(codes=rng.choice(np.array(book), shape), width=8, codebook=book)


def filled(op: M) -> M:
    """The layer with biases: the first channel's highest accumulator becomes ``2 ** (P - 1) - 1``."""
    low, high = replace(op, requant=None, output=wide(op)).accumulator_interval()
    codes = -(low + high) // 2
    codes[0] = (1 << (P - 1)) - 1 - high[0]
    bias = Bias(codes=codes, width=P + 1)
    return replace(op, bias=bias)


def wide(op: MacOp) -> TensorType:
    """The accumulators' own type."""
    return TensorType(shape=op.output.shape, width=op.accumulator_width, signed=True)


@cache
def network() -> Network:
    """Two convolutions, a pool and a linear layer; the first and the last codebook lack 0."""
    rng = np.random.default_rng(5)
    pixels = TensorType(shape=(3, 6, 6), width=8, signed=False)
    hidden = TensorType(shape=(5, 6, 6), width=5, signed=False)
    pooled = replace(hidden, shape=(5, 3, 3))
    second = TensorType(shape=(4, 2, 2), width=6, signed=True)
    flat = replace(second, shape=(16,))
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        input=pixels,
        weights=coded(rng, (5, 3, 3, 3), (-97, -61, -30, -11, -3, 12, 41, 90)),
        bias=None,
        geometry=Geometry(height=6, width=6, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)),
        requant=Requant(shift=(16, 11, 12, 11, 13), low=(0,), high=(31,)),
        output=hidden,
    )
    pool = MaxPool(
        name="pool",
        inputs=("conv",),
        input=hidden,
        geometry=Geometry(height=6, width=6, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0)),
        output=pooled,
    )
    conv2 = Conv(
        name="second",
        inputs=("pool",),
        input=pooled,
        weights=coded(rng, (4, 5, 2, 2), (-53, 0, 19)),
        bias=None,
        geometry=Geometry(height=3, width=3, kernel=(2, 2), stride=(1, 1), padding=(0, 0, 0, 0)),
        requant=Requant(
            mult=(5, 9, 3, 7),
            add=(-5 * ((1 << (P - 1)) - 13_000), 1000, 0, -3000),
            shift=(11, 12, 10, 12),
            low=(-32,),
            high=(31,),
            rounding=Rounding.HALF_EVEN,
        ),
        output=second,
    )
    flatten = Flatten(name="flat", inputs=("second",), input=second, output=flat)
    last = Linear(
        name="last",
        inputs=("flat",),
        input=flat,
        weights=coded(rng, (10, 16), (-1, 1)),
        bias=None,
        requant=Requant(low=(0,), high=(0,)),
        output=TensorType(shape=(10,), width=P, signed=True, low=0, high=0),
    )
    last = replace(filled(last), requant=None, output=TensorType(shape=(10,), width=P, signed=True))
    ops = (filled(conv), pool, filled(conv2), flatten, last)
    return Network(name="coded", input=pixels, ops=ops, output="last")


@cache
def dataflow() -> Dataflow:
    return lower(network(), cycles=3000, pins=PINS)


@cache
def design() -> Design:
    return generate(dataflow())


def images() -> NDArray[np.int64]:
    """Random, darkest and brightest images, and one that fills an accumulator of the first layer."""
    codes = random_codes(network(), 4)
    weights = network().op("conv").weights.codes[0]  # type: ignore[attr-defined]
    codes[3, :, 1:4, 1:4] = np.where(weights > 0, 255, 0)
    return codes


def test_the_network_is_as_meant() -> None:
    macs = [op for op in network().ops if isinstance(op, MacOp)]
    assert [op.accumulator_width for op in macs] == [P] * 3
    conv = macs[0]
    sums = replace(conv, requant=None, output=wide(conv)).evaluate(images())
    assert sums[3, 0].max() == (1 << (P - 1)) - 1  # a bit less would be wrong
    assert all(len(np.unique(values)) > 10 for values in network().values(images()).values())
    stages = {s.layer: s for s in dataflow().stages if isinstance(s, Mac)}
    assert [stages[op.name].stored_width for op in macs] == [3, 2, 1]
    assert stages["conv"].left_over.any()
    assert stages["last"].left_over.any()
    assert not stages["second"].left_over.any()
    assert stages["conv"].folds * stages["conv"].o.lanes > 5


def test_reference() -> None:
    codes = images()
    beats = run_dataflow(dataflow(), codes)
    values = network().values(codes)
    for stream in dataflow().streams:
        if stream.tensor in values:
            got = stream.layout.unpack(beats[stream.stage])
            assert np.array_equal(got, values[stream.tensor]), stream.tensor


@pytest.mark.parametrize("simulator", Simulator)
def test_codes_and_cycles(simulator: Simulator) -> None:
    (outcome,) = cosimulate(dataflow(), design(), images(), images={simulator: 4})
    outcome.check()
    assert outcome.bulk.interval == dataflow().interval
    assert outcome.bulk.latency == dataflow().latency


def test_text_is_audited() -> None:
    report = audit(design().verilog, audit_facts(dataflow(), design().top))
    lint(design().verilog, design().top)
    bits = 0
    for stage in dataflow().stages:
        if isinstance(stage, Mac):
            assert stage.codebook is not None
            stored = stage.stored.reshape(-1, stage.multipliers)
            tables = int((stored != stored[0]).any(axis=0).sum())
            bits += stage.memory_bits + 8 * len(stage.codebook) * tables + P * stage.bias.size
    assert report.memory_bits == bits


def wrong_entry(layer: str, entry: int) -> Design:
    """The design with the lowest bit of an entry of one of a layer's tables inverted."""
    text = design().verilog
    start = re.search(rf"\nmodule coded_{layer}_mac_weights", text)
    assert start is not None
    word = re.compile(rf"(codebook_\d+\[{entry}\] = 8'h)([0-9a-f]+);").search(text, start.start())
    assert word is not None
    changed = f"{word[1]}{int(word[2], 16) ^ 1:02x};"
    return replace(design(), verilog=text[: word.start()] + changed + text[word.end() :])


@pytest.mark.parametrize(("layer", "entry"), [("conv", 7), ("last", 0)])
def test_a_wrong_entry_is_caught(layer: str, entry: int) -> None:
    faulty = wrong_entry(layer, entry)
    with pytest.raises(
        Mismatch, match=rf"{layer}_mac_weights: memory codebook_\d+: word {entry} must"
    ):
        audit(faulty.verilog, audit_facts(dataflow(), faulty.top))
    (outcome,) = verify(faulty, network(), images(), images={Simulator.ICARUS: 1}, gaps=0, stalls=0)
    with pytest.raises(Mismatch, match=f"the first difference is in layer '{layer}'"):
        outcome.check()


@pytest.mark.parametrize("what", ["entry", "place", "mark"])
def test_other_contents_are_told_from_the_text(what: str) -> None:
    """The text of one dataflow against the facts of another that differs in one thing."""
    stages = list(dataflow().stages)
    place = next(k for k, stage in enumerate(stages) if stage.name == "conv_mac")
    stage = stages[place]
    assert isinstance(stage, Mac)
    assert stage.codebook is not None
    weights = stage.weights.copy()
    if what == "entry":
        weights[weights == stage.codebook[2]] += 1
        codebook = (*stage.codebook[:2], stage.codebook[2] + 1, *stage.codebook[3:])
        stages[place] = replace(stage, weights=weights, codebook=codebook)
    else:
        step = np.argwhere(stage.left_over == (what == "mark"))[0]
        fold, word, lane = step
        weights[fold, word, 0 if what == "place" else slice(None), lane] = next(
            entry for entry in stage.codebook if entry != weights[fold, word, 0, lane]
        )
        stages[place] = replace(stage, weights=weights)
    with pytest.raises(Mismatch, match="coded_conv_mac_weights: memory"):
        audit(design().verilog, audit_facts(replace(dataflow(), stages=tuple(stages)), "coded"))


def test_wide_codebooks_are_stored_dense() -> None:
    """Nine entries of four bits: a place is as long as a weight."""
    conv = network().ops[0]
    assert isinstance(conv, Conv)
    book = (-8, -7, -5, -2, 1, 2, 3, 4, 7)
    codes = np.array(book)[np.arange(conv.weights.codes.size) % 9].reshape(5, 3, 3, 3)
    output = TensorType(shape=(5, 6, 6), width=5, signed=False)
    dense = replace(
        conv, weights=Weights(codes=codes, width=4, codebook=book), bias=None, output=output
    )
    stage = lower(
        Network(name="dense", input=conv.input, ops=(dense,), output="conv"), cycles=3000
    ).stage("conv_mac")
    assert isinstance(stage, Mac)
    assert stage.codebook is None
    assert stage.stored_width == 4
    assert not stage.left_over.any()


def test_report_says_what_is_stored() -> None:
    layers = {entry["name"]: entry for entry in describe_layers(network(), dataflow())}
    assert layers["conv"]["weight_bits"] == 8
    assert layers["conv"]["stored_weight_bits"] == 3
    assert layers["conv"]["codebook_entries"] == 8
    assert "codebook_entries" not in layers["pool"]
