"""From a network and a target to a dataflow: folding by the exact interval, rings as small as it allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hwgen.errors import BadInput, BadNetwork, DoesNotFit
from hwgen.ir.network import Network
from hwgen.ir.walk import WindowMode
from hwgen.lower.chain import Pins, module_name
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.lowering import build_stages
from hwgen.lower.schedule import solve
from hwgen.lower.stages import Mac, Stage, Window

__all__ = ["lower", "lower_to_multipliers", "shrink_rings"]


def lower(
    network: Network,
    *,
    cycles: int,
    pins: Pins | None = None,
    argmax: bool = False,
    name: str | None = None,
) -> Dataflow:
    """Choose lanes, buffers and order for ``network``.

    Parameters
    ----------
    network : Network
    cycles : int
        Cycles a frame may take in steady state, at least 1.
    pins : mapping of str to (int, int), optional
        Layers with lanes fixed by the user: ``(in_lanes, out_lanes)``. They may be slower than ``cycles``.
    argmax : bool
        Deliver the class instead of the network's outputs.
    name : str, optional
        Name of the top module; the network's own by default.

    Raises
    ------
    BadInput
        If ``cycles`` or a pin is out of range.
    UnsupportedLayer
        If a layer has no hardware; all such layers are named.
    DoesNotFit
        If a layer cannot reach ``cycles`` with all its lanes.

    Examples
    --------
    ``lower(network, cycles=20_000).interval`` is at most 20,000.
    """
    if cycles < 1:
        raise BadInput(f"the cycles a frame may take must be at least 1, not {cycles}")
    top = module_name(name or network.name)
    target = cycles
    best: Dataflow | None = None
    for _ in range(6):
        try:
            dataflow = build_stages(
                network, target=target, pins=pins or {}, argmax=argmax, name=top
            )
        except DoesNotFit:
            if best is None:
                raise
            break
        if best is None or dataflow.interval < best.interval:
            best = dataflow
        if best.interval <= cycles:
            break
        # Waiting between stages cost some cycles: aim lower by as much.
        if _pinned_slow(best, cycles, pins or {}):
            break
        target = max(1, min(target - 1, target * cycles // dataflow.interval))
    assert best is not None
    if best.interval > cycles and not _pinned_slow(best, cycles, pins or {}):
        free = [stage for stage in best.stages if stage.layer not in (pins or {})]
        slowest = max(free or best.stages, key=lambda stage: stage.cycles)
        raise DoesNotFit(
            f"the network needs {best.interval} cycles a frame, the target allows {cycles}; stage"
            f" {slowest.name} alone takes {slowest.cycles}; ask for a lower frame rate or a higher clock"
        )
    return shrink_rings(best)


def _pinned_slow(dataflow: Dataflow, cycles: int, pins: Pins) -> bool:
    """Whether only layers that the user pinned take more than ``cycles``."""
    slow = [stage.layer for stage in dataflow.stages if stage.cycles > cycles]
    return bool(slow) and all(layer in pins for layer in slow)


def lower_to_multipliers(
    network: Network,
    *,
    multipliers: int,
    pins: Pins | None = None,
    argmax: bool = False,
    name: str | None = None,
) -> Dataflow:
    """The fastest dataflow that has at most ``multipliers`` multipliers.

    Takes the same options as :func:`lower`.

    Raises
    ------
    DoesNotFit
        If even one multiplier a layer is too many.
    """
    slow = max(sum(op.macs for op in network.ops if hasattr(op, "macs")), network.input.size) * 2
    fast = 1
    best: Dataflow | None = None
    while fast < slow:
        middle = (fast + slow) // 2
        try:
            dataflow = build_stages(
                network,
                target=middle,
                pins=pins or {},
                argmax=argmax,
                name=module_name(name or network.name),
            )
            fits = dataflow.multipliers <= multipliers
        except DoesNotFit:
            fits = False
        if fits:
            slow, best = middle, dataflow
        else:
            fast = middle + 1
    if best is None:
        raise DoesNotFit(
            f"no folding of {network.name} has at most {multipliers} multipliers; allow at least one for each"
            " convolution and linear layer"
        )
    return shrink_rings(best)


def _ring_options(stage: Stage) -> Iterator[Stage]:
    """The stage with smaller rings, smallest first."""
    if isinstance(stage, Window):
        geometry, walk = stage.walk.geometry, stage.walk
        least, kernel = walk.minimum_depth(), geometry.kernel[0]
        if walk.mode is WindowMode.TAP:
            row = geometry.width * walk.groups
            rows = sorted({kernel + extra for extra in (0, 1, geometry.stride[0])})
            sizes = [least, least + walk.groups * geometry.stride[1], *(r * row for r in rows)]
        else:
            sizes = list(range(least, stage.depth, kernel))
        for depth in sorted(set(sizes)):
            if least <= depth < stage.depth:
                yield replace(stage, depth=depth)
    if isinstance(stage, Mac) and stage.folds > 1:
        for capacity in sorted({stage.words, stage.words + 4, stage.words * 3 // 2}):
            if stage.words <= capacity < stage.capacity:
                yield replace(stage, capacity=capacity)


def shrink_rings(dataflow: Dataflow) -> Dataflow:
    """Reduce every ring as far as the frame interval stays the same, from the first stage to the last."""
    best = dataflow
    for index, stage in enumerate(dataflow.stages):
        for option in _ring_options(stage):
            stages = (*best.stages[:index], option, *best.stages[index + 1 :])
            candidate = replace(best, stages=stages)
            try:
                if solve(candidate.actors(), march=False).interval <= best.interval:
                    best = candidate
                    break
            except BadNetwork:  # too small to run, or only just
                continue
    return best
