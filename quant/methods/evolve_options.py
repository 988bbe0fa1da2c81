"""What the user asks of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import isfinite
from typing import Any

from hwgen.errors import BadInput
from quant.checks import check_member, check_whole
from quant.finetune import FinetuneRecipe

__all__ = ["EvolveOptions", "Sampler"]


class Sampler(Enum):
    """How candidates are chosen."""

    NSGA2 = "nsga2"
    """NSGA-II (Deb, Pratap, Agarwal, Meyarivan 2002), from warm-started points."""
    RANDOM = "random"
    """A control: independent of what was seen."""
    UNIFORM = "uniform"
    """A control: one width for all weights and one for all activations, channels as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolveOptions:
    """Options of :func:`quant.methods.evolve.evolve`.

    Parameters
    ----------
    trials : int
        Candidates in all, of all workers; more may be asked of a study that is done.
    population : int
        Candidates of a generation.
    mutation : float
        Probability with which a child draws a gene anew, 0 to 1.
    sampler : Sampler
    epochs : float
        Of fine-tuning for each candidate; a part of an epoch is an epoch of a part of the images.
    final_epochs : float
        Of fine-tuning for the network that is chosen, from the start; 0: it stays as it was.
    finalists : int
        Candidates that are trained for longer before one is chosen: the best of the last population
        and the most accurate others, no two with the same channels as long as there are enough.
        Successive halving (Jamieson, Talwalkar 2016) by a factor of 3, with about ``final_epochs``
        in all for each round. Short training favours what is close to the trained network.
    widths, activations : tuple of int
        The least and the greatest width of weights and of activations.
    bias_width : int
    factors : tuple of float
        Channel factors; 1 leaves a layer as it is.
    per_channel : bool
        Whether every output channel has a power of two of its own as scale of its weights.
    ratio : float
        The network chosen is at least so many times smaller than the given one in float32.
    max_bits : int, optional
        Instead of ``ratio``.
    rate, final_rate : float
        Largest learning rates of the candidates' fine-tuning and of the finalists'.
    batch, crop, mirror, weight_decay, distill
        Of fine-tuning; see :class:`quant.finetune.FinetuneRecipe`. Mirror only images whose mirror
        images are of the same class.

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    trials: int = 32
    population: int = 8
    mutation: float = 0.15
    sampler: Sampler = Sampler.NSGA2
    epochs: float = 2.0
    final_epochs: float = 30.0
    finalists: int = 6
    widths: tuple[int, int] = (2, 8)
    activations: tuple[int, int] = (2, 8)
    bias_width: int = 12
    factors: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    per_channel: bool = True
    ratio: float = 6.0
    max_bits: int | None = None
    rate: float = 1.5e-3
    final_rate: float = 4e-3
    batch: int = 128
    crop: int = 2
    mirror: bool = False
    weight_decay: float = 0.01
    distill: float = 0.0

    def __post_init__(self) -> None:
        check_whole("trials", self.trials, 1)
        check_whole("finalists", self.finalists, 1)
        check_whole("population", self.population, 2)
        check_whole("bias_width", self.bias_width, 2, 16)
        check_whole("batch", self.batch, 1)
        check_whole("crop", self.crop, 0)
        if self.max_bits is not None:
            check_whole("max_bits", self.max_bits, 1)
        check_member("sampler", self.sampler, Sampler)
        if not 0 <= self.mutation <= 1:
            raise BadInput(f"mutation must be 0 to 1, not {self.mutation}")
        for name in ("epochs", "final_epochs"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise BadInput(f"{name} must be at least 0, not {value}")
        for name in ("widths", "activations"):
            value = getattr(self, name)
            whole = isinstance(value, tuple) and all(type(bits) is int for bits in value)
            if not whole or len(value) != 2 or not 1 <= value[0] <= value[1] <= 16:
                raise BadInput(
                    f"{name} must be the least and the greatest width, 1 to 16 in rising order, not"
                    f" {value}"
                )
        good = [isfinite(f) and 0 < f <= 16 for f in self.factors]
        if not good or not all(good) or list(self.factors) != sorted(set(self.factors)):
            raise BadInput(
                f"factors must be numbers above 0 and at most 16, each once and rising, not"
                f" {self.factors}"
            )
        if not (isfinite(self.ratio) and self.ratio > 0):
            raise BadInput(f"ratio must be above 0, not {self.ratio}")
        self.recipe()
        replace(self.recipe(), rate=self.final_rate)

    def recipe(self) -> FinetuneRecipe:
        """Of fine-tuning, but for its epochs."""
        return FinetuneRecipe(
            epochs=0,
            rate=self.rate,
            batch=self.batch,
            crop=self.crop,
            mirror=self.mirror,
            weight_decay=self.weight_decay,
            distill=self.distill,
        )

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists = {name: list(value) for name, value in found.items() if isinstance(value, tuple)}
        return {**found, **lists, "sampler": self.sampler.value}

    def identity(self) -> Mapping[str, Any]:
        """What a study must agree on to be continued: all that changes its candidates."""
        free = ("trials", "final_epochs", "final_rate", "finalists", "ratio", "max_bits")
        return {name: value for name, value in self.record().items() if name not in free}
