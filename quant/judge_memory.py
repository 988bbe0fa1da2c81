"""What a judge remembers: which networks begin alike, and activations to start from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from hwgen.ir import INPUT, Network, Op
from hwgen.ir.executor import fused_pools

if TYPE_CHECKING:
    from hashlib import blake2b as Hash  # noqa: N812

    from quant.judge_runner import Parts

__all__ = ["Boundary", "Digests", "Memory", "can_cut", "live_tensors"]

KNOWN_OPS = 256
"""Layers whose digest is known by identity."""

KNOWN_PREFIXES = 1 << 16
"""Beginnings of networks that are remembered."""


class Digests:
    """Digests of the beginnings of networks: equal for equal layers, whatever their objects."""

    def __init__(self) -> None:
        # Holds the layers, so that no other takes one's id.
        self._known: OrderedDict[int, tuple[Op, bytes]] = OrderedDict()

    def prefixes(self, network: Network) -> list[bytes]:
        """The digest of the input and the first ``i`` layers at place ``i``."""
        value = blake2b(repr(network.input).encode(), digest_size=16).digest()
        out = [value]
        for op in network.ops:
            value = blake2b(value + self._digest(op), digest_size=16).digest()
            out.append(value)
        return out

    def _digest(self, op: Op) -> bytes:
        known = self._known.get(id(op))
        if known is None:
            state = blake2b(digest_size=16)
            _feed(state, op)
            known = self._known[id(op)] = op, state.digest()
            if len(self._known) > KNOWN_OPS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(id(op))
        return known[1]


def _feed(state: Hash, value: object) -> None:
    """Add a value's contents to a digest, unambiguously."""
    if isinstance(value, np.ndarray):
        small = value.astype(np.int8)  # an eighth to digest where it holds all
        value = small if np.array_equal(small, value) else np.ascontiguousarray(value)
        state.update(f"{value.dtype}{value.shape}".encode())
        state.update(value.data)
    elif is_dataclass(value):
        state.update(f"{type(value).__name__}(".encode())
        for field in fields(value):
            state.update(f"{field.name}=".encode())
            _feed(state, getattr(value, field.name))
        state.update(b")")
    else:  # a string, number or tuple of such: its text tells it apart
        state.update(f"{value!r};".encode())


def live_tensors(network: Network, place: int) -> set[str]:
    """Tensors that exist after ``place`` layers and that later layers read."""
    later = {name for op in network.ops[place:] for name in op.inputs} | {network.output}
    return later & {INPUT, *(op.name for op in network.ops[:place])}


def can_cut(network: Network, place: int) -> bool:
    """Whether starting after ``place`` layers computes no max pool apart from the convolution that
    it is computed with, before its requantiser."""
    fused = fused_pools(network.ops, (network.output,))
    before = {op.name for op in network.ops[:place]}
    return all((conv in before) == (pool.name in before) for conv, pool in fused.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Activations of all images after the first layers of a network.

    Parameters
    ----------
    place : int
        Number of layers.
    tensors : mapping of str to Parts
        What later layers read, but for the images.
    bytes : int
        Memory that they take.
    """

    place: int
    tensors: Mapping[str, Parts]
    bytes: int


@dataclass(slots=True)
class _Kept:
    boundary: Boundary
    value: float
    """Work that it saves, in multiplications of a frame a byte."""
    priority: float


class Memory:
    """Beginnings of networks seen, and activations within a budget.

    Parameters
    ----------
    budget : int
        Bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._kept: dict[bytes, _Kept] = {}
        self._clock = 0.0

    def saw(self, prefixes: list[bytes]) -> None:
        """Remember the beginnings of a network."""
        for key in prefixes[1:]:
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > KNOWN_PREFIXES:
            self._seen.popitem(last=False)

    def shared(self, prefixes: list[bytes]) -> int:
        """Layers that a network has in common with one seen, from the first on."""
        return next((i for i in range(len(prefixes) - 1, 0, -1) if prefixes[i] in self._seen), 0)

    def fits(self, size: int) -> bool:
        """Whether activations of so many bytes can be kept, if need be without all others."""
        return size <= self.budget

    def deepest(self, network: Network, prefixes: list[bytes]) -> Boundary | None:
        """The latest boundary kept from which a network can go on."""
        for place in range(len(prefixes) - 1, 0, -1):
            kept = self._kept.get(prefixes[place])
            if kept is None:
                continue
            if live_tensors(network, place) - {INPUT} <= kept.boundary.tensors.keys():
                kept.priority = self._clock + kept.value
                return kept.boundary
        return None

    def keep(self, key: bytes, boundary: Boundary, work: int) -> None:
        """Keep a boundary that fits, dropping the least useful ones where there is no room.

        Parameters
        ----------
        work : int
            Multiplications of a frame that it saves.
        """
        old = self._kept.pop(key, None)
        if old is not None:
            self.used -= old.boundary.bytes
        while self.used + boundary.bytes > self.budget:
            worst = min(self._kept, key=lambda k: self._kept[k].priority)
            gone = self._kept.pop(worst)
            self._clock = gone.priority
            self.used -= gone.boundary.bytes
        value = (work + 1) / max(boundary.bytes, 1)
        self._kept[key] = _Kept(boundary, value, self._clock + value)
        self.used += boundary.bytes
