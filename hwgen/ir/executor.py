"""Evaluates networks fast, exactly and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwgen.ir.formats import TensorType
from hwgen.ir.kernels import Border, Scratch, Step, Tensor, build
from hwgen.ir.ops import INPUT, Conv, MaxPool, Op
from hwgen.ir.ops.base import Codes

__all__ = ["Executor"]

WORKING_SET = 1 << 22
"""Bytes that the arrays of a batch may take by default: about what the caches of one core hold."""

STEP, LARGEST = 16, 512
"""Default batches are multiples of ``STEP`` frames (a vector register), at most ``LARGEST``."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Arrays and steps for batches of up to ``frames`` frames."""

    frames: int
    source: Tensor
    output: Tensor
    steps: tuple[Step, ...]
    scratch: Scratch
    bytes: int

    def run(self, codes: np.ndarray[Any, np.dtype[Any]], out: Codes) -> None:
        """Evaluate at most ``frames`` frames. The other frames hold older values and are
        ignored."""
        self.source.load(codes)
        for step in self.steps:
            step()
        self.output.store(out)


class Executor:
    """A network prepared for evaluation.

    It may be used again and from several threads: each running call has a plan of its own.

    Parameters
    ----------
    source : TensorType
        Type of the network's input.
    ops : tuple of Op
        Layers in order.
    output : str
        Name of the tensor to return.
    """

    def __init__(self, source: TensorType, ops: tuple[Op, ...], output: str) -> None:
        self._source, self._ops, self._output = source, ops, output
        self._shape = next(op.output.shape for op in ops if op.name == output)
        self._free: list[_Plan] = []
        measured = self._plan(1, None)
        self._measured = measured.scratch
        per_frame = measured.bytes + sum(self._measured.bytes.values())
        self._batch = min(max(WORKING_SET // per_frame // STEP, 1) * STEP, LARGEST)

    def _fused(self) -> dict[str, MaxPool]:
        """Max pools that run before the requantiser of the convolution they alone read, by its
        name."""
        readers: dict[str, list[Op]] = {}
        for op in self._ops:
            for name in op.inputs:
                readers.setdefault(name, []).append(op)
        fused = {}
        for op in self._ops:
            after = readers.get(op.name, [])
            if (
                isinstance(op, Conv)
                and op.name != self._output
                and (op.requant is None or op.requant.monotone)
                and len(after) == 1
                and isinstance(after[0], MaxPool)
            ):
                fused[op.name] = after[0]
        return fused

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

    def _plan(self, frames: int, scratch: Scratch | None) -> _Plan:
        """Arrays and steps for ``frames`` frames; without ``scratch`` it only measures."""
        shared = Scratch() if scratch is None else scratch
        borders, fused = self._borders(), self._fused()
        none = (0, 0, 0, 0)
        tensors = {INPUT: Tensor.make(self._source, frames, borders.get(INPUT, none))}
        steps: list[Step] = []
        pools = {pool.name for pool in fused.values()}
        for op in self._ops:
            if op.name in pools:
                continue
            pool = fused.get(op.name)
            made = op if pool is None else pool
            out = Tensor.make(made.output, frames, borders.get(made.name, none))
            sources = [tensors[name] for name in op.inputs]
            steps += build(op, sources, out, shared, pool)
            tensors[made.name] = out
        return _Plan(
            frames=frames,
            source=tensors[INPUT],
            output=tensors[self._output],
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
        """Output codes ``(N, *shape)`` of valid input codes; see :meth:`.Network.evaluate`."""
        total = codes.shape[0]
        out = np.empty((total, *self._shape), dtype=np.int64)
        frames = self._batch if batch is None else batch
        frames = min(frames, max(-(-total // STEP), 1) * STEP)
        # list.pop and append are atomic: a plan is in the list or in one running call.
        try:
            plan = self._free.pop()
        except IndexError:
            plan = None
        if plan is None or plan.frames != frames:
            plan = self._plan(frames, self._measured.reserve(frames))
        for start in range(0, total, frames):
            stop = min(start + frames, total)
            plan.run(codes[start:stop], out[start:stop])
            if progress is not None:
                progress(stop, total)
        if not self._free:
            self._free.append(plan)
        return out
