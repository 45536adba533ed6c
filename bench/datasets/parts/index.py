"""The index of a data set on the user's disk: written once, read at every run.

One parquet file in the cache folder: a row an image with its name, place, split, labels and the
hash of its pixels at each size that the data set hands out. It holds no picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import AssetError, InputError
from fairbench.core.progress import Reporter
from fairbench.datasets.parts.pictures import (
    attempted,
    encoded,
    in_threads,
    picture,
    pixels_sha256,
    square,
)
from fairbench.datasets.parts.problems import DataError
from fairbench.inputs.resizing import to_square
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import atomic_write
from fairbench.storage.readings import ImageList

__all__ = [
    "DiskImages",
    "Found",
    "Index",
    "index_path",
    "is_fresh",
    "load_index",
    "make_index",
    "stamps",
]

VERSION = 1
"""Raised whenever an index has other columns or meanings; older ones are made anew."""

CHUNK = 256
"""Images that are read from the disk at once while an index is made: at most that many wait."""

SUPERBATCH = 2048
"""Encoded images that are gathered at once for a reader, in whatever order they lie."""

DIGEST = "sha256 "
"""How the name of a column of hashes begins; a size follows."""

WORST = 20
"""Problems that are listed one by one."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a data set's tables say of N images, before any of them is opened.

    Attributes:
        root: The folder that places are below.
        names: N, by which a picture is known whatever its file is called.
        places: N, where each lies.
        splits: N, the split that the tables name.
        labels: Attribute -> (N,) uint8 indices into its levels.
        stamps: What an index stands and falls with: file -> size and time of its last change.
        sizes: Pixels a side that pictures are handed out with.
        accepted: Width and height that a picture may have; empty for any.
        notes: What a reader should know; one line each.
    """

    root: Path
    names: Sequence[str]
    places: Sequence[str]
    splits: Sequence[str]
    labels: Mapping[str, NDArray[np.uint8]]
    stamps: Mapping[str, Sequence[int]]
    sizes: tuple[int, ...]
    accepted: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Index:
    """A prepared data set.

    Attributes:
        root: The folder that places are below.
        names, places: N each; see `Found`.
        splits: (N,) text.
        labels: Attribute -> (N,) uint8.
        hashes: Size -> (N, 32) uint8, SHA-256 of the pixels.
        notes: What a reader should know.
        known: Size -> what `sha256` gives, as far as the index's file states it.
    """

    root: Path
    names: Sequence[str]
    places: Sequence[str]
    splits: NDArray[np.str_]
    labels: Mapping[str, NDArray[np.uint8]]
    hashes: Mapping[int, NDArray[np.uint8]]
    notes: tuple[str, ...] = ()
    known: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def sha256(self, size: int) -> str:
        """Hash of names, splits, labels and pixels; of neither paths nor the layout."""
        if size in self.known:
            return self.known[size]
        total = hashlib.sha256(f"index {VERSION} size {size}\n".encode())
        columns = [self.labels[name] for name in sorted(self.labels)]
        total.update((",".join(sorted(self.labels)) + "\n").encode())
        for i, (name, split) in enumerate(zip(self.names, self.splits, strict=True)):
            row = ",".join(str(int(column[i])) for column in columns)
            total.update(f"{name} {split} {row} ".encode())
            total.update(self.hashes[size][i].tobytes())
        return total.hexdigest()

    def images(self, rows: NDArray[np.int64], size: int) -> DiskImages:
        """The pictures of some rows, `size` pixels a side."""
        return DiskImages(self, rows, size)


@dataclass(frozen=True, eq=False)
class DiskImages:
    """Labelled pictures that are decoded when they are asked for.

    Attributes:
        index: Whose they are.
        rows: (N,) rows of the index.
        size: Pixels a side.
    """

    index: Index
    rows: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> Mapping[str, NDArray[np.uint8]]:
        """Attribute -> (N,) uint8."""
        return {name: values[self.rows] for name, values in self.index.labels.items()}

    @cached_property
    def listing(self) -> ImageList:
        """Which pictures these are, by the hashes that the index holds."""
        stored = self.index.hashes[self.size]
        return ImageList(
            tuple(stored[row].tobytes().hex() for row in self.rows), self.size, self.size
        )

    def take(self, rows: NDArray[Any]) -> DiskImages:
        """The pictures at `rows`, (n,) integers or (N,) booleans, in that order."""
        return DiskImages(self.index, self.rows[rows], self.size)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """(n, H, W, 3) uint8 arrays of at most `size` pictures, in order.

        Raises:
            AssetError: If a picture isn't the one that the index was made from.
        """
        pictures = self._pictures()
        while batch := list(islice(pictures, size)):
            yield np.stack(batch)

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        root, places = self.index.root, self.index.places

        def read(item: tuple[int, bytes]) -> NDArray[np.uint8]:
            row, data = item
            where = f"{root / places[row]}"
            pixels = square(data, where, self.size)
            if pixels_sha256(pixels) != self.index.hashes[self.size][row].tobytes():
                raise AssetError(
                    f"{where}: it has changed since the data was prepared (another Pillow may "
                    "decode differently, too); run fairbench data prepare again"
                )
            return pixels

        def waiting() -> Iterator[tuple[int, bytes]]:
            for start in range(0, len(self.rows), SUPERBATCH):
                part = [int(row) for row in self.rows[start : start + SUPERBATCH]]
                yield from zip(part, encoded(root, [places[row] for row in part]), strict=True)

        yield from in_threads(read, waiting())


# --- its file ------------------------------------------------------------------------------


def index_path(name: str, root: Path) -> Path:
    """Where the index of a data set at a root lies, in the cache folder."""
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return cache_folder() / "data" / f"{name}-{place}.parquet"


def stamps(root: Path, paths: Sequence[Path]) -> dict[str, list[int]]:
    """Path below the root -> size and time of the last change, of files and folders."""
    found = {}
    for path in paths:
        state = path.stat()
        size = 0 if path.is_dir() else state.st_size
        found[path.relative_to(root).as_posix()] = [size, state.st_mtime_ns]
    return found


def is_fresh(path: Path, root: Path, content: str) -> bool:
    """Whether `load_index` would find one; its rows aren't read."""
    return _facts(path, root, content) is not None


