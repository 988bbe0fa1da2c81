"""How good an integer network is on a set of images: one judge for all searches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir import Network

__all__ = ["Judge", "Score"]


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a network reached; more correct images are better, a smaller loss breaks ties.

    Parameters
    ----------
    images, correct : int
        Images in all and those classified right (the lowest class wins a tie).
    loss : float
        Mean cross-entropy of the softmax of the outputs, in nats.
    """

    images: int
    correct: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Top-1 fraction."""
        return self.correct / self.images

    def __lt__(self, other: Score) -> bool:
        return (self.correct, -self.loss) < (other.correct, -other.loss)


class Judge:
    """Scores integer networks on fixed images, exactly, recomputing only layers that changed.

    Parameters
    ----------
    images : uint8 array
        Raw images ``(N, C, H, W)``.
    labels : int64 array
        ``(N,)``.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        if len(images) == 0 or labels.shape != (len(images),):
            raise BadInput(
                f"a judge needs images and as many labels, not {len(images)} and {labels.shape}"
            )
        self._images, self._labels = images, labels

    def score(self, network: Network) -> Score:
        """Accuracy and loss of a network.

        Raises
        ------
        BadInput
            If it takes other images.
        """
        out = network.evaluate(self._images)
        return score_outputs(out, self._labels, network.output_type.scale)


def score_outputs(codes: NDArray[np.int64], labels: NDArray[np.int64], scale: float) -> Score:
    """The score of output codes ``(N, *shape)``, each standing for ``code * scale``."""
    flat = codes.reshape(len(codes), -1)
    correct = int((flat.argmax(axis=1) == labels).sum())
    values = flat * scale
    values = values - values.max(axis=1, keepdims=True)
    loss = np.log(np.exp(values).sum(axis=1)) - values[np.arange(len(values)), labels]
    return Score(images=len(labels), correct=correct, loss=float(loss.mean()))
