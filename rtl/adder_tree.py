"""Registered binary trees, and the exact range of every node of an adder tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from amaranth.hdl import Module, Shape, Signal, signed
from numpy.typing import NDArray

from hwgen.ir.formats import width_of

__all__ = ["node_shape", "registered_tree", "sum_intervals"]

Bounds = tuple[NDArray[np.int64], NDArray[np.int64]]


def sum_intervals(low: NDArray[np.int64], high: NDArray[np.int64]) -> list[Bounds]:
    """Ranges of the nodes of an adder tree, level by level, leaves included.

    Parameters
    ----------
    low, high : int64 array
        Range of each leaf, the leaves on the last axis; other axes are cases that exclude each
        other, such as the words of a weight memory.

    Returns
    -------
    list of (low, high)
        One pair for each of ``tree_latency(leaves) + 1`` levels, half as many nodes from level to
        level; a node without a partner goes on alone.
    """
    levels = [(low, high)]
    while low.shape[-1] > 1:
        if low.shape[-1] % 2:
            low, high = (np.append(a, np.zeros_like(a[..., :1]), axis=-1) for a in (low, high))
        low, high = low[..., ::2] + low[..., 1::2], high[..., ::2] + high[..., 1::2]
        levels.append((low, high))
    return levels


def node_shape(low: int, high: int, most: int) -> Shape:
    """Smallest shape for ``low..high``, but ``signed(most)`` at most.

    Where it is cut to ``most`` bits the value is right modulo ``2 ** most``, and so is every sum of
    such values in ``most`` bits or fewer: the accumulator's width bounds every register before it.
    """
    width, is_signed = width_of(low, high)
    return Shape(width, is_signed) if width + (not is_signed) <= most else signed(min(width, most))


def registered_tree(
    m: Module,
    leaves: Sequence[Any],
    shapes: Sequence[Sequence[Shape]],
    combine: Callable[[Any, Any], Any],
    name: str,
) -> Any:
    """Combine ``leaves`` pairwise, with a register behind every level.

    Parameters
    ----------
    leaves : sequence of Value
    shapes : sequence of sequences of Shape
        For each level above the leaves, the shape of its nodes, named ``<name>_<level>_<node>``.
    combine : callable
        Of two nodes.

    Returns
    -------
    Value, ``tree_latency(len(leaves))`` cycles later; the leaf itself where there is one.
    """
    nodes = list(leaves)
    for level, level_shapes in enumerate(shapes, start=1):
        above = []
        for k, shape in enumerate(level_shapes):
            node = Signal(shape, name=f"{name}_{level}_{k}", reset_less=True)
            pair = nodes[2 * k : 2 * k + 2]
            m.d.sync += node.eq(combine(*pair) if len(pair) == 2 else pair[0])
            above.append(node)
        nodes = above
    return nodes[0]
