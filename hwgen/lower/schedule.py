"""The exact schedule of a dataflow: when every step of every actor fires.

Actors fire the steps of a fixed cyclic sequence, at most one a cycle, each as soon as the events it
needs have happened (docs/design.md, section 4). That is a max-plus system:

    t[k] = max(t[k - 1] + 1, max over needs (t_source[index[k]] + lag))

It is solved by sweeps from below; where those take too long, because two actors wait for each other at
every step, each event is evaluated once, in chunks as long as the known events allow. When no actor can
go on, the dataflow would deadlock, and the actors that wait are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork

__all__ = ["Actor", "Need", "Schedule", "shifted", "solve"]

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Step ``k`` of the actor fires at least ``lag`` cycles after step ``index[k]`` of ``source``.

    ``index`` counts from the start of the same frame: negative in earlier frames. The frame's
    index moves on by the source's steps with every frame.
    """

    source: str
    index: Index
    lag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A cyclic sequence of steps.

    Parameters
    ----------
    name : str
        Unique in the dataflow.
    steps : int
        Steps of a frame.
    takes, makes : int array or None
        Step that takes input beat ``j`` and step that makes output beat ``j`` of a frame; strictly
        increasing. None where the actor takes or makes none.
    needs : tuple of Need
    """

    name: str
    steps: int
    takes: Index | None = None
    makes: Index | None = None
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Firing times of a few frames, fed without gaps and drained without stalls.

    Parameters
    ----------
    frames : int
    times : dict of str to int array
        Per actor ``(frames, steps)``: the cycle in which each step fires; the first is 0.
    interval : int
        Cycles between consecutive frames in steady state.
    settled : bool
        Whether that state was reached; else ``interval`` is a mean, rounded up, and no exact figure.
    latency : int
        Cycles from the first input beat accepted to the last output beat of the first frame taken.
    """

    frames: int
    times: dict[str, Index] = field(repr=False)
    interval: int
    settled: bool
    latency: int


def shifted(index: Index, steps: Index, per_frame_in: int, per_frame_out: int) -> Index:
    """``steps[index]`` continued over frames: ``index`` outside ``0..per_frame_in - 1`` moves to another frame.

    Parameters
    ----------
    index : int array
        Positions in a sequence of ``per_frame_in`` entries a frame.
    steps : int array
        ``(per_frame_in,)`` step of each entry.
    per_frame_out : int
        Steps of a frame of the actor that ``steps`` refers to.
    """
    frame, rest = np.divmod(index, per_frame_in)
    return np.asarray(steps[rest] + frame * per_frame_out, dtype=np.int64)


class _Running:
    """Evaluation state of one actor over ``frames`` frames."""

    def __init__(self, actor: Actor, frames: int) -> None:
        self.actor = actor
        self.total = actor.steps * frames
        self.rank = np.arange(self.total, dtype=np.int64)
        self.time = self.rank.copy()  # step k fires at k or later
        self.done = 0
        self.needs: list[tuple[_Running, Index, int, int]] = []
        self.readers: set[str] = set()

    def bind(self, running: dict[str, _Running], frames: int) -> None:
        for need in self.actor.needs:
            source = running[need.source]
            base = np.arange(frames, dtype=np.int64)[:, None] * source.actor.steps
            index = (need.index[None, :] + base).reshape(-1)
            # A need of an earlier step holds for this one too, because an actor's times increase.
            limit = np.maximum.accumulate(index)
            self.needs.append((source, limit, int(np.searchsorted(limit, 0)), need.lag))
            source.readers.add(self.actor.name)

    def sweep(self) -> bool:
        """Evaluate every step from the sources' present times. Whether any time grew."""
        ready = np.zeros(self.total, dtype=np.int64)  # t[k] - k never decreases
        for source, limit, first, lag in self.needs:
            known = source.time[np.minimum(limit[first:], source.total - 1)]
            known += lag - self.rank[first:]
            np.maximum(ready[first:], known, out=ready[first:])
        np.maximum.accumulate(ready, out=ready)
        ready += self.rank
        if np.array_equal(ready, self.time):
            return False
        self.time = ready
        return True

    def advance(self) -> bool:
        """Evaluate all steps whose needs are known for good. Whether any was."""
        end = self.total
        for source, limit, _, _ in self.needs:
            if source.done < source.total and limit[-1] >= source.done:
                end = min(end, int(np.searchsorted(limit, source.done)))
        start = self.done
        if end <= start:
            return False
        ready = np.zeros(end - start, dtype=np.int64)
        for source, limit, first, lag in self.needs:
            skip = max(first - start, 0)
            if skip < end - start:
                known = source.time[limit[start + skip : end]] + lag - self.rank[start + skip : end]
                np.maximum(ready[skip:], known, out=ready[skip:])
        if start:
            ready[0] = max(ready[0], self.time[start - 1] + 1 - start)
        np.maximum.accumulate(ready, out=ready)
        self.time[start:end] = ready + self.rank[start:end]
        self.done = end
        return True


