"""The judge's scores equal the networks' own outputs, whatever is kept, threaded or cut short."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import MacOp, Network, Op, Weights
from quant.assemble import Assembler
from quant.baseline import linear_plan, observe_graph, quantize_linear, with_preprocessing
from quant.checkpoints import load_checkpoint, load_model, shipped_checkpoint
from quant.config import LayerBits, QuantConfig
from quant.datasets import Dataset, load_dataset
from quant.importers import import_torch
from quant.judge import Judge, Score, log_probabilities, score_outputs
from quant.judge_memory import Boundary, Memory, can_cut, live_tensors
from tests.strategies import networks, random_codes, random_network

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
@settings(max_examples=40, deadline=None)
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


@cache
def chain() -> Network:
    """LeNet-5 on digits, 8 bits."""
    checkpoint = load_checkpoint(shipped_checkpoint("lenet5", "digits"))
    return quantize_linear(
        import_torch(load_model(checkpoint), (1, 32, 32)),
        preprocess=checkpoint.preprocess,
        calibration=digits().search_images[:50],
    )


@cache
def digits() -> Dataset:
    return load_dataset("digits")


def with_weight(network: Network, index: int, place: int) -> Network:
    """The network but for one weight of its ``index``th layer with weights, its bits inverted."""
    macs = [i for i, op in enumerate(network.ops) if isinstance(op, MacOp)]
    op = network.ops[macs[index]]
    assert isinstance(op, MacOp)
    codes = op.weights.codes.copy()
    place %= codes.size
    top = 0 if op.weights.signed else (1 << op.weights.width)
    codes.flat[place] = top - 1 - codes.flat[place]
    weights = Weights(
        codes=codes, width=op.weights.width, signed=op.weights.signed, scale=op.weights.scale
    )
    ops = list(network.ops)
    ops[macs[index]] = replace(op, weights=weights)
    return replace(network, ops=tuple(ops))


def macs_from(network: Network, index: int) -> int:
    """Multiplications of a frame from the ``index``th layer with weights on."""
    return sum([op.macs for op in network.ops if isinstance(op, MacOp)][index:])


def judged(memory: int = 1 << 30) -> tuple[Network, Judge]:
    return chain(), Judge(digits().test_images[:50], digits().test_labels[:50], memory=memory)


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_only_changed_layers_are_computed(index: int) -> None:
    network, judge = judged()
    judge.score(network)
    assert judge.macs == judge.full_macs == 50 * macs_from(network, 0)
    # The second network shows where to cut; from then on only what follows is computed.
    for candidate in range(4):
        before = judge.macs
        judge.score(with_weight(network, index, candidate))
        if candidate:
            assert judge.macs - before == 50 * macs_from(network, index)
    assert judge.work < 1


def test_a_layer_wise_search_computes_little() -> None:
    """Each layer in turn tries narrower weights, then narrower outputs; the narrowest stays."""
    checkpoint = load_checkpoint(shipped_checkpoint("lenet5", "digits"))
    graph = import_torch(load_model(checkpoint), (1, 32, 32))
    whole = with_preprocessing(graph, checkpoint.preprocess)
    assembler, (_, judge) = Assembler(whole), judged()
    seen = observe_graph(whole, digits().search_images[:50])
    plan = linear_plan(assembler, seen, QuantConfig())
    least = judge.score(assembler.assemble(plan)).correct - 1
    for group in assembler.makers:
        name, best = group.node.name, plan
        for bits in (7, 6, 5, 4):
            config = QuantConfig(layers={name: LayerBits(weights=bits)})
            layer = linear_plan(assembler, seen, config).layers[name]
            trial = plan.with_layers(**{name: layer})
            if judge.score(assembler.assemble(trial), floor=least).correct >= least:
                best = trial
        plan = best
        if name not in plan.outputs:
            continue
        form = plan.outputs[name]
        for cut in (1, 2, 3):
            narrow = replace(form, width=form.width - cut, frac=form.frac - cut)
            trial = plan.with_outputs({name: narrow})
            if judge.score(assembler.assemble(trial), floor=least).correct >= least:
                best = trial
        plan = best
    assert judge.evaluations + judge.remembered == 1 + 5 * 4 + 4 * 3
    assert judge.work < 0.6


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_outputs_are_the_networks_own(memory: int) -> None:
    network = chain()
    codes = random_codes(network, FRAMES, 3)
    judge = Judge(codes, np.zeros(FRAMES, dtype=np.int64), memory=memory)
    for step in range(5):
        candidate = varied(network, step) if step else network
        np.testing.assert_array_equal(judge.outputs(candidate), candidate.reference(codes))
    assert judge.evaluations == 5
    assert judge.work == 1 if memory == 0 else judge.work < 1


@pytest.mark.parametrize("shape", [(10,), (3, 2, 2)])
def test_log_probabilities(shape: tuple[int, ...]) -> None:
    """They are PyTorch's, and the loss is exactly what they say of the labels."""
    rng = np.random.default_rng(7)
    codes = rng.integers(-(1 << 20), 1 << 20, (FRAMES, *shape))
    labels = rng.integers(0, np.prod(shape), FRAMES)
    for scale in (2.0**-30, 2.0**-18, 0.3):
        found = log_probabilities(codes, scale)
        outputs = torch.tensor(codes.reshape(FRAMES, -1) * scale)
        np.testing.assert_allclose(found, torch.log_softmax(outputs, 1).numpy(), rtol=1e-12)
        loss = (-found[np.arange(FRAMES), labels]).mean()
        assert score_outputs(codes, labels, scale).loss == loss
    sure = score_outputs(codes[:1], codes[:1].reshape(1, -1).argmax(1), 1.0)
    assert math.copysign(1.0, sure.loss) == 1.0
    assert sure == Score(images=1, correct=1, loss=0.0)


