"""Names of data sets and tasks that a leaderboard may be asked for."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from fairbench.core.errors import InputError, unknown_name
from fairbench.datasets.base import DATASETS, get_dataset

__all__ = ["check_names"]


def check_names(results: Path, dataset: str | None, task: str | None) -> None:
    """Refuse names that neither fairbench nor a record of the folder knows.

    Args:
        results: Folder of records; it is listed, and read only for a task that nothing else knows.
        dataset: As ``--dataset``.
        task: As ``--task``.

    Raises:
        InputError: With the nearest names, if there is none of that name.
    """
    known = {path.name for path in results.glob("*") if path.is_dir() and path.name[:1] != "."}
    if dataset is not None and dataset not in known:
        entries, _ = DATASETS.entries()
        if dataset not in entries:
            raise unknown_name("data set", dataset, sorted(known | {*entries}))
    if task is None:
        return
    tasks: dict[str, None] = {}
    for name in sorted(known if dataset is None else {dataset}):
        with suppress(InputError):  # one of the user's own, which may lie elsewhere
            tasks |= dict.fromkeys(spec.name for spec in get_dataset(name).tasks)
    if task not in tasks:
        tasks |= dict.fromkeys(_recorded(results, dataset))
    if task not in tasks:
        raise unknown_name("task", task, tasks)


def _recorded(results: Path, dataset: str | None) -> list[str]:
    found = set()
    for path in results.glob(f"{dataset or '*'}/*/*.json"):
        with suppress(OSError, ValueError, RecursionError):
            if path.is_file() and isinstance(record := json.loads(path.read_bytes()), dict):
                found.add(record.get("task"))
    return sorted(name for name in found if isinstance(name, str))
