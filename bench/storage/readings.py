"""What networks said about images, kept under a key of everything that it depends on.

One file a list of images and a reader. Change one pixel, one weight or how images are prepared,
and the key is another: an entry can't be stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.storage.cache import array_headers, load_arrays, save_arrays

__all__ = [
    "ImageList",
    "Reader",
    "check_images",
    "image_sha256",
    "load_part",
    "load_reading",
    "reading_key",
    "remove_parts",
    "save_part",
    "save_reading",
]

LAYOUT = 1
"""Raised whenever the stored arrays have other names or meanings."""


class Reader(Protocol):
    """What a stored result depends on beside the images."""

    @property
    def name(self) -> str:
        """What a column or a message calls it."""

    @property
    def weights_sha256(self) -> str:
        """Of its weight files."""

    @property
    def preprocessing(self) -> str:
        """What is done to an image before the network sees it."""

    @property
    def dtype(self) -> str:
        """Number format of the network."""


def check_images(images: NDArray[np.uint8]) -> None:
    """Raise a `ContractError` unless these are (N, H, W, 3) uint8 images, N >= 1."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ContractError(
            f"images must be (N, H, W, 3) uint8; seen {images.shape} {images.dtype}"
        )
    if 0 in images.shape:
        raise ContractError(f"images must hold at least one pixel each; seen {images.shape}")


def image_sha256(images: NDArray[np.uint8]) -> list[str]:
    """Hex digest of each image's raw RGB bytes, (N, H, W, 3) uint8."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]


@dataclass(frozen=True)
class ImageList:
    """Which images, in which order.

    Attributes:
        sha256: Of each image's raw RGB bytes, in hex.
        height: Pixels.
        width: Pixels.
    """

    sha256: tuple[str, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.sha256)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> ImageList:
        """The list of some of the images, by their places; nothing is hashed again."""
        return ImageList(tuple(self.sha256[row] for row in rows), self.height, self.width)

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> ImageList:
        """The list of (N, H, W, 3) uint8 images.

        Raises:
            ContractError: If they are of another shape or type, or there are none.
        """
        check_images(images)
        return cls(tuple(image_sha256(images)), images.shape[1], images.shape[2])


def reading_key(images: ImageList, reader: Reader) -> str:
    """sha256 of everything that a reader's result on these images depends on, in hex.

    That is: every image and its place, the reader's name, weights, preprocessing and number
    format, and the meaning of the stored arrays. Not the device, nor the batch size: they round
    differently in the last digits.
    """
    content = [
        f"layout {LAYOUT}",
        f"reader {reader.name}",
        f"weights {reader.weights_sha256}",
        f"preprocessing {reader.preprocessing}",
        f"dtype {reader.dtype}",
        # The hash of an image doesn't say where its rows end.
        f"size {images.height}x{images.width}",
        *images.sha256,
    ]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def load_reading(
    images: ImageList, reader: Reader, cache: Path, types: Mapping[str, type[np.generic]]
) -> dict[str, NDArray[Any]] | None:
    """What a reader's stored result holds; None if it is missing or damaged.

    Args:
        images: What was read.
        reader: By what.
        cache: Folder of cached arrays.
        types: Array -> its type; each has one row an image.
    """
    key = reading_key(images, reader)
    path = _reading_path(key, reader, cache)
    headers = array_headers(path)
    if headers is None or {*headers} != {*types, "key"}:
        return None
    for name, kind in types.items():
        if headers[name].dtype != kind or headers[name].shape[:1] != (len(images),):
            return None
    arrays = load_arrays(path)
    # A file under a wrong name must not pass for the right one.
    if arrays is None or str(arrays.pop("key", "")) != key:
        return None
    return arrays


def save_reading(
    images: ImageList, reader: Reader, cache: Path, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Keep a reader's result on these images; each array has one row an image."""
    key = reading_key(images, reader)
    save_arrays(_reading_path(key, reader, cache), {**arrays, "key": np.array(key)})


def _reading_path(key: str, reader: Reader, cache: Path) -> Path:
    return cache / "features" / reader.name.replace("/", "_") / f"{key[:32]}.npz"


# --- parts, while several processes read ---------------------------------------------------


def save_part(
    images: ImageList,
    reader: Reader,
    cache: Path,
    chunk: int,
    number: int,
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Keep a reader's result on one chunk of the images.

    Args:
        images: All of the images.
        reader: What read them.
        cache: Folder of cached arrays.
        chunk: Images a chunk.
        number: Which chunk, from 0.
        arrays: Each has one row an image of the chunk.
    """
    save_arrays(_part_path(images, reader, cache, f"{chunk}-{number}"), arrays)


def load_part(
    images: ImageList, reader: Reader, cache: Path, chunk: int, number: int
) -> dict[str, NDArray[Any]] | None:
    """What `save_part` kept; None if it is missing or damaged."""
    return load_arrays(_part_path(images, reader, cache, f"{chunk}-{number}"))


def remove_parts(images: ImageList, reader: Reader, cache: Path) -> None:
    """Remove what `save_part` kept, whatever the chunks."""
    pattern = _part_path(images, reader, cache, "*")
    for path in pattern.parent.glob(pattern.name):
        path.unlink(missing_ok=True)


def _part_path(images: ImageList, reader: Reader, cache: Path, part: str) -> Path:
    whole = _reading_path(reading_key(images, reader), reader, cache)
    return whole.with_name(f"{whole.stem}.part-{part}.npz")
