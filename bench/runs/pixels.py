"""Images of a source as one array: held where that is small, else decoded row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairbench.datasets.base import ArrayImages, ImageSource
from fairbench.inputs.resizing import to_square

__all__ = ["MOST_HELD", "LazyImages", "pixels_of"]

MOST_HELD = 512 * 2**20
"""Bytes of the largest array that is held in memory."""

BATCH = 32
"""Images that are decoded at once."""


class LazyImages:
    """Behaves as an (N, H, W, 3) uint8 array whose rows are made whenever they are asked for.

    Args:
        source: Whose images.
        side: H and W; None: those of the images.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, source: ImageSource, side: int | None) -> None:
        self._source, self._side = source, side
        self.shape = (len(source), *_size_of(source, side), 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """The images at an integer, a slice, (n,) integers or (N,) booleans."""
        index = np.arange(len(self))[rows]
        chosen = self._source.take(np.atleast_1d(index))
        images = _filled(chosen, self._side)
        return images if index.ndim else cast("NDArray[np.uint8]", images[0])

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for batch in self._source.batches(BATCH):
            yield from (_fitted(image, self._side) for image in batch)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = _filled(self._source, self._side)
        return whole if dtype is None else whole.astype(dtype)


def pixels_of(source: ImageSource, side: int | None = None) -> NDArray[np.uint8]:
    """All images of a source.

    Args:
        source: Whose.
        side: Pixels a side that they are brought to; None leaves them as they are.

    Returns:
        (N, H, W, 3) uint8; beyond `MOST_HELD` bytes a `LazyImages` in its place.
    """
    height, width = _size_of(source, side)
    if len(source) * height * width * 3 > MOST_HELD:
        return cast("NDArray[np.uint8]", LazyImages(source, side))
    return _filled(source, side)


def _size_of(source: ImageSource, side: int | None) -> tuple[int, int]:
    """Height and width of what comes out."""
    if side is not None:
        return side, side
    if isinstance(source, ArrayImages):  # they lie in memory already, and needn't be hashed
        height, width = source.images.shape[1:3]
        return int(height), int(width)
    return source.listing.height, source.listing.width


def _filled(source: ImageSource, side: int | None) -> NDArray[np.uint8]:
    images = np.empty((len(source), *_size_of(source, side), 3), np.uint8)
    done = 0
    for batch in source.batches(BATCH):
        for image in batch:
            images[done] = _fitted(image, side)
            done += 1
    return images


def _fitted(image: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    if side is None or image.shape[:2] == (side, side):
        return image
    return to_square(Image.fromarray(image), side)
