"""From labels or probabilities to counts and shares, and the checks that all of them share.

K always comes from the task's declared groups, never from the labels seen, so a group that nobody
generated counts as a share of 0.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError

__all__ = [
    "Array",
    "check_counts",
    "check_effect",
    "check_prompts",
    "check_same_groups",
    "check_shares",
    "check_size",
    "check_table",
    "check_target",
    "check_targets",
    "count_groups",
    "normal_quantile",
    "quantile",
    "share_intervals",
    "shares",
    "soft_shares",
    "wilson_interval",
    "wilson_size",
]

Array = NDArray[np.float64]

SUM_TOLERANCE = 1e-6
_ROW_TOLERANCE = 1e-4  # a float16 or float32 softmax does not sum to 1 any closer


def count_groups(labels: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    """Count the images of each declared group.

    Args:
        labels: Group index of each image, (N,) integers in [0, K).
        num_groups: K, the number of declared groups.

    Returns:
        Counts, (K,) int64; a group without any image keeps its 0.

    Raises:
        ContractError: If N is 0, or labels aren't a vector of integers in [0, K).
    """
    found = np.asarray(labels)
    if found.ndim != 1 or found.size == 0:
        raise ContractError(f"labels must be a non-empty vector (N,); seen shape {found.shape}")
    if found.dtype.kind not in "iu":
        raise ContractError(f"labels must be integers; seen {found.dtype}")
    if num_groups < 1:
        raise ContractError(f"num_groups must be 1 or more; seen {num_groups}")
    if found.min() < 0 or found.max() >= num_groups:
        raise ContractError(
            f"labels must lie in 0…{num_groups - 1}; seen {found.min()}…{found.max()}: "
            "declare the group or drop the image as invalid"
        )
    return np.bincount(found.astype(np.int64), minlength=num_groups).astype(np.int64)


def shares(counts: ArrayLike) -> Array:
    """Turn counts of all declared groups into shares.

    Args:
        counts: Images of each group, (K,), finite and not negative, zeros included.

    Returns:
        Shares, (K,) float64 in [0, 1], sum 1.

    Raises:
        ContractError: If there are no groups or no images; an empty set isn't a fair one.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ContractError(f"counts must be a non-empty vector (K,); seen shape {numbers.shape}")
    if not np.isfinite(numbers).all() or numbers.min() < 0:
        raise ContractError(f"counts must be finite and not negative; seen {numbers.tolist()}")
    total = numbers.sum()
    if total == 0:
        raise ContractError("counts must hold at least one image; seen only zeros")
    return np.asarray(numbers / total, dtype=np.float64)


@overload
def wilson_interval(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]: ...
@overload
def wilson_interval(
    k: ArrayLike, n: ArrayLike, *, level: float = 0.95
) -> tuple[float, float] | tuple[Array, Array]: ...
def wilson_interval(
    k: ArrayLike, n: ArrayLike, *, level: float = 0.95
) -> tuple[float, float] | tuple[Array, Array]:
    """Confidence interval of a share by Wilson's score method.

    Args:
        k: Images in the group, a number or an array, in [0, n].
        n: Images in all, broadcast against `k`, positive.
        level: Confidence level in (0, 1).

    Returns:
        Lower and upper ends in [0, 1], float64 of the broadcast shape, plain floats for two
        numbers. The lower end is exactly 0 at k = 0, the upper exactly 1 at k = n.

    Raises:
        ContractError: If a count is out of range or the shapes can't be broadcast.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    z = normal_quantile(level)
    hits, trials = _broadcast_counts(k, n)
    share = hits / trials
    weight = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / weight
    half = z / weight * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding leaves about 1e-17 where the formula's end is exactly 0 or 1.
    low = np.where(hits == 0, 0.0, centre - half)
    high = np.where(hits == trials, 1.0, centre + half)
    if low.ndim == 0:
        return float(low), float(high)
    return low, high


def share_intervals(counts: ArrayLike, *, level: float = 0.95) -> tuple[Array, Array]:
    """Wilson intervals of all shares that hold together, by Bonferroni's correction.

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        level: Confidence level in (0, 1) of all K intervals at once.

    Returns:
        Lower and upper ends, each (K,) float64 in [0, 1].

    Raises:
        ContractError: If there are no images, or a count isn't a whole number.

    Source: ``docs/metrics.md``, "Shares and targets".
    """
    numbers = np.asarray(counts, dtype=np.float64)
    normal_quantile(level)  # its check
    numbers = check_counts(numbers, numbers.size).astype(np.float64)
    each = 1 - (1 - level) / numbers.size
    low, high = wilson_interval(numbers, np.full(numbers.size, numbers.sum()), level=each)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def soft_shares(probs: ArrayLike, num_groups: int) -> Array:
    """Mean group probabilities, the shares that a classifier gives without deciding.

    Args:
        probs: Group probabilities, (N, K) floats, rows sum to 1.
        num_groups: K, the number of declared groups.

    Returns:
        Shares, (K,) float64, sum 1.

    Raises:
        ContractError: If N is 0, the width isn't K, or a row isn't a probability vector.

    Source: arXiv 2402.18206.
    """
    table = np.asarray(probs)
    if table.ndim != 2 or table.dtype.kind != "f":
        raise ContractError(
            f"group probabilities must be floats (N, K); seen {table.dtype} {table.shape}"
        )
    if len(table) == 0:
        raise ContractError(f"expected at least one image; seen shape {table.shape}")
    check_same_groups(table.shape[1], num_groups)
    rows = table.astype(np.float64)
    if not np.isfinite(rows).all() or rows.min() < -_ROW_TOLERANCE:
        raise ContractError("group probabilities must be finite and not negative")
    sums = rows.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _ROW_TOLERANCE:
        raise ContractError(
            f"rows of group probabilities must sum to 1; row {worst} sums to {sums[worst]:g}: "
            "pass probabilities, not logits"
        )
    mean = np.maximum(rows.mean(axis=0), 0)
    return np.asarray(mean / mean.sum(), dtype=np.float64)


def check_shares(values: ArrayLike, name: str) -> Array:
    """A vector (K,) of shares that sum to 1."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ContractError(f"{name} must be a non-empty vector (K,); seen shape {vector.shape}")
    sound = np.isfinite(vector).all() and vector.min() >= 0
    if not sound or abs(vector.sum() - 1) > SUM_TOLERANCE:
        raise ContractError(f"{name} must be in [0, 1] and sum to 1; seen {vector.tolist()}")
    return vector


