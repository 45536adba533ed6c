"""Checks that every quality metric makes of its arrays, and how rows are worked through."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError

__all__ = [
    "Array",
    "check_cells",
    "check_count",
    "check_features",
    "check_numbers",
    "check_pair",
    "check_seed",
    "check_weights",
    "chunks",
    "unit_rows",
]

Array = NDArray[np.float64]

_CHUNK_VALUES = 8_000_000  # of one temporary: 64 MB as float64


def check_numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    """An array of real numbers, or the message that says what it is instead.

    Raises:
        ContractError: If values are ragged, complex, or no numbers at all.
    """
    try:
        found = np.asarray(values)
    except (TypeError, ValueError):
        raise ContractError(f"{name} must be an array; its rows differ in length") from None
    if found.dtype.kind not in "fiub":
        raise ContractError(f"{name} must be real numbers; seen dtype {found.dtype}")
    return found


def check_count(value: int, name: str, *, least: int) -> int:
    """An integer of at least `least`.

    Raises:
        ContractError: If it's smaller or no integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ContractError(f"{name} must be an integer; seen {value!r}") from None
    if number < least:
        raise ContractError(f"{name} must be {least} or more; seen {number}")
    return number


def check_weights(weights: ArrayLike, n: int) -> Array:
    """Weights of n rows, (n,) float64, not negative, scaled to sum 1.

    Raises:
        ContractError: If they aren't n finite numbers, one is negative, or all are 0.
    """
    w = check_numbers(weights, "weights").astype(np.float64)
    if w.shape != (n,):
        raise ContractError(f"weights must have shape ({n},); seen {w.shape}")
    if not np.isfinite(w).all() or w.min() < 0 or w.sum() <= 0:
        raise ContractError("weights must be finite, not negative and not all 0")
    return np.asarray(w / w.sum())


def check_features(values: ArrayLike, name: str, *, rows: int = 2) -> NDArray[np.floating[Any]]:
    """Features as a floating array, in their own precision if they have one.

    Args:
        values: Features, (N, D) numbers.
        name: What they are, for the message.
        rows: Fewest rows, N.

    Returns:
        The features, (N, D); float32 and float64 aren't copied.

    Raises:
        ContractError: If N or D is too small, or a value isn't a finite real number.
    """
    features = check_numbers(values, name)
    if features.ndim != 2 or len(features) < rows or features.shape[1] == 0:
        raise ContractError(
            f"{name} must have shape (N, D) with N >= {rows}; seen {features.shape}"
        )
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ContractError(f"{name} must be finite; seen NaN or infinity")
    return features


def check_pair(
    x: ArrayLike, y: ArrayLike, *, rows: int = 2
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Generated and reference features of one length, as `check_features` returns them."""
    generated = check_features(x, "generated features", rows=rows)
    reference = check_features(y, "reference features", rows=rows)
    if generated.shape[1] != reference.shape[1]:
        raise ContractError(
            f"both sets need the same D; seen {generated.shape} and {reference.shape}"
        )
    return generated, reference


def check_cells(cells: ArrayLike, num_cells: int, name: str) -> NDArray[np.int64]:
    """Indices of declared cells, (N,) integers in [0, num_cells), as int64.

    Raises:
        ContractError: If there are none, or one isn't declared.
    """
    check_count(num_cells, "num_cells", least=1)
    found = check_numbers(cells, name)
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu":
        raise ContractError(
            f"{name} must be a non-empty vector of integers; "
            f"seen shape {found.shape}, dtype {found.dtype}"
        )
    if found.min() < 0 or found.max() >= num_cells:
        raise ContractError(
            f"{name} must lie in 0…{num_cells - 1}; seen {found.min()}…{found.max()}"
        )
    return found.astype(np.int64)


def check_seed(seed: int) -> int:
    """A seed that old and new NumPy generators both take.

    Raises:
        ContractError: If it's no integer in [0, 2³²).
    """
    number = check_count(seed, "seed", least=0)
    if number >= 2**32:
        raise ContractError(f"seed must be below 2^32; seen {number}")
    return number


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows, each so long that rows × width values fit in a small buffer."""
    size = max(1, min(2048, _CHUNK_VALUES // max(1, width)))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def unit_rows(features: NDArray[np.floating[Any]], name: str) -> Array:
    """Rows scaled to length 1, (N, D) float64.

    Raises:
        ContractError: If a row is all zeros and so has no direction.
    """
    rows = np.array(features, dtype=np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise ContractError(f"{name} must have no row of zeros; seen row {int(largest.argmin())}")
    rows /= largest  # first, so that squares neither overflow nor vanish
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
