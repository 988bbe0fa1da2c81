"""Grids that follow weights and activations while a network is trained on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hwgen.ir import Fixed
from quant.formats import Floats
from quant.straight import TensorMap, uniform_ste, without_mean

__all__ = ["ActivationGrid", "BiasCorrection", "WeightGrid"]

CANDIDATES = 4
"""Formats that are compared: the one without saturation and those of half its range, a quarter..."""

WEIGHTS_EVERY = 16
"""Steps after which a weight's format is chosen again."""

ACTIVATIONS_EVERY = 48
SAMPLE = 20_000
"""About as many values of a batch's tensor choose an activation's format."""


def _best_fracs(rows: Tensor, width: int, *, signed: bool) -> Tensor:
    """Fraction bits with the least squared error, for each row ``(rows, values)``; ``(rows,)``."""
    low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)
    reach = rows.abs().amax(1).clamp_min(1e-9)
    fracs = torch.log2((max(high, 1) + 0.5) / reach).floor()
    best, least = fracs, torch.full_like(reach, torch.inf)
    for finer in range(CANDIDATES):
        step = torch.exp2(-(fracs + finer))[:, None]
        error = (rows / step).add_(0.5).floor_().clamp_(low, high).mul_(step).sub_(rows)
        cost = error.square_().sum(1)
        better = cost < least
        best, least = torch.where(better, fracs + finer, best), torch.where(better, cost, least)
    return best


class WeightGrid:
    """Signed integers times a power of two for the tensor or for each output channel.

    The scales have the least squared error of the weights. They are chosen anew every few steps,
    until ``settled`` steps are done: so that the last steps train on the grid that is used.

    Parameters
    ----------
    width : int
        Bits.
    per_channel : bool
    settled : int
    """

    def __init__(self, width: int, *, per_channel: bool, settled: int) -> None:
        self.width, self.per_channel, self._settled = width, per_channel, settled
        self._calls = 0
        self._steps: Tensor | None = None
        self._map: TensorMap | None = None
        self.error: Tensor | None = None

    @property
    def low(self) -> int:
        """The least code."""
        return -(1 << (self.width - 1))

    @property
    def high(self) -> int:
        """The greatest code."""
        return (1 << (self.width - 1)) - 1

    def __call__(self, weight: Tensor) -> Tensor:
        """The weights on the grid; ``error`` is then what that added to them."""
        due = self._calls % WEIGHTS_EVERY == 0 and self._calls <= self._settled
        if self._map is None or due:
            with torch.no_grad():
                rows = weight.reshape(len(weight) if self.per_channel else 1, -1)
                steps = torch.exp2(-_best_fracs(rows, self.width, signed=True))
            self._steps = steps
            shape = (-1,) + (1,) * (weight.ndim - 1)
            self._map = uniform_ste(steps.reshape(shape).numpy(), self.low, self.high)
        self._calls += 1
        mapped = self._map(weight)
        self.error = (mapped - weight).detach()
        return mapped

    def scale(self) -> Floats:
        """What a code of 1 stands for, ``(1,)`` or ``(out,)``, as last chosen."""
        assert self._steps is not None
        values: Floats = self._steps.double().numpy().copy()
        return values


class BiasCorrection:
    """Biases less the mean that rounding a layer's weights adds to its outputs.

    Parameters
    ----------
    grid : WeightGrid
        Of the same layer; called before this in every forward pass.
    mean : float64 array
        Mean input, laid out to broadcast to the weight.
    """

    def __init__(self, grid: WeightGrid, mean: Floats) -> None:
        self._grid = grid
        self._mean = torch.tensor(mean, dtype=torch.float32)

    def __call__(self, bias: Tensor) -> Tensor:
        assert self._grid.error is not None
        return without_mean(bias, self._grid.error, self._mean)


class ActivationGrid:
    """A fixed-point format of a tensor, chosen anew from batches until ``settled`` steps are done.

    Parameters
    ----------
    form : Fixed
        To start with.
    settled : int
    """

    def __init__(self, form: Fixed, *, settled: int) -> None:
        self.form, self._settled = form, settled
        self._calls = 0
        self._choose(form.frac)

    def _choose(self, frac: int) -> None:
        self.form = Fixed(width=self.form.width, frac=frac, signed=self.form.signed)
        self._map = uniform_ste(self.form.scale, self.form.low, self.form.high)

    def __call__(self, x: Tensor) -> Tensor:
        if self._calls % ACTIVATIONS_EVERY == 0 and self._calls <= self._settled:
            with torch.no_grad():
                flat = x.reshape(1, -1)[:, :: max(1, x.numel() // SAMPLE)]
                if bool(flat.any()):
                    best = _best_fracs(flat, self.form.width, signed=self.form.signed)
                    self._choose(int(np.clip(int(best[0]), -20, 30)))
        self._calls += 1
        return self._map(x)
