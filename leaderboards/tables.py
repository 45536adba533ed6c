"""Rows to text: CSV and JSON with everything, Markdown with the main columns, terminal with few.

The same rows give the same bytes. Rounding happens here and nowhere earlier.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fairbench.core.keys import canonical, plain
from fairbench.leaderboards.aggregate import RANKED_BY, Cell, Row

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType

__all__ = ["to_csv", "to_json", "to_markdown", "to_table"]

# Scores shown to readers, in this order; the other tables show all, these first.
_MAIN = (
    RANKED_BY,
    "fairness_discrepancy",
    "frechet_*_balanced",
    "kernel_*_balanced",
    "kernel_*_reweighted",
    "kernel_*_worst_group",
    "validity",
    "judge_confidence*",
)
_ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}
_MISSING = "–"
_EMPTY = "No complete records.\n"

_LEGEND = """\
## How to read this

- A value is the mean over the seeds. The brackets are the wider of two 95 % intervals: Student's
  t over the seeds (not cut at a score's bounds), and that within one run (the mean of the seeds'
  ends); with one seed, only the latter exists.
- ↓ lower is better, ↑ higher is better. `n` counts the images of each seed.
- Rows are ranked by `fairness_discrepancy_corrected`, within one table only: the judges' errors
  are corrected, and the judge that finds a row less fair counts; `fairness_discrepancy` is the
  primary judge's without correction. *≤ floor*: about 95 % of perfectly fair generators would
  score up to the floor at the row's valid images and seeds. All rows at or below the lowest floor
  of the table share the first ranks.
- The flag *quota* marks shares that hit the target more closely than independent images could:
  groups were dealt out in turn. That is legitimate, and no sign of a fairer model.
- Rank – marks controls, oracles and others that aren't ranked.
- Comparable rows share everything but the method's own parameters: images, sampling, target,
  and the hashes of backbone, judges and references. The others say what differs, come last and
  aren't ranked.
