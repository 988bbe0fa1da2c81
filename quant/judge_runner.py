"""What computes layers for a judge: the interface of its processors and threads, or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hwgen.ir import Op, TensorType
from hwgen.ir.ops.base import Codes

__all__ = ["Job", "Parts", "Runner", "Take", "stored_type"]

Parts = list[Any]
"""A tensor for all images, in parts of some images each, in whatever form its runner keeps it."""

Take = Callable[[int, Codes], bool]
"""Takes the codes ``(n, *shape)`` of images from a first one on; says whether to go on. Never
called twice at a time."""

STORED = (np.uint8, np.int8, np.int16, np.int32, np.int64)


def stored_type(kind: TensorType) -> np.dtype[Any]:
    """The smallest type that holds ``code - zero``; PyTorch has it too."""
    low, high = kind.minimum - kind.zero, kind.maximum - kind.zero
    for stored in STORED:
        info = np.iinfo(stored)
        if info.min <= low and high <= info.max:
            return np.dtype(stored)
    raise AssertionError(f"codes {low}..{high} need more than 64 bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Layers to compute.

    Parameters
    ----------
    ops : tuple of Op
        In order, at least one.
    sources : mapping of str to TensorType
        What they take that they do not make, by name.
    outputs : mapping of str to TensorType
        What is wanted of what they make, by name.
    """

    ops: tuple[Op, ...]
    sources: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]


class Runner(Protocol):
    """Computes layers for all images.

    Attributes
    ----------
    images : list
        The parts of the images.
    """

    images: Parts

    def run(self, job: Job, tensors: Mapping[str, Parts]) -> dict[str, Parts]:
        """The outputs of a job from the parts of its sources."""

    def outputs(self, job: Job, tensors: Mapping[str, Parts], take: Take) -> int:
        """Hand out the one output of a job; returns the number of images computed."""
