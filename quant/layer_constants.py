"""Integer constants of one layer from its plan, and the checks on that plan."""

from __future__ import annotations

from math import ceil, log2

import numpy as np

from hwgen.errors import BadInput
from hwgen.ir import Bias, Fixed
from quant import graph as fg
from quant.formats import Calibration, Floats, choose_format, quantize_to
from quant.plan import LayerPlan

__all__ = ["check_layer", "fraction_bits", "integer_bias"]


def check_layer(node: fg.Conv | fg.Linear, layer: LayerPlan) -> None:
    """Refuse a plan that does not fit its layer.

    Raises
    ------
    BadInput
    """
    channels = len(node.bias)
    if layer.codes.shape != node.weight.shape:
        raise BadInput(
            f"the codes of layer {node.name} must have the shape {node.weight.shape}, not"
            f" {layer.codes.shape}"
        )
    if layer.bias.shape != (channels,) or layer.scale.shape not in ((1,), (channels,)):
        raise BadInput(
            f"layer {node.name} has {channels} channels: its plan needs as many biases, and one"
            f" scale or as many, not shapes {layer.bias.shape} and {layer.scale.shape}"
        )
    good = np.isfinite(layer.bias).all() and np.isfinite(layer.scale).all()
    if not good or not (layer.scale > 0).all():
        raise BadInput(
            f"the biases of layer {node.name} must be finite and its scales positive and finite"
        )
    if layer.offset is not None and not (
        layer.offset.shape == (channels,) and np.isfinite(layer.offset).all()
    ):
        raise BadInput(
            f"layer {node.name} has {channels} channels: the offset of its plan needs as many finite"
            f" entries, not the shape {layer.offset.shape}"
        )
    if layer.bias_step is not None and (len(layer.scale) > 1 or not layer.bias_step > 0):
        raise BadInput(
            f"a step of the biases of layer {node.name} must be above 0 and needs one scale of the"
            f" weights, not {layer.bias_step} with {len(layer.scale)}; leave it out"
        )


def integer_bias(layer: LayerPlan, steps: Floats, *, what: str) -> Bias | None:
    """Biases in steps of the accumulator; lowest bits go where their width is short.

    Parameters
    ----------
    layer : LayerPlan
    steps : float64 array
        What 1 in the accumulator stands for, ``(1,)`` or ``(out,)``.
    what : str
        For messages.
    """
    values = layer.bias / steps
    if not values.any():
        return None
    if layer.bias_step is None:
        form = choose_format(
            values,
            width=layer.bias_width,
            signed=True,
            calibration=Calibration.MSE,
            what=what,
            finest=0,
        )
    else:
        shift = max(0, ceil(log2(layer.bias_step / float(steps[0])) - 1e-9))
        form = Fixed(width=layer.bias_width, frac=-shift, signed=True)
    return Bias(codes=quantize_to(values, form), width=form.width, shift=-form.frac)


def fraction_bits(steps: Floats) -> tuple[int, ...] | None:
    """Fraction bits where all steps are powers of two."""
    mantissas, exponents = np.frexp(steps)
    if not (mantissas == 0.5).all():
        return None
    return tuple(1 - int(e) for e in exponents)
