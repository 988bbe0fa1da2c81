"""The integer network: layers in order, and what they compute together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from hwgen.errors import BadInput, BadNetwork
from hwgen.ir.executor import Executor
from hwgen.ir.formats import TensorType
from hwgen.ir.ops import INPUT, MacOp, Op
from hwgen.ir.ops.base import Codes

__all__ = ["Network"]

CHUNK = 64
"""Frames that :meth:`Network.reference` evaluates at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Network:
    """A network of integer layers.

    Compares by identity; :meth:`same` compares contents.

    Parameters
    ----------
    name : str
    input : TensorType
        Type of the tensor ``"input"``.
    ops : tuple of Op
        Each after those whose tensors it takes.
    output : str
        Name of the tensor that the network returns.

    Raises
    ------
    BadNetwork
        If names repeat, a tensor is missing, unused or of another type than its reader expects, or
        there is no multiply-accumulate layer.
    """

    name: str
    input: TensorType
    ops: tuple[Op, ...]
    output: str

    def __post_init__(self) -> None:
        if not self.name:
            raise BadNetwork("a network's name must not be empty")
        types: dict[str, TensorType] = {INPUT: self.input}
        unused: set[str] = {INPUT}
        for op in self.ops:
            if op.name in types:
                raise BadNetwork(f"layer names must be unique, but two are '{op.name}'; rename one")
            for tensor, expected in zip(op.inputs, op.input_types, strict=True):
                if tensor not in types:
                    later = any(other.name == tensor for other in self.ops)
                    raise op.bad(
                        f"takes the tensor '{tensor}', which "
                        + ("is made later; move that layer first" if later else "no layer makes")
                    )
                if types[tensor] != expected:
                    raise op.bad(f"takes '{tensor}' as {expected}, but it is {types[tensor]}")
                unused.discard(tensor)
            types[op.name] = op.output
            unused.add(op.name)
        if self.output not in types or self.output == INPUT:
            raise BadNetwork(
                f"the network's output must be a layer, not '{self.output}': {list(types)}"
            )
        unused.discard(self.output)
        if unused:
            raise BadNetwork(
                f"every tensor must be used, but these are not: {sorted(unused)}; remove them"
            )
        if not any(isinstance(op, MacOp) for op in self.ops):
            raise BadNetwork(
                f"network '{self.name}' has no multiply-accumulate layer (Conv or Linear); add one"
            )

    @property
    def output_type(self) -> TensorType:
        """Type of the tensor that the network returns."""
        return self.tensor(self.output)

    def op(self, name: str) -> Op:
        """The layer of that name.

        Raises
        ------
        BadInput
            If there is none.
        """
        for op in self.ops:
            if op.name == name:
                return op
        raise BadInput(f"there is no layer '{name}'; the layers are {[op.name for op in self.ops]}")

    def tensor(self, name: str) -> TensorType:
        """The type of the tensor of that name, ``"input"`` included."""
        return self.input if name == INPUT else self.op(name).output

    def check(self, codes: Any) -> np.ndarray[Any, np.dtype[Any]]:
        """``codes`` as an integer array ``(N, *input.shape)`` within the input's range.

        Raises
        ------
        BadInput
            If they are not.
        """
        array = np.asarray(codes)
        if array.dtype.kind not in "iu":
            raise BadInput(
                f"input codes must be integers, not {array.dtype}; quantise and cast them first"
            )
        if array.ndim != 1 + len(self.input.shape) or array.shape[1:] != self.input.shape:
            raise BadInput(
                f"input codes must have the shape (N, {', '.join(map(str, self.input.shape))}),"
                f" not {array.shape}"
            )
        if array.size:
            low, high = _extremes(array, self.input)
            if low < self.input.minimum or high > self.input.maximum:
                raise BadInput(
                    f"input codes must lie within {self.input.minimum}..{self.input.maximum}, not"
                    f" {low}..{high}"
                )
        return array

    def values(self, codes: Any) -> dict[str, Codes]:
        """Codes ``(N, *shape)`` of every tensor by name, ``"input"`` included, through
        ``Op.evaluate``."""
        tensors = {INPUT: self.check(codes).astype(np.int64)}
        for op in self.ops:
            tensors[op.name] = op.evaluate(*(tensors[name] for name in op.inputs))
        return tensors

    def reference(self, codes: Any) -> Codes:
        """Output codes ``(N, *shape)``, layer by layer through ``Op.evaluate``."""
        array = self.check(codes)
        out = np.empty((array.shape[0], *self.output_type.shape), dtype=np.int64)
        for start in range(0, array.shape[0], CHUNK):
            out[start : start + CHUNK] = self.values(array[start : start + CHUNK])[self.output]
        return out

    def evaluate(
        self,
        codes: Any,
        batch: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Codes:
        """Output codes of input codes, fast and in bounded memory.

        Parameters
        ----------
        codes : integer array
            ``(N, *input.shape)``.
        batch : int, optional
            Frames at a time; by default as many as the caches like.
        progress : callable, optional
            Called with (frames done, frames in all) now and then.

        Returns
        -------
        int64 array
            ``(N, *output shape)``.

        Raises
        ------
        BadInput
            If the codes are not integers of the input's shape and range.
        """
        if batch is not None and batch < 1:
            raise BadInput(f"a batch must hold at least 1 frame, not {batch}")
        array = self.check(codes)
        executor = _EXECUTORS.get(self)
        if executor is None:
            executor = _EXECUTORS[self] = Executor({INPUT: self.input}, self.ops, (self.output,))
        return executor.evaluate(array, batch, progress)

    def classify(self, codes: Any) -> Codes:
        """Index of the largest output of each frame, the lowest on a tie, ``(N,)``.

        The output's elements are taken in the order (channel, row, column).
        """
        out = self.evaluate(codes)
        best: Codes = out.reshape(out.shape[0], -1).argmax(axis=1)
        return best

    def same(self, other: Network) -> bool:
        """Whether two networks have equal contents."""
        return (self.name, self.input, self.ops, self.output) == (
            other.name,
            other.input,
            other.ops,
            other.output,
        )


_EXECUTORS: WeakKeyDictionary[Network, Executor] = WeakKeyDictionary()
"""Prepared networks; an executor holds the layers but not the network, so that entries go with
it."""


def _extremes(array: np.ndarray[Any, np.dtype[Any]], kind: TensorType) -> tuple[int, int]:
    """Smallest and largest code, or bounds on them where the array's type cannot exceed
    ``kind``."""
    info = np.iinfo(array.dtype)
    if kind.minimum <= info.min and info.max <= kind.maximum:
        return info.min, info.max
    return int(array.min()), int(array.max())