def _facts(path: Path, root: Path, content: str) -> dict[str, Any] | None:
    """What an index says of itself; None if there is none of the data as it lies there now."""
    from pyarrow import parquet

    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(parquet.read_schema(path).metadata[b"fairbench"])
        if (facts["version"], facts["content"]) != (VERSION, content):
            return None
        if facts["stamps"] != stamps(root, [root / name for name in facts["stamps"]]):
            return None
    # A damaged file makes pyarrow raise nearly anything; it is made anew.
    except Exception:
        return None
    return facts


def load_index(path: Path, root: Path, content: str) -> Index | None:
    """The index at a path; None if there is none, or none of the data as it lies there now.

    Args:
        path: As `index_path` gives it.
        root: The folder that it is of.
        content: What else it must have been made with, such as what a user's file declares.
    """
    from pyarrow import parquet

    facts = _facts(path, root, content)
    if facts is None:
        return None
    try:
        table = parquet.read_table(path)
        columns = {name: table[name] for name in table.column_names}
        hashes = {
            int(name.removeprefix(DIGEST)): np.frombuffer(
                b"".join(column.to_pylist()), np.uint8
            ).reshape(-1, 32)
            for name, column in columns.items()
            if name.startswith(DIGEST)
        }
        return Index(
            root,
            columns["name"].to_pylist(),
            columns["place"].to_pylist(),
            np.array(columns["split"].to_pylist(), dtype=np.str_),
            {name: columns[f"label {name}"].to_numpy() for name in facts["attributes"]},
            hashes,
            tuple(facts["notes"]),
            {int(size): digest for size, digest in facts["sha256"].items()},
        )
    except Exception:  # as above
        return None


def make_index(path: Path, found: Found, content: str, report: Reporter) -> Index:
    """Decode and hash every picture, then write the index whole.

    Held at once: names, labels and hashes, and a few hundred encoded pictures.

    Raises:
        DataError: If pictures can't be read or decoded, or have a size that isn't accepted.
    """
    total = len(found.names)
    hashes = {size: np.empty((total, 32), np.uint8) for size in found.sizes}
    bad: list[str] = []

    def read(item: tuple[int, bytes | InputError]) -> tuple[int, list[bytes], str]:
        row, data = item
        where = str(found.root / found.places[row])
        if isinstance(data, InputError):
            return row, [], str(data)
        try:
            image = picture(data, where)
        except InputError as error:
            return row, [], str(error)
        if found.accepted and image.size not in found.accepted:
            wanted = " or ".join(f"{width}x{height}" for width, height in found.accepted)
            return row, [], f"{where}: expected {wanted} pixels, seen {image.width}x{image.height}"
        return row, [pixels_sha256(to_square(image, size)) for size in found.sizes], ""

    def waiting() -> Iterator[tuple[int, bytes | InputError]]:
        for start in range(0, total, CHUNK):
            part = range(start, min(start + CHUNK, total))
            places = [found.places[i] for i in part]
            yield from zip(part, attempted(found.root, places), strict=True)

    for done, (row, digests, problem) in enumerate(in_threads(read, waiting()), 1):
        if problem:
            bad.append(problem)
        for size, digest in zip(found.sizes, digests, strict=False):
            hashes[size][row] = np.frombuffer(digest, np.uint8)
        report.progress("decoding and hashing every image", done, total)
    if bad:
        count = f"{found.root}: {len(bad)} of {total} images can't be used, such as {bad[0]}"
        raise DataError(
            (count, *bad[1:WORST]),
            ("copy these files again", "run fairbench data prepare again"),
        )
    index = Index(
        found.root,
        found.names,
        found.places,
        np.array(found.splits, dtype=np.str_),
        found.labels,
        hashes,
        found.notes,
    )
    _write(path, index, found.stamps, content)
    return index


def _write(path: Path, index: Index, stamped: Mapping[str, Sequence[int]], content: str) -> None:
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "name": pyarrow.array(index.names, pyarrow.string()),
        "place": pyarrow.array(index.places, pyarrow.string()),
        "split": pyarrow.array(index.splits.tolist(), pyarrow.string()),
    }
    columns |= {f"label {name}": pyarrow.array(v) for name, v in index.labels.items()}
    for size, digests in index.hashes.items():
        stored = pyarrow.py_buffer(np.ascontiguousarray(digests))
        columns[f"{DIGEST}{size}"] = pyarrow.FixedSizeBinaryArray.from_buffers(
            pyarrow.binary(32), len(digests), [None, stored]
        )
    facts = {
        "version": VERSION,
        "content": content,
        "stamps": dict(stamped),
        "attributes": list(index.labels),
        "notes": list(index.notes),
        "sha256": {size: index.sha256(size) for size in index.hashes},
    }
    table = pyarrow.table(columns).replace_schema_metadata({"fairbench": json.dumps(facts)})
    with atomic_write(path) as file:
        parquet.write_table(table, file)
