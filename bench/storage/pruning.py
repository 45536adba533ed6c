"""How large the cache is, and making it smaller."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairbench.core.errors import InputError, unknown_name
from fairbench.storage.files import sweep

__all__ = ["Pruned", "Usage", "clean", "prune", "usage"]

DAY = 86400.0

MADE_BY = {
    "images": "run, batch by batch",
    "features": "run and evaluate, from images",
    "trained": "run, by training again",
    "judges": "train-judge and calibrate",
    "data": "data prepare",
    "boards": "leaderboard, which reads all records again",
    "mirrors": "whatever reads records of an address, such as s3://",
}
"""Kind, which is a folder of the cache -> what makes it again."""

ALL = "all"


@dataclass(frozen=True)
class Usage:
    """What one kind of cached thing takes.

    Attributes:
        kind: Its folder in the cache.
        files: How many files.
        bytes: Their size.
        made_by: What makes it again.
    """

    kind: str
    files: int
    bytes: int
    made_by: str


@dataclass(frozen=True)
class Pruned:
    """How many files were removed, and how large they were."""

    files: int
    bytes: int


def usage(cache: Path) -> list[Usage]:
    """What each kind takes, the largest first.

    Args:
        cache: The cache folder.
    """
    found = []
    for kind in _kinds(cache):
        sizes = [size for _, size, _ in _files(cache / kind)]
        found.append(Usage(kind, len(sizes), sum(sizes), MADE_BY[kind]))
    return sorted(found, key=lambda one: (-one.bytes, one.kind))


def prune(
    cache: Path, kinds: Sequence[str], *, older_than: float | None = None, dry: bool = False
) -> Pruned:
    """Remove cached files, and folders that are left empty.

    Args:
        cache: The cache folder.
        kinds: Of `usage`; ``"all"`` for every one.
        older_than: Days; what was changed since stays. None: whatever its age.
        dry: Count alone.

    Raises:
        InputError: If there is no such kind, or the age is negative.
    """
    if older_than is not None and not 0 <= older_than < 1e6:
        raise InputError(f"--older-than must be days from 0 to 1000000; seen {older_than:g}")
    known = _kinds(cache)
    for kind in kinds:
        if kind not in (*MADE_BY, ALL):
            raise unknown_name("kind of cached files", kind, [*MADE_BY, ALL])
    chosen = known if ALL in kinds else [kind for kind in known if kind in kinds]
    before = time.time() - (older_than or 0.0) * DAY
    files = size = 0
    for kind in chosen:
        for path, bytes_, changed in _files(cache / kind):
            if older_than is not None and changed > before:
                continue
            files, size = files + 1, size + bytes_
            if not dry:
                path.unlink(missing_ok=True)
        if not dry:
            remove_empty(cache / kind)
    return Pruned(files, size)


def clean(cache: Path) -> None:
    """Remove what killed programs left in the cache."""
    sweep(cache, depth=0)
    for kind in _kinds(cache):
        sweep(cache / kind, empty=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder, and those in it, as far as they are empty."""
    if not folder.is_dir() or folder.is_symlink():
        return
    try:
        for inner in list(folder.iterdir()):
            if inner.is_dir():
                remove_empty(inner)
        folder.rmdir()
    except OSError:  # not empty, or another process was faster
        return


def _kinds(cache: Path) -> list[str]:
    """The kinds that are there; what else lies in the folder needn't be of fairbench."""
    return [kind for kind in MADE_BY if (cache / kind).is_dir()]


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Each file below a folder, its size in bytes and when it was changed."""
    for place, _, names in os.walk(folder):  # which doesn't follow links
        for name in names:
            path = Path(place, name)
            try:
                stat = path.lstat()
            except OSError:  # gone meanwhile
                continue
            yield path, stat.st_size, stat.st_mtime
