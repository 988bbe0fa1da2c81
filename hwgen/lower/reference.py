"""What each stage does to its beats, in NumPy: the reference that every backend must match.

Beats are int64 arrays ``(frames * beats, lanes)``. Free lanes of a partly filled beat hold 0 here; they
are don't-care in hardware.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from hwgen.ir.requant import Requant
from hwgen.ir.walk import WindowMode
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stages import Argmax, Mac, Reduce, Rescale, Stage, StreamIn, WidthConvert, Window

__all__ = ["run_dataflow", "run_stage"]

Beats = NDArray[np.int64]


@singledispatch
def run_stage(stage: Stage, beats: Beats) -> Beats:
    """Output beats of a stage for the input beats of whole frames.

    Parameters
    ----------
    stage : Stage
    beats : int64 array
        ``(frames * stage.frame, stage.i.lanes)``.

    Returns
    -------
    int64 array ``(frames * stage.beats_out, stage.o.lanes)``
    """
    raise TypeError(f"no reference for {type(stage).__name__}")


def _by_channel(requant: Requant | None, acc: Beats, groups: int) -> Beats:
    """Requantise beats whose channel is ``(beat % groups) * lanes + lane``."""
    if requant is None:
        return acc
    lanes = acc.shape[1]
    flat = acc.reshape(-1, groups * lanes)
    channels = requant.channels
    if channels == 1:
        return requant.apply(flat).reshape(acc.shape)
    out = np.zeros_like(flat)
    out[:, :channels] = requant.apply(flat[:, :channels])
    return out.reshape(acc.shape)


@run_stage.register
def _(stage: StreamIn, beats: Beats) -> Beats:
    return beats


@run_stage.register
def _(stage: Rescale, beats: Beats) -> Beats:
    return _by_channel(stage.requant, beats, stage.groups)


@run_stage.register
def _(stage: Window, beats: Beats) -> Beats:
    walk, g = stage.walk, stage.walk.geometry
    lanes, groups = stage.i.lanes, walk.groups
    image = beats.reshape(-1, g.height, g.width, groups, lanes)
    top, left, bottom, right = g.overhang
    image = np.pad(
        image,
        ((0, 0), (top, bottom), (left, right), (0, 0), (0, 0)),
        constant_values=stage.pad_code,
    )
    view = np.lib.stride_tricks.sliding_window_view(image, g.kernel, axis=(1, 2))
    view = view[:, :: g.stride[0], :: g.stride[1]][:, : g.out_height, : g.out_width]
    # now (frame, row, column, group, lane, ky, kx)
    orders = {
        (WindowMode.TAP, False): (0, 1, 2, 5, 6, 3, 4),
        (WindowMode.TAP, True): (0, 1, 2, 3, 5, 6, 4),
        (WindowMode.COLUMN, False): (0, 1, 2, 6, 3, 5, 4),
        (WindowMode.COLUMN, True): (0, 1, 2, 3, 6, 5, 4),
        (WindowMode.FULL, False): (0, 1, 2, 3, 5, 6, 4),
        (WindowMode.FULL, True): (0, 1, 2, 3, 5, 6, 4),
    }
    order = orders[walk.mode, stage.group_major]
    return np.ascontiguousarray(view.transpose(order)).reshape(-1, stage.o.lanes)


@run_stage.register
def _(stage: WidthConvert, beats: Beats) -> Beats:
    def words(vector: int, lanes: int) -> int:
        return -(-vector // lanes)

    per = words(stage.vector_in, stage.i.lanes) * stage.i.lanes
    elements = beats.reshape(-1, per)[:, : stage.vector_in].reshape(-1, stage.vector_out)
    out = np.zeros(
        (len(elements), words(stage.vector_out, stage.o.lanes) * stage.o.lanes), dtype=np.int64
    )
    out[:, : stage.vector_out] = elements
    return out.reshape(-1, stage.o.lanes)


@run_stage.register
def _(stage: Mac, beats: Beats) -> Beats:
    vectors = beats.reshape(-1, stage.words, stage.i.lanes)
    # Free lanes meet weight 0.
    acc = np.einsum("vwi,fwoi->vfo", vectors, stage.weights, optimize=True) + stage.bias
    flat = acc.reshape(-1, stage.o.lanes)
    half = np.int64(1) << (stage.accumulator_width - 1)
    wrapped = ((flat + half) & (2 * half - 1)) - half
    return _by_channel(stage.requant, wrapped, stage.folds)


@run_stage.register
def _(stage: Reduce, beats: Beats) -> Beats:
    taken = beats.reshape(-1, stage.steps, stage.rows, stage.o.lanes)
    if stage.maximum:
        return np.array(taken.max(axis=(1, 2)), dtype=np.int64)
    return _by_channel(stage.requant, taken.sum(axis=(1, 2)), stage.groups)


@run_stage.register
def _(stage: Argmax, beats: Beats) -> Beats:
    per = -(-stage.elements // stage.i.lanes) * stage.i.lanes
    vectors = beats.reshape(-1, per)[:, : stage.elements]
    return np.array(np.argmax(vectors, axis=1)[:, None], dtype=np.int64)


def run_dataflow(dataflow: Dataflow, codes: NDArray[np.int64]) -> dict[str, Beats]:
    """Output beats of every stage for input codes ``(N, *input shape)``, by stage name."""
    beats = dataflow.input.layout.pack(codes)
    out = {}
    for stage in dataflow.stages:
        beats = run_stage(stage, beats)
        out[stage.name] = beats
    return out
