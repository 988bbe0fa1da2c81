"""A search that is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quant.progress import Advance


class Stop(Exception):
    pass


class Stopper:
    """Progress that stops a search after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[Advance]:
        def advance(done: int, of: int, text: str) -> None:
            self.left -= 1
            if self.left < 0:
                raise Stop

        yield advance
