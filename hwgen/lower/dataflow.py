"""A chain of stages with its exact schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork
from hwgen.ir.network import Network
from hwgen.lower.schedule import Actor, Need, Schedule, shifted, solve
from hwgen.lower.stages import Mac, Stage, full_rate_depth
from hwgen.lower.stream import AxiPort, StreamLayout

__all__ = ["Dataflow", "TensorStream"]


@dataclass(frozen=True, kw_only=True)
class TensorStream:
    """A stage whose output stream carries a tensor of the network.

    Parameters
    ----------
    stage : str
    tensor : str
    layout : StreamLayout
    """

    stage: str
    tensor: str
    layout: StreamLayout


@dataclass(frozen=True, kw_only=True)
class Dataflow:
    """Stages in stream order. Not slotted, because the schedule is cached.

    Parameters
    ----------
    name : str
        Name of the top module.
    network : Network
        What it computes.
    stages : tuple of Stage
        The first is a ``StreamIn``.
    input, output : AxiPort
    streams : tuple of TensorStream
    argmax : bool
        Whether the output is the class instead of the network's output.
    """

    name: str
    network: Network
    stages: tuple[Stage, ...]
    input: AxiPort
    output: AxiPort
    streams: tuple[TensorStream, ...]
    argmax: bool

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise BadNetwork(f"stage names must be unique, not {names}")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.o != after.i or before.beats_out != after.frame:
                raise BadNetwork(
                    f"stage {before.name} makes {before.beats_out} beats of {before.o} a frame,"
                    f" {after.name} takes {after.frame} of {after.i}; this is a defect of the lowering"
                )

    def expected(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the hardware must deliver for input codes ``(N, *input shape)``.

        Returns
        -------
        int64 array ``(N, *output shape)``, or the classes ``(N, 1)`` with argmax.
        """
        out = self.network.evaluate(codes)
        if not self.argmax:
            return out
        classes = np.argmax(out.reshape(out.shape[0], -1), axis=1)
        return np.array(classes[:, None], dtype=np.int64)

    @property
    def multipliers(self) -> int:
        """Multipliers of all MAC arrays."""
        return sum(stage.multipliers for stage in self.stages if isinstance(stage, Mac))

    def actors(self) -> tuple[Actor, ...]:
        """All actors, joined by their streams, and the sink."""
        chain = [list(stage.actors()) for stage in self.stages]
        beats = self.stages[-1].beats_out
        every = np.arange(beats, dtype=np.int64)
        chain.append([Actor(name="output", steps=beats, takes=every, makes=every)])
        for index, stage in enumerate(self.stages):
            source, sink = chain[index][-1], chain[index + 1][0]
            assert source.makes is not None
            assert sink.takes is not None
            count = len(source.makes)
            # Beat taken last, or by this step; a step that takes none repeats the need of an earlier one.
            last = np.searchsorted(sink.takes, np.arange(sink.steps), side="right") - 1
            data = Need(
                source=source.name,
                index=shifted(last, source.makes, count, source.steps),
                lag=stage.latency + 1,
            )
            made = np.searchsorted(source.makes, np.arange(source.steps), side="right") - 1
            credit = Need(
                source=sink.name,
                index=shifted(made - stage.out_depth, sink.takes, count, sink.steps),
                lag=1,
            )
            chain[index][-1] = replace(source, needs=(*source.needs, credit))
            # Source and sink may be one actor of two links: read the sink again after the write above.
            sink = chain[index + 1][0]
            chain[index + 1][0] = replace(sink, needs=(*sink.needs, data))
        return tuple(actor for actors in chain for actor in actors)

    @cached_property
    def schedule(self) -> Schedule:
        """The exact schedule; solved once."""
        return solve(self.actors())

    @property
    def interval(self) -> int:
        """Cycles between frames in steady state."""
        return self.schedule.interval

    @property
    def latency(self) -> int:
        """Cycles from the first input beat accepted to the last output beat taken, empty pipeline."""
        return self.schedule.latency

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def with_full_rate_buffers(self) -> Dataflow:
        """The same stages, each output buffer as deep as full rate needs."""
        stages = tuple(
            replace(stage, out_depth=full_rate_depth(stage.latency, stage.spacing))
            for stage in self.stages
        )
        return replace(self, stages=stages)
