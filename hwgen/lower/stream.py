"""Stream layouts: the order in which a tensor's codes travel, and their bytes on AXI4-Stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadInput
from hwgen.ir.formats import TensorType

__all__ = ["AxiPort", "StreamLayout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLayout:
    """A tensor as a stream of beats: NHWC raster, ``lanes`` channels a beat, lowest channel first.

    The last beat of a pixel is zero-filled here and don't-care in hardware.

    Parameters
    ----------
    tensor : TensorType
    lanes : int
        Channels in a beat, 1 to ``tensor.channels``.
    """

    tensor: TensorType
    lanes: int

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= self.tensor.channels:
            raise BadInput(
                f"lanes must be 1 to {self.tensor.channels}, the channels, not {self.lanes}"
            )

    @property
    def groups(self) -> int:
        """Beats of a pixel."""
        return -(-self.tensor.channels // self.lanes)

    @property
    def beats(self) -> int:
        """Beats of a frame."""
        return self.tensor.pixels * self.groups

    def pack(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Codes ``(N, C, H, W)`` or ``(N, C)`` to beats ``(N * beats, lanes)``."""
        n = codes.shape[0]
        pixels = codes.reshape(n, self.tensor.channels, -1).transpose(0, 2, 1)
        full = np.zeros((n, self.tensor.pixels, self.groups * self.lanes), dtype=np.int64)
        full[:, :, : self.tensor.channels] = pixels
        return full.reshape(n * self.beats, self.lanes)

    def unpack(self, beats: NDArray[np.int64]) -> NDArray[np.int64]:
        """Beats of whole frames ``(N * beats, lanes)`` to codes ``(N, *shape)``."""
        n = beats.shape[0] // self.beats
        full = beats.reshape(n, self.tensor.pixels, self.groups * self.lanes)[
            :, :, : self.tensor.channels
        ]
        return np.ascontiguousarray(full.transpose(0, 2, 1)).reshape(n, *self.tensor.shape)

    def locate(self, beat: int, lane: int) -> tuple[int, int, int, int]:
        """``(frame, channel, row, column)`` of a lane of a beat counted from the first frame."""
        frame, rest = divmod(beat, self.beats)
        pixel, group = divmod(rest, self.groups)
        columns = self.tensor.shape[2] if len(self.tensor.shape) == 3 else 1
        return frame, group * self.lanes + lane, pixel // columns, pixel % columns


@dataclass(frozen=True, slots=True, kw_only=True)
class AxiPort:
    """A stream on AXI4-Stream: each lane extended to whole bytes, TDATA a power of two of bytes."""

    layout: StreamLayout

    @property
    def lane_bytes(self) -> int:
        """Bytes of one lane."""
        return -(-self.layout.tensor.width // 8)

    @property
    def data_bytes(self) -> int:
        """Bytes of TDATA."""
        used = self.lane_bytes * self.layout.lanes
        return 1 << (used - 1).bit_length()

    def encode(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes ``(N, *shape)`` to TDATA bytes ``(N * beats, data_bytes)``, little-endian."""
        beats = self.layout.pack(codes)
        out = np.zeros((beats.shape[0], self.data_bytes), dtype=np.uint8)
        for lane in range(self.layout.lanes):
            for byte in range(self.lane_bytes):
                out[:, lane * self.lane_bytes + byte] = (beats[:, lane] >> (8 * byte)) & 0xFF
        return out

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """TDATA bytes of whole frames ``(N * beats, data_bytes)`` to codes ``(N, *shape)``."""
        beats = np.zeros((data.shape[0], self.layout.lanes), dtype=np.int64)
        for lane in range(self.layout.lanes):
            for byte in range(self.lane_bytes):
                beats[:, lane] |= data[:, lane * self.lane_bytes + byte].astype(np.int64) << (
                    8 * byte
                )
        if self.layout.tensor.signed:
            sign = np.int64(1) << (8 * self.lane_bytes - 1)
            beats = (beats ^ sign) - sign
        return self.layout.unpack(beats)
