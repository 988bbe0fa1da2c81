"""What searches report to: a protocol that :mod:`hwgen.flow.progress` fulfils."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Advance", "Progress", "Silent"]

Advance = Callable[[int, int, str], object]
"""``advance(done, total, text)``: steps done, steps in all, what was reached."""


class Progress(Protocol):
    """What a search reports to."""

    def steps(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """A search of about ``total`` steps; gives :data:`Advance`."""


class Silent:
    """Reports nothing."""

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Advance]:
        yield lambda done, total, text: None
