"""One point of a sweep: what was asked for and what was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

__all__ = ["COLUMNS", "Point", "Status", "front", "table"]


class Status(Enum):
    """What became of a point.

    Members
    -------
    OK
        It fits, and reaches the frame rate as far as that was measured.
    TOO_SLOW
        It cannot reach the frame rate: in cycles with all lanes, or at the clock after routing.
    DOES_NOT_FIT
        The part has too little of something.
    FAILED
        A tool failed; the next run tries again.
    """

    OK = "ok"
    TOO_SLOW = "too slow"
    DOES_NOT_FIT = "does not fit"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a sweep; what was not measured is None.

    Parameters
    ----------
    bits : str
        Widths as they were given: ``N``, or weights/biases/activations.
    weight_bits, bias_bits, activation_bits : int
        The same, spelt out.
    fps_target : float
        Frames a second asked for.
    clock_mhz : float
        Clock that the folding counted with.
    status : str
        Value of :class:`Status`.
    reason : str
        Why the status is not ``ok``; else empty.
    accuracy_float, accuracy_integer : float
        Top-1 fractions on the test images.
    multipliers, cycles, latency : int or None
        Of the dataflow; cycles of a frame in steady state, and from its first beat to its last.
    fps_at_clock : float or None
        Frames a second at ``clock_mhz``.
    lut, ff, dsp : int or None
        As Yosys maps the design.
    bram, bram_blocks, bram_kbit : int or None
        Block RAM in 18 kbit units, in the family's own blocks, and in kbit of whole blocks.
    fmax_mhz, fps : float or None
        After place and route, and frames a second at that clock.
    """

    bits: str
    weight_bits: int
    bias_bits: int
    activation_bits: int
    fps_target: float
    clock_mhz: float
    status: str
    reason: str = ""
    accuracy_float: float
    accuracy_integer: float
    multipliers: int | None = None
    cycles: int | None = None
    latency: int | None = None
    fps_at_clock: float | None = None
    lut: int | None = None
    ff: int | None = None
    dsp: int | None = None
    bram: int | None = None
    bram_blocks: int | None = None
    bram_kbit: int | None = None
    fmax_mhz: float | None = None
    fps: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it does all that was asked."""
        return self.status == Status.OK.value

    def record(self) -> dict[str, Any]:
        """The figures that there are, in the order of the columns."""
        values = asdict(self)
        return {name: values[name] for name in COLUMNS if values[name] not in (None, "")}


COLUMNS = (
    *("bits", "weight_bits", "bias_bits", "activation_bits", "fps_target", "clock_mhz", "status"),
    *("accuracy_float", "accuracy_integer", "multipliers", "cycles", "latency", "fps_at_clock"),
    *("lut", "ff", "dsp", "bram", "bram_blocks", "bram_kbit", "fmax_mhz", "fps", "reason"),
)
"""Columns of ``points.csv``, in order."""


def table(points: Iterable[Point]) -> str:
    """The points as CSV (RFC 4180 but for line feeds alone); what was not measured stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(point.record() for point in points)
    return text.getvalue()


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of accuracy against LUTs, by rising LUTs.

    A point that does all that was asked belongs to it if no other such point has as few LUTs with
    more accuracy, or fewer LUTs with as much.
    """
    chosen: list[Point] = []
    known = [(point.lut, -point.accuracy_integer, point) for point in points if point.ok]
    known = [entry for entry in known if entry[0] is not None]
    for _, _, point in sorted(known, key=lambda entry: entry[:2]):
        if not chosen or point.accuracy_integer > chosen[-1].accuracy_integer:
            chosen.append(point)
    return chosen
