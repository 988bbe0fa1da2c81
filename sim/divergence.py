"""Find the first place where a design's internal streams differ from the network's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput
from hwgen.lower.stream import StreamLayout
from sim.runner import build_simulation
from sim.scratch import scratch
from sim.simulate import Conditions, SimResult, play
from sim.stimulus import Stimulus, StreamRecord, read_probe, read_recording
from sim.tools import Simulator

__all__ = ["Difference", "Divergence", "Golden", "explain_mismatch"]

OUTPUT = "m_axis"
"""Stands for a layer where the streams between stages are right and the output port is not."""

SHOWN = 4
"""Further differences that a report lists."""

Codes = NDArray[np.int64]
Golden = Callable[[Codes], Mapping[str, Codes]]
"""Input codes ``(N, *shape)`` to every tensor's codes by name, such as ``Network.values``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One code of a tensor that the hardware got wrong.

    Parameters
    ----------
    channel, row, column : int
        Row and column are 0 for a vector.
    cycle : int
        In which its beat was taken, in the run that ``Divergence`` describes.
    actual : int, optional
        The hardware's code; None where it has unknown bits.
    expected : int
        The network's code.
    """

    channel: int
    row: int
    column: int
    cycle: int
    actual: int | None
    expected: int

    def __str__(self) -> str:
        actual = "unknown" if self.actual is None else str(self.actual)
        return (
            f"channel {self.channel}, row {self.row}, column {self.column}, cycle {self.cycle}:"
            f" {actual} instead of {self.expected}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first layer, in the earliest frame, whose codes differ from the network's.

    Parameters
    ----------
    layer : str
        Name of the tensor, or ``"m_axis"`` where all tensors are right and the output port is not.
    instance : str
        Instance of the stage in the top module; empty for the output port.
    image : int
        Index of the frame in the run that failed.
    simulator : Simulator
    differences : tuple of Difference
        The first ones in stream order; empty where beats are missing and the others are right.
    count : int
        Codes of this layer that differ in this frame.
    missing : int
        Codes of this layer that did not come in this frame.
    run : tuple of (int, int)
        First and last frame of the run that shows it; its cycles count from that run's start.
    """

    layer: str
    instance: str
    image: int
    simulator: Simulator
    differences: tuple[Difference, ...]
    count: int
    missing: int
    run: tuple[int, int]

    def __str__(self) -> str:
        where = (
            f"layer '{self.layer}'"
            if self.layer != OUTPUT
            else "the output port m_axis, all layers being right"
        )
        lines = [f"{self.simulator.value}: the first difference is in {where}, image {self.image}"]
        if self.differences:
            lines[0] += f", {self.differences[0]}"
            lines += [f"  then {difference}" for difference in self.differences[1:]]
            if self.count > len(self.differences):
                lines.append(
                    f"  and {self.count - len(self.differences)} more in this layer and image"
                )
        if self.missing:
            lines.append(f"  {self.missing} codes of this layer and image did not come")
        first, last = self.run
        lines.append(f"  (cycles of a run of images {first} to {last})")
        return "\n".join(lines)


def explain_mismatch(
    design: Design,
    codes: Codes,
    expected: Codes,
    golden: Golden,
    result: SimResult,
    *,
    cache_dir: Path | None = None,
) -> Divergence | None:
    """Run the first wrong frame of ``result`` again with the internal streams recorded.

    The frame runs alone first; where that shows nothing, all frames up to it run as they did.

    Parameters
    ----------
    design : Design
    codes, expected : int64 array ``(N, *shape)``
        As given to :func:`~sim.simulate.simulate`.
    golden : callable
        Input codes to every tensor's codes by name.
    result : SimResult
        What that call returned.
    cache_dir : Path, optional
        Folder of the build cache.

    Returns
    -------
    Divergence or None
        None where no frame is wrong, or both further runs are right.
    """
    if not result.wrong:
        return None
    bad = result.wrong[0]
    for first in dict.fromkeys((bad, 0)):
        found = _run(
            design,
            codes[first : bad + 1],
            expected[first : bad + 1],
            golden,
            (result.simulator, replace(result.conditions, timeout=None)),
            first,
            cache_dir,
        )
        if found is not None:
            return found
    return None


