"""How good an integer network is on a set of images: one judge for all searches."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import total_ordering

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import INPUT, MacOp, Network, Op, TensorType
from hwgen.ir.ops.base import Codes
from quant.judge_cpu import CpuRunner
from quant.judge_memory import Boundary, Digests, Memory, can_cut, live_tensors
from quant.judge_runner import Job, Parts, Runner, Take, stored_type

__all__ = ["Judge", "Score", "log_probabilities", "score_outputs"]

REMEMBERED = 1 << 16
"""Scores, and beginnings of networks, that a judge remembers."""


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a network reached; more correct images are better, a smaller loss breaks ties.

    Parameters
    ----------
    images, correct : int
        Images in all and those classified right (the lowest class wins a tie). Where the score is
        not complete, the most that the network could have classified right: one less than the
        floor it missed.
    loss : float
        Mean cross-entropy of the softmax of the outputs, in nats; infinite where not complete.
    complete : bool
        Whether all images were looked at. If not, the network is known to miss the floor that
        :meth:`Judge.score` was given, and no more.
    """

    images: int
    correct: int
    loss: float
    complete: bool = True

    @property
    def accuracy(self) -> float:
        """Top-1 fraction."""
        return self.correct / self.images

    def __lt__(self, other: Score) -> bool:
        return (self.correct, -self.loss) < (other.correct, -other.loss)


