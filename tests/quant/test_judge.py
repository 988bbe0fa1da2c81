"""The judge's scores equal the networks' own outputs, whatever is kept, threaded or cut short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwgen.ir import MacOp, Network, Op, Weights
from quant.judge import Judge, Score, score_outputs
from tests.strategies import networks, random_codes

FRAMES = 37


def expected(network: Network, codes: NDArray[np.int64], labels: NDArray[np.int64]) -> Score:
    return score_outputs(network.reference(codes), labels, network.output_type.scale)


def labels_for(network: Network, codes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """What the network says for two thirds of the frames, and anything for the others."""
    rng = np.random.default_rng(seed)
    out = network.reference(codes).reshape(len(codes), -1)
    guesses = rng.integers(0, out.shape[1], len(codes))
    return np.where(rng.random(len(codes)) < 0.66, out.argmax(axis=1), guesses)


def varied(network: Network, seed: int, *, codebook: bool = False) -> Network:
    """The same network but for the weights of one layer, reversed in order."""
    macs = [i for i, op in enumerate(network.ops) if isinstance(op, MacOp) and op.requant]
    if not macs:
        return network
    rng = np.random.default_rng(seed)
    index = int(rng.choice(macs))
    op = network.ops[index]
    assert isinstance(op, MacOp)
    codes = op.weights.codes.copy()
    codes = np.where(rng.random(codes.shape) < 0.5, 0, codes)
    book = tuple(int(v) for v in np.unique(codes)) if codebook else None
    weights = Weights(
        codes=codes,
        width=op.weights.width,
        signed=op.weights.signed,
        scale=op.weights.scale,
        codebook=book,
    )
    ops: list[Op] = list(network.ops)
    ops[index] = replace(op, weights=weights)
    return replace(network, ops=tuple(ops))


@pytest.mark.parametrize("device", ["cpu", "torch"])
@settings(max_examples=60, deadline=None)
@given(
    network=networks(hardware_only=False),
    seed=st.integers(0, 1000),
    threads=st.integers(1, 3),
    memory=st.sampled_from([0, 3000, 1 << 20]),
)
def test_scores_equal_the_reference(
    device: str, network: Network, seed: int, threads: int, memory: int
) -> None:
    codes = random_codes(network, FRAMES, seed)
    labels = labels_for(network, codes, seed)
    judge = Judge(codes, labels, threads=threads, memory=memory, device=device)  # type: ignore[arg-type]
    for step in range(6):
        candidate = varied(network, seed + step // 2, codebook=step % 2 == 1) if step else network
        assert judge.score(candidate) == expected(candidate, codes, labels)
        assert judge._memory.used <= memory
    assert 0 < judge.work <= 1
    assert judge.evaluations + judge.remembered == 6
