"""Where records are taken from: all at once in memory, or one row's at a time from an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fairbench.core.record import PerImage, Record
from fairbench.leaderboards.counts import Confusion, confusions_in

__all__ = ["Group", "Shelf", "Work", "in_memory", "nothing_kept"]


@dataclass(frozen=True)
class Group:
    """What something is worked out of.

    Attributes:
        rows: The records of each of one or more rows.
        detail: Plain JSON: what else it depends on.
    """

    rows: Sequence[Sequence[Record]]
    detail: Any = None


@dataclass(frozen=True)
class Shelf:
    """Records and what is known of them.

    Attributes:
        records: All of them; their scores, groups, facts and manifests may be missing.
        whole: Gives a record with everything but its manifest.
        counted: Gives a record without its scores too, in less time.
        hashes: Something equal for equal images, of each image of a record; None if that isn't
            known.
        images: What is known of each image of a record; None if that isn't kept.
        confusions: Of the judges that counted, in a record.
        kept: Gives what a function works out of each of many groups of records, plain JSON, in
            their order; what was worked out before, of the same records and ``about``, is kept.
            The function is given some groups at a time.
    """

    records: Sequence[Record]
    whole: Callable[[Record], Record]
    counted: Callable[[Record], Record]
    hashes: Callable[[Record], Sequence[Any] | None]
    images: Callable[[Record], PerImage | None]
    confusions: Callable[[Record], list[Confusion]]
    kept: Callable[[Sequence[Group], Any, Work], Iterator[Any]]


Work = Callable[[Sequence[Group]], Iterator[Any]]


def nothing_kept(groups: Sequence[Group], about: Any, work: Work) -> Iterator[Any]:
    """Works everything out anew."""
    return work(groups)


def in_memory(records: Iterable[Record], images: Callable[[Record], PerImage | None]) -> Shelf:
    """Records that are all there.

    Args:
        records: Whole, with their manifests.
        images: Reads what is known of each image of a record.
    """

    def hashes(run: Record) -> Sequence[Any] | None:
        if run.manifest:
            return [row[2] for row in run.manifest]
        beside = images(run) if run.sidecar is not None else None
        return None if beside is None else beside.sha256

    def same(run: Record) -> Record:
        return run

    return Shelf(list(records), same, same, hashes, images, confusions_in, nothing_kept)
