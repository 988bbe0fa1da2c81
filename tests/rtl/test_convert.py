"""The width converter against a plain list of elements, cycle by cycle."""

from __future__ import annotations

import random

import pytest
from amaranth.hdl import Shape, signed, unsigned

from rtl.convert import WidthConverter
from rtl.requant import shape_interval
from tests.rtl.bench import Beat, OutputModel, run_stream


def ends(vector: int, lanes: int) -> list[int]:
    """Elements of each beat of a vector."""
    return [min(lanes, vector - start) for start in range(0, vector, lanes)]


class Model:
    """The converter's two actors, as the design page states them."""

    def __init__(self, li: int, lo: int, vi: int, vo: int, depth: int) -> None:
        self.most = li + lo - 1
        self.takes, self.gives = ends(vi, li), ends(vo, lo)
        self.held = self.k_in = self.k_out = 0
        self.out = OutputModel(depth, 0)

    def _emit(self) -> int:
        give = self.gives[self.k_out % len(self.gives)]
        return give if self.out.available and self.held >= give else 0

    def ready(self) -> bool:
        take = self.takes[self.k_in % len(self.takes)]
        return self.held - self._emit() + take <= self.most

    def valid(self) -> bool:
        return self.out.valid

    def tick(self, beat: Beat | None, taken: bool) -> None:
        give = self._emit()
        if give:
            self.out.fire()
            self.k_out += 1
        self.held -= give
        if beat is not None:
            self.held += self.takes[self.k_in % len(self.takes)]
            self.k_in += 1
        self.out.tick(taken)


def check(
    shape: Shape, li: int, lo: int, vi: int, vo: int, depth: int, rng: random.Random,
    gaps: float | None = None, stalls: float | None = None,
) -> float:  # fmt: skip
    """Send whole frames; cycles per output beat at the end."""
    low, high = shape_interval(shape)
    total = max(vi, vo) * max(2, 60 // max(vi, vo))
    codes = [rng.choice([low, high, rng.randint(low, high)]) for _ in range(total)]
    beats, expected = [], []
    for start in range(0, total, vi):
        for k in range(start, start + vi, li):
            part = codes[k : min(k + li, start + vi)]
            # The free lanes of a vector's last beat are don't-care.
            beats.append(tuple(part + [rng.randint(low, high) for _ in range(li - len(part))]))
    for start in range(0, total, vo):
        for k in range(start, start + vo, lo):
            part = codes[k : min(k + lo, start + vo)]
            expected.append(tuple(part + [0] * (lo - len(part))))
    run = run_stream(
        WidthConverter(shape, li, lo, vi, vo, depth), beats, gaps=gaps, stalls=stalls,
        seed=rng.randrange(1 << 30), count=len(expected), reference=Model(li, lo, vi, vo, depth),
    )  # fmt: skip
    assert run.outputs == expected
    return run.output_cycles[-1] / max(len(beats), len(expected))


@pytest.mark.parametrize(
    "li, lo, vi, vo",
    [
        (1, 4, 8, 8), (1, 6, 6, 6), (4, 1, 8, 8), (6, 2, 12, 24), (2, 6, 24, 12), (3, 3, 6, 6),
        (3, 8, 24, 24), (8, 3, 24, 24), (3, 8, 25, 25), (8, 3, 25, 25), (25, 4, 25, 100),
        (4, 25, 25, 25), (16, 25, 16, 400), (5, 1, 13, 13), (1, 5, 13, 13), (4, 6, 10, 30),
        (6, 4, 30, 10), (4, 4, 6, 18), (7, 5, 3, 9), (1, 1, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1),
    ],
)  # fmt: skip
def test_regroups(li: int, lo: int, vi: int, vo: int) -> None:
    rng = random.Random(li * 1000 + lo)
    for depth, gaps, stalls in ((2, None, None), (2, 0.4, None), (1, None, 0.5), (5, 0.3, 0.4)):
        shape = rng.choice([signed(5), unsigned(8), unsigned(1)])
        check(shape, li, lo, vi, vo, depth, rng, gaps, stalls)


def test_full_rate() -> None:
    # The slower side has a beat in every cycle but the first and last few.
    for li, lo in ((1, 4), (4, 1), (3, 8), (8, 3), (5, 5)):
        assert check(unsigned(4), li, lo, 120, 120, 2, random.Random(0)) < 1.05 + 6 / (
            120 / min(li, lo)
        )


def test_random_sweep() -> None:
    rng = random.Random(11)
    for _ in range(150):
        li, lo, vector, many = (rng.randint(1, n) for n in (9, 9, 20, 4))
        vi, vo = rng.choice([(vector, vector * many), (vector * many, vector)])
        gaps, stalls = rng.choice([None, 0.2, 0.6]), rng.choice([None, 0.2, 0.6])
        check(unsigned(7), li, lo, vi, vo, rng.randint(1, 5), rng, gaps, stalls)


def test_dividing_lanes_need_no_choice() -> None:
    pack, unpack = (WidthConverter(unsigned(8), a, b, 24, 24, 2).plan for a, b in ((2, 8), (8, 2)))
    # Packing: every unit comes from one lane group. Unpacking: the beat always lands at the bottom.
    assert (pack.unit, pack.places, pack.lanes_in) == (2, 4, 1)
    assert (unpack.unit, unpack.places, unpack.joined) == (2, 4, frozenset({0}))
