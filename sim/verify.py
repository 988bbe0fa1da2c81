"""Co-simulate a design against its network: at full rate, then with gaps and stalls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwgen.backends.rtl.design import Design
from hwgen.errors import BadInput, Mismatch
from hwgen.ir.network import Network
from sim.divergence import Divergence, explain_mismatch
from sim.runner import build_simulation
from sim.scratch import scratch
from sim.simulate import PATIENCE, Conditions, Mode, SimResult, play, simulate
from sim.stimulus import Stimulus
from sim.tools import Simulator

__all__ = ["Verification", "check_framing", "check_reset", "verify"]

AXI_IMAGES = 2
"""Frames that the AXI run takes: two back to back show what one cannot, more show little else."""

Codes = NDArray[np.int64]
Progress = Callable[[Simulator, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verification:
    """Outcome in one simulator.

    Parameters
    ----------
    simulator : Simulator
    bulk : SimResult
        Frames back to back, source and sink never pausing.
    axi : SimResult, optional
        The first frames through cocotbext-axi with random gaps and stalls.
    divergence : Divergence, optional
        Where the first wrong frame goes wrong.
    """

    simulator: Simulator
    bulk: SimResult
    axi: SimResult | None
    divergence: Divergence | None

    @property
    def images(self) -> int:
        """Frames compared in the bulk run."""
        return self.bulk.images

    @property
    def mismatches(self) -> int:
        """Frames wrong in either run."""
        return len(set(self.bulk.wrong) | set(self.axi.wrong if self.axi else ()))

    @property
    def ok(self) -> bool:
        """Whether every output was right and every rule kept."""
        return self.bulk.ok and (self.axi is None or self.axi.ok)

    def check(self) -> None:
        """Return if all is right.

        Raises
        ------
        Mismatch
            Naming the first layer, channel, row, column and cycle with both codes, and every broken
            rule.
        """
        if self.ok:
            return
        lines = [f"{self.mismatches} of {self.images} images are wrong in {self.simulator.value}"]
        if self.divergence is not None:
            lines.append(str(self.divergence))
        for name, result in (("full rate", self.bulk), ("gaps and stalls", self.axi)):
            if result is not None:
                lines += [f"{name}: {problem}" for problem in result.problems]
        raise Mismatch("\n".join(lines))


def verify(
    design: Design,
    network: Network,
    codes: Codes,
    *,
    images: Mapping[Simulator, int],
    expected: Codes | None = None,
    interval: int | None = None,
    gaps: float = 0.3,
    stalls: float = 0.3,
    seed: int = 0,
    trace: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Verification, ...]:
    """Compare a design with its network in one or more simulators.

    Parameters
    ----------
    design : Design
    network : Network
        Gives the codes that every layer must have.
    codes : int64 array ``(N, *shape)``
        Input frames.
    images : mapping of Simulator to int
        Which simulators, and how many of the frames each takes.
    expected : int64 array ``(N, *shape)``, optional
        Output frames; ``network.evaluate(codes)`` unless given, as it must be for an argmax.
    interval : int, optional
        Predicted cycles of a frame: a run without a beat for far longer counts as stopped.
    gaps, stalls : float
        Shares of cycles in which source and sink pause in the AXI run; both 0 leave that run out.
    seed : int
        Of the gaps and stalls.
    trace : Path, optional
        Waveform of the bulk run, ``.vcd`` or ``.fst``. With several simulators each one's name goes
        before the suffix.
    cache_dir : Path, optional
        Folder of the build cache.
    progress : callable, optional
        Called with the simulator, the frames that have come and all that will.

    Raises
    ------
    BadInput
        If a simulator shall take no frame, or more than there are.
    MissingTool, ToolFailed
        If a simulator is absent or fails.
    """
    for simulator, count in images.items():
        if not 1 <= count <= len(codes):
            raise BadInput(
                f"the images for {simulator.value} must be 1 to {len(codes)}, those given,"
                f" not {count}"
            )
    most = max(images.values(), default=0)
    codes = np.ascontiguousarray(codes[:most], dtype=np.int64)
    wanted = network.evaluate(codes) if expected is None else expected[:most]
    bulk = Conditions(patience=_patience(interval))
    axi = Conditions(mode=Mode.AXI, gaps=gaps, stalls=stalls, seed=seed)
    # Only now the shares are known to be below 1.
    axi = replace(axi, patience=_patience(interval, gaps, stalls))
    outcomes = []
    for simulator, count in images.items():

        def report(done: int, total: int, simulator: Simulator = simulator) -> None:
            if progress is not None:
                progress(simulator, done, total)

        path = trace
        if trace is not None and len(images) > 1:
            path = trace.with_name(f"{trace.stem}.{simulator.value}{trace.suffix}")
        runs = [(bulk, count, path)]
        if gaps or stalls:
            runs.append((axi, min(count, AXI_IMAGES), None))
        results = [
            simulate(
                design,
                codes[:number],
                wanted[:number],
                simulator=simulator,
                conditions=conditions,
                trace=file,
                cache_dir=cache_dir,
                progress=report if conditions is bulk else None,
            )
            for conditions, number, file in runs
        ]
        divergence = None
        for result in results:
            if result.wrong and divergence is None:
                divergence = explain_mismatch(
                    design, codes, wanted, network.values, result, cache_dir=cache_dir
                )
        outcomes.append(
            Verification(
                simulator=simulator,
                bulk=results[0],
                axi=results[1] if len(results) > 1 else None,
                divergence=divergence,
            )
        )
    return tuple(outcomes)


def check_reset(
    design: Design,
    codes: Codes,
    expected: Codes,
    *,
    simulator: Simulator = Simulator.VERILATOR,
    after: int | None = None,
    gaps: float = 0.0,
    stalls: float = 0.0,
    patience: int = PATIENCE,
    cache_dir: Path | None = None,
) -> SimResult:
    """Reset a design within a frame, then run all frames: nothing of what was before may show.

    Parameters
    ----------
    design : Design
    codes, expected : int64 array ``(N, *shape)``
    simulator : Simulator
    after : int, optional
        Input beats before the reset; a frame and a half unless given.
    gaps, stalls, patience
        As for :class:`~sim.simulate.Conditions`.
    cache_dir : Path, optional
        Folder of the build cache.
    """
    beats = design.input.layout.beats
    before = after if after is not None else min(beats + beats // 2, len(codes) * beats - 1)
    conditions = Conditions(
        mode=Mode.AXI, gaps=gaps, stalls=stalls, reset_after=max(before, 1), patience=patience
    )
    return simulate(
        design, codes, expected, simulator=simulator, conditions=conditions, cache_dir=cache_dir
    )


def check_framing(
    design: Design,
    codes: Codes,
    evaluate: Callable[[Codes], Codes],
    *,
    simulator: Simulator = Simulator.VERILATOR,
    mode: Mode = Mode.LEAN,
    cut: int | None = None,
    extra: int = 3,
    patience: int = PATIENCE,
    cache_dir: Path | None = None,
) -> SimResult:
    """Send an early and a late ``tlast`` between good frames.

    Frame 1 ends after ``cut`` beats and must count as filled up with zeros; frame 3's ``tlast``
    comes ``extra`` beats late, and those beats must be dropped; all other frames must be right and
    ``frame_error`` high in the end.

    Parameters
    ----------
    design : Design
    codes : int64 array ``(N, *shape)``
        At least 5 frames.
    evaluate : callable
        Input codes ``(N, *shape)`` to expected outputs.
    simulator : Simulator
    mode : Mode
    cut : int, optional
        Half a frame unless given.
    extra : int
    patience, cache_dir
        As elsewhere.
    """
    if len(codes) < 5:
        raise BadInput(f"the framing check needs at least 5 frames, not {len(codes)}")
    layout = design.input.layout
    beats = layout.beats
    if beats < 2:
        raise BadInput(
            "the framing check needs frames of at least 2 beats: one of 1 beat cannot end early"
        )
    cut = beats // 2 if cut is None else cut
    codes = codes.copy()
    packed = layout.pack(codes[1:2])
    packed[cut:] = 0
    codes[1:2] = layout.unpack(packed)
    data = design.input.encode(codes)
    frames = [data[start : start + beats] for start in range(0, len(data), beats)]
    frames[1] = frames[1][:cut]
    frames[3] = np.concatenate([frames[3], frames[0][np.arange(extra) % beats]])
    last = np.zeros(sum(map(len, frames)), dtype=np.bool_)
    last[np.cumsum([len(frame) for frame in frames]) - 1] = True
    built = build_simulation(design, simulator, cache_dir=cache_dir)
    with scratch() as job:
        return play(
            built,
            Stimulus(data=np.concatenate(frames), last=last),
            evaluate(codes),
            job=job,
            conditions=Conditions(mode=mode, patience=patience),
            frame_error=True,
        )


def _patience(interval: int | None, gaps: float = 0.0, stalls: float = 0.0) -> int:
    """Cycles of silence that mean a standstill: pauses slow a frame, but never this much."""
    if interval is None or not (0 <= gaps < 1 and 0 <= stalls < 1):  # Conditions refuse the latter
        return PATIENCE
    return min(2**31 - 1, int(4 * interval / ((1 - gaps) * (1 - stalls))) + 10_000)
