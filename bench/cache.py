"""The cache folder: images, features and what methods trained, under keys of their content."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fairbench.errors import InputError

__all__ = ["atomic_write", "cache_folder", "load_arrays", "remove", "save_arrays"]


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


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to one ``.npz``, atomically."""
    with atomic_write(path) as file:
        np.savez(file, **dict(arrays))


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of an ``.npz``, or None if it is missing or damaged; a damaged one is removed."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        path.unlink(missing_ok=True)
        return None


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
