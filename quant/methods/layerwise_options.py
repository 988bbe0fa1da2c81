"""Options of the layer-wise search."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import Enum
from math import isfinite
from typing import Any

from hwgen.errors import BadInput
from quant.checks import check_member, check_whole
from quant.methods.layerwise_aim import Aim

__all__ = ["LayerwiseMode", "LayerwiseOptions"]


class LayerwiseMode(Enum):
    """How widths are searched."""

    IMPROVED = "improved"
    """Integer networks, unsigned behind a ReLU, weights fitted to their formats, gain per bit."""
    PAPER = "paper"
    """The paper's formats and walk on the float network with rounded tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerwiseOptions:
    """Parameters of :func:`layerwise`.

    Parameters
    ----------
    mode : LayerwiseMode
    tolerance : float, optional
        In the paper's mode its T, half of ``max_drop`` by default: weights may lose so much of the
        accuracy, activations as much again. In the improved mode the relative drop that is allowed
        on the search images, by default three quarters of ``max_drop``, because the network is
        chosen for them; None where savings are given, as then no drop steers the search.
    max_drop : float
        The relative drop that is allowed in the end: the record says whether it is kept.
    images : int, optional
        Search images that are judged, the first ones. By default all, in the improved mode as many
        as some 1e11 multiply-accumulates take, at least 300.
    calibration : int
        Training images (search images in the paper's mode) that give the ranges of activations.
    tries : int
        Improved: networks a bit narrower somewhere that are tried in the end; where savings are
        given all networks that are judged, at least one.
    bias_bits : int
        Improved: width of the biases.
    multipliers : bool
        Improved: whether requantisers may multiply. Scales of weights are then real numbers, one a
        channel; else they are powers of two where no batch norm brings multipliers.
    scale_bits : int
        Improved: most bits of a multiplier, 2 to 24.
    multiplications : float
        Improved: what the cost of multiplications counts against memory, each as a fraction of 8
        bits'.
    memory_saved, multiplications_saved : float, optional
        Improved: savings against 8 bits everywhere that must be reached, as fractions from 0 to below
        1: of the memory of all constants and output activations, and of multiplications by the width
        of the layer's own output (``memory_saved`` and ``output_product_saved`` of
        :class:`quant.cost.Cost`). With either given the search takes the most accurate widths that
        save as much instead of the cheapest within ``tolerance``; the other is then free.
    presume : bool
        Paper: stop counting, from the images that are hardest for the float network on, where 1,000
        in a row brought no new miss.

    Raises
    ------
    BadInput
        If a value is out of range, or an option of the other mode is not left at its default.
    """

    mode: LayerwiseMode = LayerwiseMode.IMPROVED
    tolerance: float | None = None
    max_drop: float = 0.01
    images: int | None = None
    calibration: int = 250
    tries: int = 40
    bias_bits: int = 8
    multipliers: bool = True
    scale_bits: int = 10
    multiplications: float = 0.8
    memory_saved: float | None = None
    multiplications_saved: float | None = None
    presume: bool = True

    def __post_init__(self) -> None:
        check_member("mode", self.mode, LayerwiseMode)
        for name in ("tolerance", "max_drop"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and 0 <= value < 1):
                raise BadInput(
                    f"{name} must be a relative drop from 0 to below 1, not {value}; 0.01 is 1 %"
                )
        for name in ("memory_saved", "multiplications_saved"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and 0 <= value < 1):
                raise BadInput(
                    f"{name} must be a share from 0 to below 1, not {value}; 0.5 is 50 %"
                )
        if self.tolerance is None and self.aim is None:
            share = 0.5 if self.mode is LayerwiseMode.PAPER else 0.75
            object.__setattr__(self, "tolerance", share * self.max_drop)
        if self.tolerance is not None and self.tolerance > self.max_drop:
            raise BadInput(
                f"tolerance must be at most max_drop, {self.max_drop}, not {self.tolerance}; lower"
                " it or raise max_drop"
            )
        weight = self.multiplications
        if not (isfinite(weight) and weight >= 0):
            raise BadInput(f"multiplications must be a weight of at least 0, not {weight}")
        for name, low, high in (
            ("images", 10, None),
            ("calibration", 1, None),
            ("tries", 0, None),
            ("bias_bits", 2, 16),
            ("scale_bits", 2, 24),
        ):
            value = getattr(self, name)
            if value is not None or name != "images":
                object.__setattr__(self, name, check_whole(name, value, low, high))
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Refuse what the mode knows nothing of.

        Raises
        ------
        BadInput
        """
        other = LayerwiseMode.PAPER
        idle: tuple[str, ...] = ("presume",)
        if self.mode is LayerwiseMode.PAPER:
            other = LayerwiseMode.IMPROVED
            idle = (
                *("tries", "bias_bits", "multipliers", "scale_bits", "multiplications"),
                *("memory_saved", "multiplications_saved"),
            )
        given = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        for name in idle:
            if name in given:
                raise BadInput(
                    f"{name} changes nothing here, as the mode is {self.mode}; give {other}, or leave"
                    f" {name} out"
                )
        for name in ("tolerance", "multiplications"):
            if name in given and self.aim is not None:
                raise BadInput(
                    f"{name} changes nothing here, as savings are given; leave it or memory_saved and"
                    " multiplications_saved out"
                )

    @property
    def aim(self) -> Aim | None:
        """The savings to reach; None where the search goes by the drop."""
        if self.memory_saved is None and self.multiplications_saved is None:
            return None
        return Aim(
            memory=self.memory_saved or 0.0, multiplications=self.multiplications_saved or 0.0
        )

    @property
    def limit(self) -> float:
        """``tolerance`` as a number; not to be asked for where savings are given."""
        assert self.tolerance is not None
        return self.tolerance

    def table(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "mode": self.mode.value}