SWEEPS = 40
"""Evaluations per actor after which :func:`_evaluate` gives up on whole sweeps."""


def _sweep(states: dict[str, _Running]) -> bool:
    """Iterate from below until nothing changes. Whether it did so within the budget.

    Each evaluation is monotone, and it starts below the least fixed point, so where it stops it is there.
    A deadlock has no fixed point and uses up the budget.
    """
    names = list(states)
    dirty = set(names)
    budget = SWEEPS * len(names)
    while dirty:
        for order in (names, names[::-1]):
            for name in order:
                if name not in dirty:
                    continue
                dirty.discard(name)
                budget -= 1
                if states[name].sweep():
                    dirty |= states[name].readers
        if budget < 0:
            return False
    return True


def _march(states: dict[str, _Running]) -> None:
    """Evaluate every event once, in the order in which they become known."""
    moved = True
    while moved:
        moved = False
        for state in states.values():
            if state.done < state.total and state.advance():
                moved = True
    stuck = [s for s in states.values() if s.done < s.total]
    if stuck:
        names = ", ".join(f"{s.actor.name} at step {s.done % s.actor.steps}" for s in stuck)
        raise BadNetwork(
            f"the dataflow deadlocks: a buffer is too small for {names}; enlarge its depth"
        )


def _evaluate(actors: tuple[Actor, ...], frames: int, *, march: bool) -> dict[str, Index]:
    running = {actor.name: _Running(actor, frames) for actor in actors}
    for state in running.values():
        state.bind(running, frames)
    if not _sweep(running):
        if not march:
            raise BadNetwork(
                "the stages of the dataflow wait for each other too often to be worth solving"
            )
        _march(running)
    return {name: state.time.reshape(frames, -1) for name, state in running.items()}


def solve(
    actors: tuple[Actor, ...], *, settle: int = 3, most: int = 24, march: bool = True
) -> Schedule:
    """Evaluate frames until the interval has stayed the same for ``settle`` frames.

    Parameters
    ----------
    actors : tuple of Actor
        In stream order: the first accepts input beats, the last makes or takes the output beats.
    settle : int
        Equal consecutive intervals that count as the steady state.
    most : int
        Frames after which the interval is taken as the mean over the second half, rounded up.
    march : bool
        Whether to go on where sweeps do not converge, in time that grows with the number of events.

    Raises
    ------
    BadNetwork
        If the dataflow deadlocks, or without ``march`` is too tightly coupled for sweeps.
    """
    frames = settle + 2
    while True:
        times = _evaluate(actors, frames, march=march)
        ends = times[actors[-1].name][:, -1]
        gaps = np.diff(ends)
        if len(set(gaps[-settle:].tolist())) == 1:
            interval, settled = int(gaps[-1]), True
            break
        if frames >= most:
            half = len(gaps) // 2
            interval, settled = int(-(-int(gaps[half:].sum()) // (len(gaps) - half))), False
            break
        frames = min(2 * frames, most)
    latency = int(ends[0] - times[actors[0].name][0, 0])
    return Schedule(frames=frames, times=times, interval=interval, settled=settled, latency=latency)