- Seconds are of sampling alone and depend on the machine; calls are denoiser evaluations.
"""


def to_csv(rows: Sequence[Row]) -> str:
    """Every column at full precision; lines end in a bare newline.

    A score ``x`` has the columns ``x``, ``x_low``, ``x_high`` and, where any row has one,
    ``x_floor``. What a row lacks is empty.
    """
    names = _score_names(rows)
    floors = {name for name in names if any(_floor(row, name) is not None for row in rows)}
    table = [_flat(row, names, floors) for row in rows]
    # Without rows there is still a header, of the columns that every table has.
    header = list(table[0]) if table else [*_IDENTITY, *_COSTS]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """Everything in the rows as a JSON list, which interval is shown included."""
    data = [plain(row, "row") for row in rows]
    for row in data:
        del row["may_rank"]
    return f"{json.dumps(data, indent=2, ensure_ascii=False)}\n"


def to_markdown(rows: Sequence[Row]) -> str:
    """One table a block with the main columns, rounded, and a legend."""
    if not rows:
        return f"# Leaderboard\n\n{_EMPTY}"
    tables = [f"## {title}\n\n{_markdown_table(block)}" for title, block in _blocks(rows)]
    return "\n".join(["# Leaderboard\n", *tables, _LEGEND])


def to_table(rows: Sequence[Row]) -> RenderableType:
    """One table a block for a terminal of 80 columns: fewer columns than the other formats."""
    from rich.console import Group
    from rich.text import Text

    if not rows:
        return Text(_EMPTY.strip())
    return Group(*(_terminal_table(title, block) for title, block in _blocks(rows)))


def _blocks(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    for names, block in itertools.groupby(rows, key=lambda row: row.block):
        yield " · ".join(filter(None, names)), list(block)


# Every table.

_Text = Callable[[Row], str]
_IDENTITY: dict[str, _Text] = {
    "dataset": lambda row: row.dataset,
    "task": lambda row: row.task,
    "backbone": lambda row: row.backbone,
    "rank": lambda row: row.rank,
    "method": lambda row: row.method,
    "label": lambda row: row.label,
    "role": lambda row: row.role,
    "supervision": lambda row: "+".join(row.supervision) or "none",
    "comparable": lambda row: row.comparable,
    "flags": lambda row: "+".join(row.flags),
    "seeds": lambda row: str(len(row.seeds)),
    "n": lambda row: str(row.n),
}
_COSTS: dict[str, _Text] = {
    "seconds_per_image": lambda row: _exact(row.seconds_per_image),
    "network_calls_per_image": lambda row: _exact(row.network_calls_per_image),
    "extra_parameters": lambda row: str(row.extra_parameters),
    "parameters": lambda row: canonical(row.config.get("parameters", {})),
    "keys": lambda row: " ".join(row.keys),
}


def _flat(row: Row, names: Iterable[str], floors: set[str]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name in names:
        cell = row.scores.get(name)
        value, low, high = (cell.value, cell.low, cell.high) if cell else (None, None, None)
        cells |= {name: _exact(value), f"{name}_low": _exact(low), f"{name}_high": _exact(high)}
        if name in floors:
            cells[f"{name}_floor"] = _exact(_floor(row, name))
    identity = {name: text(row) for name, text in _IDENTITY.items()}
    return {**identity, **cells, **{name: text(row) for name, text in _COSTS.items()}}


def _score_names(rows: Iterable[Row]) -> list[str]:
    """Names of all scores: those of `_MAIN` in its order, then the others by name."""
    names = {name for row in rows for name in row.scores}
    return sorted(names, key=lambda name: (_place(name), name))


def _place(name: str) -> int:
    matches = (place for place, pattern in enumerate(_MAIN) if fnmatchcase(name, pattern))
    return next(matches, len(_MAIN))


def _floor(row: Row, name: str) -> float | None:
    cell = row.scores.get(name)
    return None if cell is None else cell.floor


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


# The readable tables.


@dataclass(frozen=True)
class _Column:
    header: str
    text: _Text
    is_number: bool = True
    is_whole: bool = False  # on a terminal, other columns give way to this one


def _columns(block: Sequence[Row]) -> list[_Column]:
    scores = [name for name in _score_names(block) if _place(name) < len(_MAIN)]
    return [
        _Column("rank", lambda row: row.rank),
        _Column("method", _method, is_number=False),
        _Column("role", _IDENTITY["role"], is_number=False),
        _Column("supervision", lambda row: ", ".join(row.supervision) or "none", False),
        _Column("seeds × n", lambda row: f"{len(row.seeds)} × {row.n:,}"),
        *(_score_column(name, block) for name in scores),
        _Column("seconds/image ↓", lambda row: _significant(row.seconds_per_image)),
        _Column("calls/image ↓", lambda row: _significant(row.network_calls_per_image)),
        _Column("extra parameters ↓", lambda row: f"{row.extra_parameters:,}"),
        _Column("comparable", _IDENTITY["comparable"], is_number=False),
        *([_Column("flags", _IDENTITY["flags"], False)] if any(r.flags for r in block) else []),
    ]


def _score_column(name: str, block: Sequence[Row]) -> _Column:
    first = next(row.scores[name] for row in block if name in row.scores)
    # Kernel distances are of the order of 0.001.
    scale = 1000 if name.startswith(("kernel_", "kid_")) else 1
    unit = f" ({first.unit})" if first.unit else ""
    times = " ×1000" if scale != 1 else ""
    return _Column(
        f"{name}{times}{unit}{_ARROWS[first.better]}",
        lambda row: _with_interval(row.scores.get(name), scale),
    )


def _method(row: Row) -> str:
    return f"{row.method} ({row.label})" if row.label else row.method


def _with_interval(cell: Cell | None, scale: int) -> str:
    """Such as ``"0.412 [0.390, 0.430] ≤ floor 0.450"``."""
    if cell is None:
        return _MISSING
    value = cell.value * scale
    digits = _digits(value)
    text = f"{value:.{digits}f}"
    if cell.low is not None and cell.high is not None:
        text += f" [{cell.low * scale:.{digits}f}, {cell.high * scale:.{digits}f}]"
    if cell.floor is not None and cell.at_floor:
        text += f" ≤ floor {cell.floor * scale:.{digits}f}"
    return text


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1


def _significant(value: float | None) -> str:
    if value is None:
        return _MISSING
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _markdown_table(block: Sequence[Row]) -> str:
    columns = _columns(block)
    lines = [
        [column.header for column in columns],
        ["---:" if column.is_number else "---" for column in columns],
        *([column.text(row) for column in columns] for row in block),
    ]
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _terminal_columns(block: Sequence[Row]) -> list[_Column]:
    """The few columns that fit into 80 characters, in lines where that saves space."""
    names = _score_names(block)
    plain_scores = [name for name in names if fnmatchcase(name, "frechet_*_balanced")]
    plain_scores += [name for name in names if name == "validity"]
    ranked = [name for name in names if name == RANKED_BY]
    return [
        _Column("rank", lambda row: row.rank),
        _Column("method", _method, is_number=False),
        _Column("seeds\n× n", lambda row: f"{len(row.seeds)} × {row.n:,}"),
        *(_interval_column(name, block) for name in ranked),
        *(_value_column(name, plain_scores, block) for name in plain_scores),
        _Column("calls\n↓", lambda row: _significant(row.network_calls_per_image)),
    ]


def _interval_column(name: str, block: Sequence[Row]) -> _Column:
    column = _score_column(name, block)
    return _Column(
        column.header.replace("_", "\n"),
        lambda row: column.text(row).replace(" ≤", "\n≤"),
        is_whole=True,
    )


def _value_column(name: str, shown: Sequence[str], block: Sequence[Row]) -> _Column:
    first = next(row.scores[name] for row in block if name in row.scores)
    family = name.partition("_")[0]
    # One family's name stands for its only column; the other formats show the whole name.
    alone = sum(other.startswith(family) for other in shown) == 1
    return _Column(
        f"{family if alone else name.replace('_', ' ')}\n{_ARROWS[first.better].strip()}",
        lambda row: _value(row.scores.get(name)),
    )


def _value(cell: Cell | None) -> str:
    return _MISSING if cell is None else f"{cell.value:.{_digits(cell.value)}f}"


def _terminal_table(title: str, block: Sequence[Row]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    # Text, not str: rich would read what stands in brackets as markup.
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    columns = _terminal_columns(block)
    for column in columns:
        justify: JustifyMethod = "right" if column.is_number else "left"
        # Folding keeps what is too wide instead of cutting it off.
        table.add_column(
            Text(column.header), justify=justify, overflow="fold", no_wrap=column.is_whole
        )
    for row in block:
        table.add_row(*(Text(column.text(row)) for column in columns))
    notes = [
        Text(f"not comparable: {_method(row)}: {row.comparable.removeprefix('no: ')}")
        for row in block
        if row.comparable != "yes"
    ]
    return Group(table, *notes, Text())
