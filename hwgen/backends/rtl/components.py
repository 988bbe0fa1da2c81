"""The table from stage class to Amaranth component."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import wiring

from hwgen.lower.stages import (
    Argmax,
    Beat,
    Mac,
    Reduce,
    Rescale,
    Stage,
    StreamIn,
    WidthConvert,
    Window,
)
from rtl import argmax, axi, convert, mac, reduce, rescale, window

__all__ = ["COMPONENTS", "component"]


def _shape(beat: Beat) -> Shape:
    return Shape(beat.width, beat.signed)


def _stream_in(stage: StreamIn) -> wiring.Component:
    return axi.AxiStreamIn(_shape(stage.i), stage.i.lanes, stage.frame, stage.out_depth)


def _rescale(stage: Rescale) -> wiring.Component:
    return rescale.Rescale(
        _shape(stage.i),
        stage.i.lanes,
        stage.groups,
        stage.requant,
        _shape(stage.o),
        stage.out_depth,
    )


def _window(stage: Window) -> wiring.Component:
    return window.Window(
        walk=stage.walk,
        shape=_shape(stage.i),
        lanes=stage.i.lanes,
        depth=stage.depth,
        pad_code=stage.pad_code,
        group_major=stage.group_major,
        out_depth=stage.out_depth,
    )


def _convert(stage: WidthConvert) -> wiring.Component:
    return convert.WidthConverter(
        _shape(stage.i),
        stage.i.lanes,
        stage.o.lanes,
        stage.vector_in,
        stage.vector_out,
        stage.out_depth,
    )


def _mac(stage: Mac) -> wiring.Component:
    return mac.MacStage(
        shape_in=_shape(stage.i),
        in_lanes=stage.i.lanes,
        out_lanes=stage.o.lanes,
        vector=stage.words,
        folds=stage.folds,
        capacity=stage.capacity,
        weights=stage.weights,
        weight_shape=Shape(stage.weight_width, stage.weight_signed),
        codebook=stage.codebook,
        bias=stage.bias,
        acc_width=stage.accumulator_width,
        requant=stage.requant,
        shape_out=_shape(stage.o),
        out_depth=stage.out_depth,
    )


def _reduce(stage: Reduce) -> wiring.Component:
    return reduce.Reduce(
        shape_in=_shape(stage.i),
        lanes=stage.o.lanes,
        rows=stage.rows,
        steps=stage.steps,
        groups=stage.groups,
        kind="max" if stage.maximum else "sum",
        acc_shape=Shape(stage.accumulator_width, stage.accumulator_signed),
        requant=stage.requant,
        shape_out=_shape(stage.o),
        out_depth=stage.out_depth,
    )


def _argmax(stage: Argmax) -> wiring.Component:
    return argmax.Argmax(_shape(stage.i), stage.i.lanes, stage.elements, stage.out_depth)


COMPONENTS: dict[type[Stage], Callable[[Any], wiring.Component]] = {
    StreamIn: _stream_in,
    Rescale: _rescale,
    Window: _window,
    WidthConvert: _convert,
    Mac: _mac,
    Reduce: _reduce,
    Argmax: _argmax,
}
"""One constructor per stage class; a test walks it against the classes."""


def component(stage: Stage) -> wiring.Component:
    """The Amaranth component of a stage, timed as :meth:`Stage.actors` says."""
    return COMPONENTS[type(stage)](stage)
