"""CSV with every column, at full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from fairbench.core.text import cell
from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.columns import COSTS, IDENTITY, score_names
from fairbench.leaderboards.formats import Format

__all__ = ["FORMAT", "to_csv"]


def to_csv(rows: Sequence[Row]) -> str:
    """Every column at full precision; lines end in a bare newline.

    A score ``x`` has the columns ``x``, ``x_low``, ``x_high`` and, where any row has one,
    ``x_floor``. What a row lacks is empty.
    """
    names = score_names(rows)
    floors = {name for row in rows for name, one in row.scores.items() if one.floor is not None}
    header = [*IDENTITY]
    for name in names:
        header += (name, f"{name}_low", f"{name}_high")
        if name in floors:
            header.append(f"{name}_floor")
    header += COSTS
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # No cell is a formula, whatever a record is called.
    writer.writerow(map(cell, header))
    writer.writerows(_flat(row, names, floors) for row in rows)
    return text.getvalue()


def _flat(row: Row, names: Iterable[str], floors: set[str]) -> list[str | float | None]:
    cells: list[str | float | None] = [cell(text(row)) for text in IDENTITY.values()]
    for name in names:
        score = row.scores.get(name)
        # The writer gives numbers at full precision, and nothing for None.
        cells += (None,) * 3 if score is None else (score.value, score.low, score.high)
        if name in floors:
            cells.append(None if score is None else score.floor)
    cells += [cell(text(row)) for text in COSTS.values()]
    return cells


FORMAT = Format("csv", (".csv",), to_csv)
