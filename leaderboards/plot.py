"""Fairness against quality for papers, one panel a table: which rows buy one with the other."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from fairbench.core.errors import InputError
from fairbench.leaderboards.aggregate import Cell, Row
from fairbench.leaderboards.columns import blocks, method_of
from fairbench.leaderboards.placing import place_labels
from fairbench.leaderboards.plane import QUALITY, Plane, Point, plane_of
from fairbench.scores.catalogue import spec_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["QUALITY", "draw", "to_plot"]

_STYLES = {  # role -> marker, whether it is filled, colour of Okabe and Ito
    "method": ("o", True, "#0072b2"),
    "ablation": ("D", True, "#56b4e9"),
    "control": ("s", False, "#57606a"),
    "oracle": ("^", False, "#d55e00"),
}
_FRONT = "#009e73"
_PANEL = (5.0, 4.0)  # inches, without the names
_LINE = 0.125  # inches that a name takes
_NAMES = 3.1  # inches that names stand in
_MOST = 54  # characters of a name
_FAINT = 0.45
_METADATA = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}


def to_plot(rows: Sequence[Row], suffix: str = ".png") -> bytes:
    """A PNG, PDF or SVG with one panel a data set, task and backbone.

    A point is a row, its bars are the row's 95 % intervals; points are numbered and named beside
    the panel. Left is fairer, down is better. The dotted line is the lowest noise floor of the
    panel, the green staircase the Pareto set of the rows that can be compared; the others are
    faint. Rows that lack one of the two scores are named as missing, not left out silently, and so
    are, with their value, rows so much worse than most that the others would become one point.

    Args:
        rows: As :func:`fairbench.leaderboards.rows` gives them; at least one.
        suffix: Of the file: ``.png``, ``.pdf`` or ``.svg``.

    Raises:
        InputError: If the suffix is another.
    """
    check_suffix(suffix)
    kind = suffix.removeprefix(".").lower()
    import matplotlib

    buffer = io.BytesIO()
    # No version, date or random name in the file: the same rows give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "fairbench", "pdf.fonttype": 42}):
        draw(rows).savefig(buffer, format=kind, dpi=150, metadata=_METADATA[kind])
    return buffer.getvalue()


def check_suffix(suffix: str) -> None:
    """Find out whether a plot can be drawn to a file that ends so.

    Raises:
        InputError: If it can't.
    """
    if suffix.removeprefix(".").lower() not in _METADATA:
        raise InputError(f"--plot must end in .png, .pdf or .svg; seen {suffix or 'no suffix'}")


def draw(rows: Sequence[Row]) -> Figure:
    """The figure of :func:`to_plot`, before it becomes a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = [list(block) for _, block in itertools.groupby(rows, key=lambda row: row.block)]
    planes = [plane_of(block) for block in whole]
    columns = min(2, len(whole))
    pairs = [range(i, min(i + columns, len(whole))) for i in range(0, len(whole), columns)]
    longest = [max(len(_names(planes[i])) for i in line) for line in pairs]
    heights = [max(_PANEL[1], 0.9 + _LINE * count) for count in longest]
    size = columns * (_PANEL[0] + _NAMES), sum(heights) + 0.6
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(pairs), 2 * columns, height_ratios=heights, width_ratios=[_PANEL[0], _NAMES] * columns
    )
    waiting = []
    for index, (block, plane) in enumerate(zip(whole, planes, strict=True)):
        line, place = divmod(index, columns)
        axes = figure.add_subplot(grid[line, 2 * place])
        beside = figure.add_subplot(grid[line, 2 * place + 1])
        waiting.append((axes, _draw(axes, beside, block, plane)))
    _explain(figure, planes)
    figure.draw_without_rendering()  # where panels stand is only known now
    figure.set_layout_engine("none")
    for axes, points in waiting:
        _number(axes, points)
    return figure


def _explain(figure: Any, planes: Sequence[Plane]) -> None:
    from matplotlib.lines import Line2D

    points = [point for plane in planes for point in plane.points]
    seen = {point.row.role for point in points}
    handles = [
        Line2D(
            [], [], ls="", marker=marker, color=colour, label=role, mfc=colour if filled else "w"
        )
        for role, (marker, filled, colour) in _STYLES.items()
        if role in seen
    ]
    if any(not point.takes_part for point in points):
        handles.append(
            Line2D(
                [],
                [],
                ls="",
                marker="o",
                color="#0072b2",
                alpha=_FAINT,
                label="faint: not comparable, or an oracle",
            )
        )
    if any(plane.floor is not None for plane in planes):
        handles.append(
            Line2D([], [], ls=":", color="#57606a", label="lowest noise floor: fair by chance")
        )
    if any(point.on_set for point in points):
        handles.append(Line2D([], [], color=_FRONT, label="Pareto set"))
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(4, len(handles)), fontsize=8
    )


