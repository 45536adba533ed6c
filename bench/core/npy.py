"""The header of a NumPy array that lies in a file, read without the array."""

from __future__ import annotations

from typing import IO

import numpy as np

__all__ = ["read_header"]


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and number type; the stream then stands behind.

    Raises:
        ValueError: If it is of a version that this program never writes, or no header at all;
            damaged bytes may raise other errors too.
    """
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the array format")
    return readers[version](stream)
