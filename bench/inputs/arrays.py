"""Images in one ``.npz``, the form in which public samplers store them; read one at a time."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.npy import read_header

__all__ = ["ARRAYS", "MAX_IMAGES", "StoredImages", "open_arrays"]

ARRAYS = ("arr_0", "images")
"""Names that the array of images may have; the first is that of NumPy and of most samplers."""

MAX_IMAGES = 1_000_000
"""Images of the largest array that is read; a header may state any number."""


@dataclass(frozen=True)
class StoredImages:
    """An array of images that lies in a file.

    Attributes:
        count, height, width: Its shape; there are three channels.
        frames: Yields each image, (H, W, 3) uint8, in order, once.
        notes: What was passed over; one line each.
    """

    count: int
    height: int
    width: int
    frames: Iterator[NDArray[np.uint8]]
    notes: tuple[str, ...]


@contextmanager
def open_arrays(path: Path) -> Iterator[StoredImages]:
    """Open the array of images in an ``.npz``; images can be read within the block.

    Raises:
        InputError: If the file is damaged, has no array ``arr_0`` or ``images``, or has both, or
            if that array isn't (N, H, W, 3) uint8.
    """
    with _damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        name, notes = _choose(path, archive)
        member = archive.getinfo(f"{name}.npy")
        with _damage(path):
            stream = archive.open(member)
        with stream:
            with _damage(path):
                shape, fortran, dtype = read_header(stream)
                start = stream.tell()
            _check(path, name, shape, fortran, dtype)
            count, height, width, _ = shape
            if member.file_size != start + math.prod(shape):
                raise _damaged(path, f"{member.file_size} bytes for an array of shape {shape}")
            frames = _frames(path, stream, count, height, width)
            yield StoredImages(count, height, width, frames, notes)


def _choose(path: Path, archive: zipfile.ZipFile) -> tuple[str, tuple[str, ...]]:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    found = [name for name in ARRAYS if name in names]
    if len(found) != 1:
        seen = ", ".join(map(repr, names[:5])) or "none"
        raise InputError(
            f"{path}: expected one array named {' or '.join(ARRAYS)}, seen {seen}; save it with "
            "np.savez(file, images=array)"
        )
    others = sorted({*names} - {*found})
    return found[0], ((f"passed over other arrays: {', '.join(others)}",) if others else ())


def _check(path: Path, name: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> None:
    wanted = f"{path}: {name}: expected (N, H, W, 3) uint8, seen {shape} {dtype}"
    if dtype.hasobject:
        # Reading one would run whatever code it holds.
        raise InputError(f"{wanted}; pickled objects are never loaded, save plain pixels")
    if dtype != np.uint8:
        raise InputError(f"{wanted}; save pixels of 0…255 as uint8")
    if len(shape) == 4 and shape[3] != 3 and shape[1] == 3:
        raise InputError(f"{wanted}; put the channels last: array.transpose(0, 2, 3, 1)")
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"{wanted}; save RGB images of one size as one array")
    if fortran:
        raise InputError(f"{wanted} in Fortran's order; save np.ascontiguousarray(array) instead")
    if 0 in shape:
        raise InputError(f"{wanted}; there is no image in it")
    if shape[0] > MAX_IMAGES:
        raise InputError(
            f"{wanted}; at most {MAX_IMAGES:,} images are read, save fewer in one file"
        )


def _frames(
    path: Path, stream: IO[bytes], count: int, height: int, width: int
) -> Iterator[NDArray[np.uint8]]:
    size = height * width * 3
    for index in range(count):
        with _damage(path):
            content = stream.read(size)
        if len(content) != size:
            raise _damaged(path, f"it ends within image {index}")
        yield np.frombuffer(content, np.uint8).reshape(height, width, 3)


def _damaged(path: Path, seen: str) -> InputError:
    return InputError(
        f"{path}: expected a complete .npz, seen one that can't be read ({seen}); make it anew"
    )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    # Damaged bytes raise nearly anything: BadZipFile, zlib.error, ValueError, SyntaxError.
    except Exception as error:
        raise _damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
