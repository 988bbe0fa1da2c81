"""What the user asks of a quantiser: widths per layer and kind, calibration, rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwgen.errors import BadInput
from hwgen.ir import Rounding
from quant.formats import Calibration

__all__ = ["LayerBits", "QuantConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBits:
    """Widths of one layer in bits, each 1 to 16.

    Parameters
    ----------
    weights, biases, activations : int
        ``activations`` is the width of the layer's output.

    Raises
    ------
    BadInput
        If a width is out of range.
    """

    weights: int = 8
    biases: int = 16
    activations: int = 8

    def __post_init__(self) -> None:
        for kind in ("weights", "biases", "activations"):
            width = getattr(self, kind)
            if not isinstance(width, int) or not 1 <= width <= 16:
                raise BadInput(f"the width of {kind} must be 1 to 16 bits, not {width}; choose another")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """Parameters of uniform post-training quantisation.

    Parameters
    ----------
    bits : LayerBits
        Widths of every layer that ``layers`` does not name.
    layers : mapping of str to LayerBits
        Widths by layer name.
    weights, activations : Calibration
        How the ranges are found.
    rounding : Rounding
        Of the requantisers.
    scale_bits : int
        Bits of a requantiser's multiplier where a batch norm, an average or a normalisation needs one.
    """

    bits: LayerBits = field(default_factory=LayerBits)
    layers: Mapping[str, LayerBits] = field(default_factory=dict)
    weights: Calibration = Calibration.MSE
    activations: Calibration = Calibration.MSE
    rounding: Rounding = Rounding.HALF_UP
    scale_bits: int = 12

    def __post_init__(self) -> None:
        if not 2 <= self.scale_bits <= 24:
            raise BadInput(f"scale_bits must be 2 to 24, not {self.scale_bits}")

    def of(self, layer: str) -> LayerBits:
        """Widths of a layer."""
        return self.layers.get(layer, self.bits)
