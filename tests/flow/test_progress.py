"""What searches report: nothing, lines, or a bar."""

from __future__ import annotations

import io

import pytest

from hwgen.flow import progress
from hwgen.flow.progress import Console, Shown, Silent


def shown(*, terminal: bool, width: int = 120) -> tuple[Shown, io.StringIO]:
    file = io.StringIO()
    return Shown(Console(file=file, force_terminal=terminal, width=width)), file


def test_silent() -> None:
    with Silent().steps("search", 3) as advance:
        advance(1, 3, "best 90%")


def test_lines_are_far_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    reporter, file = shown(terminal=False)
    with reporter.steps("search", 3) as advance:
        advance(1, 3, "best [90%]")
        now += progress.LINE_SECONDS
        advance(2, 3, "best [91%]")
        advance(3, 3, "best [92%]")
        now += progress.LINE_SECONDS
        advance(4, 4, "")
    assert file.getvalue() == ("search ...\nsearch: 2 of 3, best [91%] ...\nsearch: 4 of 4 ...\n")


def test_a_bar_on_a_terminal() -> None:
    reporter, file = shown(terminal=True)
    with reporter.steps("search", 3) as advance:
        advance(2, 5, "best [91%]")
    text = file.getvalue()
    assert "search" in text
    assert "2/5" in text
    assert "best [91%]" in text


def test_a_narrow_terminal_cuts_the_text_alone() -> None:
    reporter, file = shown(terminal=True, width=60)
    with reporter.steps("search", 3) as advance:
        advance(2, 5, "54.4% of memory and 83.9% of multiplication saved, too inaccurate")
    text = file.getvalue()
    assert "2/5" in text
    assert "0:00:00" in text
    assert "54.4%" in text
    assert "inaccurate" not in text
