"""What the Verilog of a dataflow must hold, derived from the stages alone: for the audit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hwgen.cost.audit import AuditFacts, MemoryFact, ModuleFacts, MultiplierFact
from hwgen.ir.memory import rom_chunks
from hwgen.ir.walk import WindowMode
from hwgen.lower.dataflow import Dataflow
from hwgen.lower.stages import Mac, Reduce, Stage, Window
from rtl.buffer import SHIFTED_DEPTH

__all__ = ["audit_facts"]


def _packed(rows: NDArray[np.int64], width: int) -> tuple[int, ...]:
    """Each row's codes as one word, the first in the lowest bits."""
    mask = (1 << width) - 1
    return tuple(sum((int(c) & mask) << (k * width) for k, c in enumerate(row)) for row in rows)


def _rom(name: str, words: Sequence[int], width: int) -> Iterator[MemoryFact]:
    """A read-only memory; where all words are equal there is none."""
    if len(set(words)) > 1:
        yield MemoryFact(name=name, width=width, depth=len(words), words=tuple(words))


def _weights(words: Sequence[int], width: int) -> Iterator[MemoryFact]:
    """The weight memory, split by depth where it is deep."""
    chunks = rom_chunks(len(words), width)
    for k, chunk in enumerate(chunks):
        name = f"rom_{k}" if len(chunks) > 1 else "rom"
        yield from _rom(name, words[chunk.start : chunk.stop], width)


def _array(module: str, stage: Mac) -> ModuleFacts:
    """Accumulators of every lane, and a multiplier wherever the weight is not always the same."""
    out_lanes, in_lanes = stage.o.lanes, stage.i.lanes
    stored = stage.stored.reshape(-1, out_lanes, in_lanes)
    varies = (stored != stored[0]).any(axis=0)
    by_place = stage.weights.reshape(-1, out_lanes, in_lanes)
    # Of an accumulator that never changes nothing is left.
    used = (by_place != 0).any(axis=(0, 2))
    # Lanes of the same constants are merged; which one stays is not ours to say.
    same = [
        (*stored[0, o], *stage.bias[0, o : o + 1])
        if not varies[o].any() and (stage.bias[:, o] == stage.bias[0, o]).all()
        else None
        for o in range(out_lanes)
    ]
    used &= np.array([key is None or same.count(key) == 1 for key in same])
    return ModuleFacts(
        module=module,
        registers=tuple((f"acc_{o}", stage.accumulator_width) for o in range(out_lanes) if used[o]),
        multipliers=tuple(
            MultiplierFact(product=f"product_{o}_{i}", operands=(stage.weight_width, stage.i.width))
            for o in range(out_lanes)
            for i in range(in_lanes)
            if varies[o, i]
        ),
    )


def _stored(stage: Mac) -> Iterator[MemoryFact]:
    """The weight memory and, for each weight of a word that varies, its table of the codebook."""
    stored = stage.stored.reshape(-1, stage.multipliers)
    marked = stage.left_over.reshape(-1, stage.i.lanes)
    marks = marked[:, marked.any(axis=0)].astype(np.int64)
    width = stage.multipliers * stage.stored_width
    words = [
        places | bits << width
        for places, bits in zip(_packed(stored, stage.stored_width), _packed(marks, 1), strict=True)
    ]
    yield from _weights(words, width + marks.shape[1])
    if stage.codebook is not None:
        mask = (1 << stage.weight_width) - 1
        for place in np.flatnonzero((stored != stored[0]).any(axis=0)):
            yield MemoryFact(
                name=f"codebook_{place}",
                width=stage.weight_width,
                depth=len(stage.codebook),
                words=tuple(entry & mask for entry in stage.codebook),
            )


def _mac(top: str, stage: Mac) -> Iterator[ModuleFacts]:
    prefix = f"{top}_{stage.name}"
    yield _array(f"{prefix}_array", stage)
    memories = tuple(_stored(stage))
    if memories:
        yield ModuleFacts(module=f"{prefix}_weights", memories=memories)
    width = stage.accumulator_width
    varying = (stage.bias != stage.bias[0]).any(axis=0)  # the other lanes hold theirs as constants
    biases = _packed(stage.bias[:, varying], width)
    if varying.any():
        rom = tuple(_rom("rom", biases, width * int(varying.sum())))
        yield ModuleFacts(module=f"{prefix}_array_bias", memories=rom)
    vector = MemoryFact(name="ram", width=stage.i.bits, depth=stage.capacity)
    yield ModuleFacts(module=f"{prefix}_vector", memories=(vector,))


def _window(top: str, stage: Window) -> ModuleFacts:
    """One memory, or one for each kernel row."""
    banks, names = 1, ["ram"]
    if stage.walk.mode is not WindowMode.TAP:
        banks = stage.walk.geometry.kernel[0]
        names = [f"ram_{bank}" for bank in range(banks)]
    memories = tuple(
        MemoryFact(name=name, width=stage.i.bits, depth=stage.words // banks) for name in names
    )
    return ModuleFacts(module=f"{top}_{stage.name}_ring", memories=memories)


def _buffer(top: str, stage: Stage) -> ModuleFacts:
    """The output buffer; a shallow one is made of registers and holds no memory."""
    memories: tuple[MemoryFact, ...] = ()
    if stage.out_depth > SHIFTED_DEPTH:
        memories = (MemoryFact(name="fifo", width=stage.o.bits, depth=stage.out_depth),)
    return ModuleFacts(module=f"{top}_{stage.name}_buffer", memories=memories)


def _reduce(top: str, stage: Reduce) -> ModuleFacts:
    width = stage.accumulator_width
    registers = tuple((f"acc_{lane}", width) for lane in range(stage.o.lanes))
    return ModuleFacts(module=f"{top}_{stage.name}", registers=registers)


def audit_facts(dataflow: Dataflow, top: str) -> AuditFacts:
    """Accumulators, multipliers, and memories with their contents, by Verilog module.

    Parameters
    ----------
    dataflow : Dataflow
    top : str
        Name of the top module.
    """
    modules: list[ModuleFacts] = []
    for stage in dataflow.stages:
        if isinstance(stage, Mac):
            modules += _mac(top, stage)
        elif isinstance(stage, Window):
            modules.append(_window(top, stage))
        elif isinstance(stage, Reduce):
            modules.append(_reduce(top, stage))
        modules.append(_buffer(top, stage))
    return AuditFacts(modules=tuple(modules))
