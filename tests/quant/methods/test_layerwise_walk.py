"""The rules of the paper's walk, on judges made up for the purpose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwgen.errors import BadInput
from quant.methods.layerwise_paper import PaperSearch
from quant.methods.layerwise_walk import (
    Kind,
    Symmetric,
    allowed,
    neighbourhood,
    start_format,
    walk,
)


def form(width: int, frac: int) -> Symmetric:
    return Symmetric(width=width, frac=frac)


@dataclass
class Stub:
    """Relative drops by (width, frac), 1 where none is given; what was asked, in order."""

    drops: dict[tuple[int, int], float]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, candidate: Symmetric, limit: float) -> float | None:
        key = (candidate.width, candidate.frac)
        self.asked.append(key)
        drop = self.drops.get(key, 1.0)
        return drop if drop <= limit else None


@given(
    st.floats(-300, 300, allow_nan=False),
    st.integers(1, 12),
    st.integers(-4, 12),
)
def test_the_format_is_the_papers(value: float, width: int, frac: int) -> None:
    scaled = value * 2.0**frac
    nearest = math.floor(scaled)
    rest = scaled - nearest
    if rest > 0.5 or (rest == 0.5 and nearest % 2):
        nearest += 1
    high = 2 ** (width - 1) - 1
    expected = min(max(nearest, -high), high)
    own = form(width, frac)
    assert own.codes(np.array([value])).tolist() == [expected]
    assert own.nearest(np.array([value])).tolist() == [expected * 2.0**-frac]
    single = np.float32(value)
    applied = own.apply(torch.tensor([single]))
    assert applied.tolist() == own.nearest(np.array([single], dtype=np.float64)).tolist()


def test_one_bit_is_zero_and_ties_go_to_even() -> None:
    assert form(1, 5).codes(np.array([3.0, -3.0, 0.01])).tolist() == [0, 0, 0]
    assert form(4, 0).codes(np.array([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]
    assert form(3, 0).codes(np.array([-4.0, 4.0])).tolist() == [-3, 3]
    with pytest.raises(BadInput, match="at least 1 bit"):
        form(0, 0)


@pytest.mark.parametrize(
    ("largest", "width", "frac"), [(0.9, 12, 11), (1.0, 12, 11), (1.1, 12, 10), (5.0, 8, 4)]
)
def test_the_start_covers_the_largest_value(largest: float, width: int, frac: int) -> None:
    assert start_format(largest, width) == form(width, frac)


def test_the_start_of_zeros_and_of_what_is_not_finite() -> None:
    assert start_format(0.0, 12) == form(1, 0)
    with pytest.raises(BadInput, match="finite"):
        start_format(float("nan"), 12)


def test_what_is_allowed_grows_with_the_layers() -> None:
    shares = [allowed(Kind.WEIGHTS, i, 4, 0.005) for i in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.00125, 0.0025, 0.00375, 0.005])
    assert {allowed(Kind.BIASES, i, 4, 0.005) for i in (1, 2, 3, 4)} == {0.005}
    shares = [allowed(Kind.ACTIVATIONS, i, 4, 0.005) for i in (1, 4)]
    assert shares == pytest.approx([0.00625, 0.01])


def test_width_and_fraction_fall_together_while_it_is_allowed() -> None:
    stub = Stub({(w, w - 1): 0.001 for w in range(5, 12)})
    best, drop = walk(stub, form(12, 11), 0.002)
    assert (best, drop) == (form(5, 4), 0.001)
    # 4 and, over the bump, 3 bits were tried; then 4 bits alone; then the neighbours.
    assert stub.asked[:7] == [(w, w - 1) for w in range(11, 4, -1)]
    assert stub.asked[7:10] == [(4, 3), (3, 2), (4, 4)]


def test_one_step_goes_over_a_bump_and_two_do_not() -> None:
    good = {(11, 10): 0.0, (9, 8): 0.0, (8, 7): 0.0, (5, 4): 0.0}
    best, _ = walk(Stub(good), form(12, 11), 0.001)
    assert best == form(8, 7)  # over 10 bits, but not over 7 and 6


def test_then_the_width_falls_alone() -> None:
    good = {(w, w - 1): 0.0 for w in range(8, 12)} | {(7, 7): 0.0005, (6, 7): 0.0005}
    stub = Stub(good)
    best, drop = walk(stub, form(12, 11), 0.001)
    assert (best, drop) == (form(6, 7), 0.0005)
    assert (5, 7) in stub.asked
    assert (4, 7) not in stub.asked


def test_the_width_may_fall_to_one_bit() -> None:
    best, drop = walk(lambda candidate, limit: 0.0, form(8, 3), 0.0)
    assert (best.width, drop) == (1, 0.0)


def test_a_start_above_the_limit_stays_unless_a_neighbour_is_better() -> None:
    assert walk(Stub({}), form(8, 7), 0.001)[0] == form(8, 7)
    best, drop = walk(Stub({(8, 6): 0.3}), form(8, 7), 0.001)
    assert (best, drop) == (form(8, 6), 0.3)


@pytest.mark.parametrize(
    ("neighbour", "drop", "wins"),
    [
        ((6, 5), 0.0039, True),  # as wide and better
        ((5, 4), 0.0039, True),  # narrower and better
        ((6, 5), 0.0040, False),  # as good: the centre stays
        ((7, 5), 0.0030, False),  # wider and better by less than 0.0015
        ((7, 5), 0.0025, True),  # wider and better by 0.0015
    ],
)
def test_the_neighbourhood(neighbour: tuple[int, int], drop: float, wins: bool) -> None:
    stub = Stub({neighbour: drop})
    best, _ = neighbourhood(stub, form(6, 4), 0.004)
    assert best == (form(*neighbour) if wins else form(6, 4))
    assert set(stub.asked) == {(w, f) for w in (5, 6, 7) for f in (3, 4, 5) if (w, f) != (6, 4)}


def test_the_best_neighbour_decides_even_if_it_is_too_wide() -> None:
    stub = Stub({(7, 4): 0.003, (6, 5): 0.0035})
    assert neighbourhood(stub, form(6, 4), 0.004) == (form(6, 4), 0.004)


class Judge:
    """Right answers as a function of what is rounded."""

    float_correct = 1000

    def __init__(self, lost: Callable[[dict[tuple[Kind, str], Symmetric]], int]) -> None:
        self.lost, self.chosen = lost, dict[tuple[Kind, str], Symmetric]()
        self.order: list[tuple[Kind, str]] = []

    def choose(self, kind: Kind, layer: str, chosen: Symmetric) -> None:
        self.chosen[kind, layer] = chosen

    def clear(self, keep: frozenset[Kind] = frozenset()) -> None:
        self.chosen = {k: f for k, f in self.chosen.items() if k[0] in keep}

    def restart(self) -> None:
        pass

    def correct(self, kind: Kind, layer: str, trial: Symmetric, floor: int = 0) -> int | None:
        if (kind, layer) not in self.order[-1:]:
            self.order.append((kind, layer))
        right = self.float_correct - self.lost({**self.chosen, (kind, layer): trial})
        return right if right >= floor else None


def search(lost: Callable[[dict[tuple[Kind, str], Symmetric]], int]) -> PaperSearch:
    layers = ("a", "b")
    largest = {(kind, layer): 0.9 for kind in Kind for layer in layers}
    judge: object = Judge(lost)
    return PaperSearch(judge=judge, layers=layers, largest=largest, tolerance=0.005)  # type: ignore[arg-type]


def run(paper: PaperSearch) -> PaperSearch:
    paper.run(lambda: None, lambda done, total, text: None)
    return paper


def test_kinds_and_layers_come_in_the_papers_order_and_stay_rounded() -> None:
    seen: list[set[tuple[Kind, str]]] = []

    def lost(chosen: dict[tuple[Kind, str], Symmetric]) -> int:
        seen.append(set(chosen))
        return sum(max(0, 5 - chosen[key].width) for key in chosen)

    paper = run(search(lost))
    assert list(paper.chosen) == [(kind, layer) for kind in Kind for layer in ("a", "b")]
    assert seen[-1] == set(paper.chosen)
    drops = [entry["drop"] for entry in paper.drops]
    limits = [entry["allowed"] for entry in paper.drops]
    assert limits == pytest.approx([0.0025, 0.005, 0.005, 0.005, 0.0075, 0.01])
    assert all(drop <= limit for drop, limit in zip(drops, limits, strict=True))
    assert paper.starts == {"weights": 12, "biases": 8, "activations": 12}
    # Every width was lowered until the next bit was not allowed.
    assert [entry["width"] for entry in paper.drops] == [3, 2, 5, 5, 3, 2]


def test_a_kind_that_loses_too_much_alone_starts_wider() -> None:
    def lost(chosen: dict[tuple[Kind, str], Symmetric]) -> int:
        narrow = [k for k, f in chosen.items() if k[0] is Kind.BIASES and f.width < 10]
        return 6 * len(narrow)

    paper = run(search(lost))
    assert paper.starts == {"weights": 12, "biases": 12, "activations": 12}
    assert [e["width"] for e in paper.drops if e["kind"] == "biases"] == [10, 10]


def test_a_state_goes_on_to_the_same_result() -> None:
    def lost(chosen: dict[tuple[Kind, str], Symmetric]) -> int:
        return sum(max(0, 6 - chosen[key].width) for key in chosen)

    whole = run(search(lost))
    states = []

    def save() -> None:
        states.append(first.state())
        if len(first.chosen) == 3:
            raise KeyboardInterrupt

    first = search(lost)
    with pytest.raises(KeyboardInterrupt):
        first.run(save, lambda done, total, text: None)
    second = search(lost)
    second.restore(states[-1])
    run(second)
    assert second.chosen == whole.chosen
    assert second.drops == whole.drops
    assert second.evaluations == whole.evaluations
