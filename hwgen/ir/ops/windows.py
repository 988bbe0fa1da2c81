"""Windows of an image as an array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.geometry import Geometry
from hwgen.ir.ops.base import Codes

__all__ = ["inside_counts", "outside_taps", "windows"]


def windows(x: Codes, geometry: Geometry, pad: int) -> Codes:
    """All windows of images.

    Parameters
    ----------
    x : int64 array
        ``(N, C, H, W)``.
    pad : int
        What taps outside the image read as.

    Returns
    -------
    int64 array
        ``(N, C, out rows, out columns, kernel rows, kernel columns)``, a view of the padded images.
    """
    top, left, bottom, right = geometry.overhang
    full = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad)
    all_windows = np.lib.stride_tricks.sliding_window_view(full, geometry.kernel, axis=(2, 3))
    strided = all_windows[:, :, :: geometry.stride[0], :: geometry.stride[1]]
    return strided[:, :, : geometry.out_height, : geometry.out_width]


def _inside(geometry: Geometry, axis: int) -> NDArray[np.bool_]:
    """Whether a tap lies in the image, ``(outputs, kernel)`` along one axis."""
    size = (geometry.height, geometry.width)[axis]
    outputs = (geometry.out_height, geometry.out_width)[axis]
    start = np.arange(outputs) * geometry.stride[axis] - geometry.padding[axis]
    place = start[:, None] + np.arange(geometry.kernel[axis])
    return (place >= 0) & (place < size)


def outside_taps(geometry: Geometry) -> NDArray[np.bool_]:
    """Taps that lie outside the image at some output position, ``(kernel rows, kernel
    columns)``."""
    inside = [_inside(geometry, axis).all(axis=0) for axis in (0, 1)]
    return np.logical_not(np.logical_and.outer(inside[0], inside[1]))


def inside_counts(geometry: Geometry, *, include_pad: bool = False) -> Codes:
    """Taps of each window that count, ``(out rows, out columns)``.

    With ``include_pad`` taps in the declared padding count too, but not those that ``ceil_mode``
    lets run past it, as in PyTorch.
    """

    def axis_counts(axis: int) -> Codes:
        if not include_pad:
            inside: Codes = _inside(geometry, axis).sum(axis=1)
            return inside
        size = (geometry.height, geometry.width)[axis] + geometry.padding[axis + 2]
        outputs = (geometry.out_height, geometry.out_width)[axis]
        start = np.arange(outputs) * geometry.stride[axis] - geometry.padding[axis]
        return np.minimum(start + geometry.kernel[axis], size) - start

    counts = axis_counts(0)[:, None] * axis_counts(1)[None, :]
    return counts.astype(np.int64)