def _shown(plane: Plane) -> list[Point]:
    return [point for point in plane.points if not point.far]


def _names(plane: Plane) -> list[str]:
    """What stands beside a panel, a line a row."""
    told = [f"{number} {method_of(p.row)}" for number, p in enumerate(_shown(plane), 1)]
    far = [p for p in plane.points if p.far]
    told += [f"↑ {method_of(p.row)}: {_scale() * p.quality.value:.0f}" for p in far]
    told += [f"– {method_of(row)}: not measurable" for row in plane.lacking]
    return [name if len(name) <= _MOST else f"{name[: _MOST - 1]}…" for name in told]


def _drawable(text: str) -> str:
    """Text with a question mark for what the font can't draw."""
    known = _characters()
    return "".join(sign if sign == "\n" or ord(sign) in known else "?" for sign in text)


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _draw(axes: Any, beside: Any, block: Sequence[Row], plane: Plane) -> list[Point]:
    shown = _shown(plane)
    if plane.floor is not None:
        axes.axvline(plane.floor, color="#57606a", linewidth=1, linestyle=":", zorder=0)
    corners = sorted((p.fair.value, _scale() * p.quality.value) for p in shown if p.on_set)
    if len(corners) > 1:
        axes.step(*zip(*corners, strict=True), where="post", color=_FRONT, linewidth=1, zorder=1)
    for point in shown:
        _point(axes, point)
    beside.axis("off")
    beside.text(
        0.0,
        1.0,
        _drawable("\n".join(_names(plane))),
        transform=beside.transAxes,
        va="top",
        fontsize=6.5,
        linespacing=1.15,
        parse_math=False,
    )
    title = _drawable(next(title for title, _ in blocks(block)))
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.set_xlabel(
        f"{block[0].ranked_by}\n(distance of shares, no unit; left is fairer)", fontsize=8
    )
    axes.set_ylabel(
        f"{plane.quality or QUALITY}\n(squared distance × {_scale():g}; down is better)",
        fontsize=8,
    )
    axes.tick_params(labelsize=7)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # an unbiased estimate may be negative
    axes.margins(y=0.1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return shown


def _scale() -> float:
    """What the quality axis is multiplied by."""
    spec = spec_of(QUALITY)
    return 1.0 if spec is None else spec.scale


def _point(axes: Any, point: Point) -> None:
    marker, filled, colour = _STYLES.get(point.row.role, _STYLES["method"])
    axes.errorbar(
        point.fair.value,
        _scale() * point.quality.value,
        xerr=_bars(point.fair, 1),
        yerr=_bars(point.quality, _scale()),
        fmt=marker,
        markersize=5,
        color=colour,
        markerfacecolor=colour if filled else "white",
        elinewidth=0.7,
        alpha=1.0 if point.takes_part else _FAINT,
        zorder=3,
    )


def _number(axes: Any, points: Sequence[Point]) -> None:
    """Write each point's number beside it, where it covers nothing."""
    from matplotlib.lines import Line2D

    if not points:
        return
    values = [(point.fair.value, _scale() * point.quality.value) for point in points]
    places = axes.transData.transform(values)
    box = axes.get_window_extent()
    dots = axes.figure.dpi / 72
    sizes = [((4.3 * len(str(i)) + 1) * dots, 8.5 * dots) for i in range(1, len(points) + 1)]
    frame = (box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1)
    centres = place_labels([tuple(one) for one in places], sizes, frame, radius=4.0 * dots)
    spots = axes.transData.inverted().transform(centres)
    for number, (value, place, centre, spot) in enumerate(
        zip(values, places, centres, spots, strict=True), 1
    ):
        if math.dist(place, centre) > 14 * dots:
            line = Line2D(*zip(value, spot, strict=True), linewidth=0.4, color="#57606a", zorder=2)
            axes.add_artist(line)
        axes.text(*spot, str(number), ha="center", va="center", fontsize=6.5, zorder=4)


def _bars(cell: Cell, scale: float) -> list[list[float]] | None:
    """Lengths below and above the value; None without an interval."""
    if cell.low is None or cell.high is None:
        return None
    return [
        [max(0.0, cell.value - cell.low) * scale],
        [max(0.0, cell.high - cell.value) * scale],
    ]
