"""Hardware stages of a dataflow: their parameters, cycles and actors.

A stage fixes every choice that changes bits, order or cycles; a backend only renders it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.requant import Requant
from hwgen.ir.timing import MEMORY_READ, MULTIPLY, accumulate_latency, requant_latency, tree_latency
from hwgen.ir.walk import Walk, WindowMode
from hwgen.lower.schedule import Actor, Need, shifted

__all__ = [
    "Argmax",
    "Beat",
    "Mac",
    "Reduce",
    "Rescale",
    "Stage",
    "StreamIn",
    "WidthConvert",
    "Window",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Payload of a stream: ``lanes`` codes of ``width`` bits."""

    width: int
    signed: bool
    lanes: int

    @property
    def bits(self) -> int:
        """Bits of the payload."""
        return self.width * self.lanes


def _requant_cycles(requant: Requant | None) -> int:
    return 0 if requant is None else requant_latency(scaled=requant.scaled)


def full_rate_depth(latency: int, spacing: int) -> int:
    """Output buffer depth with which a beat every ``spacing`` cycles never waits for a credit."""
    return max(2, -(-(latency + 2) // spacing))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(ABC):
    """One hardware stage.

    Parameters
    ----------
    name : str
        Instance and module name, unique in the dataflow.
    layer : str
        Network op it belongs to, or ``input``.
    i, o : Beat
        Input and output payload.
    frame : int
        Input beats of a frame.
    out_depth : int
        Beats of the output buffer.
    """

    name: str
    layer: str
    i: Beat
    o: Beat
    frame: int
    out_depth: int

    @property
    @abstractmethod
    def latency(self) -> int:
        """Cycles from a producing step to the output buffer."""

    @abstractmethod
    def actors(self) -> tuple[Actor, ...]:
        """The stage's actors; the first takes the input beats, the last makes the output beats."""

    @property
    def cycles(self) -> int:
        """Cycles of a frame when nothing else limits the stage: steps of its busiest actor."""
        return max(actor.steps for actor in self.actors())

    @property
    def beats_out(self) -> int:
        """Output beats of a frame."""
        makes = self.actors()[-1].makes
        assert makes is not None
        return len(makes)

    @property
    def spacing(self) -> int:
        """Least number of steps between two output beats."""
        last = self.actors()[-1]
        assert last.makes is not None
        wrap = np.append(last.makes, last.makes[0] + last.steps)
        return int(np.diff(wrap).min())


def _every(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamIn(Stage):
    """AXI4-Stream slave."""

    latency: int = field(default=0, init=False)

    def actors(self) -> tuple[Actor, ...]:
        return (Actor(name=f"{self.name}.accept", steps=self.frame, makes=_every(self.frame)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale(Stage):
    """Requantises every code by its channel.

    Parameters
    ----------
    groups : int
        Beats of a pixel.
    requant : Requant
    """

    groups: int
    requant: Requant

    @property
    def latency(self) -> int:
        return _requant_cycles(self.requant)

    def actors(self) -> tuple[Actor, ...]:
        every = _every(self.frame)
        return (Actor(name=f"{self.name}.take", steps=self.frame, takes=every, makes=every),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Stage):
    """Turns a pixel stream into windows.

    Parameters
    ----------
    walk : Walk
    depth : int
        Ring size: words in TAP mode, image rows (a multiple of the kernel's rows) otherwise.
    pad_code : int
        Code of a tap outside the image.
    group_major : bool
        Whether a position's words run group by group (pools) or tap by tap (convolutions).
    """

    walk: Walk
    depth: int
    pad_code: int
    group_major: bool
    latency: int = field(default=MEMORY_READ, init=False)

    @property
    def words(self) -> int:
        """Ring size in words of ``i``."""
        if self.walk.mode is WindowMode.TAP:
            return self.depth
        return self.depth * self.walk.geometry.width * self.walk.groups

    def actors(self) -> tuple[Actor, ...]:
        walk, groups = self.walk, self.walk.groups
        write, read = f"{self.name}.write", f"{self.name}.read"
        segments, per = walk.rows * walk.columns, walk.steps
        steps = segments * per
        need = (walk.need().reshape(-1) + 1) * groups - 1
        released = walk.release().reshape(-1) * groups
        # Word v (over frames) may be overwritten after the first segment that releases beyond it.
        word = _every(self.frame) - self.words
        frame, rest = np.divmod(word, self.frame)
        segment = np.searchsorted(released, rest, side="right")
        freed = (segment + 1) * per - 1 + frame * steps
        produces = np.array([walk.produces(c) for c in range(walk.columns)])
        makes = np.flatnonzero(np.repeat(np.tile(produces, walk.rows), per)).astype(np.int64)
        return (
            Actor(
                name=write,
                steps=self.frame,
                takes=_every(self.frame),
                needs=(Need(source=read, index=freed, lag=1),),
            ),
            Actor(
                name=read,
                steps=steps,
                makes=makes,
                needs=(Need(source=write, index=np.repeat(need, per), lag=1),),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthConvert(Stage):
    """Regroups elements: vectors of ``vector_in`` in, vectors of ``vector_out`` out.

    Parameters
    ----------
    vector_in, vector_out : int
        Elements after which a beat ends early; one divides the other.
    """

    vector_in: int
    vector_out: int
    latency: int = field(default=0, init=False)

    @property
    def elements(self) -> int:
        """Elements it holds."""
        return self.i.lanes + self.o.lanes - 1

    def _ends(self, lanes: int, vector: int, total: int) -> NDArray[np.int64]:
        """Elements up to and including each beat of a frame."""
        inside = np.minimum(np.arange(lanes, vector + lanes, lanes, dtype=np.int64), vector)
        starts = np.arange(0, total, vector, dtype=np.int64)
        return (starts[:, None] + inside[None, :]).reshape(-1)

    def actors(self) -> tuple[Actor, ...]:
        accept, emit = f"{self.name}.accept", f"{self.name}.emit"
        per_vector = -(-self.vector_in // self.i.lanes)
        total = self.frame // per_vector * self.vector_in
        got = self._ends(self.i.lanes, self.vector_in, total)
        gone = self._ends(self.o.lanes, self.vector_out, total)
        source = np.searchsorted(got, gone, side="left").astype(np.int64)
        # Beat i fits once all but `elements` of what has come by then are gone.
        frame, rest = np.divmod(got - self.elements - 1, total)
        room = np.searchsorted(gone, rest + 1, side="left") + frame * len(gone)
        return (
            Actor(
                name=accept,
                steps=len(got),
                takes=_every(len(got)),
                needs=(Need(source=emit, index=room, lag=0),),
            ),
            Actor(
                name=emit,
                steps=len(gone),
                makes=_every(len(gone)),
                needs=(Need(source=accept, index=source, lag=1),),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mac(Stage):
    """Multiplies stored vectors with the weight matrix: ``i.lanes x o.lanes`` multipliers.

    Parameters
    ----------
    vectors : int
        Vectors of a frame: output positions of a convolution, 1 for a linear layer.
    elements : int
        Elements of a vector.
    outputs : int
        Output channels.
    capacity : int
        Words of the vector ring.
    weights : int64 array
        ``(folds, words, out_lanes, in_lanes)``: 0 where input lanes are left over; where output lanes
        are, 0 or with a codebook its entry nearest to 0.
    weight_width : int
        Bits of a weight in the multipliers.
    weight_signed : bool
    codebook : tuple of int, optional
        Rising values. Memory then holds a weight's place among them, and for each input lane that is
        left over in some word, if 0 is not among them, a bit that tells where.
    bias : int64 array
        ``(folds, out_lanes)`` at the accumulator's scale, the input's zero point folded in.
    accumulator_width : int
        Bits of the signed accumulators.
    requant : Requant or None
        None hands out accumulators.
    """

    vectors: int
    elements: int
    outputs: int
    capacity: int
    weights: NDArray[np.int64] = field(repr=False)
    weight_width: int
    weight_signed: bool
    bias: NDArray[np.int64] = field(repr=False)
    accumulator_width: int
    requant: Requant | None
    codebook: tuple[int, ...] | None = None

    @property
    def stored_width(self) -> int:
        """Bits of a weight in memory."""
        if self.codebook is None:
            return self.weight_width
        return max(1, (len(self.codebook) - 1).bit_length())

    @property
    def left_over(self) -> NDArray[np.bool_]:
        """Input lanes that memory marks as left over, ``(folds, words, in_lanes)``."""
        if self.codebook is None or 0 in self.codebook:
            return np.zeros((self.folds, self.words, self.i.lanes), dtype=np.bool_)
        return np.array((self.weights == 0).all(axis=2))

    @property
    def stored(self) -> NDArray[np.int64]:
        """What memory holds for each weight, in the shape of ``weights``; 0 where it is marked."""
        if self.codebook is None:
            return self.weights
        places = np.searchsorted(np.array(self.codebook, dtype=np.int64), self.weights)
        return np.where(self.left_over[:, :, None, :], 0, places)

    @property
    def memory_bits(self) -> int:
        """Bits of the weight memory, lanes left over and marks included."""
        marked = int(self.left_over.any(axis=(0, 1)).sum())
        return self.folds * self.words * (self.multipliers * self.stored_width + marked)

    @property
    def words(self) -> int:
        """Words of a vector: input folds."""
        return -(-self.elements // self.i.lanes)

    @property
    def folds(self) -> int:
        """Output folds."""
        return -(-self.outputs // self.o.lanes)

    @property
    def multipliers(self) -> int:
        """Multipliers of the array."""
        return self.i.lanes * self.o.lanes

    @property
    def latency(self) -> int:
        return (
            MEMORY_READ
            + MULTIPLY
            + tree_latency(self.i.lanes)
            + accumulate_latency()
            + _requant_cycles(self.requant)
        )

    def actors(self) -> tuple[Actor, ...]:
        write, issue = f"{self.name}.write", f"{self.name}.issue"
        words, folds = self.words, self.folds
        taken = self.vectors * words
        steps = taken * folds
        vector, word = np.divmod(_every(taken), words)
        last_use = (vector * folds + folds - 1) * words + word
        freed = shifted(_every(taken) - self.capacity, last_use, taken, steps)
        order = _every(steps)
        needed = order // (folds * words) * words + order % words
        in_first_fold = order // words % folds == 0
        needed = np.maximum.accumulate(np.where(in_first_fold, needed, -1))
        makes = np.arange(words - 1, steps, words, dtype=np.int64)
        return (
            Actor(
                name=write,
                steps=taken,
                takes=_every(taken),
                needs=(Need(source=issue, index=freed, lag=1),),
            ),
            Actor(
                name=issue,
                steps=steps,
                makes=makes,
                needs=(Need(source=write, index=needed, lag=1),),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Stage):
    """Maximum or sum over windows that arrive in pool order.

    Parameters
    ----------
    rows : int
        Kernel rows that arrive in one beat, each of ``o.lanes`` channels.
    steps : int
        Beats of an output.
    groups : int
        Outputs of a pixel.
    maximum : bool
        Maximum, else sum.
    accumulator_width : int
    accumulator_signed : bool
    requant : Requant or None
    """

    rows: int
    steps: int
    groups: int
    maximum: bool
    accumulator_width: int
    accumulator_signed: bool
    requant: Requant | None

    @property
    def latency(self) -> int:
        return tree_latency(self.rows) + accumulate_latency() + _requant_cycles(self.requant)

    def actors(self) -> tuple[Actor, ...]:
        makes = np.arange(self.steps - 1, self.frame, self.steps, dtype=np.int64)
        return (
            Actor(
                name=f"{self.name}.take", steps=self.frame, takes=_every(self.frame), makes=makes
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Argmax(Stage):
    """Index of the largest element of a vector, the lowest on a tie.

    Parameters
    ----------
    elements : int
    """

    elements: int

    @property
    def latency(self) -> int:
        return tree_latency(self.i.lanes) + accumulate_latency()

    def actors(self) -> tuple[Actor, ...]:
        per = -(-self.elements // self.i.lanes)
        makes = np.arange(per - 1, self.frame, per, dtype=np.int64)
        return (
            Actor(
                name=f"{self.name}.take", steps=self.frame, takes=_every(self.frame), makes=makes
            ),
        )
