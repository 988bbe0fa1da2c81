"""Element orders: which weight meets which lane of which word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.walk import Walk, WindowMode

__all__ = ["flatten_order", "fold_bias", "fold_weights", "pack_words", "window_order"]

Index = NDArray[np.int64]


def window_order(walk: Walk, channels: int, lanes: int) -> Index:
    """Elements in the order a window stage delivers them for a convolution.

    Parameters
    ----------
    walk : Walk
    channels : int
        Input channels.
    lanes : int
        Channels of a window word, ``m``.

    Returns
    -------
    int64 array ``(words, window lanes)``
        Index into weights flattened as ``(channel, kernel row, kernel column)``; -1 in free lanes.
    """
    rows, columns = walk.geometry.kernel
    group = np.arange(walk.groups)[:, None] * lanes + np.arange(lanes)[None, :]  # (g, lane)
    ky = np.arange(rows).reshape(-1, 1, 1, 1)
    kx = np.arange(columns).reshape(1, -1, 1, 1)
    flat = np.where(group < channels, (group * rows + ky) * columns + kx, -1)  # (ky, kx, g, lane)
    if walk.mode is WindowMode.TAP:
        return flat.reshape(rows * columns * walk.groups, lanes)
    if walk.mode is WindowMode.COLUMN:
        return np.ascontiguousarray(flat.transpose(1, 2, 0, 3)).reshape(
            columns * walk.groups, rows * lanes
        )
    return np.ascontiguousarray(flat.transpose(2, 0, 1, 3)).reshape(1, rows * columns * lanes)


def flatten_order(shape: tuple[int, ...]) -> Index:
    """Stream order (row, column, channel) of a flattened tensor, as indices in (channel, row, column) order."""
    size = int(np.prod(shape))
    if len(shape) == 1:
        return np.arange(size, dtype=np.int64)
    return np.ascontiguousarray(
        np.arange(size, dtype=np.int64).reshape(shape).transpose(1, 2, 0)
    ).reshape(-1)


def pack_words(elements: Index, lanes: int) -> Index:
    """A list of elements as ``(words, lanes)``, -1 in the free lanes of the last word."""
    words = -(-len(elements) // lanes)
    out = np.full(words * lanes, -1, dtype=np.int64)
    out[: len(elements)] = elements
    return out.reshape(words, lanes)


def fold_weights(
    weights: NDArray[np.int64], order: Index, out_lanes: int, fill: int = 0
) -> NDArray[np.int64]:
    """Weights ``(O, ...)`` as the array consumes them: ``(folds, words, out_lanes, in_lanes)``.

    Free input lanes have 0, free output lanes, whose results nobody takes, ``fill``.
    """
    outputs = weights.shape[0]
    folds = -(-outputs // out_lanes)
    flat = np.full((folds * out_lanes, weights[0].size + 1), fill, dtype=np.int64)
    flat[:outputs, :-1] = weights.reshape(outputs, -1)
    flat[:, -1] = 0  # what index -1 reads
    words, in_lanes = order.shape
    picked = flat[:, order].reshape(folds, out_lanes, words, in_lanes)
    return np.ascontiguousarray(picked.transpose(0, 2, 1, 3))


def fold_bias(bias: NDArray[np.int64], out_lanes: int) -> NDArray[np.int64]:
    """Biases ``(O,)`` as ``(folds, out_lanes)``, 0 in free lanes."""
    folds = -(-len(bias) // out_lanes)
    out = np.zeros(folds * out_lanes, dtype=np.int64)
    out[: len(bias)] = bias
    return out.reshape(folds, out_lanes)
