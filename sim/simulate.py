"""Simulate a design on frames and compare every output with the expected codes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput, ToolFailed
from hwgen.files import write_atomic
from sim.build import Trace
from sim.runner import Built, build_simulation
from sim.scratch import scratch
from sim.stimulus import Recording, Stimulus, read_recording
from sim.tools import Simulator

__all__ = ["Conditions", "Mode", "SimResult", "play", "simulate"]

PATIENCE = 2_000_000
"""Cycles without a beat after which a design counts as stopped, where no interval is known."""


class Mode(Enum):
    """How the ports are driven."""

    AXI = "axi"
    """By cocotbext-axi's source and sink."""
    LEAN = "lean"
    """By the Verilog bench alone, for speed; Python sleeps until the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How a run is driven.

    Parameters
    ----------
    mode : Mode
    gaps : float
        Share of cycles in which the source pauses, 0 to below 1.
    stalls : float
        Share of cycles in which the sink is not ready, 0 to below 1.
    seed : int
        Of the gaps and stalls.
    reset_after : int
        With :attr:`Mode.AXI`: that many input beats, then a reset, then all frames from the first.
        0 for none.
    patience : int
        Cycles without a beat at either port after which the design counts as stopped.
    timeout : float, optional
        Seconds of wall-clock time that a run may take.
    """

    mode: Mode = Mode.LEAN
    gaps: float = 0.0
    stalls: float = 0.0
    seed: int = 0
    reset_after: int = 0
    patience: int = PATIENCE
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name, share in (("gaps", self.gaps), ("stalls", self.stalls)):
            if not 0 <= share < 1:
                raise BadInput(
                    f"{name} must be at least 0 and below 1, a share of cycles, not {share}"
                )
        if self.seed < 0:
            raise BadInput(f"seed must be at least 0, not {self.seed}")
        if self.reset_after and self.mode is not Mode.AXI:
            raise BadInput("a reset within a run needs the AXI mode")
        if not 1 <= self.patience < 2**31:
            raise BadInput(f"patience must be 1 to 2^31 - 1 cycles, not {self.patience}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimResult:
    """Outcome of a simulation.

    Parameters
    ----------
    simulator : Simulator
    conditions : Conditions
    images : int
        Frames that were expected.
    outputs : int64 array ``(n, *shape)``
        Codes of the frames that came whole, ``n <= images``.
    wrong : tuple of int
        Indices of the frames that differ from the expected or did not come.
    problems : tuple of str
        Violations of the stream protocol, unknown bits, missing or extra beats, and a wrong
        ``frame_error``.
    starts, ends : tuple of int
        Cycle in which each frame's first beat was accepted and its last one taken.
    cycles : int
        All that were simulated.
    frame_error : bool
        Final value of the output of that name.
    seconds : float
        Wall-clock time of the run, the simulator's start included.
    build_seconds : float
        Of building the simulator; 0 where it came from the cache.
    """

    simulator: Simulator
    conditions: Conditions
    images: int
    outputs: NDArray[np.int64] = field(repr=False)
    wrong: tuple[int, ...]
    problems: tuple[str, ...]
    starts: tuple[int, ...] = field(repr=False)
    ends: tuple[int, ...] = field(repr=False)
    cycles: int
    frame_error: bool
    seconds: float
    build_seconds: float

    @property
    def mismatches(self) -> int:
        """Number of frames that are not as expected."""
        return len(self.wrong)

    @property
    def ok(self) -> bool:
        """Whether every output is as expected and every rule was kept."""
        return not self.wrong and not self.problems

    @property
    def latency(self) -> int | None:
        """Cycles from the first frame's first beat accepted to its last beat taken (difference)."""
        return self.ends[0] - self.starts[0] if self.ends and self.starts else None

    @property
    def interval(self) -> int | None:
        """Cycles between the last beats of the last two frames; None with fewer than three."""
        return self.ends[-1] - self.ends[-2] if len(self.ends) >= 3 else None


def simulate(
    design: Design,
    codes: NDArray[np.int64],
    expected: NDArray[np.int64],
    *,
    simulator: Simulator = Simulator.VERILATOR,
    conditions: Conditions | None = None,
    trace: Path | None = None,
    probes: bool = False,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SimResult:
    """Run frames back to back through ``design`` and compare what comes out.

    Parameters
    ----------
    design : Design
    codes : int64 array ``(N, *shape)``
        Input frames.
    expected : int64 array ``(N, *shape)``
        Output frames.
    simulator : Simulator
    conditions : Conditions, optional
        How the ports are driven; at full rate by the lean driver unless given.
    trace : Path, optional
        Waveform file to write; its suffix, ``.vcd`` or ``.fst``, is its format.
    probes : bool
        Use the build that records internal streams.
    cache_dir : Path, optional
        Folder of the build cache.
    progress : callable, optional
        Called now and then with the frames that have come and all that will.

    Raises
    ------
    BadInput
        If the arrays do not fit the design or one another, or the trace file cannot be written.
    MissingTool
        If the simulator is not installed.
    ToolFailed
        If the simulator refuses the design or stops with an error.
    """
    _check_frames("codes", codes, design.input.layout.tensor.shape)
    _check_frames("expected", expected, design.output.layout.tensor.shape)
    if len(codes) != len(expected):
        raise BadInput(
            f"there must be one expected frame for each input frame,"
            f" not {len(expected)} for {len(codes)}"
        )
    kind = Trace.of(trace)
    built = build_simulation(design, simulator, trace=kind, probes=probes, cache_dir=cache_dir)
    with scratch() as job:
        return play(
            built,
            Stimulus.of(design, codes),
            expected,
            job=job,
            conditions=conditions or Conditions(),
            trace=trace,
            progress=progress,
        )


def play(
    built: Built,
    stimulus: Stimulus,
    expected: NDArray[np.int64],
    *,
    job: Path,
    conditions: Conditions,
    frame_error: bool = False,
    trace: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SimResult:
    """Run any stimulus in the folder ``job`` and compare what comes out.

    Parameters
    ----------
    built : Built
    stimulus : Stimulus
    expected : int64 array ``(N, *shape)``
        Output frames.
    job : Path
        An empty folder; the bench's files stay there.
    conditions : Conditions
    frame_error : bool
        The value that the output of that name must have in the end.
    trace, progress
        As for :func:`simulate`.

    Raises
    ------
    ToolFailed
        If the simulator stops with an error.
    """
    design, frames = built.design, len(expected)
    stimulus.write(job / "stimulus.bin")
    settings: dict[str, int | float | str] = {
        "mode": conditions.mode.value,
        "seed": conditions.seed,
        "gaps": conditions.gaps,
        "stalls": conditions.stalls,
        "frames": frames,
        "patience": conditions.patience,
        "reset_after": conditions.reset_after,
    }
    (job / "job.json").write_text(json.dumps(settings))
    frame_size = (16 + 1 + 2 * design.output.data_bytes + 1) * design.output.layout.beats

    def poll() -> None:
        if progress is not None and (job / "outputs.txt").exists():
            progress(min(frames, (job / "outputs.txt").stat().st_size // frame_size), frames)

    begun = time.monotonic()
    built.run(job, poll=poll, timeout=conditions.timeout)
    seconds = time.monotonic() - begun
    if trace is not None:
        with (job / f"trace{built.trace.value}").open("rb") as waves:
            write_atomic(trace, lambda file: shutil.copyfileobj(waves, file, 1 << 20))
    recording = read_recording(job, design)
    if conditions.mode is Mode.AXI:
        _check_sink(job, recording)
    result = _compare(built, recording, expected, conditions, frame_error, seconds)
    if progress is not None:
        progress(len(result.outputs), frames)
    return result


def _check_frames(name: str, codes: NDArray[np.int64], shape: tuple[int, ...]) -> None:
    if codes.ndim < 1 or codes.shape[1:] != shape or not len(codes) or codes.dtype != np.int64:
        raise BadInput(
            f"{name} must be int64 of shape (N, {', '.join(map(str, shape))}) with N at least 1,"
            f" not {codes.dtype} of shape {codes.shape}"
        )


def _check_sink(job: Path, recording: Recording) -> None:
    """The sink must have seen what the monitor recorded: a check of the bench itself."""
    seen = np.fromfile(job / "sink.bin", dtype=np.uint8)
    recorded = recording.data.reshape(-1)
    # The sink keeps a packet to itself until its tlast.
    if len(seen) > len(recorded) or not np.array_equal(seen, recorded[: len(seen)]):
        raise ToolFailed(
            "the bench contradicts itself: cocotbext-axi's sink and the monitor differ,"
            f" {len(seen)} bytes against {len(recorded)}"
        )


def _compare(
    built: Built,
    recording: Recording,
    expected: NDArray[np.int64],
    conditions: Conditions,
    frame_error: bool,
    seconds: float,
) -> SimResult:
    port = built.design.output
    beats, frames = port.layout.beats, len(expected)
    whole = min(len(recording.data) // beats, frames)
    outputs = port.decode(recording.data[: whole * beats])
    differs = (outputs != expected[:whole]).reshape(whole, -1).any(axis=1)
    # An unknown byte counts in lanes that carry a channel.
    used = (port.encode(np.full((1, *port.layout.tensor.shape), -1, dtype=np.int64)) != 0)[None]
    vague = recording.unknown[: whole * beats].reshape(whole, beats, -1) & used
    differs |= vague.reshape(whole, -1).any(axis=1)
    wrong = (*np.flatnonzero(differs).tolist(), *range(whole, frames))
    problems = [f"cycle {cycle}: {rule.text}" for cycle, rule in recording.violations]
    if vague.any():
        beat = int(np.flatnonzero(vague.reshape(whole * beats, -1).any(axis=1))[0])
        problems.append(f"cycle {recording.cycles[beat]}: m_axis_tdata has unknown bits")
    if len(recording.data) < frames * beats:
        problems.append(
            f"{len(recording.data)} of {frames * beats} output beats came;"
            f" no beat moved for {conditions.patience} cycles"
        )
    elif len(recording.data) > frames * beats:
        problems.append(f"{len(recording.data) - frames * beats} output beats too many")
    if recording.frame_error != frame_error:
        problems.append(
            f"frame_error is {int(recording.frame_error)} in the end, not {int(frame_error)}"
        )
    return SimResult(
        simulator=built.simulator,
        conditions=conditions,
        images=frames,
        outputs=outputs,
        wrong=wrong,
        problems=tuple(problems),
        starts=tuple(recording.starts.tolist()),
        ends=tuple(recording.cycles[beats - 1 : whole * beats : beats].tolist()),
        cycles=recording.total_cycles,
        frame_error=recording.frame_error,
        seconds=seconds,
        build_seconds=built.seconds,
    )
