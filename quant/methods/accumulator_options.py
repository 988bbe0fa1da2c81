"""What is asked of the method for a given accumulator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from quant.checks import check_member, check_whole
from quant.finetune import FinetuneRecipe
from quant.methods.accumulator_bounds import Bound
from quant.methods.accumulator_scales import Scales

__all__ = ["AccumulatorOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulatorOptions:
    """What is asked of :func:`quant.methods.accumulator.accumulator`.

    Parameters
    ----------
    bits : int
        Width P of every layer's accumulator, 12 to 32.
    bound : Bound
    project : bool
        Whether to go on after the search over pairs: fit and project weights, measure channels in
        units of their own, search widths and ranges anew.
    scales : Scales
        Of the fitted weights' channels.
    rescale : bool
        Whether raw pixels may be rescaled to fewer bits in front of the first layer.
    widest : int
        Most bits of data and of weights, 3 to 8.
    evaluations : int
        Scores that each of the two searches may ask for, about; at least 1.
    beam : int
        Settings that a search keeps, at least 1.
    images : int, optional
        Search images that judge, the first ones; all by default.
    calibration : int
        Search images that calibrate, the first ones; at least 10, those there are if fewer.
    epochs : int
        Of fine-tuning; 0 is none.
    rate : float
        Largest learning rate of fine-tuning.
    mirror : bool
        Whether fine-tuning mirrors half of its images.
    distill : float
        See :class:`.FinetuneRecipe`.

    Raises
    ------
    BadInput
        If a value is out of range.
    """

    bits: int = 16
    bound: Bound = Bound.WEIGHTS
    project: bool = True
    scales: Scales = Scales.SHIFT
    rescale: bool = True
    widest: int = 8
    evaluations: int = 150
    beam: int = 2
    images: int | None = None
    calibration: int = 1000
    epochs: int = 0
    rate: float = 1e-3
    mirror: bool = False
    distill: float = 0.7

    def __post_init__(self) -> None:
        check_whole("the width of accumulators", self.bits, 12, 32)
        check_whole("widest", self.widest, 3, 8)
        check_whole("evaluations", self.evaluations, 1)
        check_whole("beam", self.beam, 1)
        check_whole("calibration", self.calibration, 10)
        check_whole("epochs", self.epochs, 0)
        if self.images is not None:
            check_whole("images", self.images, 10)
        check_member("bound", self.bound, Bound)
        check_member("scales", self.scales, Scales)
        self.recipe  # noqa: B018 - checks its values

    @property
    def recipe(self) -> FinetuneRecipe:
        """How to fine-tune."""
        return FinetuneRecipe(
            epochs=self.epochs, rate=self.rate, mirror=self.mirror, distill=self.distill
        )

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        return {k: v.value if isinstance(v, Enum) else v for k, v in found.items()}
