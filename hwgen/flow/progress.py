"""Progress of long steps: bars and spinners on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

__all__ = ["Console", "Progress", "Shown", "Silent"]

Advance = Callable[[int, int], None]
StepAdvance = Callable[[int, int, str], None]

LINE_SECONDS = 10.0
"""Least seconds between two lines of a search where there is no terminal."""


class Progress(Protocol):
    """What a step reports to."""

    def spinner(self, what: str) -> AbstractContextManager[None]:
        """A step of unknown length."""

    def bar(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """A step of known length; gives ``advance(done, total)``."""

    def steps(self, what: str, total: int) -> AbstractContextManager[StepAdvance]:
        """A search of about ``total`` steps; gives ``advance(done, total, text)``, the text saying
        what was reached."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def spinner(self, what: str) -> Iterator[None]:
        yield

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        yield lambda done, total: None

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[StepAdvance]:
        yield lambda done, total, text: None


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

    @contextmanager
    def steps(self, what: str, total: int) -> Iterator[StepAdvance]:
        if not self.console.is_terminal:
            with self._lines(what) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn(  # what a narrow terminal has no place for is cut off, not the time
                "{task.fields[text]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
        )
        with Bars(*columns, console=self.console, expand=True) as bars:
            task = bars.add_task(what, total=total, text="")
            yield lambda done, total, text: bars.update(
                task, completed=done, total=total, text=text
            )

    @contextmanager
    def _lines(self, what: str) -> Iterator[StepAdvance]:
        """A line at the start, and then one every :data:`LINE_SECONDS` at most."""
        self.console.print(f"{what} ...", highlight=False, markup=False)
        last = time.monotonic()

        def advance(done: int, total: int, text: str) -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= LINE_SECONDS:
                last = now
                line = f"{what}: {done} of {total}{', ' + text if text else ''} ..."
                self.console.print(line, highlight=False, markup=False)

        yield advance
