"""Delete-one-block jackknife: how much an estimate hangs on each part of its sample.

Source: Busing et al. 1999, doi 10.1023/A:1008800423698, for equal blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics._features import Array

__all__ = ["jackknife_variance", "split", "student"]


def split(n: int, blocks: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Random disjoint blocks of range(n), sizes equal up to 1.

    Raises:
        ContractError: If n is below 4 or the blocks don't fit.
    """
    if not 2 <= blocks <= n or n < 4:
        raise ContractError(f"need 4 rows or more and 2 to N blocks; seen N = {n}, {blocks}")
    return np.array_split(rng.permutation(n), blocks)


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
