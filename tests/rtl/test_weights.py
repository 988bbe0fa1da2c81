"""Deep weight memories: split, read ahead, and timed as if they were not."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from amaranth.hdl import Shape, signed

import rtl.mac
import rtl.weights
from hwgen.ir.memory import rom_chunks
from rtl.emit import emit_verilog
from rtl.weights import WeightMemory
from tests.rtl.test_mac import case, check


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


def test_names() -> None:
    codes = np.arange(2100).reshape(1, 2100, 1, 1) % 7
    text = emit_verilog(WeightMemory(codes, signed(8)), "weights")
    assert "reg [7:0] rom_0 [2047:0];" in text
    assert "reg [7:0] rom_1 [51:0];" in text
    shallow = emit_verilog(WeightMemory(codes[:, :9], signed(8)), "weights")
    assert "reg [7:0] rom [8:0];" in shallow


def test_one_word_is_no_memory() -> None:
    constant = WeightMemory(np.full((3, 1000, 1, 1), 5), Shape(4))
    assert "initial" not in emit_verilog(constant, "constant")
