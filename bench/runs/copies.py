"""Which images are equal to the last bit: to others of the run, or to images of the data set."""

from __future__ import annotations

from fairbench.datasets.base import Dataset, Role
from fairbench.storage.readings import ImageList

__all__ = ["COMPARED", "MOST_COPIES", "count_copies"]

MOST_COPIES = 0.01
"""Share of exact copies up to which a row is ranked."""

COMPARED: tuple[Role, ...] = ("evaluation", "method_reference", "pool")
"""The splits that images are looked for in."""


def count_copies(images: ImageList, dataset: Dataset) -> dict[str, int]:
    """Count exact copies.

    Args:
        images: The images of a run, by their hashes.
        dataset: Whose splits they are looked for in; of other sizes than theirs none is equal.

    Returns:
        ``images``, how many there are; ``distinct``, how many differ from each other: the
        effective n of a sample that holds copies; and for each split that the data set has, by
        its role, how many are among its images.
    """
    counts = {"images": len(images), "distinct": len(set(images.sha256))}
    for role in COMPARED:
        split = dataset.split(role)
        if split is None or len(split) == 0:
            continue
        there = split.listing
        same_size = (there.height, there.width) == (images.height, images.width)
        known = set(there.sha256) if same_size else set()
        counts[role] = sum(digest in known for digest in images.sha256)
    return counts
