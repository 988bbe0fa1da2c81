"""What is asked of the method for a given accumulator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np

from hwgen.errors import BadInput
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
        ranges = {
            "bits": (12, 32),
            "widest": (3, 8),
            "evaluations": (1, None),
            "beam": (1, None),
            "calibration": (10, None),
            "epochs": (0, None),
        }
        if self.images is not None:
            ranges["images"] = (10, None)
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < low or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                what = "the width of accumulators" if name == "bits" else name
                raise BadInput(f"{what} must be a whole number, {limits}, not {value!r}")
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
