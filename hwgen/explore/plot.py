"""Accuracy against LUTs as a picture, equal bytes for equal points."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from hwgen.explore.point import Point, front
from hwgen.targets import Family, Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_against_lut"]

_MARKERS = "osD^v<>Ph*X"
# Okabe and Ito: told apart with any colour vision, and in grey by the markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Where labels stand, in points: neighbours are most often of the next frame rate.
_PLACES = ((-6, -12), (6, -12), (6, 5), (-6, 5))
_GREY = "#666666"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "hwgen",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
}


def accuracy_against_lut(
    points: Sequence[Point], *, title: str, images: int, part: Part
) -> tuple[bytes, bytes]:
    """Draw the points that have LUTs, by frame rate, with the Pareto front of each.

    Parameters
    ----------
    points : sequence of Point
        At least one.
    title : str
    images : int
        Test images behind the accuracies.
    part : Part
        Its LUTs are marked where points come near.

    Returns
    -------
    png, svg : bytes
    """
    shown = [point for point in points if point.lut is not None]
    if len(shown) < len(points):
        title += f" (points without LUT count: {len(points) - len(shown)} of {len(points)})"
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, rate in enumerate(sorted({point.fps_target for point in points})):
            _draw_rate(axes, [p for p in shown if p.fps_target == rate], rate, index)
        _draw_limits(axes, shown, points[0].accuracy_float, part)
        cells = "logic cells" if part.family is Family.ICE40 else "LUTs"
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(f"{cells} after synthesis")
        axes.set_ylabel(f"top-1 accuracy on {images:,} test images (%)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.margins(x=0.12, y=0.12)
        axes.legend(handles=_keys(points, axes), title="labels: bits", fontsize=9, loc="best")
        return _save(figure, "png", {"Software": None}), _save(figure, "svg", {"Date": None})


def _save(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def _draw_rate(axes: Axes, points: Sequence[Point], rate: float, index: int) -> None:
    """The points of a frame rate, hollow where they do not do what was asked, and their front."""
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    place = _PLACES[index % len(_PLACES)]
    best = front(points)
    axes.step(
        [point.lut or 0 for point in best],
        [100 * point.accuracy_integer for point in best],
        where="post",
        color=colour,
        linewidth=1.2,
        alpha=0.7,
    )
    for good in (True, False):
        chosen = [point for point in points if point.ok == good]
        axes.plot(
            [point.lut or 0 for point in chosen],
            [100 * point.accuracy_integer for point in chosen],
            marker=marker,
            linestyle="none",
            markersize=7,
            color=colour,
            markerfacecolor=colour if good else "none",
            label=f"{rate:,.10g} frames/s" if good else None,
        )
    for point in points:
        axes.annotate(
            point.bits,
            (point.lut or 0, 100 * point.accuracy_integer),
            xytext=place,
            textcoords="offset points",
            ha="left" if place[0] > 0 else "right",
            fontsize=9,
            color=colour,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )


def _draw_limits(axes: Axes, shown: Sequence[Point], exact: float, part: Part) -> None:
    """The float network's accuracy, and the part's LUTs where they are not far off."""
    axes.axhline(
        100 * exact, color=_GREY, linestyle="--", linewidth=1, label=f"float network: {exact:.2%}"
    )
    if max((point.lut or 0 for point in shown), default=0) > part.lut / 2:
        axes.axvline(
            part.lut, color=_GREY, linestyle=":", label=f"all of {part.name}: {part.lut:,}"
        )
    if not shown:
        text = "no point has a LUT count; points.csv has the reasons"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")


def _keys(points: Sequence[Point], axes: Axes) -> list[Any]:
    """What the legend explains: frame rates, limits, and once each the front and hollow markers."""
    handles, _ = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color=_GREY, linewidth=1.2, label="Pareto front of a frame rate"))
    if any(point.lut is not None and not point.ok for point in points):
        hollow = Line2D(
            *([], []),
            marker="o",
            linestyle="none",
            color=_GREY,
            markerfacecolor="none",
            label="hollow: does not fit or too slow",
        )
        handles.append(hollow)
    return handles
