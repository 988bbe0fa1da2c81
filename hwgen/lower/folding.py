"""Folding: how many lanes each layer gets.

Given a target of cycles per frame, every layer takes the cheapest lanes that meet it. Costs are in
LUT equivalents, after ECP5 designs that Yosys mapped, and only rank the choices; what a design
really costs, Yosys says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hwgen.errors import BadInput, DoesNotFit
from hwgen.ir.geometry import Geometry
from hwgen.ir.walk import Walk, WindowMode

__all__ = ["Folding", "cheapest", "conv_foldings", "linear_foldings", "pinned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """Lanes of one MAC layer.

    Parameters
    ----------
    in_lanes, out_lanes : int
        Lanes of the MAC array.
    mode : WindowMode or None
        How the window delivers taps; None for a linear layer.
    window_lanes : int
        Channels a window word holds, ``m``; 0 for a linear layer.
    cycles : int
        Steps of the busiest actor a frame.
    cost : float
        LUT equivalents.
    """

    in_lanes: int
    out_lanes: int
    mode: WindowMode | None
    window_lanes: int
    cycles: int
    cost: float

    @property
    def multipliers(self) -> int:
        """``in_lanes * out_lanes``."""
        return self.in_lanes * self.out_lanes


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _array_cost(
    in_lanes: int, out_lanes: int, weight_bits: int, code_bits: int, acc_bits: int
) -> float:
    """Multipliers, adder trees, weight ports, and per output lane an accumulator and a requantiser."""
    product = weight_bits * code_bits
    multipliers = in_lanes * out_lanes * (product + weight_bits + code_bits + 8.0)
    return multipliers + out_lanes * (4.0 * acc_bits + 24.0) + in_lanes * code_bits


def window_lanes(mode: WindowMode, geometry: Geometry, lanes: int) -> int:
    """Elements a window delivers a step."""
    rows, columns = geometry.kernel
    return (
        lanes * {WindowMode.TAP: 1, WindowMode.COLUMN: rows, WindowMode.FULL: rows * columns}[mode]
    )


def _window_cost(mode: WindowMode, geometry: Geometry, lanes: int, bits: int) -> float:
    rows, columns = geometry.kernel
    width = lanes * bits
    if mode is WindowMode.TAP:
        return 250.0 + 4.0 * width
    banks = 250.0 + 12.0 * rows * width  # memories, rotation and masks
    if mode is WindowMode.COLUMN:
        return banks
    return banks + rows * columns * width


def converter_cost(lanes_in: int, lanes_out: int, bits: int) -> float:
    """A width converter: shifts and multiplexers where one divides the other, else a barrel shifter."""
    if lanes_in == lanes_out:
        return 0.0
    total = lanes_in + lanes_out
    if lanes_in % lanes_out == 0 or lanes_out % lanes_in == 0:
        return 30.0 + 1.2 * total * bits
    return 30.0 + total * total * bits / 3.0


def conv_foldings(
    geometry: Geometry,
    channels: int,
    outputs: int,
    *,
    weight_bits: int,
    code_bits: int,
    acc_bits: int,
    source_lanes: int | None,
) -> Iterator[Folding]:
    """All foldings of a convolution whose window lanes feed the array directly.

    ``source_lanes`` are the lanes of the stream that arrives: other window lanes pay a converter.
    """
    for mode in WindowMode:
        for m in range(1, channels + 1):
            groups = _up(channels, m)
            if groups > 1 and _up(channels, m - 1 if m > 1 else m) == groups and m > 1:
                continue  # fewer lanes do it in as many groups
            if mode is WindowMode.FULL and m != channels:
                continue
            walk = Walk(geometry=geometry, mode=mode, groups=groups)
            reads = walk.rows * walk.columns * walk.steps
            n = window_lanes(mode, geometry, m)
            words = walk.steps if mode is not WindowMode.FULL else 1
            writes = geometry.height * geometry.width * groups
            extra = _window_cost(mode, geometry, m, code_bits)
            if source_lanes is not None:
                extra += converter_cost(source_lanes, m, code_bits)
            last = 0
            for out_lanes in range(1, outputs + 1):
                folds = _up(outputs, out_lanes)
                if folds == last:
                    continue
                last = folds
                cycles = max(writes, reads, geometry.positions * words * folds)
                cost = extra + _array_cost(n, out_lanes, weight_bits, code_bits, acc_bits)
                yield Folding(
                    in_lanes=n,
                    out_lanes=out_lanes,
                    mode=mode,
                    window_lanes=m,
                    cycles=cycles,
                    cost=cost,
                )


def linear_foldings(
    elements: int,
    outputs: int,
    *,
    weight_bits: int,
    code_bits: int,
    acc_bits: int,
    source_lanes: int,
    source_beats: int,
) -> Iterator[Folding]:
    """All foldings of a linear layer; lanes other than the source's pay a converter.

    ``source_lanes`` is 0 where the source's beats cannot be taken as they are.
    """
    last_words = 0
    for n in range(1, elements + 1):
        words = _up(elements, n)
        if words == last_words and n != source_lanes:
            continue
        last_words = words
        extra = (
            converter_cost(source_lanes, n, code_bits) if source_lanes else n * n * code_bits / 3.0
        )
        last = 0
        for out_lanes in range(1, outputs + 1):
            folds = _up(outputs, out_lanes)
            if folds == last:
                continue
            last = folds
            cycles = max(source_beats, words * folds)
            cost = extra + _array_cost(n, out_lanes, weight_bits, code_bits, acc_bits)
            yield Folding(
                in_lanes=n, out_lanes=out_lanes, mode=None, window_lanes=0, cycles=cycles, cost=cost
            )


def cheapest(layer: str, candidates: list[Folding], target: int) -> Folding:
    """The least-cost folding of at most ``target`` cycles.

    Raises
    ------
    DoesNotFit
        If even the fastest is slower; the message names the layer and what it can reach.
    """
    fast = [f for f in candidates if f.cycles <= target]
    if not fast:
        best = min(candidates, key=lambda f: f.cycles)
        raise DoesNotFit(
            f"layer {layer} needs at least {best.cycles} cycles a frame, the target allows {target};"
            f" ask for a lower frame rate or a higher clock"
        )
    return min(fast, key=lambda f: (f.cost, f.cycles, f.in_lanes))


def pinned(
    layer: str,
    candidates: list[Folding],
    in_lanes: int,
    out_lanes: int,
    *,
    elements: int,
    outputs: int,
    positions: int,
) -> Folding:
    """The folding with the lanes the user asked for.

    Lanes that no window delivers directly come from the cheapest window that keeps up, through a
    width converter.

    Raises
    ------
    BadInput
        If the lanes are out of range.
    """
    if not 1 <= in_lanes <= elements or not 1 <= out_lanes <= outputs:
        raise BadInput(
            f"lanes of layer {layer} must be 1..{elements} x 1..{outputs}, not {in_lanes} x {out_lanes};"
            " change the pin"
        )
    direct = [f for f in candidates if f.in_lanes == in_lanes]
    folds = _up(outputs, out_lanes)
    work = positions * _up(elements, in_lanes) * folds
    if direct:
        best = min(direct, key=lambda f: f.cost)
        reads = min(f.cycles for f in direct)
        cycles = max(work, reads if best.mode is not None else work)
        return Folding(
            in_lanes=in_lanes,
            out_lanes=out_lanes,
            mode=best.mode,
            window_lanes=best.window_lanes,
            cycles=cycles,
            cost=best.cost,
        )
    # A converter sits behind the window: the window must deliver a position's elements in time.
    options = [
        f for f in candidates if f.out_lanes == outputs
    ]  # one fold: cycles are the window's own
    best = min(options, key=lambda f: (max(f.cycles, work), f.cost))
    return Folding(
        in_lanes=in_lanes,
        out_lanes=out_lanes,
        mode=best.mode,
        window_lanes=best.window_lanes,
        cycles=max(work, best.cycles),
        cost=best.cost,
    )
