"""Deep weight memories: split, read ahead, and timed as if they were not."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Shape, signed

import rtl.mac
import rtl.weights
from hwgen.ir.memory import rom_chunks
from rtl.emit import emit_verilog
from rtl.requant import shape_interval
from rtl.weights import StoredWeights, WeightMemory
from tests.rtl.test_mac import Array, case, check


@pytest.mark.parametrize("width", [1, 8, 9, 10, 18, 24, 36, 40, 144])
@pytest.mark.parametrize("words", [1, 2, 511, 513, 1025, 2049, 3000, 16080])
def test_chunks_cover_the_words(words: int, width: int) -> None:
    chunks = rom_chunks(words, width)
    assert [k for chunk in chunks for k in chunk] == list(range(words))
    size = len(chunks[0])
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert 0 < len(chunks[-1]) <= size <= 2048
    assert len(chunks) == 1 or size in (512, 1024, 2048)
    assert all(a.stop == b.start for a, b in pairwise(chunks))


@pytest.mark.parametrize(
    ("words", "width", "size"),
    [(10080, 8, 2048), (16080, 24, 2048), (3000, 16, 1024), (1200, 32, 512), (512, 64, 512)],
)
def test_chunks_need_the_fewest_blocks(words: int, width: int, size: int) -> None:
    assert len(rom_chunks(words, width)[0]) == size


def split(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Make every memory deep: chunks of ``size`` words, biases in block memories."""

    def chunks(words: int, width: int) -> tuple[range, ...]:
        return tuple(range(k, min(k + size, words)) for k in range(0, words, size))

    monkeypatch.setattr(rtl.weights, "rom_chunks", chunks)
    monkeypatch.setattr(rtl.mac, "SHALLOW", 1)


