"""CSV with every column, at full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from fairbench.core.text import cell
from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.columns import COSTS, IDENTITY, exact, floor_of, score_names
from fairbench.leaderboards.formats import Format

__all__ = ["FORMAT", "to_csv"]


def to_csv(rows: Sequence[Row]) -> str:
    """Every column at full precision; lines end in a bare newline.

    A score ``x`` has the columns ``x``, ``x_low``, ``x_high`` and, where any row has one,
    ``x_floor``. What a row lacks is empty.
    """
    names = score_names(rows)
    floors = {name for name in names if any(floor_of(row, name) is not None for row in rows)}
    # Without rows there is still a header, of the columns that every table has.
    header = list(_flat(rows[0], names, floors)) if rows else [*IDENTITY, *COSTS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # No cell is a formula, whatever a record is called.
    writer.writerow(map(cell, header))
    flat = (_flat(row, names, floors) for row in rows)
    writer.writerows([cell(row[name]) for name in header] for row in flat)
    return text.getvalue()


def _flat(row: Row, names: Iterable[str], floors: set[str]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name in names:
        score = row.scores.get(name)
        value, low, high = (score.value, score.low, score.high) if score else (None, None, None)
        cells |= {name: exact(value), f"{name}_low": exact(low), f"{name}_high": exact(high)}
        if name in floors:
            cells[f"{name}_floor"] = exact(floor_of(row, name))
    identity = {name: text(row) for name, text in IDENTITY.items()}
    return {**identity, **cells, **{name: text(row) for name, text in COSTS.items()}}


FORMAT = Format("csv", (".csv",), to_csv)
