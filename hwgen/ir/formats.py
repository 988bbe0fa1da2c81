"""Number formats: what an integer code stands for and which codes may occur."""

from __future__ import annotations

from dataclasses import dataclass

from hwgen.errors import BadNetwork

__all__ = ["Fixed", "TensorType", "signed_width", "width_of"]


def signed_width(low: int, high: int) -> int:
    """Width in bits of the smallest signed two's-complement format that holds ``low`` and
    ``high``."""
    return (
        max((low if low >= 0 else ~low).bit_length(), (high if high >= 0 else ~high).bit_length())
        + 1
    )


def width_of(low: int, high: int) -> tuple[int, bool]:
    """Smallest ``(width, signed)`` that holds ``low..high``; unsigned where nothing is negative.

    >>> width_of(0, 255), width_of(-1, 0), width_of(0, 0)
    ((8, False), (1, True), (1, False))
    """
    if low >= 0:
        return max(high.bit_length(), 1), False
    return signed_width(low, high), True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A two's-complement fixed-point format: code ``q`` stands for ``(q - zero) * 2 ** -frac``.

    Parameters
    ----------
    width : int
        Storage bits, sign bit included. At least 1.
    frac : int
        Fraction bits. May be negative or exceed ``width``.
    signed : bool
        Whether the top bit has negative weight.
    zero : int
        The code that stands for 0, one of the format's.

    Raises
    ------
    BadNetwork
        If the width is below 1 or ``zero`` is no code.

    >>> Fixed(width=4, frac=2, signed=False).codes
    range(0, 16)
    """

    width: int
    frac: int
    signed: bool
    zero: int = 0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise BadNetwork(f"the width of a format must be at least 1 bit, not {self.width}")
        if not self.low <= self.zero <= self.high:
            raise BadNetwork(
                f"the code of 0 must be one of {self.low}..{self.high}, what {self.width} bits"
                f" {'signed' if self.signed else 'unsigned'} hold, not {self.zero}"
            )

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.width - self.signed)) - 1

    @property
    def codes(self) -> range:
        """All codes, in order."""
        return range(self.low, self.high + 1)

    @property
    def scale(self) -> float:
        """Value of one code step."""
        return 2.0**-self.frac


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """Shape, storage and meaning of a tensor of integer codes, without the batch axis.

    Code ``q`` stands for the real number ``(q - zero) * scale``.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` or ``(features,)``.
    width, signed
        Storage format. At least 1 bit.
    scale : float
        Value of one code step, positive; ``2 ** -frac`` for fixed point.
    zero : int
        The code that stands for 0.
    low, high : int, optional
        Range of codes that can occur, where it is proved narrower than the storage allows.

    Raises
    ------
    BadNetwork
        If a dimension or the width is below 1, or the range is empty or exceeds the storage.
    """

    shape: tuple[int, ...]
    width: int
    signed: bool
    scale: float = 1.0
    zero: int = 0
    low: int | None = None
    high: int | None = None

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise BadNetwork(
                "a tensor's shape must be (channels, height, width) or (features,), each at least"
                " 1,"
                f" not {self.shape}"
            )
        storage = Fixed(width=self.width, frac=0, signed=self.signed)
        if not 0.0 < self.scale < float("inf"):
            raise BadNetwork(f"a tensor's scale must be positive and finite, not {self.scale}")
        object.__setattr__(self, "low", storage.low if self.low is None else self.low)
        object.__setattr__(self, "high", storage.high if self.high is None else self.high)
        if not storage.low <= self.minimum <= self.maximum <= storage.high:
            raise BadNetwork(
                f"a tensor's range {self.low}..{self.high} must lie within"
                f" {storage.low}..{storage.high},"
                f" what {self.width} bits {'signed' if self.signed else 'unsigned'} hold"
            )

    @property
    def minimum(self) -> int:
        """Smallest code that can occur."""
        assert self.low is not None
        return self.low

    @property
    def maximum(self) -> int:
        """Largest code that can occur."""
        assert self.high is not None
        return self.high

    @property
    def channels(self) -> int:
        """Channels of an image, or features of a vector."""
        return self.shape[0]

    @property
    def pixels(self) -> int:
        """``height * width`` of an image, 1 for a vector."""
        return self.shape[1] * self.shape[2] if len(self.shape) == 3 else 1

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.channels * self.pixels
