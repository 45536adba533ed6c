"""Small files of other people's, in JSON or TOML: whatever is wrong with one is a ValueError.

Python's readers give up with a RecursionError on what is nested thousands of levels deep, and
wait for ever for what a named pipe or a device may still say.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from fairbench.core.errors import AssetError

__all__ = ["LARGEST", "content", "from_json", "from_toml", "read_object"]

LARGEST = 64 * 2**20
"""Bytes of a file that people write, at most."""

TOO_DEEP = "nested too deeply"


def content(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a small file.

    Raises:
        OSError: If it can't be read.
        ValueError: If it is a device, a pipe or a socket, or larger than `largest` bytes.
    """
    told = path.stat()
    if stat.S_ISDIR(told.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(told.st_mode):
        raise ValueError("seen a device, a pipe or a socket")
    if told.st_size > largest:
        raise ValueError(f"seen {told.st_size:,} bytes, at most {largest:,} make sense")
    return path.read_bytes()


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: The file.
        advice: What the user can do if it holds none.

    Raises:
        AssetError: If it can't be read, or holds none.
    """
    try:
        found = from_json(content(path))
    except OSError as error:
        raise AssetError(f"{path}: expected a JSON object; {error.strerror}; {advice}") from None
    except ValueError as error:
        line = " ".join(str(error).split())
        raise AssetError(f"{path}: expected a JSON object; {line}; {advice}") from None
    if not isinstance(found, dict):
        raise AssetError(f"{path}: expected a JSON object, seen another value; {advice}")
    return found


def from_json(text: str | bytes) -> Any:
    """What a text in JSON says.

    Raises:
        ValueError: If it is none, isn't text, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def from_toml(text: bytes) -> dict[str, Any]:
    """What a text in TOML says.

    Raises:
        UnicodeDecodeError: If it isn't text in UTF-8.
        ValueError: If it is no TOML, or is nested too deeply.
    """
    try:
        return tomllib.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
