"""Tables for a terminal of 80 columns: fewer columns than the other formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairbench.leaderboards.aggregate import Cell, Row
from fairbench.leaderboards.columns import (
    ARROWS,
    EMPTY,
    MISSING,
    Column,
    blocks,
    digits_of,
    legible,
    method_of,
    notes_of,
    score_column,
    score_names,
    significant,
    standing_of,
)
from fairbench.leaderboards.formats import Format
from fairbench.scores.catalogue import spec_of

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType

__all__ = ["FORMAT", "to_table"]


def to_table(rows: Sequence[Row]) -> RenderableType:
    """One table a block for a terminal of 80 columns: fewer columns than the other formats."""
    from rich.console import Group
    from rich.text import Text

    if not rows:
        return Text(EMPTY.strip())
    return Group(*(_terminal_table(title, block) for title, block in blocks(rows)))


def _terminal_columns(block: Sequence[Row]) -> list[Column]:
    """The few columns that fit into 80 characters, in lines where that saves space."""
    names = score_names(block)
    plain_scores = [name for name in names if (spec := spec_of(name)) and spec.compact]
    ranked = [name for name in names if name == block[0].ranked_by]
    return [
        Column("rank", lambda row: standing_of(row) if row.tie_class else MISSING),
        Column("method", method_of, is_number=False),
        Column("seeds\n× n", lambda row: f"{len(row.seeds)} × {row.n:,}"),
        *(_interval_column(name, block) for name in ranked),
        *(_value_column(name, plain_scores, block) for name in plain_scores),
        Column("calls\n↓", lambda row: significant(row.network_calls_per_image)),
    ]


def _interval_column(name: str, block: Sequence[Row]) -> Column:
    column = score_column(name, block)
    return Column(
        column.header.replace("_", "\n"),
        lambda row: column.text(row).replace(" ≤", "\n≤"),
        is_whole=True,
    )


def _value_column(name: str, shown: Sequence[str], block: Sequence[Row]) -> Column:
    first = next(row.scores[name] for row in block if name in row.scores)
    family = name.partition("_")[0]
    # One family's name stands for its only column; the other formats show the whole name.
    alone = sum(other.startswith(family) for other in shown) == 1
    return Column(
        f"{family if alone else name.replace('_', ' ')}\n{ARROWS[first.better].strip()}",
        lambda row: _value(row.scores.get(name)),
    )


def _value(cell: Cell | None) -> str:
    return MISSING if cell is None else f"{cell.value:.{digits_of(cell.value)}f}"


# What a role says of itself needs no line.
_ROLES = {"control", "ablation", "oracle"}


def _terminal_table(title: str, block: Sequence[Row]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    # Text, not str: rich would read what stands in brackets as markup.
    table = Table(
        title=Text(f"{title}: {notes_of(block)}"), title_justify="left", box=None, pad_edge=False
    )
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
        Text(f"{row.why_unranked}: {method_of(row)}: {legible(row.reasons[0])}")
        for row in block
        if row.reasons and row.why_unranked not in _ROLES
    ]
    return Group(table, *notes, Text())


FORMAT = Format("table", (), to_table)
