"""What clustering does: its options."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from math import ceil
from typing import Any

from hwgen.errors import BadInput
from quant.checks import check_member, check_whole
from quant.finetune import FinetuneRecipe
from quant.methods.cluster_prune import Scope
from quant.methods.cluster_seeds import Seeding, Swarm

__all__ = ["ClusterOptions", "Schedule"]

EPOCHS, STEPS = 10, 2000
"""Epochs of pruning by default: more where those of few images have fewer steps in all."""

TUNE_EPOCHS, TUNE_STEPS = 2, 400
"""The same of fine-tuning the clusters."""

BATCHES = (128, 64, 32)
"""Batches of which the largest is taken that leaves an epoch its steps; 16 where none does."""

EPOCH_STEPS = 64
"""Those steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long :func:`cluster` trains on a number of images, see :meth:`ClusterOptions.schedule`.

    Parameters
    ----------
    epochs, tune_epochs : int
    batch : int
    """

    epochs: int
    tune_epochs: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What :func:`cluster` does.

    Parameters
    ----------
    bits : int
        Of the codes of weights (of the indices, with a codebook), 2 to 8: ``2 ** bits`` clusters a
        layer, that of the pruned weights included.
    sparsity : float
        Fraction of all weights that are pruned, 0 to below 1.
    scope : Scope
        Among which weights the smallest are found.
    seeding : Seeding
        Where K-means starts.
    codebook : bool
        Whether the clusters stay as they are, as a codebook, and are not put on an integer grid
        of ``bits`` bits.
    entry_bits : int
        Bits of a codebook's entries, ``bits`` to 12.
    epochs : int, optional
        Of pruning; 0 prunes at once and trains nothing. By default 10, more where that would be
        fewer than 2,000 steps.
    rate : float
        Largest learning rate of pruning.
    ramp : float
        Fraction of those epochs in which the sparsity rises; in the others the network recovers.
    tune_epochs : int, optional
        Of quantisation-aware fine-tuning once the clusters are found, at a tenth of the rate. What
        does better on the search set is kept, with or without. By default 2, more where that would
        be fewer than 400 steps.
    mirror : bool
        Whether training mirrors half of its images: right for photographs, wrong for digits.
    batch : int, optional
        Training images in a step. By default 128, and 64, 32 or 16 where an epoch would else have
        fewer than 64 steps.
    distill : float
        Share of the loss that compares with the float network's outputs, 0 to 1.
    images : int, optional
        Use only the first so many training images; all by default.
    activation_bits, bias_bits : int
        2 to 16.
    power_of_two : bool
        Whether the step of the weights must be one: requantisers then need no multiplier.
    refit : bool
        Whether levels, codes and biases are then fitted to the outputs of their layers, see
        :mod:`quant.methods.cluster_refit`, and biases make up for the mean of what rounding adds
        while the network is fine-tuned. Without it, too, the step of the integers is that of the
        least error at the outputs, and biases are corrected once.
    swarm : Swarm

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    bits: int = 4
    sparsity: float = 0.8
    scope: Scope = Scope.ADAPTIVE
    seeding: Seeding = Seeding.PSO
    codebook: bool = False
    entry_bits: int = 8
    epochs: int | None = None
    rate: float = 4e-3
    ramp: float = 0.5
    tune_epochs: int | None = None
    mirror: bool = False
    batch: int | None = None
    distill: float = 0.5
    images: int | None = None
    activation_bits: int = 8
    bias_bits: int = 16
    power_of_two: bool = False
    refit: bool = True
    swarm: Swarm = field(default_factory=Swarm)

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 8)
        check_whole("entry_bits", self.entry_bits, self.bits, 12)
        check_whole("activation_bits", self.activation_bits, 2, 16)
        check_whole("bias_bits", self.bias_bits, 2, 16)
        for name, least in {"epochs": 0, "tune_epochs": 0, "batch": 1, "images": 1}.items():
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)
        check_member("scope", self.scope, Scope)
        check_member("seeding", self.seeding, Seeding)
        if not 0 <= self.sparsity < 1:
            raise BadInput(
                f"the sparsity must be at least 0 and below 1, not {self.sparsity}; 0.8 prunes"
                " four weights of five"
            )
        if not 0 < self.ramp <= 1:
            raise BadInput(f"the ramp of the sparsity must be above 0 and at most 1: {self.ramp}")
        if self.codebook and self.seeding is Seeding.NONE:
            raise BadInput("a codebook needs clusters; choose another seeding, or no codebook")
        self.recipe(EPOCHS, self.rate, BATCHES[0])

    def schedule(self, images: int) -> Schedule:
        """Epochs and batch as given, or by default.

        Parameters
        ----------
        images : int
            Training images that are used.
        """
        fitting = (batch for batch in BATCHES if images >= EPOCH_STEPS * batch)
        batch = next(fitting, 16) if self.batch is None else self.batch
        steps = images // batch

        def most(given: int | None, epochs: int, least: int) -> int:
            if given is None:
                return max(epochs, ceil(least / steps)) if steps else epochs
            return given

        return Schedule(
            epochs=most(self.epochs, EPOCHS, STEPS),
            tune_epochs=most(self.tune_epochs, TUNE_EPOCHS, TUNE_STEPS),
            batch=batch,
        )

    def recipe(self, epochs: int, rate: float, batch: int) -> FinetuneRecipe:
        """How to train for so many epochs."""
        return FinetuneRecipe(
            epochs=epochs, rate=rate, batch=batch, mirror=self.mirror, distill=self.distill
        )

    def pruning(self) -> dict[str, Any]:
        """The options that decide the pruned network, as JSON values."""
        names = ("sparsity", "scope", "epochs", "rate", "ramp", "mirror", "batch", "distill")
        return {name: _plain(getattr(self, name)) for name in (*names, "images")}

    def record(self) -> dict[str, Any]:
        """All options as JSON values."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