def check_target(target: ArrayLike) -> Array:
    """Wanted shares of 2 groups or more, (K,)."""
    wanted = check_shares(target, "target")
    if wanted.size < 2:
        raise ContractError("target must name 2 groups or more; seen 1")
    return wanted


def check_targets(targets: ArrayLike, num_prompts: int) -> Array:
    """Targets as (P, K), one row repeated for all prompts if there is only one."""
    rows = np.asarray(targets, dtype=np.float64)
    if rows.ndim == 1:
        return np.tile(check_target(rows), (num_prompts, 1))
    if rows.ndim != 2 or len(rows) != num_prompts:
        raise ContractError(
            f"targets must have shape (K,) or ({num_prompts}, K); seen {rows.shape}"
        )
    return np.stack([check_target(row) for row in rows])


def check_prompts(counts: ArrayLike, targets: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Targets and counts, both (P, K)."""
    table = np.asarray(counts)
    if table.ndim != 2 or len(table) == 0:
        raise ContractError(f"counts must have shape (P, K); seen {table.shape}")
    wanted = check_targets(targets, len(table))
    numbers = np.stack([check_counts(row, wanted.shape[1]) for row in table])
    return wanted, numbers


def check_counts(counts: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    """Whole numbers of images of all declared groups, (K,), at least one image."""
    numbers = np.asarray(counts, dtype=np.float64)
    shares(numbers)  # its checks: a vector, finite, not negative, not empty
    check_same_groups(numbers.size, num_groups)
    if not (numbers == np.floor(numbers)).all():
        raise ContractError(f"counts must be whole numbers; seen {numbers.tolist()}")
    return numbers.astype(np.int64)


def check_effect(design_effect: float) -> float:
    """How many images say what an independent one does, above 0 and finite."""
    if not (np.isfinite(design_effect) and design_effect > 0):
        raise ContractError(f"design_effect must be above 0; seen {design_effect}")
    return float(design_effect)


def check_table(counts: ArrayLike, name: str = "counts") -> NDArray[np.int64]:
    """Whole, non-negative counts of at least two dimensions, each of size 1 or more."""
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim < 2 or table.size == 0:
        raise ContractError(f"{name} must be a table of counts; seen shape {table.shape}")
    return check_counts(table.ravel(), table.size).reshape(table.shape)


def check_same_groups(seen: int, num_groups: int) -> None:
    """Refuse a number of groups other than the declared one."""
    if seen != num_groups:
        raise ContractError(
            f"expected {num_groups} groups as in the target; seen {seen}: "
            "count over the declared groups, not the observed ones"
        )


def check_size(n: float) -> None:
    """Refuse a number of images that is not whole and positive."""
    if not n >= 1 or n != int(n):
        raise ContractError(f"the number of images must be a whole number above 0; seen {n}")


def _broadcast_counts(k: ArrayLike, n: ArrayLike) -> tuple[Array, Array]:
    try:
        hits, trials = np.broadcast_arrays(
            np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
        )
    except ValueError as error:
        raise ContractError(f"k and n must have shapes that broadcast; {error}") from error
    # Written so that NaN fails too.
    if not ((trials > 0) & (hits >= 0) & (hits <= trials) & np.isfinite(trials)).all():
        raise ContractError(f"need 0 <= k <= n and n > 0; seen k = {k!r}, n = {n!r}")
    return np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)


def normal_quantile(level: float) -> float:
    """Two-sided standard normal quantile, 1.96 at 95 %."""
    if not 0 < level < 1:
        raise ContractError(f"level must lie between 0 and 1; seen {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def quantile(values: Array, level: float) -> Array:
    """As `np.quantile` along the last axis, to the last digit, in a fraction of the time.

    Args:
        values: (…, R), R of 1 or more, without NaN.
        level: In [0, 1].

    Returns:
        (…,) float64.
    """
    last = values.shape[-1] - 1
    place = last * level
    below = int(place)
    part = place - below
    # NumPy takes ten times as long to find two places at once.
    ordered = np.partition(values, below, axis=-1)
    low = ordered[..., below]
    high = ordered[..., below + 1 :].min(axis=-1) if below < last else low
    gap = high - low
    return np.asarray(high - gap * (1 - part) if part >= 0.5 else low + gap * part)


def wilson_size(share: float, low: float, high: float, *, level: float = 0.95) -> float:
    """How many independent images Wilson's interval of a share is that of.

    Args:
        share: In [0, 1].
        low: Lower end of the interval.
        high: Its upper end, above the lower one and by less than 1.
        level: Its confidence level in (0, 1).

    Returns:
        Above 0, not rounded: where batches couple images, fewer than there are.
    """
    squared = (high - low) ** 2
    # (high - low)² (1 + a)² = 4 p (1 - p) a + a² with a = z² / n.
    half = squared - 2 * share * (1 - share)
    a = (half + float(np.sqrt(half**2 + squared * (1 - squared)))) / (1 - squared)
    return normal_quantile(level) ** 2 / a
