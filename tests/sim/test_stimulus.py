"""The files between Python and the bench."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwgen.errors import BadInput
from hwgen.ir import TensorType
from hwgen.lower.stream import StreamLayout
from sim.bench import Rule
from sim.stimulus import Stimulus, read_probe, read_recording
from tests.sim.toy import BEATS, evaluate, frames, toy


def test_records_hold_flag_then_highest_byte(tmp_path: Path) -> None:
    data = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    Stimulus(data=data, last=np.array([False, True])).write(tmp_path / "x")
    assert list((tmp_path / "x").read_bytes()) == [0, 2, 1, 1, 4, 3]


def test_last_beat_of_every_frame() -> None:
    last = Stimulus.of(toy(), frames(2)).last
    assert np.flatnonzero(last).tolist() == [BEATS - 1, 2 * BEATS - 1]


@pytest.mark.parametrize("last", [[False, False], [True]])
def test_refused(last: list[bool]) -> None:
    with pytest.raises(BadInput, match="TLAST"):
        Stimulus(data=np.zeros((2, 2), dtype=np.uint8), last=np.array(last))


def write_outputs(job: Path, cycles: list[int]) -> None:
    beats = toy().output.encode(evaluate(frames(1)))
    lines = [
        f"{cycle:016x}{0:x}{bytes(beat[::-1]).hex()}\n"
        for cycle, beat in zip(cycles, beats, strict=False)
    ]
    (job / "outputs.txt").write_text("".join(lines))
    (job / "result.json").write_text(json.dumps({"cycles": 99}))


def test_recording_begins_at_the_last_reset(tmp_path: Path) -> None:
    write_outputs(tmp_path, list(range(10, 10 + BEATS)))
    (tmp_path / "events.txt").write_text("R 4 0\nF 5 0\nE 6 1\nV 7 2\nR 14 0\nF 15 0\n")
    recording = read_recording(tmp_path, toy())
    assert recording.cycles.tolist() == list(range(14, 10 + BEATS))
    assert recording.starts.tolist() == [15]
    assert not recording.frame_error
    assert recording.violations == ((7, Rule.DATA_CHANGED),)
    assert recording.total_cycles == 99
    wanted = toy().output.encode(evaluate(frames(1)))
    assert np.array_equal(recording.data, wanted[4:])
    assert not recording.unknown.any()


def test_unknown_digits(tmp_path: Path) -> None:
    write_outputs(tmp_path, [3])
    text = (tmp_path / "outputs.txt").read_text()
    (tmp_path / "outputs.txt").write_text(text[:-3] + "X" + text[-2:])
    (tmp_path / "events.txt").write_text("R 1 0\n")
    assert read_recording(tmp_path, toy()).unknown.tolist() == [[True, False, False, False]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    width=st.integers(1, 33),
    signed=st.booleans(),
    lanes=st.integers(1, 5),
    beats=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_probe(tmp_path: Path, width: int, signed: bool, lanes: int, beats: int, seed: int) -> None:
    """Any width and number of lanes comes back from the digits that a simulator prints."""
    layout = StreamLayout(
        tensor=TensorType(shape=(lanes,), width=width, signed=signed), lanes=lanes
    )
    low, high = layout.tensor.minimum, layout.tensor.maximum
    codes = np.random.default_rng(seed).integers(low, high, (beats, lanes), endpoint=True)
    lines = []
    for cycle, beat in enumerate(codes.tolist()):
        word = sum((code & ((1 << width) - 1)) << (width * lane) for lane, code in enumerate(beat))
        lines.append(f"{cycle:016x}{word:0{-(-width * lanes // 4)}x}\n")
    (tmp_path / "probe").write_text("".join(lines))
    record = read_probe(tmp_path / "probe", layout)
    assert np.array_equal(record.beats, codes)
    assert record.cycles.tolist() == list(range(beats))
    assert not record.unknown.any()
