"""What clustering does: its options."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from hwgen.errors import BadInput
from quant.checks import check_member, check_whole
from quant.finetune import FinetuneRecipe
from quant.methods.cluster_prune import Scope
from quant.methods.cluster_seeds import Seeding, Swarm

__all__ = ["ClusterOptions"]


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
    epochs : int
        Of pruning; 0 prunes at once and trains nothing.
    rate : float
        Largest learning rate of pruning.
    ramp : float
        Fraction of those epochs in which the sparsity rises; in the others the network recovers.
    tune_epochs : int
        Of quantisation-aware fine-tuning once the clusters are found, at a tenth of the rate. What
        does better on the search set is kept, with or without.
    mirror : bool
        Whether training mirrors half of its images: right for photographs, wrong for digits.
    batch : int
        Training images in a step.
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
        while the network is fine-tuned. Without it: the published steps alone.
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
    epochs: int = 10
    rate: float = 4e-3
    ramp: float = 0.5
    tune_epochs: int = 2
    mirror: bool = False
    batch: int = 128
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
        check_whole("epochs", self.epochs, 0)
        check_whole("tune_epochs", self.tune_epochs, 0)
        check_whole("batch", self.batch, 1)
        if self.images is not None:
            check_whole("images", self.images, 1)
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
        self.recipe(self.epochs, self.rate)

    def recipe(self, epochs: int, rate: float) -> FinetuneRecipe:
        """How to train for so many epochs."""
        return FinetuneRecipe(
            epochs=epochs, rate=rate, batch=self.batch, mirror=self.mirror, distill=self.distill
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