@pytest.mark.parametrize("seed", range(60))
def test_random(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    split(monkeypatch, rng.choice([1, 2, 4, 8]))
    folds, words = rng.randint(1, 5), rng.randint(1, 6)
    check(
        **case(folds, words, rng.randint(1, 2), rng.randint(1, 3), 4, seed),
        capacity=(1 if folds == 1 else words) + rng.choice([0, 1, words]),
        out_depth=rng.choice([1, 2, 9]),
        gaps=rng.choice([None, 0.3, 0.7]),
        stalls=rng.choice([None, 0.3, 0.7]),
        seed=seed,
    )


@pytest.mark.parametrize("reset_after", [0, 1, 2, 3, 4, 5, 13, 14, 40])
def test_reset_in_mid_frame(reset_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    split(monkeypatch, 4)
    check(**case(2, 5, 2, 3, 4), capacity=7, reset_after=reset_after)


@pytest.mark.parametrize("folds,words,capacity", [(1, 4, 2), (3, 4, 8), (3, 1, 2)])
def test_runs_without_bubbles(
    folds: int, words: int, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(monkeypatch, 2)
    run = check(**case(folds, words, 2, 3, 6), capacity=capacity, out_depth=8)
    assert run.output_cycles == [words + 7 + words * k for k in range(6 * folds)]


def test_deep_as_it_comes() -> None:
    """More words than a block, more folds than a lookup table, nothing patched."""
    check(**case(55, 40, 1, 1, 3), capacity=60, out_depth=2, gaps=0.1, stalls=0.5)


def memory(weights: Array, shape: Shape, codebook: tuple[int, ...] | None = None) -> WeightMemory:
    return WeightMemory(StoredWeights(weights=weights, shape=shape, codebook=codebook))


def test_names() -> None:
    codes = np.arange(2100).reshape(1, 2100, 1, 1) % 7
    text = emit_verilog(memory(codes, signed(8)), "weights")
    assert "reg [7:0] rom_0 [2047:0];" in text
    assert "reg [7:0] rom_1 [51:0];" in text
    shallow = emit_verilog(memory(codes[:, :9], signed(8)), "weights")
    assert "reg [7:0] rom [8:0];" in shallow


def test_one_word_is_no_memory() -> None:
    constant = memory(np.full((3, 1000, 1, 1), 5), Shape(4))
    assert "initial" not in emit_verilog(constant, "constant")


def codebook_case(seed: int) -> dict[str, Any]:
    """Random weights of a codebook of 1 to 32 entries, lanes left over at the end of each vector."""
    rng, data = random.Random(seed), np.random.default_rng(seed)
    folds, words = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 5])
    out_lanes, in_lanes = rng.randint(1, 3), rng.randint(1, 5)
    shape = Shape(7, False) if rng.random() < 0.2 else signed(7)
    low, high = shape_interval(shape)
    count = rng.choice([1, 2, 3, 4, 5, 8, 9, 16, 17, 32])
    values = [v for v in range(low, high + 1) if v or rng.random() < 0.3]
    entries = tuple(sorted(rng.sample(values, count)))
    weights = data.choice(np.array(entries), (folds, words, out_lanes, in_lanes))
    if rng.random() < 0.3:
        weights[..., 0] = entries[0]  # constant multipliers
    for lane in range(in_lanes):
        if words > 1 and rng.random() < 0.5:
            weights[:, rng.randrange(words), :, lane] = 0
    return {
        "weights": weights.astype(np.int64),
        "bias": data.integers(-99, 99, (folds, out_lanes)),
        "vectors": data.integers(-8, 8, (rng.randint(3, 5), words, in_lanes)),
        "shape": signed(4),
        "weight_shape": shape,
        "codebook": entries,
    }


@pytest.mark.parametrize("seed", range(80))
def test_codebook(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lanes left over carry is random, as are the weights behind their places."""
    rng = random.Random(1000 + seed)
    if rng.random() < 0.5:
        split(monkeypatch, rng.choice([1, 2, 4]))
    chosen = codebook_case(seed)
    folds, words = chosen["weights"].shape[:2]
    check(
        **chosen,
        capacity=(1 if folds == 1 else words) + rng.choice([0, 1, words]),
        out_depth=rng.choice([1, 2, 9]),
        gaps=rng.choice([None, 0.3, 0.7]),
        stalls=rng.choice([None, 0.3, 0.7]),
        seed=seed,
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_codebook_costs_no_cycle(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        split(monkeypatch, 2)
    chosen = case(3, 4, 2, 3, 6)
    run = check(**chosen, codebook=tuple(range(-8, 8)), capacity=8, out_depth=8)
    assert run.output_cycles == [4 + 7 + 4 * k for k in range(18)]


def test_codebook_words() -> None:
    weights = np.array([[[[5, -3], [-3, 5]], [[7, 0], [5, 0]]]])  # a lane left over in word 1
    stored = StoredWeights(weights=weights, shape=signed(4), codebook=(-3, 5, 7))
    assert (stored.width, stored.free, stored.word_width) == (2, (1,), 9)
    assert stored.fields.tolist() == [[1, 0, 0, 1], [2, 0, 1, 0]]
    assert stored.words == [0b0_01_00_00_01, 0b1_00_01_00_10]
    with_zero = StoredWeights(weights=weights, shape=signed(4), codebook=(-3, 0, 5, 7))
    assert (with_zero.free, with_zero.word_width) == ((), 8)
    text = emit_verilog(WeightMemory(stored), "weights")
    assert text.count("reg [3:0] codebook_") == 3  # the second place is always the same
    assert "reg [3:0] codebook_3 [2:0];" in text
    assert "reg [8:0] rom [1:0];" in text


@pytest.mark.parametrize("codebook", [(), (5, -3, 7), (-3, 5), (-3, 5, 7, 8), (-3, 3, 7)])
def test_other_codebooks_are_refused(codebook: tuple[int, ...]) -> None:
    weights = np.array([[[[5, -3], [7, 5]]]])
    with pytest.raises(ValueError, match="codebook"):
        StoredWeights(weights=weights, shape=signed(4), codebook=codebook)
    with pytest.raises(ValueError, match="codebook"):  # 0 in one output lane alone
        StoredWeights(
            weights=np.array([[[[5], [0]], [[7], [5]]]]), shape=signed(4), codebook=(5, 7)
        )
