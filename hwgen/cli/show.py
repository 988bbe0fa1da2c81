"""Tables that commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["points_table", "table"]


def table(
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    header: Sequence[str] = ("", ""),
    caption: str | None = None,
) -> None:
    """Print labels and their values.

    Parameters
    ----------
    rows : iterable of sequence of str
        A label and the values; missing ones at the end are left blank.
    title : str, optional
    header : sequence of str
        Titles of the columns, not shown where all are empty.
    caption : str, optional
        What is to be known of the rows.
    """
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, show_header=any(header), caption=caption, caption_justify="left")
    shown.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def points_table(points: list[dict[str, Any]]) -> None:
    """What a sweep found; a column that no point has a figure for is left out."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        ("bits", "bits", "{}"),
        ("fps_target", "frames/s", "{:,.10g}"),
        ("accuracy_integer", "accuracy", "{:.2%}"),
        ("multipliers", "mult.", "{:,}"),
        ("lut", "LUT", "{:,}"),
        ("dsp", "DSP", "{:,}"),
        ("bram_blocks", "BRAM", "{:,}"),
        ("fps", "routed", "{:,.0f}"),
        ("status", "status", "{}"),
    )
    shown = [column for column in columns if any(column[0] in point for point in points)]
    found = Table()
    for _, title, _ in shown:
        found.add_column(title, justify="right")
    for point in points:
        found.add_row(*(form.format(point[key]) if key in point else "" for key, _, form in shown))
    Console().print(found)
