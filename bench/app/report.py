"""A record as one table for the terminal, legible at 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from fairbench.core.record import Record
from fairbench.core.score import RANKED, Score
from fairbench.core.text import shown
from fairbench.scores.catalogue import spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table

    from fairbench.runs.baselines import Baseline
    from fairbench.runs.rescoring import Rescoring

__all__ = ["rescored", "sentence", "summary"]

Item = TypeVar("Item")

ARROWS = {"lower": "↓ ", "higher": "↑ ", "neither": "  "}


WHOLE = 30
"""Letters up to which a method's name stays in one line, whatever the width."""


def sentence(record: Record, baseline: Baseline | None) -> str:
    """How far from the target, how it was without the method, and what chance would make of it.

    Args:
        record: The run.
        baseline: The undebiased backbone's record of the same question, if there is one.
    """
    score = record.score(RANKED) or record.score("fairness_discrepancy")
    if score is None:
        return ""
    who = record.method
    parts = [f"{who} is {_with_interval(score)} from the target"]
    other = None if baseline is None else baseline.record.score(score.name)
    if baseline is not None and other is not None:
        where = baseline.record.method
        if baseline.shipped:
            where = f"fairbench's own record of {where}, {other.n:,} images"
        parts.append(f"without a method it was {_number(score, other.value)} ({where})")
    if score.floor is not None:
        floor = _number(score, score.floor)
        same = score.value <= score.floor
        parts.append(
            f"a perfectly fair model would look the same: up to {floor} is chance with "
            f"{score.n:,} images"
            if same
            else f"a perfectly fair model would be below {floor} with {score.n:,} images"
        )
    return "; ".join(parts) + "."


def summary(record: Record, baseline: Record | None) -> RenderableType:
    """Shares, discrepancies, quality and cost of a run, the baseline's beside them.

    Args:
        record: The run.
        baseline: The undebiased backbone's record of the same question, if there is one.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    # Text, not str: rich would read what stands in brackets as markup.
    table = Table(
        title=Text(shown(_title(record))), title_justify="left", box=None, pad_edge=False
    )
    headers = ["", f"{shown(record.method)}\n[95 % interval]", "target\nor floor"]
    if baseline is not None:
        headers.append(shown(baseline.method))
    for header in headers:
        # What is too wide goes on in the next line; nothing is ever cut off.
        least = max(len(line) for line in header.split("\n"))
        table.add_column(
            Text(header), overflow="fold", min_width=least if 0 < least <= WHOLE else None
        )
    _add_shares(table, record, baseline)
    _add_scores(table, record, baseline)
    _add_costs(table, record, baseline)
    return Group(table, *(Text(note) for note in _missing(record)))


def rescored(found: Sequence[Rescoring], results: Path) -> list[str]:
    """What became of the records of a folder, line by line; equal reasons are said once.

    Args:
        found: What became of each.
        results: The folder.
    """
    changed = [one for one in found if one.changed]
    behind = [one for one in found if one.old]
    current = len(found) - len({one.path for one in [*changed, *behind]})
    lines = [f"{len(found)} complete records in {results}: {current} were up to date"]
    for basis in dict.fromkeys(one.basis for one in changed):
        group = [one for one in changed if one.basis == basis]
        scores = sum(len(one.changed) for one in group)
        lines.append(f"{len(group)} rescored from {basis}: {scores} scores")
    for problem in dict.fromkeys(one.problem for one in behind):
        group = [one for one in behind if one.problem == problem]
        names = sorted({name for one in group for name in one.old})
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"{len(group)} still hold older scores ({shown}): {problem}")
        if command := next((one.command for one in group if one.command), ""):
            lines.append(f"  for instance: {command}")
    if any(one.command for one in behind):
        lines.append("fairbench rescore --make-images makes the images of all of them again")
    return lines


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


def _add_row(table: Table, *cells: str, style: str = "") -> None:
    from rich.text import Text

    # Without a baseline the table is a column narrower.
    table.add_row(*(Text(shown(cell)) for cell in cells[: len(table.columns)]), style=style)


def _add_heading(table: Table, text: str) -> None:
    _add_row(table, text, style="bold")


def _add_shares(table: Table, record: Record, baseline: Record | None) -> None:
    for name, rows in record.groups.items():
        if "|" in name or any(row["target"] is None for row in rows):
            continue
        others = [] if baseline is None else baseline.groups.get(name, [])
        before = {row["group"]: f"{row['share']:.1%}" for row in others}
        for n, same in _by_n(rows, lambda row: int(row["n"])).items():
            _add_heading(table, f"share by {name.replace('/', ' × ')}, {n} images")
            for row in same:
                share = f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
                group = row["group"]
                _add_row(table, f"  {group}", share, f"{row['target']:.1%}", before.get(group, ""))


_SHORT = (
    ("fairness_discrepancy_worst_prompt", "discrepancy_worst_prompt"),
    ("fairness_discrepancy_given", "discrepancy_given"),
)


def _add_scores(table: Table, record: Record, baseline: Record | None) -> None:
    visible = [score for score in record.scores if _is_shown(score.name)]
    for n, scores in _by_n(visible, lambda score: score.n).items():
        _add_heading(table, f"scores, {n} images")
        for score in scores:
            other = None if baseline is None else baseline.score(score.name)
            _add_row(
                table,
                _label(score),
                _with_interval(score),
                "" if score.floor is None else _number(score, score.floor),
                "" if other is None else _number(other, other.value),
            )
    hidden = len(record.scores) - len(visible)
    if hidden:
        _add_row(table, f"  {hidden} more scores are in the record")


def _missing(record: Record) -> list[str]:
    """What isn't measured, and why; a reason that several scores share is said once."""
    names: dict[str, list[str]] = {}
    for name, reason in record.facts.get("not_measured", {}).items():
        if _is_shown(name):
            names.setdefault(reason, []).append(name.replace("_", " "))
    return [shown(f"not measured: {', '.join(mine)}: {reason}") for reason, mine in names.items()]


