"""Tables for a terminal of 80 columns: fewer columns than the other formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairbench.core import tables
from fairbench.core.text import shown
from fairbench.leaderboards.aggregate import Cell, Row
from fairbench.leaderboards.columns import (
    ARROWS,
    EMPTY,
    MISSING,
    Column,
    blocks,
    digits_of,
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
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["FORMAT", "to_table"]


def to_table(rows: Sequence[Row]) -> RenderableType:
    """One table a block for a terminal of 80 columns: fewer columns than the other formats."""
    from rich.console import Group
    from rich.text import Text

    if not rows:
        return Text(EMPTY.strip())
    return Group(*(_Block(title, block) for title, block in blocks(rows)))


def _terminal_columns(block: Sequence[Row]) -> list[tuple[Column, int]]:
    """The few columns that fit into 80 characters, in lines where that saves space.

    Beside each, how soon it is left out where even those are too many; 0: never.
    """
    names = score_names(block)
    plain_scores = [name for name in names if (spec := spec_of(name)) and spec.compact]
    ranked = [name for name in names if name == block[0].ranked_by]
    return [
        (Column("rank", standing_of, is_number=False), 0),
        (Column("method", lambda row: _in_lines(method_of(row)), is_number=False), 0),
        (Column("seeds\n× n", lambda row: f"{len(row.seeds)} × {row.n:,}"), 1),
        *((_interval_column(name, block), 0) for name in ranked),
        *(
            (_value_column(name, plain_scores, block), 3 + place)
            for place, name in enumerate(plain_scores)
        ),
        (Column("calls\n↓", lambda row: significant(row.network_calls_per_image)), 2),
    ]


def _in_lines(name: str) -> str:
    """A method's name, and what tells the row from others of it, an entry a line."""
    method, bracket, label = name.partition(" (")
    return f"{method}\n({label}".replace(", ", ",\n ") if bracket else method


def _interval_column(name: str, block: Sequence[Row]) -> Column:
    column = score_column(name, block)
    return Column(
        column.header.replace("_", "\n"),
        lambda row: column.text(row).replace(" ≤", "\n≤"),
    )


def _value_column(name: str, shown: Sequence[str], block: Sequence[Row]) -> Column:
    first = next(row.scores[name] for row in block if name in row.scores)
    family = name.partition("_")[0]
    # One family's name stands for its only column; the other formats show the whole name.
    alone = sum(other.startswith(family) for other in shown) == 1
    title = family if alone else name.replace("_", "\n")
    return Column(
        f"{title}\n{ARROWS.get(first.better, '').strip()}",
        lambda row: _value(row.scores.get(name)),
    )


def _value(cell: Cell | None) -> str:
    return MISSING if cell is None else f"{cell.value:.{digits_of(cell.value)}f}"


# What a role says of itself needs no line.
_ROLES = {"control", "ablation", "oracle"}


@dataclass(frozen=True)
class _Block:
    """One table, laid out when the width is known."""

    title: str
    block: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for line in self.lines(options.max_width):
            yield Text(line, no_wrap=True, overflow="ignore")
        yield Text()

    def lines(self, width: int) -> list[str]:
        columns = [
            tables.Column(
                column.header,
                [column.text(row) for row in self.block],
                right=column.is_number,
                spare=spare,
            )
            for column, spare in _terminal_columns(self.block)
        ]
        return [
            *tables.wrapped(f"{self.title}: {notes_of(self.block)}", width),
            *tables.lay_out(columns, width),
            *(line for note in self._notes() for line in tables.wrapped(note, width)),
        ]

    def _notes(self) -> list[str]:
        """Why rows aren't ranked; one reason of several rows is said once."""
        methods: dict[tuple[str, str], list[str]] = {}
        for row in self.block:
            if row.reasons and row.why_unranked not in _ROLES:
                reason = row.why_unranked, shown(row.reasons[0])
                methods.setdefault(reason, []).append(method_of(row))
        return [
            f"{word}: {', '.join(names)}: {reason}" for (word, reason), names in methods.items()
        ]


FORMAT = Format("table", (), to_table)
