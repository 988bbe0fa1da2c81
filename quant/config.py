"""What the user asks of a quantiser: widths per layer and kind, calibration, rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index

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
        ``activations`` is the width of the layer's output. Layers whose outputs are concatenated
        share the widest. A last layer that hands out accumulators has theirs instead.

    Raises
    ------
    BadInput
        If a width is no integer or out of range.
    """

    weights: int = 8
    biases: int = 16
    activations: int = 8

    def __post_init__(self) -> None:
        for kind in ("weights", "biases", "activations"):
            width = getattr(self, kind)
            try:
                number = index(width)
            except TypeError:
                number = 0
            if isinstance(width, bool) or not 1 <= number <= 16:
                raise BadInput(
                    f"the width of {kind} must be a whole number from 1 to 16, not {width!r}"
                )
            object.__setattr__(self, kind, number)


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
        How the ranges are found. Least squares of weights means those of the layer's outputs on the
        calibration images.
    correct_biases : bool
        Whether biases make up for the mean error that rounded weights cause on the calibration
        images. Of the integer network nothing but the biases' values depends on it.
    rounding : Rounding
        Of the requantisers.
    scale_bits : int
        Bits of a requantiser's multiplier, 2 to 24, where a batch norm, an average or a
        normalisation needs one.

    Raises
    ------
    BadInput
        If ``scale_bits`` is out of range or ``layers`` holds something else than widths.
    """

    bits: LayerBits = field(default_factory=LayerBits)
    layers: Mapping[str, LayerBits] = field(default_factory=dict)
    weights: Calibration = Calibration.MSE
    activations: Calibration = Calibration.MSE
    correct_biases: bool = True
    rounding: Rounding = Rounding.HALF_UP
    scale_bits: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.scale_bits <= 24:
            raise BadInput(f"scale_bits must be 2 to 24, not {self.scale_bits}")
        for name, bits in self.layers.items():
            if not isinstance(bits, LayerBits):
                raise BadInput(f"the widths of layer {name} must be a LayerBits, not {bits!r}")
        object.__setattr__(self, "layers", dict(self.layers))

    def of(self, layer: str) -> LayerBits:
        """Widths of a layer."""
        return self.layers.get(layer, self.bits)
