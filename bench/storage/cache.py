"""The cache folder: images, features and what methods trained, under keys of their content."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.npy import read_header
from fairbench.storage.files import atomic_write, is_file

__all__ = ["Header", "array_headers", "cache_folder", "load_arrays", "save_arrays"]

Result = TypeVar("Result")

STORED_AS = "stored as"
"""Array that holds an archive's own folder and name."""


def cache_folder() -> Path:
    """``FAIRBENCH_CACHE`` if set, else the platform's user cache folder; made if missing.

    Raises:
        InputError: If it can't be made.
    """
    chosen = os.environ.get("FAIRBENCH_CACHE")
    folder = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("fairbench"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache folder {folder} can't be made: {error.strerror}; set FAIRBENCH_CACHE to a "
            "folder you can write to"
        ) from error
    return folder


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to one ``.npz``, atomically.

    The archive has a checksum of each array, and says what it is stored as: a file in the place
    of another one isn't taken for it.
    """
    named = {**arrays, STORED_AS: np.array(_place(path))}
    # As np.savez, which leaves the archive open when the disk is full: NumPy before 2.
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


@dataclass(frozen=True)
class Header:
    """What is known of a stored array without unpacking it.

    Attributes:
        shape: Its shape.
        dtype: Its number type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of an ``.npz``; None if it is missing, damaged or in the place of another one.

    What isn't right is removed.
    """
    return _opened(path, lambda stored: {name: stored[name] for name in _names(stored)})


def array_headers(path: Path) -> dict[str, Header] | None:
    """Array of an ``.npz`` -> its shape and type, without unpacking one; None as `load_arrays`.

    Damage behind a header isn't seen here, only when the arrays are loaded.
    """
    return _opened(path, lambda stored: {name: _header(stored, name) for name in _names(stored)})


def _place(path: Path) -> str:
    """What a file is stored as, wherever the cache lies."""
    return f"{path.parent.name}/{path.name}"


def _names(stored: Any) -> list[str]:
    return [name for name in stored.files if name != STORED_AS]


def _opened(path: Path, look: Callable[[Any], Result]) -> Result | None:
    if not is_file(path):
        return None
    try:
        # Opened here: np.load leaves its own handle open when the archive is truncated.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored[STORED_AS]) != _place(path):
                raise ValueError("another file's")
            return look(stored)
    except FileNotFoundError:
        return None
    # Which error a damaged byte leads to depends on where it lies: a wrong version number is a
    # NotImplementedError, a wrong length may be a MemoryError.
    except Exception:
        path.unlink(missing_ok=True)
        return None


def _header(stored: Any, name: str) -> Header:
    with stored.zip.open(f"{name}.npy") as stream:
        shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("pickled objects are never loaded")
    return Header(shape, dtype)