def _run(
    design: Design,
    codes: Codes,
    expected: Codes,
    golden: Golden,
    how: tuple[Simulator, Conditions],
    first: int,
    cache_dir: Path | None,
) -> Divergence | None:
    built = build_simulation(design, how[0], probes=True, cache_dir=cache_dir)
    with scratch() as job:
        play(built, Stimulus.of(design, codes), expected, job=job, conditions=how[1])
        streams = [
            (probe.tensor, probe.instance, read_probe(job / f"probe{index}.txt", probe.layout))
            for index, probe in enumerate(design.probes)
        ]
        streams.append((OUTPUT, "", _read_output(job, design)))
    layouts = [*(probe.layout for probe in design.probes), design.output.layout]
    values = {**golden(codes), OUTPUT: expected}
    found = []
    for order, ((tensor, instance, record), layout) in enumerate(
        zip(streams, layouts, strict=True)
    ):
        if tensor not in values:
            raise BadInput(
                f"the golden values must hold the tensor '{tensor}' of a probe,"
                f" not only {list(values)}"
            )
        comparison = _Comparison.of(layout, values[tensor], record)
        frame = comparison.first_bad()
        if frame is None:
            continue
        differences = comparison.differences(frame)
        divergence = Divergence(
            layer=tensor,
            instance=instance,
            image=first + frame,
            simulator=how[0],
            differences=differences[: 1 + SHOWN],
            count=len(differences),
            missing=comparison.missing(frame),
            run=(first, first + len(codes) - 1),
        )
        found.append(((frame, not differences, order), divergence))
    # The earliest frame decides, then a wrong code before a missing one, then the network's order.
    return min(found, key=lambda item: item[0])[1] if found else None


def _read_output(job: Path, design: Design) -> StreamRecord:
    """The recorded beats at ``m_axis`` in the form of a probe's; whole frames only."""
    recording = read_recording(job, design)
    port = design.output
    lanes, size = port.layout.lanes, port.lane_bytes
    whole = len(recording.data) // port.layout.beats * port.layout.beats
    unknown = recording.unknown[:whole, : lanes * size].reshape(whole, lanes, size)
    return StreamRecord(
        beats=port.layout.pack(port.decode(recording.data[:whole])),
        unknown=np.any(unknown, axis=2),
        cycles=recording.cycles[:whole],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Comparison:
    """A stream against what it should carry: ``wanted`` and ``used`` for all beats, ``wrong`` for
    those that came."""

    layout: StreamLayout
    record: StreamRecord
    wanted: Codes
    used: NDArray[np.bool_]
    wrong: NDArray[np.bool_]

    @classmethod
    def of(cls, layout: StreamLayout, values: Codes, record: StreamRecord) -> _Comparison:
        frames = values.reshape(len(values), *layout.tensor.shape)
        wanted, used = layout.pack(frames), layout.pack(np.ones_like(frames)).astype(np.bool_)
        count = min(len(record.beats), len(wanted))
        differs = (record.beats[:count] != wanted[:count]) | record.unknown[:count]
        wrong = used[:count] & differs
        return cls(layout=layout, record=record, wanted=wanted, used=used, wrong=wrong)

    def first_bad(self) -> int | None:
        """The first frame that has a wrong or missing code."""
        rows = np.flatnonzero(self.wrong.any(axis=1))
        if len(rows):
            return int(rows[0]) // self.layout.beats
        came = len(self.wrong)
        return came // self.layout.beats if came < len(self.wanted) else None

    def differences(self, frame: int) -> tuple[Difference, ...]:
        """Every difference of a frame, in stream order."""
        start = frame * self.layout.beats
        places = np.argwhere(self.wrong[start : start + self.layout.beats]).tolist()
        return tuple(self._difference(start + row, lane) for row, lane in places)

    def _difference(self, beat: int, lane: int) -> Difference:
        _, channel, row, column = self.layout.locate(beat, lane)
        unknown = bool(self.record.unknown[beat, lane])
        return Difference(
            channel=channel,
            row=row,
            column=column,
            cycle=int(self.record.cycles[beat]),
            actual=None if unknown else int(self.record.beats[beat, lane]),
            expected=int(self.wanted[beat, lane]),
        )

    def missing(self, frame: int) -> int:
        """How many codes of a frame did not come."""
        start = frame * self.layout.beats
        return int(self.used[max(start, len(self.wrong)) : start + self.layout.beats].sum())
