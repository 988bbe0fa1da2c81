"""Rounding and saturation of tensors; gradients that pass straight through, for fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hwgen.ir import Fixed

__all__ = ["TensorMap", "fixed_ste", "round_to_fixed", "ste_round", "uniform_ste", "without_mean"]

TensorMap = Callable[[Tensor], Tensor]
"""What a forward pass makes of a tensor; of the same shape."""


class _Uniform(torch.autograd.Function):
    """``clip(floor(x / scale + 1/2), low, high) * scale``; gradient 1 where nothing saturates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        codes = x / scale
        codes.add_(0.5).floor_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x + 0.5).floor_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def ste_round(x: Tensor) -> Tensor:
    """Nearest integer, ties up; the gradient is that of ``x``."""
    rounded: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def uniform_ste(scale: ArrayLike, low: int, high: int) -> TensorMap:
    """Map to ``scale`` times the integers ``low`` to ``high``.

    Nearest, ties up, as the requantisers round; the gradient is 1 but for 0 where a value
    saturates, that is, rounds to an integer beyond the bounds.

    Parameters
    ----------
    scale : float or array
        Positive; an array must broadcast to the tensor.
    low, high : int
        Exact in float32: magnitudes up to 2**24.
    """
    step = torch.tensor(scale, dtype=torch.float32)

    def apply(x: Tensor) -> Tensor:
        mapped: Tensor = _Uniform.apply(x, step, low, high)  # type: ignore[no-untyped-call]
        return mapped

    return apply


def without_mean(bias: Tensor, change: Tensor, mean: Tensor) -> Tensor:
    """Biases ``(out,)`` less the mean that a change of the weights adds to the outputs.

    Parameters
    ----------
    bias : Tensor
    change : Tensor
        Mapped weights less those before, in the shape of the weight.
    mean : Tensor
        Mean input, laid out to broadcast to the weight.
    """
    return bias - (change * mean).flatten(1).sum(1)


def fixed_ste(form: Fixed) -> TensorMap:
    """Map to a fixed-point format; see :func:`uniform_ste`."""
    return uniform_ste(form.scale, form.low - form.zero, form.high - form.zero)


def round_to_fixed(x: Tensor, form: Fixed) -> Tensor:
    """The nearest values of a fixed-point format, ties up, saturated, in the tensor's own arithmetic.

    For forward passes: the gradient is 0. See :func:`fixed_ste` for one that passes through.
    """
    codes = torch.floor(x * 2.0**form.frac + 0.5)
    return codes.clamp_(form.low - form.zero, form.high - form.zero).mul_(form.scale)
