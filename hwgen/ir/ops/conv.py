"""Convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.geometry import Geometry
from hwgen.ir.ops.base import Codes
from hwgen.ir.ops.mac import MacOp, exact_dot, mac_interval
from hwgen.ir.ops.windows import outside_taps, windows

__all__ = ["Conv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv(MacOp):
    """Convolution (cross-correlation) with stride, padding and groups; depthwise with ``groups =
    channels``.

    ``acc[o, y, x] = bias[o] + sum w[o, i, ky, kx] * (code[i, y*s + ky - p, x*s + kx - p] - zero)``;
    a padded tap contributes 0.

    Parameters
    ----------
    weights : Weights
        Codes ``(out, in / groups, rows, columns)``.
    geometry : Geometry
        Its size is the input's, its kernel the weights', without ``ceil_mode``.
    groups : int
        Divides the input and output channels. Output channels of a group are consecutive.
    """

    geometry: Geometry
    groups: int = 1

    def __post_init__(self) -> None:
        MacOp.__post_init__(self)
        shape, g = self.weights.codes.shape, self.geometry
        if len(shape) != 4 or len(self.input.shape) != 3:
            raise self.bad(
                "needs weights (out, in / groups, rows, columns) and an input (channels, height,"
                " width),"
                f" not {shape} and {self.input.shape}"
            )
        if (g.height, g.width) != self.input.shape[1:] or g.kernel != shape[2:] or g.ceil_mode:
            raise self.bad(
                f"needs a geometry of {self.input.shape[1:]} pixels and a kernel {shape[2:]}"
                " without"
                f" ceil_mode, not {(g.height, g.width)}, {g.kernel}, ceil_mode={g.ceil_mode}"
            )
        if (
            self.groups < 1
            or self.input.channels != shape[1] * self.groups
            or shape[0] % self.groups
        ):
            raise self.bad(
                f"has {self.input.channels} input and {shape[0]} output channels in {self.groups}"
                " groups of"
                f" {shape[1]} inputs; groups must divide both"
            )
        self._check_mac((shape[0], g.out_height, g.out_width))

    def padded_taps(self) -> NDArray[np.bool_]:
        """Taps that lie outside the image at some output position, ``(rows, columns)``."""
        return outside_taps(self.geometry)

    def accumulator_interval(self) -> tuple[Codes, Codes]:
        return mac_interval(self.input, self.weights, self.bias, padded=self.padded_taps())

    def acc(self, x: Codes) -> Codes:
        n, g = x.shape[0], self.geometry
        taps = windows(x - self.input.zero, g, 0)  # (N, C, OH, OW, KH, KW)
        per = self.input.channels // self.groups
        taps = taps.reshape(n, self.groups, per, g.out_height, g.out_width, *g.kernel)
        columns = taps.transpose(0, 1, 2, 5, 6, 3, 4).reshape(n, self.groups, -1, g.positions)
        rows = self.weights.codes.reshape(self.groups, self.out_channels // self.groups, -1)
        total = exact_dot(rows, columns, self.magnitude).reshape(n, *self.output.shape)
        if self.bias is not None:
            total = total + self.bias.values[:, None, None]
        return total
