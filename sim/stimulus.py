"""What goes into a bench and what it recorded, as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput
from hwgen.lower.stream import StreamLayout
from sim.bench import Rule

__all__ = ["Recording", "Stimulus", "StreamRecord", "read_probe", "read_recording"]

UNKNOWN = 255
"""Stands for a hexadecimal digit with unknown bits."""

_DIGITS = np.full(256, UNKNOWN, dtype=np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _DIGITS[_digit] = _value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stimulus:
    """Beats for ``s_axis``.

    Parameters
    ----------
    data : uint8 array ``(beats, data_bytes)``
        TDATA, lowest byte first.
    last : bool array ``(beats,)``
        TLAST. True on the final beat.
    """

    data: NDArray[np.uint8]
    last: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or self.last.shape != self.data.shape[:1] or not len(self.last):
            raise BadInput(
                "a stimulus must hold TDATA as (beats, bytes) and TLAST as (beats,), at least one"
                f" beat, not {self.data.shape} and {self.last.shape}"
            )
        if not self.last[-1]:
            raise BadInput(
                "a stimulus must end with TLAST, or the design waits for more; set it on the last"
                " beat"
            )

    @classmethod
    def of(cls, design: Design, codes: NDArray[np.int64]) -> Stimulus:
        """Whole frames, codes ``(N, *shape)``, back to back."""
        data = design.input.encode(codes)
        last = np.zeros(len(data), dtype=np.bool_)
        beats = design.input.layout.beats
        last[beats - 1 :: beats] = True
        return cls(data=data, last=last)

    def write(self, path: Path) -> None:
        """Write the file that :mod:`sim.bench` plays."""
        records = np.empty((len(self.data), self.data.shape[1] + 1), dtype=np.uint8)
        records[:, 0] = self.last
        records[:, 1:] = self.data[:, ::-1]
        records.tofile(path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What a bench recorded since the last reset; cycles count rising edges of the clock.

    Parameters
    ----------
    data : uint8 array ``(beats, data_bytes)``
        TDATA of the beats taken at ``m_axis``, lowest byte first; 0 where bits were unknown.
    unknown : bool array, as ``data``
        Where a byte had unknown bits.
    cycles : int64 array ``(beats,)``
        When each was taken.
    starts : int64 array ``(frames,)``
        When the first beat of each input frame was accepted.
    frame_error : bool
        The output's final value.
    violations : tuple of (int, Rule)
        Cycle and rule, at most 20.
    total_cycles : int
        All that were simulated.
    """

    data: NDArray[np.uint8]
    unknown: NDArray[np.bool_]
    cycles: NDArray[np.int64]
    starts: NDArray[np.int64]
    frame_error: bool
    violations: tuple[tuple[int, Rule], ...]
    total_cycles: int


def read_recording(job: Path, design: Design) -> Recording:
    """Read the files of a bench that has ended."""
    width = design.output.data_bytes
    cycles, digits = _read_lines(job / "outputs.txt", 1 + 2 * width)
    data, unknown = _to_bytes(digits[:, 1:])
    starts: list[int] = []
    violations: list[tuple[int, Rule]] = []
    begin, error = 0, False
    for line in (job / "events.txt").read_text().splitlines():
        kind, cycle, number = line.split()
        if kind == "R":
            begin, error = int(cycle), False
            starts.clear()
        elif kind == "F":
            starts.append(int(cycle))
        elif kind == "E":
            error = True
        else:
            violations.append((int(cycle), Rule.of(int(number))))
    kept = cycles >= begin
    return Recording(
        data=data[kept],
        unknown=unknown[kept],
        cycles=cycles[kept],
        starts=np.array(starts, dtype=np.int64),
        frame_error=error,
        violations=tuple(violations),
        total_cycles=int(json.loads((job / "result.json").read_text())["cycles"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamRecord:
    """Beats of one stream.

    Parameters
    ----------
    beats : int64 array ``(n, lanes)``
        Codes; any value where unknown.
    unknown : bool array ``(n, lanes)``
    cycles : int64 array ``(n,)``
        When each was taken.
    """

    beats: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    cycles: NDArray[np.int64]


def read_probe(path: Path, layout: StreamLayout) -> StreamRecord:
    """Read what a probe recorded."""
    lanes, width = layout.lanes, layout.tensor.width
    cycles, digits = _read_lines(path, -(-width * lanes // 4))
    # Bits lowest first, of digits highest first; a lane may begin within a digit.
    vague = digits[:, ::-1] == UNKNOWN
    known = np.where(vague, np.uint8(0), digits[:, ::-1])
    bits = ((known[:, :, None] >> np.arange(4, dtype=np.uint8)) & 1).astype(np.int64)
    shape = (len(cycles), lanes, width)
    bits = bits.reshape(len(cycles), 4 * digits.shape[1])[:, : lanes * width].reshape(shape)
    beats = bits @ (np.int64(1) << np.arange(width, dtype=np.int64))
    if layout.tensor.signed:
        sign = np.int64(1) << (width - 1)
        beats = (beats ^ sign) - sign
    unknown: NDArray[np.bool_] = np.repeat(vague, 4, axis=1)[:, : lanes * width].reshape(shape)
    return StreamRecord(beats=beats, unknown=np.any(unknown, axis=2), cycles=cycles)


def _read_lines(path: Path, digits: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Cycles and hexadecimal digits ``(n, digits)`` of lines of one length, a cut last one left."""
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    length = 16 + digits + 1
    lines = _DIGITS[raw[: len(raw) // length * length].reshape(-1, length)]
    weights = np.int64(16) ** np.arange(15, -1, -1, dtype=np.int64)
    return lines[:, :16].astype(np.int64) @ weights, lines[:, 16:-1]


def _to_bytes(digits: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Digits, highest first, to bytes, lowest first, and where they are unknown."""
    pairs = digits.reshape(len(digits), digits.shape[1] // 2, 2)[:, ::-1]
    unknown = (pairs == UNKNOWN).any(axis=2)
    known = np.where(pairs == UNKNOWN, np.uint8(0), pairs)
    return np.ascontiguousarray((known[:, :, 0] << 4) | known[:, :, 1]), unknown
