"""Checks of what callers give to the methods: options, whole numbers, enumerations, seeds."""

from __future__ import annotations

from enum import Enum
from operator import index
from typing import TypeVar

from hwgen.errors import BadInput

__all__ = ["check_member", "check_options", "check_seed", "check_whole"]

_Options = TypeVar("_Options")

SEEDS = 1 << 32
"""Seeds that all generators in use take: 0 to one less."""


def check_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number in range, as an ``int``.

    Parameters
    ----------
    name : str
        For messages.
    value : object
        Any integer type but bool.
    low, high : int
        The range, both ends included; no upper end where ``high`` is None.

    Raises
    ------
    BadInput
        If it is none.
    """
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise BadInput(f"{name} must be a whole number {wanted}, not {value!r}; change it")
    return number


def check_member(name: str, value: object, kind: type[Enum]) -> None:
    """Refuse what is no member of an enumeration, a member's value too.

    Raises
    ------
    BadInput
    """
    if not isinstance(value, kind):
        known = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
        raise BadInput(f"{name} must be one of {known}, not {value!r}")


def check_seed(seed: int) -> int:
    """A seed of a search.

    Raises
    ------
    BadInput
        If it is not from 0 to 2**32 - 1.
    """
    return check_whole("the seed", seed, 0, SEEDS - 1)


def check_options(options: _Options | None, kind: type[_Options]) -> _Options:
    """The options of a method, its defaults where there are none.

    Raises
    ------
    BadInput
        If they are of another class, such as another method's.
    """
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise BadInput(
            f"the options must be {kind.__name__}(...), not of the class {type(options).__name__};"
            " give those of this method, or none for its defaults"
        )
    return options
