"""What a method gives: an integer network and how it compares with the float network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwgen.ir import Network
from quant.graph import FloatGraph
from quant.judge import Judge
from quant.plan import Plan
from quant.splits import Splits

__all__ = ["Accuracy", "Result", "compare", "float_accuracy"]

BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 fractions on one set of images.

    Parameters
    ----------
    images : int
    exact, integer : float
        Of the float network and of the integer network.
    """

    images: int
    exact: float
    integer: float

    @property
    def drop(self) -> float:
        """What the integer network loses, absolute; negative where it gains."""
        return self.exact - self.integer

    @property
    def relative(self) -> float:
        """The drop as a fraction of the float network's accuracy; 0 where that is 0."""
        return self.drop / self.exact if self.exact else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A quantised network.

    Parameters
    ----------
    method : str
    network : Network
    search, test : Accuracy
        Against the float network that the method was given. The test set is looked at once.
    search_seen : bool
        Whether the float network was trained on the search images: ``search`` is then no estimate
        of the accuracy on new images.
    record : mapping
        JSON values: options, seed, counts of evaluations, the history of the best so far, and what
        else the method reports.
    plan : Plan, optional
        What the network was assembled from.
    graph : FloatGraph, optional
        The float network of raw pixels that the plan quantises, where the method trained it.
    """

    method: str
    network: Network = field(repr=False)
    search: Accuracy
    test: Accuracy
    search_seen: bool
    record: Mapping[str, Any] = field(repr=False)
    plan: Plan | None = field(default=None, repr=False)
    graph: FloatGraph | None = field(default=None, repr=False)

    def table(self) -> dict[str, Any]:
        """The figures as JSON values."""

        def part(accuracy: Accuracy) -> dict[str, Any]:
            return {
                "images": accuracy.images,
                "float": accuracy.exact,
                "integer": accuracy.integer,
                "drop": accuracy.drop,
                "relative_drop": accuracy.relative,
            }

        return {
            "method": self.method,
            "search": {**part(self.search), "seen_in_training": self.search_seen},
            "test": part(self.test),
            **self.record,
        }


def float_accuracy(
    graph: FloatGraph, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> float:
    """Top-1 fraction of the float network of raw pixels, computed in float32.

    Parameters
    ----------
    graph : FloatGraph
        See :func:`quant.baseline.with_preprocessing`.
    images : uint8 array
        ``(N, C, H, W)``.
    labels : int64 array
        ``(N,)``.
    """
    right = 0
    for start in range(0, len(images), BATCH):
        part = torch.tensor(images[start : start + BATCH])
        out = graph.evaluate(part, dtype=torch.float32, batch_size=BATCH)
        found = out.reshape(len(out), -1).argmax(axis=1)
        right += int((found == labels[start : start + BATCH]).sum())
    return right / len(images)


def compare(
    method: str,
    graph: FloatGraph,
    network: Network,
    splits: Splits,
    record: Mapping[str, Any],
    *,
    plan: Plan | None = None,
    trained: FloatGraph | None = None,
    max_drop: float | None = None,
) -> Result:
    """A result with both networks measured on both sets; call it once, when all is chosen.

    Parameters
    ----------
    method : str
    graph : FloatGraph
        The float network of raw pixels that the method was given.
    network : Network
    splits : Splits
    record : mapping
    plan, trained
        ``plan`` and ``graph`` of the result.
    max_drop : float, optional
        The relative drop that was asked for. A search can keep it on its own images alone; whether
        the test images do too is noted as ``test_limit_met``.
    """

    def measure(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Accuracy:
        return Accuracy(
            images=len(images),
            exact=float_accuracy(graph, images, labels),
            integer=Judge(images, labels).score(network).accuracy,
        )

    test = measure(splits.test_images, splits.test_labels)
    limit = {} if max_drop is None else {"test_limit_met": test.relative <= max_drop + 1e-12}
    return Result(
        method=method,
        network=network,
        search=measure(splits.search_images, splits.search_labels),
        test=test,
        search_seen=splits.search_seen,
        record={**record, **limit},
        plan=plan,
        graph=trained,
    )
