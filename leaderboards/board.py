"""A folder of records as rows, in one call, and the records behind each row."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairbench.core.record import Record
from fairbench.leaderboards.aggregate import Row, rows_of
from fairbench.leaderboards.helpers import one_thread, uncollected
from fairbench.leaderboards.index import DamagedIndexError, Index
from fairbench.storage.places import place_of

__all__ = ["Board", "leaderboard", "open_board"]


@dataclass(frozen=True)
class Board:
    """Rows, and what they were made of.

    Attributes:
        rows: Block by block, ranked ones first.
        results: Folder of the records.
        records: Gives the records of a row, in the order of its seeds.
    """

    rows: Sequence[Row]
    results: Path
    records: Callable[[Row], Sequence[Record]] = field(repr=False)


def leaderboard(
    results: Path | str = "results",
    *,
    dataset: str | None = None,
    task: str | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """The rows of all complete records in a folder, block by block, ranked ones first.

    Args:
        results: Folder of records, or an address that fsspec reaches.
        dataset: Keep this data set alone.
        task: Keep this task alone.
        warn: Told in one line about each record or score that is left out.

    Raises:
        InputError: If the folder doesn't exist.
    """
    return list(open_board(results, dataset=dataset, task=task, warn=warn).rows)


def open_board(
    results: Path | str = "results",
    *,
    dataset: str | None = None,
    task: str | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Board:
    """The rows of a folder of records, with the records behind them; as `leaderboard`."""
    place = place_of(results)
    place.update()
    folder = place.folder
    with uncollected(), one_thread():
        try:
            index, made = _made(folder, dataset, task, warn)
        except (DamagedIndexError, sqlite3.DatabaseError):
            Index.forget(folder)
            index, made = _made(folder, dataset, task, warn)
    by_place = {(one.dataset, one.task, one.method, one.key): one for one in index.records}

    def records(row: Row) -> list[Record]:
        light = [by_place[row.dataset, row.task, row.method, key] for key in row.keys]
        return [index.whole(one) for one in light]

    return Board(made, folder, records)


def _made(
    folder: Path, dataset: str | None, task: str | None, warn: Callable[[str], None]
) -> tuple[Index, list[Row]]:
    index = Index(folder, warn)
    return index, rows_of(index.shelf(), dataset=dataset, task=task, warn=warn)
