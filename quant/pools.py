"""Pooling nodes of the float graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from hwgen.ir import Geometry
from hwgen.ir.ops.windows import inside_counts
from quant.nodes import Node, Shape

__all__ = ["AvgPool", "GlobalAvgPool", "GlobalMaxPool", "MaxPool"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool(Node):
    """A reduction of each window of each channel.

    Parameters
    ----------
    kernel, stride : tuple of int
        ``(rows, columns)``.
    padding : tuple of int
        Pixels at ``(top, left, bottom, right)``.
    ceil_mode : bool
        Whether a last window that runs past the end counts; see :class:`hwgen.ir.Geometry`.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    ceil_mode: bool = False

    def geometry(self, shape: Shape) -> Geometry:
        """Where the windows lie on an input of ``shape``."""
        _, height, width = self.image(shape)
        return Geometry(
            height=height,
            width=width,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
        )

    def shape(self, *inputs: Shape) -> Shape:
        g = self.geometry(inputs[0])
        return (inputs[0][0], g.out_height, g.out_width)

    def _padded(self, x: Tensor, value: float) -> Tensor:
        """``x`` extended to what the windows touch, so that floor mode gives all positions."""
        top, left, bottom, right = self.geometry(tuple(x.shape[1:])).overhang
        return F.pad(x, (left, right, top, bottom), value=value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaxPool(_Pool):
    """Largest element of each window; padding never wins."""

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return F.max_pool2d(self._padded(inputs[0], float("-inf")), self.kernel, self.stride)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AvgPool(_Pool):
    """Mean of each window. What ceil mode adds beyond the padding never counts.

    Parameters
    ----------
    count_include_pad : bool
        Whether taps in the padding count, as zeros.
    """

    count_include_pad: bool = True

    def counts(self, shape: Shape) -> NDArray[np.int64]:
        """Taps that count at each position, ``(out rows, out columns)``."""
        return inside_counts(self.geometry(shape), include_pad=self.count_include_pad)

    def evaluate(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        total = F.avg_pool2d(self._padded(x, 0.0), self.kernel, self.stride, divisor_override=1)
        return total / torch.tensor(self.counts(tuple(x.shape[1:])), dtype=x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalAvgPool(Node):
    """Mean over height and width; the result is ``(channels, 1, 1)``."""

    def shape(self, *inputs: Shape) -> Shape:
        return (self.image(inputs[0])[0], 1, 1)

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return inputs[0].mean((2, 3), keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalMaxPool(Node):
    """Maximum over height and width; the result is ``(channels, 1, 1)``."""

    def shape(self, *inputs: Shape) -> Shape:
        return (self.image(inputs[0])[0], 1, 1)

    def evaluate(self, *inputs: Tensor) -> Tensor:
        return inputs[0].amax((2, 3), keepdim=True)
