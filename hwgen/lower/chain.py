"""The chain of stages under construction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hwgen.ir.formats import TensorType
from hwgen.ir.geometry import Geometry
from hwgen.ir.ops import Op
from hwgen.ir.walk import Walk, WindowMode
from hwgen.lower.dataflow import TensorStream
from hwgen.lower.folding import Folding, window_lanes
from hwgen.lower.stages import Beat, Stage, StreamIn, WidthConvert, Window
from hwgen.lower.stream import StreamLayout

__all__ = ["Chain", "Pins", "module_name"]

Pins = Mapping[str, tuple[int, int]]
"""Layer to ``(in_lanes, out_lanes)``."""


def module_name(name: str) -> str:
    """A layer's name as a Verilog identifier in lower case."""
    text = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return text if text and text[0].isalpha() else f"n_{text}"


@dataclass(kw_only=True)
class Chain:
    """The chain under construction: the stages so far and what their stream carries."""

    target: int
    pins: Pins
    tensor: TensorType
    lanes: int = 0  # 0 while the input's lanes are open
    flattened: tuple[int, ...] | None = None
    stages: list[Stage] = field(default_factory=list)
    streams: list[TensorStream] = field(default_factory=list)
    foldings: dict[str, Folding] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        return -(-self.tensor.channels // self.lanes)

    @property
    def beats(self) -> int:
        return self.stages[-1].beats_out

    @property
    def beat(self) -> Beat:
        return self.stages[-1].o

    def open_input(self, lanes: int) -> None:
        """Fix the input's lanes if nothing has yet."""
        if self.lanes:
            return
        self.lanes = lanes
        beat = Beat(width=self.tensor.width, signed=self.tensor.signed, lanes=lanes)
        frame = self.tensor.pixels * self.groups
        self.stages.append(
            StreamIn(name="stream_in", layer="input", i=beat, o=beat, frame=frame, out_depth=2)
        )

    def convert(self, name: str, layer: str, lanes: int, vector_in: int, vector_out: int) -> None:
        """Put a width converter behind the last stage."""
        self.stages.append(
            WidthConvert(
                name=name,
                layer=layer,
                i=self.beat,
                o=replace(self.beat, lanes=lanes),
                frame=self.beats,
                out_depth=2,
                vector_in=vector_in,
                vector_out=vector_out,
            )
        )

    def window(
        self,
        op: Op,
        name: str,
        geometry: Geometry,
        mode: WindowMode,
        *,
        pad_code: int,
        group_major: bool,
    ) -> Walk:
        """Put a window stage behind the last stage, with a ring that never limits it."""
        walk = Walk(geometry=geometry, mode=mode, groups=self.groups)
        rows = 2 * geometry.kernel[0]
        while rows < geometry.kernel[0] + geometry.stride[0]:
            rows += geometry.kernel[0]
        depth = rows * geometry.width * walk.groups if mode is WindowMode.TAP else rows
        self.stages.append(
            Window(
                name=f"{name}_window",
                layer=op.name,
                i=self.beat,
                o=replace(self.beat, lanes=window_lanes(mode, geometry, self.lanes)),
                frame=self.beats,
                out_depth=4,
                walk=walk,
                depth=depth,
                pad_code=pad_code,
                group_major=group_major,
            )
        )
        return walk

    def finish(self, op: Op, lanes: int) -> None:
        """Record that the last stage's stream carries the op's output."""
        self.tensor, self.lanes = op.output, lanes
        layout = StreamLayout(tensor=op.output, lanes=lanes)
        self.streams.append(TensorStream(stage=self.stages[-1].name, tensor=op.name, layout=layout))