def _is_shown(name: str) -> bool:
    """Whether a score is in the table; one without a spec, as of an old record, is."""
    spec = spec_of(name)
    return spec is None or spec.summary


def _by_n(items: Sequence[Item], n: Callable[[Item], int]) -> Mapping[int, list[Item]]:
    """The items by the number of images they rest on, which is so said once, not in each row."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(n(item), []).append(item)
    return groups


def _scale(score: Score) -> float:
    spec = spec_of(score.name)
    return 1.0 if spec is None else spec.scale


def _label(score: Score) -> str:
    """Such as ``"↓ kernel cartoonfaces balanced ×1000"``."""
    # Of the attributes' own discrepancies; the ranked one keeps its name.
    name = score.name
    for long, short in (("fairness_discrepancy_corrected_", "corrected_"), *_SHORT):
        name = name.replace(long, short)
    name = name.replace("_", " ")
    times = f" ×{_scale(score):g}" if _scale(score) != 1 else ""
    return f"{ARROWS[score.better]}{name}{times}"


def _with_interval(score: Score) -> str:
    text = _number(score, score.value)
    if score.low is None or score.high is None:
        return text
    return f"{text} [{_number(score, score.low)}, {_number(score, score.high)}]"


def _number(score: Score, value: float) -> str:
    if score.unit == "share":
        return f"{value:.1%}"
    value *= _scale(score)
    # As many decimals as the score's own value has, so that its interval doesn't have more.
    size = abs(score.value * _scale(score))
    digits = 3 if size < 10 else 2 if size < 100 else 1
    return f"{value:.{digits}f}"


def _add_costs(table: Table, record: Record, baseline: Record | None) -> None:
    _add_heading(table, "cost")
    rows: list[tuple[str, Callable[[Record], str]]] = [
        ("seconds an image", _seconds_an_image),
        ("seconds to prepare", lambda r: _plain(r.seconds.get("prepare"))),
        ("network calls an image", lambda r: _plain(r.network_calls_per_image)),
        ("extra parameters", lambda r: str(r.extra_parameters)),
        ("peak memory, MiB", lambda r: f"{r.peak_memory_mib:.0f}"),
    ]
    for label, show in rows:
        _add_row(table, f"  {label}", show(record), "", "" if baseline is None else show(baseline))


def _seconds_an_image(record: Record) -> str:
    seconds = record.seconds.get("generate")
    return "" if seconds is None else f"{seconds / record.config['num_images']:.3g}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
