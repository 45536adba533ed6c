"""What ``fairbench data`` says: which data sets there are, what lies where, what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fairbench.core.errors import FairbenchError, InputError
from fairbench.core.progress import Reporter
from fairbench.datasets.base import DATA_ROOT, DATASETS, Dataset, Role, get_dataset
from fairbench.datasets.parts.problems import DataError

__all__ = ["Prepared", "Problems", "listing", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A data set whose files are all there and well.

    Attributes:
        dataset: Its name.
        splits: Role -> number of images.
        data_sha256: Hash of all data that a record may depend on.
        notes: What a reader should know of the files.
    """

    dataset: str
    splits: dict[str, int]
    data_sha256: str
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """What to print."""
        counts = ", ".join(f"{role} {count:,}" for role, count in self.splits.items())
        yield f"{self.dataset} is ready: {counts}"
        yield f"data sha256 {self.data_sha256[:16]}…"
        yield from (f"note: {note}" for note in self.notes)


@dataclass(frozen=True)
class Problems:
    """A data set that can't be used as it is.

    Attributes:
        dataset: Its name.
        problems: All that is wrong.
        steps: What to do, in order.
    """

    dataset: str
    problems: tuple[str, ...]
    steps: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """What to print."""
        yield f"{self.dataset} can't be used yet:"
        yield from (f"  - {problem}" for problem in self.problems)
        if self.steps:
            yield "What to do:"
            yield from (f"  {number}. {step}" for number, step in enumerate(self.steps, 1))


def prepare(name: str, root: Path | None, report: Reporter) -> Prepared | Problems:
    """Check a data set, whether that was done before or not, and write its index.

    Args:
        name: As ``--dataset``.
        root: As ``--data-root``.
        report: Told about progress.

    Raises:
        InputError: If there is no such data set, or a picture of it can't be used.
    """
    dataset = get_dataset(name, root)
    try:
        dataset.prepare(report, anew=True)
    except DataError as error:
        return Problems(dataset.name, error.problems, error.steps)
    return Prepared(dataset.name, _splits(dataset), dataset.data_sha256(), dataset.notes())


def _splits(dataset: Dataset) -> dict[str, int]:
    found = {}
    for role in get_args(Role):
        split = dataset.split(role)
        if split is not None:
            found[role] = len(split)
    return found


def listing(root: Path | None) -> list[dict[str, Any]]:
    """One row a data set; nothing is decoded, so splits are known of prepared ones only."""
    found, broken = DATASETS.entries()
    rows = []
    for dataset in found.values():
        rows.append(_row(dataset, root))
    rows += [
        {"name": name, "licence": "", "images_may_be_published": False, "splits": {}, "found": why}
        for name, why in broken.items()
    ]
    return rows


def _row(entry: Dataset, root: Path | None) -> dict[str, Any]:
    dataset, splits = entry, {}
    try:
        if entry.card.on_disk:
            dataset = get_dataset(entry.name, root)
        state = dataset.lacking()
        if not state:
            splits, state = _splits(dataset), "ready"
    except InputError as error:
        state = str(error)
    except FairbenchError as error:
        state = f"damaged: {error}"
    if state != "ready" and root is None and entry.card.on_disk and dataset is entry:
        state = f"not looked for: give --data-root or set {DATA_ROOT}"
    return {
        "name": dataset.name,
        "licence": dataset.card.licence,
        "images_may_be_published": dataset.card.may_publish_images,
        "splits": splits,
        "found": state,
    }
