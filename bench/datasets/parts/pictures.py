"""Pictures that lie on the disk: encoded bytes by place, decoded and cropped in threads.

A place is a path below a root, or a parquet file below it and a row: ``train.parquet#17``.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairbench.core.errors import AssetError, InputError
from fairbench.inputs.images import decode
from fairbench.inputs.resizing import to_square
from fairbench.inputs.sources import Entry

__all__ = ["ROW", "attempted", "encoded", "image_column", "in_threads", "pixels_sha256", "square"]

ROW = "#"
"""What stands between a parquet file and a row in a place."""

THREADS = min(16, os.cpu_count() or 1)
AHEAD = 4  # tasks a thread that may wait for their turn: bounds what is held

Item = TypeVar("Item")
Result = TypeVar("Result")


def square(data: bytes, where: str, size: int) -> NDArray[np.uint8]:
    """The central square of an encoded image, (size, size, 3) uint8.

    Raises:
        InputError: If it can't be decoded.
    """
    return to_square(picture(data, where), size)


def picture(data: bytes, where: str) -> Image.Image:
    """An encoded image in RGB.

    Args:
        data: Its bytes.
        where: What messages call it.

    Raises:
        InputError: If it can't be decoded.
    """
    return decode(Entry(where, "folder", lambda: io.BytesIO(data)))


def pixels_sha256(pixels: NDArray[np.uint8]) -> bytes:
    """Hash of an image's raw RGB bytes, as `fairbench.storage.readings` takes it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def in_threads(
    call: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS
) -> Iterator[Result]:
    """``map(call, items)`` in threads, in order, with few items in work at once.

    Decoding, resizing and hashing let other threads run meanwhile.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) >= AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def encoded(root: Path, places: Sequence[str]) -> list[bytes]:
    """The files' bytes, in the order of their places; see `attempted`.

    Raises:
        AssetError: If one is gone.
    """
    found = []
    for one in attempted(root, places):
        if isinstance(one, InputError):
            raise AssetError(
                f"{one}; it was there when the data was prepared: put it back, or run fairbench "
                "data prepare again"
            ) from one
        found.append(one)
    return found


def attempted(root: Path, places: Sequence[str]) -> list[bytes | InputError]:
    """The files' bytes, in the order of their places, or why there are none.

    Rows of parquet files are gathered row group by row group, so the order of the places costs
    nothing; ask for as many at once as may be held.

    Raises:
        AssetError: If a parquet file is gone.
    """
    found: list[bytes | InputError] = [b""] * len(places)
    rows: dict[str, list[tuple[int, int]]] = {}
    for i, place in enumerate(places):
        file, mark, row = place.rpartition(ROW)
        if mark and file.endswith(".parquet"):
            rows.setdefault(file, []).append((int(row), i))
        else:
            found[i] = _bytes(root / place)
    for file, wanted in rows.items():
        for i, data in _parquet_bytes(root / file, sorted(wanted)):
            found[i] = data
    return found


def _bytes(path: Path) -> bytes | InputError:
    try:
        return path.read_bytes()
    except OSError as error:
        return InputError(f"{path}: {error.strerror}")


def image_column(path: Path) -> str | None:
    """Which column of a parquet file holds encoded images; None if none does.

    Raises:
        InputError: If the file can't be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    # pyarrow's own errors, OSError.
    except Exception as error:
        raise InputError(
            f"{path}: expected parquet, seen a file that can't be read as such "
            f"({' '.join(str(error).split())[:200]}); get it again"
        ) from error
    for field in schema:
        kind = field.type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(field.name)
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            return str(field.name)
    return None


def _parquet_bytes(
    path: Path, wanted: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, bytes | InputError]]:
    """(place in the result, bytes) of (row, place in the result), sorted by row."""
    from pyarrow import parquet

    column = image_column(path)
    if column is None:
        raise AssetError(f"{path}: its images are gone; run fairbench data prepare again")
    with parquet.ParquetFile(path) as file:
        start, at = 0, 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            mine = []
            while at < len(wanted) and wanted[at][0] < start + count:
                mine.append(wanted[at])
                at += 1
            if mine:
                cells = file.read_row_group(group, columns=[column])[column]
                taken = cells.take([row - start for row, _ in mine]).to_pylist()
                for (row, i), cell in zip(mine, taken, strict=True):
                    yield i, _cell_bytes(cell, f"{path}{ROW}{row}")
            start += count


def _cell_bytes(cell: Any, where: str) -> bytes | InputError:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not data:
        return InputError(f"{where}: expected an encoded image, seen an empty cell; get it again")
    return bytes(data)
