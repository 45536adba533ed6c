"""Delete-one-block jackknife: how much an estimate hangs on each part of its sample.

Source: Busing et al. 1999, doi 10.1023/A:1008800423698, for equal blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics._features import Array

__all__ = ["jackknife_variance", "split", "student"]


def split(
    n: int, blocks: int, rng: np.random.Generator, clusters: NDArray[np.integer[Any]] | None = None
) -> list[NDArray[np.int64]]:
    """Random disjoint blocks of range(n), sizes equal up to 1.

    With clusters, (n,), such as batches of images that depend on each other, each stays whole:
    there are no more blocks than clusters, and sizes are equal up to one cluster.

    Raises:
        ContractError: If n is below 4, the blocks don't fit, or there is a single cluster.
    """
    if not 2 <= blocks <= n or n < 4:
        raise ContractError(f"need 4 rows or more and 2 to N blocks; seen N = {n}, {blocks}")
    if clusters is None:
        return np.array_split(rng.permutation(n), blocks)
    if clusters.shape != (n,):
        raise ContractError(f"need a cluster for each of {n} rows; seen {clusters.shape}")
    names, places = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        raise ContractError("need 2 clusters or more; seen 1")
    chosen = np.array_split(rng.permutation(len(names)), min(blocks, len(names)))
    return [np.flatnonzero(np.isin(places, part)) for part in chosen]


def jackknife_variance(left_out: Array) -> float:
    """Variance of an estimate from its values with each of G blocks left out, (G,)."""
    return float((len(left_out) - 1) * np.var(left_out))


def student(level: float, degrees: int) -> float:
    """Two-sided quantile of Student's t.

    Raises:
        ContractError: If the level isn't between 0 and 1.
    """
    from scipy.special import stdtrit  # 0.2 s, and importing metrics should stay cheap

    if not 0 < level < 1:
        raise ContractError(f"level must lie between 0 and 1; seen {level}")
    return float(stdtrit(degrees, (1 + level) / 2))
