"""A folder of records as rows, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fairbench.leaderboards.aggregate import Row, rows
from fairbench.storage.records import read_records

__all__ = ["leaderboard"]


def leaderboard(
    results: Path | str = "results",
    *,
    dataset: str | None = None,
    task: str | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """The rows of all complete records in a folder, block by block, ranked ones first.

    Args:
        results: Folder of records.
        dataset: Keep this data set alone.
        task: Keep this task alone.
        warn: Told in one line about each record or score that is left out.

    Raises:
        InputError: If the folder doesn't exist.
    """
    return rows(read_records(Path(results), warn), dataset=dataset, task=task, warn=warn)
