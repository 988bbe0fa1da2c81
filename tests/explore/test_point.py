"""Points of a sweep: the table, and the front against its definition."""

from __future__ import annotations

import csv
import io
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from hwgen.explore.point import COLUMNS, Point, front, table
from tests.explore.points import point

HEADER = (
    "bits,weight_bits,bias_bits,activation_bits,fps_target,clock_mhz,status,accuracy_float,"
    "accuracy_integer,multipliers,cycles,latency,fps_at_clock,lut,ff,dsp,bram,bram_blocks,"
    "bram_kbit,fmax_mhz,fps,reason"
)


def test_columns_are_the_fields() -> None:
    assert set(COLUMNS) == {field.name for field in fields(Point)}
    assert len(COLUMNS) == len(set(COLUMNS))


def test_table() -> None:
    slow = point(status="too slow", reason='layer "a" is slow, by far')
    text = table([point("4/12/8", lut=10, dsp=0, fmax_mhz=93.5), slow])
    assert text.splitlines() == [
        HEADER,
        "4/12/8,4,16,4,1000.0,100.0,ok,0.75,0.7,,,,,10,,0,,,,93.5,,",
        '8,8,16,8,1000.0,100.0,too slow,0.75,0.7,,,,,,,,,,,,,"layer ""a"" is slow, by far"',
    ]
    assert text.endswith("\n")
    assert "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["dsp"] == "0"  # measured, and none: not the same as not measured
    assert rows[1]["reason"] == slow.reason


def test_record_leaves_out_what_was_not_measured() -> None:
    record = point(lut=10, dsp=0).record()
    assert record["dsp"] == 0
    assert record["lut"] == 10
    assert not {"ff", "cycles", "fps", "reason"} & set(record)
    assert list(record) == [name for name in COLUMNS if name in record]


LUTS = st.one_of(st.none(), st.integers(1, 5))


@given(st.lists(st.tuples(LUTS, st.integers(0, 5), st.booleans()), max_size=12))
def test_front(triples: list[tuple[int | None, int, bool]]) -> None:
    points = [
        point(lut=lut, accuracy_integer=right / 5, status="ok" if ok else "does not fit")
        for lut, right, ok in triples
    ]
    known = {(p.lut, p.accuracy_integer) for p in points if p.ok and p.lut is not None}
    best = {
        (lut, accuracy)
        for lut, accuracy in known
        if not any(
            other <= lut and better >= accuracy and (other, better) != (lut, accuracy)
            for other, better in known
        )
    }
    found = [(p.lut, p.accuracy_integer) for p in front(points)]
    assert found == sorted(best)
