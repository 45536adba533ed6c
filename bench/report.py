"""A record as one table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fairbench.records import Record
from fairbench.types import Score

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["summary"]

ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}


def summary(record: Record, baseline: Record | None) -> RenderableType:
    """Shares, discrepancies, quality and cost of a run, the baseline's beside them.

    Args:
        record: The run.
        baseline: The undebiased backbone's record of the same question, if there is one.
    """
    from rich.table import Table

    table = Table(title=_title(record), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(record.method, no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("target or floor", no_wrap=True)
    table.add_column("n", justify="right")
    if baseline is not None:
        table.add_column("vanilla", no_wrap=True)
    _add_shares(table, record, baseline)
    _add_scores(table, record, baseline)
    _add_costs(table, record, baseline)
    return table


def _title(record: Record) -> str:
    config = record.config
    parts = [record.method]
    if config.get("preset"):
        parts.append(f"preset {config['preset']}")
    parts += [f"{record.dataset}, task {record.task}"]
    if "backbone" in config:
        sampling = config["sampling"]
        parts.append(
            f"{config['backbone']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}"
        )
        parts.append(f"seed {config['seed']}")
    parts.append(f"{config['num_images']} images")
    supervision = ", ".join(record.card.get("supervision", [])) or "none"
    return " · ".join([*parts, f"supervision: {supervision}"])


def _add_shares(table: Table, record: Record, baseline: Record | None) -> None:
    for name, rows in record.groups.items():
        if rows[0]["target"] is None or "|" in name:
            continue
        table.add_row(f"[bold]share by {name.replace('/', ' × ')}[/]")
        before = {} if baseline is None else {r["group"]: r for r in baseline.groups.get(name, [])}
        for row in rows:
            cells = [
                f"  {row['group']}",
                f"{row['share']:.1%}",
                f"{row['low']:.1%} … {row['high']:.1%}",
                f"{row['target']:.1%}",
                str(row["n"]),
            ]
            if baseline is not None:
                other = before.get(row["group"])
                cells.append("" if other is None else f"{other['share']:.1%}")
            table.add_row(*cells)


def _add_scores(table: Table, record: Record, baseline: Record | None) -> None:
    table.add_row("[bold]scores[/]")
    for score in record.scores:
        cells = [
            f"  {score.name}{ARROWS[score.better]}",
            _number(score, score.value),
            "" if score.low is None else _interval(score),
            "" if score.floor is None else f"floor {score.floor:.3f}",
            str(score.n),
        ]
        if baseline is not None:
            other = baseline.score(score.name)
            cells.append("" if other is None else _number(other, other.value))
        table.add_row(*cells)


def _number(score: Score, value: float) -> str:
    return f"{value:.1%}" if score.unit == "share" else f"{value:.4g}"


def _interval(score: Score) -> str:
    assert score.low is not None
    assert score.high is not None
    return f"{_number(score, score.low)} … {_number(score, score.high)}"


def _add_costs(table: Table, record: Record, baseline: Record | None) -> None:
    table.add_row("[bold]cost[/]")
    rows: list[tuple[str, Any]] = [
        ("  seconds an image", _seconds_an_image),
        ("  seconds to prepare", lambda r: _plain(r.seconds.get("prepare"))),
        ("  network calls an image", lambda r: _plain(r.network_calls_per_image)),
        ("  extra parameters", lambda r: str(r.extra_parameters)),
        ("  peak memory, MiB", lambda r: f"{r.peak_memory_mib:.0f}"),
    ]
    for label, show in rows:
        cells = [label, show(record), "", "", ""]
        if baseline is not None:
            cells.append(show(baseline))
        table.add_row(*cells)


def _seconds_an_image(record: Record) -> str:
    seconds = record.seconds.get("generate")
    return "" if seconds is None else f"{seconds / record.config['num_images']:.3g}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
