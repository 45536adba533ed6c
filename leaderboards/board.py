"""A folder of records as rows, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fairbench.core.errors import InputError
from fairbench.core.record import PerImage, Record
from fairbench.leaderboards.aggregate import Row, rows
from fairbench.leaderboards.ranking import ImagesOf
from fairbench.storage.records import read_per_image, read_records, record_path

__all__ = ["images_of", "leaderboard"]


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
    folder = Path(results)
    return rows(
        read_records(folder, warn),
        dataset=dataset,
        task=task,
        images=images_of(folder, warn),
        warn=warn,
    )


def images_of(results: Path, warn: Callable[[str], None]) -> ImagesOf:
    """Reads what is known of each image of a record of a folder, once for each record.

    Args:
        results: Folder of records.
        warn: Told in one line about each sidecar that can't be read.
    """
    known: dict[tuple[str, str, str], PerImage | None] = {}

    def read(record: Record) -> PerImage | None:
        place = record.dataset, record.method, record.key
        if place not in known:
            try:
                known[place] = read_per_image(record_path(results, *place), record)
            except InputError as error:  # damaged, or of a name that is none
                warn(str(error))
                known[place] = None
        return known[place]

    return read