class Judge:
    """Scores integer networks on fixed images, exactly, recomputing only layers that changed.

    A network equal to one scored before has its remembered score. Otherwise the layers that it has
    in common with any earlier network, from the first on, are looked for: where those end, their
    activations are kept, and the next network that begins alike starts from there. So a search
    that varies a layer of the best network so far computes the layers before it once. Nothing is
    kept of what only one network has, so that bad candidates drive nothing out; where ``memory``
    is short, what saves the least work a byte goes first (GreedyDual-Size, Cao and Irani 1997).
    Layers are the same if they are equal; that they are one object, as an
    :class:`~quant.assemble.Assembler` makes them, only spares the comparison.

    Scores depend neither on the number of threads nor on the device nor on what is kept. A judge
    is for one thread at a time.

    Parameters
    ----------
    images : uint8 array
        Raw images ``(N, C, H, W)``.
    labels : int64 array
        ``(N,)``.
    threads : int, optional
        Of the CPU; by default all that this process may use. Each works on images of its own, with
        BLAS on one thread.
    device : str
        ``"cpu"``, or a device of PyTorch such as ``"cuda"`` or ``"cuda:1"``; ``"torch"`` is PyTorch
        on the CPU.
    memory : int
        Bytes of activations kept, besides a copy of the images; 0 keeps none.

    Attributes
    ----------
    evaluations : int
        Networks that were computed, wholly or in part.
    remembered : int
        Networks whose score was known already.

    Raises
    ------
    BadInput
        If there are no images, the labels do not fit, or the device is not there.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        threads: int | None = None,
        device: str = "cpu",
        memory: int = 1 << 30,
    ) -> None:
        if len(images) == 0 or labels.shape != (len(images),):
            raise BadInput(
                f"a judge needs images and as many labels, not {len(images)} and {labels.shape}"
            )
        if threads is not None and threads < 1:
            raise BadInput(f"a judge needs at least 1 thread, not {threads}")
        if memory < 0:
            raise BadInput(f"the memory of a judge must be at least 0 bytes, not {memory}")
        self._images, self._labels = images, labels
        self._classes = int(labels.max()) + 1
        self._runner = _runner(images, threads, device)
        self._digests, self._memory = Digests(), Memory(memory)
        self._scores: OrderedDict[bytes, Score] = OrderedDict()
        self._input: TensorType | None = None
        self.evaluations = self.remembered = 0
        self.macs = self.full_macs = 0

    @property
    def work(self) -> float:
        """Multiplications done as a fraction of what :attr:`evaluations` full ones take."""
        return self.macs / self.full_macs if self.full_macs else 0.0

    def score(self, network: Network, floor: int | None = None) -> Score:
        """Accuracy and loss of a network.

        Parameters
        ----------
        network : Network
        floor : int, optional
            The fewest correct images that are of interest. Where they are not reached the score is
            not ``complete`` and sorts below every score that reaches them; the evaluation ends as
            soon as they are out of reach.

        Raises
        ------
        BadInput
            If the network takes other images, or has fewer outputs than there are classes.
        """
        if network.output_type.size < self._classes:
            raise BadInput(
                f"the labels go up to {self._classes - 1}, but the network has"
                f" {network.output_type.size} outputs; give the labels of its classes"
            )
        self._check(network)
        prefixes = self._digests.prefixes(network)
        whole = prefixes[-1] + network.output.encode()
        known = self._scores.get(whole)
        missed = floor is not None and known is not None and known.correct < floor
        if known is not None and (known.complete or missed):
            self.remembered += 1
            self._scores.move_to_end(whole)
            return self._missed(floor) if missed else known
        self._count(network)
        start = self._start(network, prefixes)
        score = self._finish(network, start, floor)
        self._memory.saw(prefixes)
        self._scores[whole] = score
        self._scores.move_to_end(whole)
        if len(self._scores) > REMEMBERED:
            self._scores.popitem(last=False)
        return score

    def outputs(self, network: Network) -> Codes:
        """The codes ``(N, *shape)`` that a network makes of the images.

        Raises
        ------
        BadInput
            If the network takes other images.
        """
        self._check(network)
        prefixes = self._digests.prefixes(network)
        self._count(network)
        start = self._start(network, prefixes)
        codes = np.empty((len(self._images), *network.output_type.shape), dtype=np.int64)

        def take(first: int, part: Codes) -> bool:
            codes[first : first + len(part)] = part
            return True

        self._compute(network, start, take)
        self._memory.saw(prefixes)
        return codes

    def _check(self, network: Network) -> None:
        """Refuse a network that takes other images; looks at them when the type of input changes."""
        if network.input != self._input:
            network.check(self._images)
            self._input = network.input

    def _missed(self, floor: int | None) -> Score:
        """The score of a network that misses a floor: the same whatever was computed of it, so that
        a search takes the same way whatever its judge remembers."""
        total = len(self._images)
        most = total if floor is None else min(floor - 1, total)
        return Score(images=total, correct=most, loss=math.inf, complete=False)

    def _start(self, network: Network, prefixes: list[bytes]) -> Boundary:
        """The activations after the layers that earlier networks share, computed if need be."""
        images = Boundary(place=0, tensors={INPUT: self._runner.images}, bytes=0)
        shared = self._memory.shared(prefixes[:-1])
        found = self._memory.deepest(network, prefixes[: shared + 1]) or images
        types = {op.name: op.output for op in network.ops}
        for place in range(shared, found.place, -1):
            wanted = live_tensors(network, place) - {INPUT}
            size = sum(types[n].size * stored_type(types[n]).itemsize for n in wanted)
            size *= len(self._images)
            if self._memory.fits(size) and can_cut(network, place):
                break
        else:
            return found
        job, work = self._job(network, found.place, place, tuple(sorted(wanted)))
        tensors = self._tensors(found)
        done = self._runner.run(job, tensors)
        self.macs += work * len(self._images)
        kept = {name: done[name] if name in done else tensors[name] for name in wanted}
        boundary = Boundary(place=place, tensors=kept, bytes=size)
        self._memory.keep(prefixes[place], boundary, work)
        return boundary

    def _tensors(self, start: Boundary) -> dict[str, Parts]:
        return {INPUT: self._runner.images, **start.tensors}

    def _job(
        self, network: Network, start: int, stop: int, wanted: tuple[str, ...]
    ) -> tuple[Job, int]:
        """The layers from ``start`` to ``stop``, and the multiplications of a frame."""
        ops = network.ops[start:stop]
        made = {op.name: op.output for op in ops}
        reads = {name for op in ops for name in op.inputs} - made.keys()
        job = Job(
            ops=ops,
            sources={name: network.tensor(name) for name in sorted(reads)},
            outputs={name: made[name] for name in wanted if name in made},
        )
        return job, sum(_macs(op) for op in ops)

    def _count(self, network: Network) -> None:
        self.evaluations += 1
        self.full_macs += sum(_macs(op) for op in network.ops) * len(self._images)

    def _compute(self, network: Network, start: Boundary, take: Take) -> None:
        """Compute a network from a boundary on, and hand out its codes."""
        job, work = self._job(network, start.place, len(network.ops), (network.output,))
        self.macs += work * self._runner.outputs(job, self._tensors(start), take)

    def _finish(self, network: Network, start: Boundary, floor: int | None) -> Score:
        """The score, from the activations of a boundary on."""
        total = len(self._images)
        codes = np.empty((total, *network.output_type.shape), dtype=np.int64)
        wrong, allowed = 0, total if floor is None else total - floor

        def take(first: int, part: Codes) -> bool:
            nonlocal wrong
            place = slice(first, first + len(part))
            codes[place] = part
            found = part.reshape(len(part), -1).argmax(axis=1)
            wrong += int((found != self._labels[place]).sum())
            return wrong <= allowed

        if allowed >= 0:
            self._compute(network, start, take)
        if wrong > allowed:
            return self._missed(floor)
        return score_outputs(codes, self._labels, network.output_type.scale)


def _runner(images: NDArray[np.uint8], threads: int | None, device: str) -> Runner:
    if device == "cpu":
        return CpuRunner(images, threads)
    from quant.judge_torch import TorchRunner

    return TorchRunner(images, "cpu" if device == "torch" else device)


def _macs(op: Op) -> int:
    return op.macs if isinstance(op, MacOp) else 0


def log_probabilities(codes: Codes, scale: float) -> NDArray[np.float64]:
    """Natural logarithms of the softmax of output codes, ``(N, classes)``.

    Parameters
    ----------
    codes : int64 array
        ``(N, *shape)``; the outputs of an image are its classes, in row-major order.
    scale : float
        What a code of 1 stands for.
    """
    values = codes.reshape(len(codes), -1) * scale
    values = values - values.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return found


def score_outputs(codes: Codes, labels: NDArray[np.int64], scale: float) -> Score:
    """The score of output codes ``(N, *shape)``, each standing for ``code * scale``.

    All images at once: the order of the sums, and so the last bit of the loss, is always the same.
    """
    flat = codes.reshape(len(codes), -1)
    correct = int((flat.argmax(axis=1) == labels).sum())
    chosen = log_probabilities(codes, scale)[np.arange(len(codes)), labels]
    loss = 0.0 - chosen  # a negation would make -0.0 of the loss of an image without any
    return Score(images=len(labels), correct=correct, loss=float(loss.mean()))