def test_without_memory_everything_is_computed() -> None:
    network, judge = judged(memory=0)
    judge.score(network)
    judge.score(with_weight(network, 3, 0))
    assert judge.work == 1


def test_an_equal_network_is_remembered() -> None:
    network, judge = judged()
    score = judge.score(network)
    macs = judge.macs
    copy = replace(network, ops=tuple(replace(op) for op in network.ops), name="other")
    assert judge.score(copy) is score
    assert (judge.evaluations, judge.remembered, judge.macs) == (1, 1, macs)


@pytest.mark.parametrize("device", ["cpu", "torch"])
def test_cut_short_where_the_floor_is_out_of_reach(device: str) -> None:
    network, images = chain(), np.tile(digits().test_images, (2, 1, 1, 1))
    labels = np.tile(digits().test_labels, 2)
    labels[::3] = 0
    total = len(labels)
    whole = Judge(images, labels).score(network)
    assert total / 2 < whole.correct < total - 20
    for threads in (1, 3):
        judge = Judge(images, labels, threads=threads, device=device)
        missed = judge.score(network, floor=whole.correct + 1)
        assert missed == Score(images=total, correct=whole.correct, loss=math.inf, complete=False)
        assert missed < whole
        other = judge.score(network, floor=whole.correct + 5)  # known to be out of reach
        assert (other.correct, other.complete, judge.remembered) == (whole.correct + 4, False, 1)
        assert judge.score(network, floor=whole.correct) == whole
        assert judge.score(network, floor=whole.correct + 1) == missed
    judge = Judge(images, labels, threads=1, device=device)
    score = judge.score(network, floor=total - 10)
    assert (score.correct, score.complete) == (total - 11, False)
    assert device == "torch" or judge.work < 1
    assert judge.score(network, floor=3 * total).correct == total


def test_scores_do_not_depend_on_threads_or_cuts() -> None:
    network, images, labels = chain(), digits().test_images[:333], digits().test_labels[:333]
    found = set()
    for threads in (1, 2, 5):
        for memory in (0, 1 << 30):
            judge = Judge(images, labels, threads=threads, memory=memory)
            judge.score(with_weight(network, 2, 0))
            score = judge.score(network)
            found.add((score.correct, score.loss.hex()))
    assert len(found) == 1


