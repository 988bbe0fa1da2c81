"""What all layers share: the base class, constant parameters, and the checks on a requantiser."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwgen.errors import BadNetwork
from hwgen.ir.formats import Fixed, TensorType, signed_width
from hwgen.ir.requant import Requant

__all__ = [
    "ARITHMETIC_BITS",
    "INPUT",
    "Bias",
    "Codes",
    "Op",
    "Weights",
    "check_requant",
    "union_width",
]

Codes = NDArray[np.int64]
"""An array of integer codes or accumulators."""

INPUT = "input"
"""Name of the network's input tensor."""

ARITHMETIC_BITS = 62
"""Signed width that every intermediate value of a network must fit, so that int64 never wraps."""


def _frozen_codes(codes: Any, kind: str, width: int, signed: bool) -> Codes:
    """``codes`` as a read-only int64 copy in row-major order, checked against the format."""
    array = np.asarray(codes)
    if array.dtype.kind not in "iu":
        detail = ""
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            detail = f" with {array[place]} at {place}"
        raise BadNetwork(
            f"{kind} must be integer codes, not {array.dtype}{detail}; quantise them first"
        )
    if array.size == 0:
        raise BadNetwork(f"{kind} must have at least one entry, not shape {array.shape}")
    form = Fixed(width=width, frac=0, signed=signed)
    bad = (array < form.low) | (array > form.high)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BadNetwork(
            f"{kind} of {width} bits {'signed' if signed else 'unsigned'} must lie within"
            f" {form.low}..{form.high}, not {array[place]} at {place}; give more bits or saturate"
        )
    out = np.array(array, dtype=np.int64, order="C")
    out.setflags(write=False)
    return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """Constant weights: code ``q`` stands for ``q * scale``.

    Parameters
    ----------
    codes : int64 array
        ``(out, in / groups, rows, columns)`` of a convolution, ``(out, in)`` of a linear layer:
        what is multiplied. Stored as a read-only copy.
    width : int
        Bits of a code, 1 to 32. A signed code of one bit is -1 or 0.
    signed : bool
    scale : tuple of float
        Positive and finite; one for the tensor or one for each output channel.
    codebook : tuple of int, optional
        The values that codes may have, rising, at least one. The hardware stores the place of a
        code in the codebook, :attr:`stored_width` bits, and looks the code up.

    Raises
    ------
    BadNetwork
        If a code is no integer, does not fit the width or is not in the codebook.
    """

    codes: Codes
    width: int
    signed: bool = True
    scale: tuple[float, ...] = (1.0,)
    codebook: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 32:
            raise BadNetwork(f"the width of weights must be 1 to 32 bits, not {self.width}")
        if not self.scale or not all(isfinite(scale) and scale > 0 for scale in self.scale):
            raise BadNetwork(f"the scale of weights must be positive and finite, not {self.scale}")
        codes = _frozen_codes(self.codes, "weights", self.width, self.signed)
        object.__setattr__(self, "codes", codes)
        if len(self.scale) not in (1, len(codes)):
            raise BadNetwork(
                f"the scale of weights must have 1 entry or one for each of the {len(codes)} output"
                f" channels, not {len(self.scale)}"
            )
        if self.codebook is not None:
            self._check_codebook(self.codebook)

    def _check_codebook(self, codebook: tuple[int, ...]) -> None:
        if not codebook:
            raise BadNetwork("a codebook must have at least one entry; leave it out or add them")
        entries = _frozen_codes(list(codebook), "a codebook", self.width, self.signed)
        if (np.diff(entries) <= 0).any():
            raise BadNetwork(f"the entries of a codebook must rise, not be {codebook}; sort them")
        unknown = ~np.isin(self.codes, entries)
        if unknown.any():
            place = tuple(int(i) for i in np.argwhere(unknown)[0])
            raise BadNetwork(
                f"weights with a codebook must be its entries {codebook}, not {self.codes[place]}"
                f" at {place}; add that entry or take the nearest"
            )

    @property
    def stored_width(self) -> int:
        """Bits of a weight in memory: of a place in the codebook where there is one."""
        if self.codebook is None:
            return self.width
        return max(1, (len(self.codebook) - 1).bit_length())

    @property
    def stored(self) -> Codes:
        """What the memory holds, in the shape of ``codes``: places in the codebook, or codes."""
        if self.codebook is None:
            return self.codes
        return np.searchsorted(np.array(self.codebook, dtype=np.int64), self.codes)

    def _format(self) -> tuple[object, ...]:
        return self.width, self.signed, self.scale, self.codebook

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weights):
            return NotImplemented
        return self._format() == other._format() and np.array_equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash((self._format(), self.codes.shape, self.codes.tobytes()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bias:
    """Constant biases: ``codes << shift`` is added at the accumulator's scale.

    Parameters
    ----------
    codes : int64 array
        ``(out,)``. Stored as a read-only copy.
    width : int
        Bits of a (signed) code, 1 to 62.
    shift : int
        At least 0; ``width + shift`` at most 62.

    Raises
    ------
    BadNetwork
        If a code is no integer or does not fit the width.
    """

    codes: Codes
    width: int
    shift: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= ARITHMETIC_BITS:
            raise BadNetwork(
                f"the width of a bias must be 1 to {ARITHMETIC_BITS} bits, not {self.width}"
            )
        if not 0 <= self.shift <= ARITHMETIC_BITS - self.width:
            raise BadNetwork(
                f"the shift of a bias of {self.width} bits must be 0 to"
                f" {ARITHMETIC_BITS - self.width},"
                f" not {self.shift}"
            )
        codes = _frozen_codes(self.codes, "a bias", self.width, True)
        if codes.ndim != 1:
            raise BadNetwork(f"a bias must have the shape (out,), not {codes.shape}")
        object.__setattr__(self, "codes", codes)

    @property
    def values(self) -> Codes:
        """What is added to the accumulators, ``(out,)``."""
        return self.codes << self.shift

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bias):
            return NotImplemented
        return (self.width, self.shift) == (other.width, other.shift) and np.array_equal(
            self.codes, other.codes
        )

    def __hash__(self) -> int:
        return hash((self.width, self.shift, self.codes.tobytes()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A layer: takes the codes of some tensors and makes the codes of one.

    Parameters
    ----------
    name : str
        Name of the layer and of the tensor that it makes.
    inputs : tuple of str
        Names of the tensors that it takes; ``"input"`` is the network's input.
    output : TensorType
        Type of the tensor that it makes.

    Raises
    ------
    BadNetwork
        If the parameters contradict one another; the message names the layer.
    """

    name: str
    inputs: tuple[str, ...]
    output: TensorType

    def __post_init__(self) -> None:
        if not self.name.isprintable() or self.name in ("", INPUT):
            raise BadNetwork(
                f"a layer's name must be printable and not empty or '{INPUT}', not '{self.name}'"
            )
        for kind in (*self.input_types, self.output):
            if kind.width > ARITHMETIC_BITS or kind.zero.bit_length() >= ARITHMETIC_BITS:
                raise self.bad(
                    f"has codes of {kind.width} bits with the zero point {kind.zero}; at most"
                    f" {ARITHMETIC_BITS} bits can be computed with"
                )
        if len(self.inputs) != len(self.input_types):
            raise self.bad(
                f"takes {len(self.input_types)} tensors, not {len(self.inputs)}: {self.inputs}"
            )

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        """Types of the tensors that the layer takes, in the order of ``inputs``."""
        raise NotImplementedError

    def evaluate(self, *inputs: Codes) -> Codes:
        """The layer's integer meaning.

        Parameters
        ----------
        *inputs : int64 arrays
            Codes ``(N, *shape)`` of the input tensors.

        Returns
        -------
        int64 array
            Codes ``(N, *shape)`` of the output tensor.
        """
        raise NotImplementedError

    def bad(self, problem: str) -> BadNetwork:
        """The error that says what is wrong with this layer."""
        return BadNetwork(f"layer '{self.name}' ({type(self).__name__}) {problem}")


def union_width(low: Codes, high: Codes) -> int:
    """Smallest signed width that holds 0 and, for every channel, ``low..high``."""
    return signed_width(min(int(low.min()), 0), max(int(high.max()), 0))


def same_interval(op: Op, channels: int, low: int, high: int) -> tuple[Codes, Codes]:
    """One interval for all channels.

    Raises
    ------
    BadNetwork
        If it needs more than 62 bits.
    """
    if signed_width(min(low, 0), max(high, 0)) > ARITHMETIC_BITS:
        raise op.bad(
            f"has accumulators of {low}..{high}, more than {ARITHMETIC_BITS} bits; use narrower"
            " codes"
        )
    return np.full(channels, low, dtype=np.int64), np.full(channels, high, dtype=np.int64)


def check_output_shape(op: Op, shape: tuple[int, ...]) -> None:
    """Refuse an output type of another shape than the layer makes."""
    if op.output.shape != shape:
        raise op.bad(f"makes the shape {shape}, but its output type says {op.output.shape}")


def check_same_format(op: Op, kind: str, first: TensorType, second: TensorType) -> None:
    """Refuse two types that differ in storage, scale, zero or range."""

    def form(t: TensorType) -> tuple[object, ...]:
        return t.width, t.signed, t.scale, t.zero, t.low, t.high

    if form(first) != form(second):
        raise op.bad(
            f"needs {kind} in one format (width, signed, scale, zero, low, high), not"
            f" {form(first)} and"
            f" {form(second)}; requantise first"
        )


def check_requant(op: Op, requant: Requant, low: Codes, high: Codes) -> None:
    """Refuse a requantiser that does not fit a layer.

    Parameters
    ----------
    low, high : int64 arrays
        Interval of the accumulators of each channel, ``(channels,)``.

    Raises
    ------
    BadNetwork
        If the number of channels, the zero point or the bounds contradict the output type, or an
        intermediate value needs more than 62 bits.
    """
    channels = low.shape[0]
    if requant.channels not in (1, channels):
        raise op.bad(f"has {channels} channels, but its requantiser has {requant.channels}")
    if requant.zero != op.output.zero:
        raise op.bad(
            f"requantises to the zero point {requant.zero}, but its output type says"
            f" {op.output.zero}"
        )
    if min(requant.low) < op.output.minimum or max(requant.high) > op.output.maximum:
        raise op.bad(
            f"saturates to {min(requant.low)}..{max(requant.high)}, outside of its output type's"
            f" {op.output.minimum}..{op.output.maximum}; clip to the type's range"
        )
    limit = 1 << (ARITHMETIC_BITS - 1)
    for channel in range(channels):

        def pick(values: tuple[int, ...], channel: int = channel) -> int:
            return values[channel] if len(values) > 1 else values[0]

        shift, mult, add = pick(requant.shift), pick(requant.mult), pick(requant.add)
        ends = [int(low[channel]), int(high[channel])]
        if requant.relu:
            ends = [max(end, 0) for end in ends]
        worst = max(abs(end * mult + add) for end in ends) + (1 << shift) + abs(requant.zero)
        if shift >= ARITHMETIC_BITS or worst >= limit:
            raise op.bad(
                f"needs {worst.bit_length() + 1} bits to requantise channel {channel} (accumulators"
                f" {int(low[channel])}..{int(high[channel])}, mult {mult}, add {add}, shift"
                f" {shift}), more"
                f" than {ARITHMETIC_BITS}; use a smaller mult and shift"
            )
