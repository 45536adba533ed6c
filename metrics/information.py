"""How much attributes tell about each other, or a prompt about an attribute.

All in nats. A declared level without images adds nothing to any of these, so none of them shows
that a level is missing: read them beside the discrepancies, never instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import Array, check_shares, check_table

__all__ = [
    "MutualInformation",
    "TotalCorrelation",
    "cramers_v",
    "entropy",
    "mutual_information",
    "total_correlation",
]

_PERMUTATIONS = 2000
_LEAST_EXPECTED = 5


@dataclass(frozen=True)
class MutualInformation:
    """Dependence of two attributes. 0 is independent, lower is better.

    Attributes:
        plug_in: Information of the measured shares, in [0, ln min(R, C)]; biased upwards.
        corrected: Less its bias at independence; may be slightly negative.
        normalised: `corrected` over the smaller of the two entropies, cut to [0, 1]; NaN where
            that entropy is 0, since one level alone can't depend on anything.
        p_value: Of independence.
        method: `"chi-square"`, `"permutation"` where a cell is expected fewer than 5 times, or
            `"none"` (p = 1) where one attribute has a single level.
        degrees: Degrees of freedom, over the levels that occur.
        cramers_v: Square root of Pearson's chi-square over its largest value, in [0, 1]; NaN
            where one attribute has a single level.
        reason: `"single_level"` where the normalised values can't be measured, else None.
    """

    plug_in: float
    corrected: float
    normalised: float
    p_value: float
    method: Literal["chi-square", "permutation", "none"]
    degrees: int
    cramers_v: float
    reason: Literal["single_level"] | None = None


@dataclass(frozen=True)
class TotalCorrelation:
    """Dependence among any number of attributes. 0 is independent, lower is better.

    Attributes:
        plug_in: Sum of the entropies less the joint entropy, 0 or more; biased upwards.
        corrected: Less its bias at independence; may be slightly negative.
    """

    plug_in: float
    corrected: float


def entropy(shares: ArrayLike) -> float:
    """Shannon entropy of shares.

    Args:
        shares: (K,), in [0, 1], sum 1.

    Returns:
        Nats, in [0, ln K].

    Raises:
        ContractError: If it isn't a vector of shares.
    """
    return _entropy(check_shares(shares, "shares"))


def mutual_information(table: ArrayLike, *, seed: int = 0) -> MutualInformation:
    """Mutual information of the rows and columns of a table of counts.

    Args:
        table: Images by level of one attribute, or by prompt, and level of another, (R, C) whole
            numbers.
        seed: Seed of the 2000 permutations; unused where the chi-square test serves.

    Returns:
        The information with its correction, its test and Cramér's V.

    Raises:
        ContractError: If the table isn't two-dimensional or holds no images.

    Source: Miller 1955 for the correction (R - 1)(C - 1) / (2n); ``docs/metrics.md``,
        "Intersections". R and C are the levels that occur: a level without images can't add to the
        bias.
    """
    counts = _two_dimensional(table)
    plug_in = _information(counts)
    n = int(counts.sum())
    seen = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    degrees = (seen.shape[0] - 1) * (seen.shape[1] - 1)
    corrected = plug_in - degrees / (2 * n)
    if degrees == 0:
        lost = float("nan")
        return MutualInformation(plug_in, corrected, lost, 1.0, "none", 0, lost, "single_level")
    least = min(_entropy(seen.sum(axis=axis) / n) for axis in (0, 1))
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / n
    method: Literal["chi-square", "permutation"] = "chi-square"
    if expected.min() >= _LEAST_EXPECTED:
        from scipy.special import chdtrc  # importing metrics should stay cheap

        p_value = float(chdtrc(degrees, 2 * n * plug_in))
    else:
        method = "permutation"
        p_value = _permutation_p_value(seen, seed)
    return MutualInformation(
        plug_in,
        corrected,
        min(max(corrected / least, 0.0), 1.0),
        p_value,
        method,
        degrees,
        cramers_v(seen),
    )


def cramers_v(table: ArrayLike) -> float:
    """Cramér's V of a table of counts.

    Args:
        table: Images by two attributes, (R, C) whole numbers.

    Returns:
        In [0, 1]; 0 is independent; NaN where only one row or one column has images.

    Raises:
        ContractError: If the table isn't two-dimensional or holds no images.

    Source: Cramér 1946, Mathematical Methods of Statistics, section 21.9.
    """
    counts = _two_dimensional(table)
    seen = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    smaller = min(seen.shape) - 1
    if smaller == 0:
        return float("nan")
    n = seen.sum()
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / n
    chi_square = ((seen - expected) ** 2 / expected).sum()
    return float(np.sqrt(min(chi_square / (n * smaller), 1.0)))


def total_correlation(table: ArrayLike) -> TotalCorrelation:
    """Total correlation of attributes, their mutual information where there are two.

    Args:
        table: Images of the joint cells, one axis an attribute, whole numbers.

    Returns:
        The correlation, plug-in and less (cells - 1 - Σ (levels - 1)) / (2n), over levels that
        occur.

    Raises:
        ContractError: If there are fewer than two axes or no images.

    Source: Watanabe 1960, doi 10.1147/rd.41.0066; ``docs/metrics.md``, "Intersections".
    """
    counts = check_table(table, "table")
    n = int(counts.sum())
    margins = [
        counts.sum(axis=tuple(other for other in range(counts.ndim) if other != axis))
        for axis in range(counts.ndim)
    ]
    apart = sum(_entropy(margin / n) for margin in margins)
    plug_in = max(apart - _entropy(counts.ravel() / n), 0.0)
    levels = [int(np.count_nonzero(margin)) for margin in margins]
    degrees = int(np.prod(levels)) - 1 - sum(level - 1 for level in levels)
    return TotalCorrelation(plug_in, plug_in - degrees / (2 * n))


def _entropy(found: Array) -> float:
    held = found[found > 0]
    return float(max(-(held * np.log(held)).sum(), 0.0))


def _information(counts: NDArray[np.int64]) -> float:
    n = counts.sum()
    apart = _entropy(counts.sum(axis=0) / n) + _entropy(counts.sum(axis=1) / n)
    return max(apart - _entropy(counts.ravel() / n), 0.0)  # rounding can leave -1e-17


def _permutation_p_value(counts: NDArray[np.int64], seed: int) -> float:
    """Share of tables with the same margins, labels shuffled, that tell at least as much."""
    from scipy.stats import random_table  # 1 s, and only small samples need it

    rng = np.random.default_rng(seed)
    tables = random_table(counts.sum(axis=1), counts.sum(axis=0)).rvs(
        size=_PERMUTATIONS, random_state=rng
    )
    # With the margins fixed only the joint entropy varies: Σ n ln n grows with the information.
    drawn, own = _sum_n_log_n(tables), _sum_n_log_n(counts[None])[0]
    # Tables that tie with the measured one may miss it by rounding.
    reached = int((drawn >= own - 1e-9 * max(abs(own), 1.0)).sum())
    return (reached + 1) / (_PERMUTATIONS + 1)


def _sum_n_log_n(tables: NDArray[np.generic]) -> Array:
    numbers = tables.astype(np.float64).reshape(len(tables), -1)
    return np.asarray((numbers * np.log(np.maximum(numbers, 1))).sum(axis=1), dtype=np.float64)


def _two_dimensional(table: ArrayLike) -> NDArray[np.int64]:
    counts = check_table(table, "table")
    if counts.ndim != 2:
        raise ContractError(f"table must have shape (R, C); seen {counts.shape}")
    return counts