def test_scores_sort_by_images_then_loss() -> None:
    scores = [
        Score(images=9, correct=5, loss=2.0),
        Score(images=9, correct=5, loss=1.0),
        Score(images=9, correct=6, loss=9.0),
    ]
    assert sorted([scores[2], scores[1], scores[0]]) == scores
    assert scores[0].accuracy == 5 / 9


def test_the_least_useful_activations_go_first() -> None:
    memory = Memory(100)

    def keep(key: bytes, size: int, work: int) -> None:
        memory.keep(key, Boundary(place=1, tensors={}, bytes=size), work)

    keep(b"dear", 50, 5000)
    keep(b"cheap", 50, 50)
    keep(b"new", 30, 600)
    assert memory.used == 80
    assert sorted(memory._kept) == [b"dear", b"new"]
    keep(b"new", 40, 600)
    assert memory.used == 90
    for index in range(9):  # what is not used for long goes too
        keep(b"%d" % index, 50, 2000)
    assert b"dear" not in memory._kept
    assert memory.used <= 100


def test_cuts_keep_a_pool_with_its_convolution() -> None:
    network = next(
        n
        for n in map(random_network, range(1000))
        if type(n.ops[0]).__name__ == "Conv"
        and type(n.ops[1]).__name__ == "MaxPool"
        and n.ops[0].requant.monotone  # type: ignore[attr-defined]
    )
    assert not can_cut(network, 1)
    assert can_cut(network, 2)
    assert live_tensors(network, 2) == {network.ops[1].name}


def test_bad_input_is_refused() -> None:
    network, images, labels = chain(), digits().test_images[:4], digits().test_labels[:4]
    with pytest.raises(BadInput, match="needs images and as many labels"):
        Judge(images[:0], labels[:0])
    with pytest.raises(BadInput, match="needs images and as many labels"):
        Judge(images, labels[:3])
    with pytest.raises(BadInput, match="at least 1 thread"):
        Judge(images, labels, threads=0)
    with pytest.raises(BadInput, match="at least 0 bytes"):
        Judge(images, labels, memory=-1)
    with pytest.raises(BadInput, match="cuda, perhaps with a number, not gpu"):
        Judge(images, labels, device="gpu")
    with pytest.raises(BadInput, match="cpu, torch or cuda, not on meta"):
        Judge(images, labels, device="meta")
    with pytest.raises(BadInput, match="no device cuda:99 here"):
        Judge(images, labels, device="cuda:99")
    with pytest.raises(BadInput, match="input codes must have the shape"):
        Judge(images[:, :, :-1], labels).score(network)
    with pytest.raises(BadInput, match="input codes must have the shape"):
        Judge(images[:, :, :-1], labels).outputs(network)


@pytest.mark.parametrize("first", ["score", "outputs"])
def test_images_are_checked_when_the_type_of_input_changes(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, judge = judged()
    source = replace(network.input, high=int(digits().test_images[:50].max()) - 1)
    reader = network.ops[0]
    assert isinstance(reader, MacOp)
    ops = (replace(reader, input=source), *network.ops[1:])
    narrower = replace(network, input=source, ops=ops)
    checked: list[Network] = []
    check = Network.check

    def watched(network: Network, codes: Any) -> NDArray[Any]:
        checked.append(network)
        return check(network, codes)

    monkeypatch.setattr(Network, "check", watched)
    getattr(judge, first)(network)
    judge.outputs(with_weight(network, 3, 0))
    judge.score(with_weight(network, 3, 1))
    assert len(checked) == 1
    for use in (judge.outputs, judge.score):
        with pytest.raises(BadInput, match="must lie within"):
            use(narrower)
    judge.outputs(network)
    assert len(checked) == 3
