"""CSV with every column, at full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.columns import COSTS, IDENTITY, exact, floor_of, legible, score_names
from fairbench.leaderboards.formats import Format

__all__ = ["FORMAT", "to_csv"]


def to_csv(rows: Sequence[Row]) -> str:
    """Every column at full precision; lines end in a bare newline.

    A score ``x`` has the columns ``x``, ``x_low``, ``x_high`` and, where any row has one,
    ``x_floor``. What a row lacks is empty.
    """
    names = score_names(rows)
    floors = {name for name in names if any(floor_of(row, name) is not None for row in rows)}
    table = [_flat(row, names, floors) for row in rows]
    # Without rows there is still a header, of the columns that every table has.
    header = list(table[0]) if table else [*IDENTITY, *COSTS]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writerow({name: _inert(legible(name)) for name in header})
    writer.writerows(table)
    return text.getvalue()


def _flat(row: Row, names: Iterable[str], floors: set[str]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name in names:
        cell = row.scores.get(name)
        value, low, high = (cell.value, cell.low, cell.high) if cell else (None, None, None)
        cells |= {name: exact(value), f"{name}_low": exact(low), f"{name}_high": exact(high)}
        if name in floors:
            cells[f"{name}_floor"] = exact(floor_of(row, name))
    identity = {name: _inert(text(row)) for name, text in IDENTITY.items()}
    costs = {name: text(row) for name, text in COSTS.items()}
    return {**identity, **cells, **costs, "keys": _inert(costs["keys"])}


def _inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe stands before its first sign."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


FORMAT = Format("csv", (".csv",), to_csv)
