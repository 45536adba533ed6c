"""Images that were made batch by batch and lie in the cache: read shard by shard, never all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import AssetError
from fairbench.storage.cache import load_arrays
from fairbench.storage.readings import ImageList

__all__ = ["IMAGES", "ShardImages"]

IMAGES = "images"
"""Array of a shard that holds its images, (B, H, W, 3) uint8."""


HELD_BYTES = 64 * 2**20
"""Bytes of files that are held at once, beside the one that is read ahead.

Images whose neighbours were made in other batches take turns in a few files.
"""


@dataclass(frozen=True, eq=False)
class ShardImages:
    """Images in files of a few each; few files are held at once.

    Attributes:
        folder: Where the files lie.
        names: Names of the files.
        shard: (N,) which of the names each image is in.
        row: (N,) which of that file's images it is.
        listing: Which images these are.
        labels: None are known.
    """

    folder: Path
    names: Sequence[str]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    listing: ImageList
    labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(self.shard)

    def take(self, rows: NDArray[Any]) -> ShardImages:
        """The images at `rows`, (n,) integers or (N,) booleans, in that order."""
        index = np.arange(len(self))[rows]
        return ShardImages(
            self.folder, self.names, self.shard[index], self.row[index], self.listing.take(index)
        )

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """(n, H, W, 3) uint8 arrays of at most `size` images, in order.

        The next file is read while the last one's images are used.

        Raises:
            AssetError: If a file is gone or damaged.
        """
        shape = (size, self.listing.height, self.listing.width, 3)
        batch, filled = np.empty(shape, np.uint8), 0
        for images in self._runs():
            taken = 0
            while taken < len(images):
                count = min(size - filled, len(images) - taken)
                batch[filled : filled + count] = images[taken : taken + count]
                filled, taken = filled + count, taken + count
                if filled == size:
                    yield batch
                    batch, filled = np.empty(shape, np.uint8), 0
        if filled:
            yield batch[:filled]

    def _runs(self) -> Iterator[NDArray[np.uint8]]:
        """Images that follow each other in one file, in order."""
        cuts = np.flatnonzero(np.diff(self.shard)) + 1
        runs = np.split(np.arange(len(self)), cuts) if len(self) else []
        order = [int(self.shard[run[0]]) for run in runs]
        held: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        with ThreadPoolExecutor(1) as reading:
            ahead: tuple[int, Future[NDArray[np.uint8]]] | None = None
            for place, (number, run) in enumerate(zip(order, runs, strict=True)):
                if number not in held:
                    found = ahead is not None and ahead[0] == number
                    held[number] = ahead[1].result() if ahead and found else self._read(number)
                    ahead = None
                held.move_to_end(number)
                while len(held) > 1 and sum(one.nbytes for one in held.values()) > HELD_BYTES:
                    held.popitem(last=False)
                later = order[place + 1] if place + 1 < len(order) else number
                if ahead is None and later not in held:
                    ahead = (later, reading.submit(self._read, later))
                yield held[number][self.row[run]]

    def _read(self, number: int) -> NDArray[np.uint8]:
        path = self.folder / self.names[number]
        stored = load_arrays(path)
        if stored is None or IMAGES not in stored:
            raise AssetError(
                f"{path}: images that were made are gone or damaged; the same command makes them "
                "again"
            )
        images: NDArray[np.uint8] = stored[IMAGES]
        return images
