"""Progress of long steps: bars and spinners on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

__all__ = ["Console", "Progress", "Shown", "Silent"]

Advance = Callable[[int, int], None]


class Progress(Protocol):
    """What a step reports to."""

    def spinner(self, what: str) -> AbstractContextManager[None]:
        """A step of unknown length."""

    def bar(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """A step of known length; gives ``advance(done, total)``."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def spinner(self, what: str) -> Iterator[None]:
        yield

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        yield lambda done, total: None


class Shown:
    """Shows steps on a console: moving where it is a terminal, one line a step where it is not."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def spinner(self, what: str) -> Iterator[None]:
        if not self.console.is_terminal:
            self.console.print(f"{what} ...", highlight=False)
            yield
            return
        with self.console.status(what):
            yield
        self.console.print(f"{what}: done", highlight=False)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        if not self.console.is_terminal:
            self.console.print(f"{what}, {total} images ...", highlight=False)
            yield lambda done, total: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(what, total=total)
            yield lambda done, total: bars.update(task, completed=done, total=total)
