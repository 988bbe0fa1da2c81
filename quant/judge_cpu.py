"""Computes layers for a judge on the processor, images spread over threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from hwgen.ir import INPUT
from hwgen.ir.executor import LARGEST, STEP, Executor, Plan
from hwgen.ir.kernels import Tensor
from quant.judge_runner import Job, Parts, Take, stored_type

__all__ = ["CpuRunner", "usable_threads"]


def usable_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _controller() -> ThreadpoolController:
    """Finding the libraries takes longer than evaluating a small layer."""
    return ThreadpoolController()


def _native(codes: NDArray[Any]) -> NDArray[Any]:
    """``(n, *shape)`` with frames innermost, as the executor's tensors: see
    :mod:`hwgen.ir.kernels`."""
    order = (2, 3, 1, 0) if codes.ndim == 4 else (1, 0)
    return np.ascontiguousarray(codes.transpose(order))


class CpuRunner:
    """A :class:`quant.judge_runner.Runner` through :class:`hwgen.ir.executor.Executor`.

    Parameters
    ----------
    images : integer array
        ``(N, *shape)``.
    threads : int, optional
    """

    def __init__(self, images: NDArray[np.uint8], threads: int | None) -> None:
        count = len(images)
        threads = usable_threads() if threads is None else threads
        self.threads = min(threads, -(-count // STEP))
        # As many parts for each thread, of whole batches.
        parts = -(-count // (LARGEST * self.threads)) * self.threads
        size = -(-count // (parts * STEP)) * STEP
        self._places = [slice(i, min(i + size, count)) for i in range(0, count, size)]
        self.images: Parts = [_native(images[place]) for place in self._places]

    def run(self, job: Job, tensors: Mapping[str, Parts]) -> dict[str, Parts]:
        """See :class:`quant.judge_runner.Runner`."""
        kept: dict[str, Parts] = {name: [None] * len(self._places) for name in job.outputs}

        def store(index: int, batch: slice, plan: Plan) -> bool:
            count = batch.stop - batch.start
            for name, parts in kept.items():
                view = plan.outputs[name].view
                if parts[index] is None:
                    place = self._places[index]
                    shape = (*view.shape[:-1], place.stop - place.start)
                    parts[index] = np.empty(shape, stored_type(job.outputs[name]))
                np.copyto(parts[index][..., batch], view[..., :count], casting="unsafe")
            return True

        self._each(job, tensors, store)
        return kept

    def outputs(self, job: Job, tensors: Mapping[str, Parts], take: Take) -> int:
        """See :class:`quant.judge_runner.Runner`."""
        ((name, kind),) = job.outputs.items()
        turn = Lock()

        def hand_out(index: int, batch: slice, plan: Plan) -> bool:
            codes = np.empty((batch.stop - batch.start, *kind.shape), dtype=np.int64)
            plan.outputs[name].store(codes)
            with turn:
                return take(self._places[index].start + batch.start, codes)

        return self._each(job, tensors, hand_out)

    def _each(
        self, job: Job, tensors: Mapping[str, Parts], use: Callable[[int, slice, Plan], bool]
    ) -> int:
        """Compute all batches of all parts until ``use`` says to stop; the images computed.

        ``use`` is called with the part, the batch in it and the plan that holds its outputs. A part
        is the business of one thread.
        """
        executor = Executor(job.sources, job.ops, tuple(job.outputs))
        todo, stop = iter(range(len(self._places))), Event()  # next() of a range is atomic

        def work() -> int:
            done = 0
            plan = executor.plan(executor.batch)
            for index in todo:
                place = self._places[index]
                size = place.stop - place.start
                for first in range(0, size, executor.batch):
                    if stop.is_set():
                        return done
                    batch = slice(first, min(first + executor.batch, size))
                    for name, tensor in plan.sources.items():
                        _fill(tensor, tensors[name][index][..., batch], raw=name == INPUT)
                    plan.run()
                    done += batch.stop - batch.start
                    if not use(index, batch, plan):
                        stop.set()
            return done

        threads = min(self.threads, len(self._places))
        with _controller().limit(limits=1, user_api="blas"):
            if threads == 1:
                return work()
            with ThreadPoolExecutor(threads) as pool:
                running = [pool.submit(work) for _ in range(threads)]
                try:
                    return sum(one.result() for one in running)
                finally:
                    stop.set()


def _fill(tensor: Tensor, codes: NDArray[Any], *, raw: bool) -> None:
    """Load ``code - zero`` (``raw``: codes) with frames innermost."""
    view = tensor.view[..., : codes.shape[-1]]
    np.copyto(view, codes, casting="unsafe")
    if raw and tensor.type.zero:
        view -= tensor.type.zero
