"""Evaluates networks fast, exactly and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwgen.ir.formats import TensorType
from hwgen.ir.kernels import Border, MacFacts, Scratch, Step, Tensor, build
from hwgen.ir.ops import Conv, MacOp, MaxPool, Op
from hwgen.ir.ops.base import Codes

__all__ = ["LARGEST", "STEP", "Executor", "Plan", "fused_pools"]

WORKING_SET = 1 << 22
"""Bytes that the arrays of a batch may take by default: about what the caches of one core hold."""

STEP, LARGEST = 16, 512
"""Default batches are multiples of ``STEP`` frames (a vector register), at most ``LARGEST``."""


def fused_pools(ops: tuple[Op, ...], kept: Collection[str]) -> dict[str, MaxPool]:
    """Max pools that run before the requantiser of the convolution they alone read, by its name.

    Parameters
    ----------
    ops : tuple of Op
    kept : collection of str
        Tensors that are read by others too, so that they have to be made.
    """
    readers: dict[str, list[Op]] = {}
    for op in ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)
    fused = {}
    for op in ops:
        after = readers.get(op.name, [])
        if (
            isinstance(op, Conv)
            and op.name not in kept
            and (op.requant is None or op.requant.monotone)
            and len(after) == 1
            and isinstance(after[0], MaxPool)
        ):
            fused[op.name] = after[0]
    return fused


@dataclass(frozen=True, slots=True)
class Plan:
    """Arrays and steps for batches of up to ``frames`` frames.

    Attributes
    ----------
    frames : int
    sources, outputs : mapping of str to Tensor
        What to fill before :meth:`run`, and what it fills; by name.
    """

    frames: int
    sources: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    scratch: Scratch
    bytes: int

    def run(self) -> None:
        """Evaluate the frames. Those that were not filled hold older values, to be ignored."""
        for step in self.steps:
            step()


class Executor:
    """Layers prepared for evaluation: a network, or a part of one.

    It may be used again and from several threads: each running call has a plan of its own.

    Parameters
    ----------
    sources : mapping of str to TensorType
        Types of the tensors that the layers take from outside, by name.
    ops : tuple of Op
        Layers in order, at least one.
    outputs : tuple of str
        Names of the tensors to return, each made by one of the layers.
    """

    def __init__(
        self, sources: Mapping[str, TensorType], ops: tuple[Op, ...], outputs: tuple[str, ...]
    ) -> None:
        self._sources, self._ops, self._outputs = dict(sources), ops, outputs
        self._facts = {op.name: MacFacts.of(op) for op in ops if isinstance(op, MacOp)}
        self._free: list[Plan] = []
        measured = self._plan(1, None)
        self._measured = measured.scratch
        per_frame = measured.bytes + sum(self._measured.bytes.values())
        self._batch = min(max(WORKING_SET // per_frame // STEP, 1) * STEP, LARGEST)

    @property
    def batch(self) -> int:
        """Frames at a time that the caches like."""
        return self._batch

    def _borders(self) -> dict[str, Border]:
        """The zeros that convolutions want around each tensor."""
        borders: dict[str, Border] = {}
        for op in self._ops:
            if isinstance(op, Conv):
                old = borders.get(op.inputs[0], (0, 0, 0, 0))
                new = zip(old, op.geometry.overhang, strict=True)
                top, left, bottom, right = (max(pair) for pair in new)
                borders[op.inputs[0]] = (top, left, bottom, right)
        return borders

    def plan(self, frames: int) -> Plan:
        """Arrays and steps of one's own for up to ``frames`` frames."""
        return self._plan(frames, self._measured.reserve(frames))

    def _plan(self, frames: int, scratch: Scratch | None) -> Plan:
        """Arrays and steps for ``frames`` frames; without ``scratch`` it only measures."""
        shared = Scratch() if scratch is None else scratch
        borders, fused = self._borders(), fused_pools(self._ops, self._outputs)
        none = (0, 0, 0, 0)
        tensors = {
            name: Tensor.make(kind, frames, borders.get(name, none))
            for name, kind in self._sources.items()
        }
        steps: list[Step] = []
        pools = {pool.name for pool in fused.values()}
        for op in self._ops:
            if op.name in pools:
                continue
            pool = fused.get(op.name)
            made = op if pool is None else pool
            out = Tensor.make(made.output, frames, borders.get(made.name, none))
            sources = [tensors[name] for name in op.inputs]
            steps += build(op, sources, out, shared, pool, self._facts.get(op.name))
            tensors[made.name] = out
        return Plan(
            frames=frames,
            sources={name: tensors[name] for name in self._sources},
            outputs={name: tensors[name] for name in self._outputs},
            steps=tuple(steps),
            scratch=shared,
            bytes=sum(tensor.full.nbytes for tensor in tensors.values()),
        )

    def evaluate(
        self,
        codes: np.ndarray[Any, np.dtype[Any]],
        batch: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Codes:
        """Codes ``(N, *shape)`` of the one output from valid codes of the one source; see
        :meth:`.Network.evaluate`."""
        (source,), (output,) = self._sources, self._outputs
        shape = next(op.output.shape for op in self._ops if op.name == output)
        total = codes.shape[0]
        out = np.empty((total, *shape), dtype=np.int64)
        frames = self._batch if batch is None else batch
        frames = min(frames, max(-(-total // STEP), 1) * STEP)
        # list.pop and append are atomic: a plan is in the list or in one running call.
        try:
            plan = self._free.pop()
        except IndexError:
            plan = None
        if plan is None or plan.frames != frames:
            plan = self.plan(frames)
        for start in range(0, total, frames):
            stop = min(start + frames, total)
            plan.sources[source].load(codes[start:stop])
            plan.run()
            plan.outputs[output].store(out[start:stop])
            if progress is not None:
                progress(stop, total)
        if not self._free:
            self._free.append(plan)
        return out
