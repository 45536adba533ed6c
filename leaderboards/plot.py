"""Fairness against quality, one panel a table: which rows buy the one with the other."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fairbench.leaderboards.aggregate import Cell, Row
from fairbench.leaderboards.columns import blocks, method_of
from fairbench.scores.catalogue import spec_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["QUALITY", "to_plot"]

QUALITY = "kernel_*_reweighted"
"""Distance to real images in a row's own shares: the balanced one falls with composition too."""

_STYLES = {  # role -> marker, whether it is filled, colour
    "method": ("o", True, "#1864ab"),
    "ablation": ("D", True, "#74a9d8"),
    "control": ("s", False, "#495057"),
    "oracle": ("^", False, "#e8590c"),
}
_PANEL = (6.4, 4.2)  # inches
_FAR = 10  # times the median distance


def to_plot(rows: Sequence[Row]) -> bytes:
    """A PNG with one panel a data set, task and backbone.

    A point is a row, its bars are the row's 95 % intervals; points are numbered and named beside
    the panel. Left is fairer, down is better. The grey line is the lowest noise floor of the
    panel. Rows that lack one of the two scores are named as missing, not left out silently, and so
    are, with their value, rows so much worse than most that the others would become one point.

    Args:
        rows: As :func:`fairbench.leaderboards.rows` gives them; at least one.
    """
    buffer = io.BytesIO()
    # No version and no date in the file: the same rows give the same bytes.
    draw(rows).savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def draw(rows: Sequence[Row]) -> Figure:
    """The figure of :func:`to_plot`, before it becomes a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = [list(block) for _, block in itertools.groupby(rows, key=lambda row: row.block)]
    columns = min(2, len(whole))
    lines = -(-len(whole) // columns)
    figure = Figure((columns * _PANEL[0], lines * _PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.flat)
    for panel, block in zip(panels, whole, strict=False):
        _draw(panel, block)
    for panel in panels[len(whole) :]:
        panel.axis("off")
    _explain_roles(figure, {row.role for row in rows})
    return figure


def _explain_roles(figure: Any, seen: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            color=colour,
            label=role,
            markerfacecolor=colour if filled else "white",
        )
        for role, (marker, filled, colour) in _STYLES.items()
        if role in seen
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8)


def _draw(axes: Any, block: Sequence[Row]) -> None:
    placed: list[str] = []
    unplaced: list[str] = []
    known = [cell.value for row in block if (cell := _quality(row)) is not None]
    far = _FAR * statistics.median(known) if known else 0.0
    for row in block:
        fair, quality = row.scores.get(row.ranked_by), _quality(row)
        name = method_of(row)
        if fair is None or quality is None:
            unplaced.append(f"– {name}: not measurable")
            continue
        if quality.value > far > 0:
            unplaced.append(f"↑ {name}: {_scale() * quality.value:.0f}")
            continue
        placed.append(name)
        _point(axes, len(placed), row, fair, quality)
    floors = [
        cell.floor
        for row in block
        if (cell := row.scores.get(row.ranked_by)) is not None and cell.floor is not None
    ]
    if floors:
        axes.axvline(min(floors), color="#adb5bd", linewidth=1, zorder=0)
    key = [f"{number} {name}" for number, name in enumerate(placed, 1)]
    key += unplaced
    axes.text(
        1.02,
        1.0,
        "\n".join(key),
        transform=axes.transAxes,
        va="top",
        ha="left",
        fontsize=7,
        parse_math=False,  # a dollar in a name is a dollar
    )
    names = [name for row in block for name in row.scores if fnmatchcase(name, QUALITY)]
    title = next(title for title, _ in blocks(block))
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.set_xlabel(f"{block[0].ranked_by} (lower is fairer)", fontsize=8)
    axes.set_ylabel(
        f"{names[0] if names else QUALITY} ×{_scale():g} (lower is better)", fontsize=8
    )
    axes.tick_params(labelsize=7)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # an unbiased estimate may be negative
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _scale() -> float:
    """What the quality axis is multiplied by."""
    spec = spec_of(QUALITY)
    return 1.0 if spec is None else spec.scale


def _quality(row: Row) -> Cell | None:
    return next((cell for name, cell in row.scores.items() if fnmatchcase(name, QUALITY)), None)


def _point(axes: Any, number: int, row: Row, fair: Cell, quality: Cell) -> None:
    marker, filled, colour = _STYLES.get(row.role, _STYLES["method"])
    axes.errorbar(
        fair.value,
        _scale() * quality.value,
        xerr=_bars(fair, 1),
        yerr=_bars(quality, _scale()),
        fmt=marker,
        markersize=6,
        color=colour,
        markerfacecolor=colour if filled else "white",
        elinewidth=0.8,
        alpha=0.9,
    )
    axes.annotate(
        str(number),
        (fair.value, _scale() * quality.value),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=7,
    )


def _bars(cell: Cell, scale: float) -> list[list[float]] | None:
    """Lengths below and above the value; None without an interval."""
    if cell.low is None or cell.high is None:
        return None
    return [
        [max(0.0, cell.value - cell.low) * scale],
        [max(0.0, cell.high - cell.value) * scale],
    ]
