"""Differential fairness: the largest log ratio that group membership makes.

Empty cells are infinitely unfair without smoothing; smoothed values rank, and say with what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import (
    Array,
    check_counts,
    check_effect,
    check_table,
    check_target,
    normal_quantile,
)
from fairbench.metrics.fairness import RESAMPLES

__all__ = [
    "DifferentialFairness",
    "LogRatio",
    "differential_fairness",
    "representation_epsilon",
]

_MOST_PAIRS = 1000  # that may be the largest; with more, counting all of them costs less


@dataclass(frozen=True)
class LogRatio:
    """Two groups and how differently they get one outcome.

    Attributes:
        first, second: Rows of the table, or groups; the first gets the outcome more often.
        outcome: Column of the table; None for representation, where being made is the outcome.
        log_ratio: ln of the ratio of the two chances, 0 or more; infinite if only one is 0.
    """

    first: int
    second: int
    outcome: int | None
    log_ratio: float


@dataclass(frozen=True)
class DifferentialFairness:
    """The largest log ratio between two groups over all outcomes.

    Attributes:
        epsilon: In [0, inf]; 0 is fair; lower is better.
        ratio: exp(-epsilon), in [0, 1]; higher is better.
        low, high: Ends of the interval of `epsilon`; both infinite where it is.
        worst: The pair and outcome that reach it.
        top: The largest log ratios, in descending order, `worst` first.
        alpha: Images added to each cell.
        reason: `"empty_group"` if a declared group has no images at all, which leaves its
            outcomes unknown and `epsilon` infinite whatever the smoothing; else None.
    """

    epsilon: float
    ratio: float
    low: float
    high: float
    worst: LogRatio
    top: tuple[LogRatio, ...]
    alpha: float
    reason: Literal["empty_group"] | None = None


def differential_fairness(
    counts: ArrayLike, *, alpha: float = 0.5, top: int = 5, level: float = 0.95, seed: int = 0
) -> DifferentialFairness:
    """Differential fairness of outcomes given groups.

    Rows are the groups and columns the outcomes: levels of one attribute given another, or of an
    attribute given the prompt.

    Args:
        counts: Images by group and outcome, (S, Y) whole numbers, S and Y 2 or more.
        alpha: Images added to each cell, 0 or more; 0 leaves empty cells infinitely unfair.
            AIF360's concentration is alpha times Y.
        top: How many pairs to list.
        level: Confidence level in (0, 1).
        seed: Seed of 2000 resamples of each row.

    Returns:
        Epsilon with its pairs. Its error is at most the largest error among the pairs that may
        be the largest in truth, and the interval is epsilon ± the `level` quantile of that.

    Raises:
        ContractError: If the table isn't of that shape, holds no images or alpha is negative.

    Source: Foulds et al. 2020, arXiv 1807.08362; ``docs/metrics.md``, "Intersections".
    """
    table = check_table(counts)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ContractError(f"counts must be (S, Y), both 2 or more; seen {table.shape}")
    _check_options(alpha, top, level)
    sizes = table.sum(axis=1)
    if (sizes == 0).any():
        vanished = int(np.flatnonzero(sizes == 0)[0])
        pair = LogRatio(int(sizes.argmax()), vanished, 0, float("inf"))
        return _infinite((pair,), alpha, "empty_group")
    logs = _logs(table[None], alpha)[0]
    pairs = _pairs(logs, top, by_outcome=True)
    if not np.isfinite(pairs[0].log_ratio):
        return _infinite(pairs, alpha, None)
    rng = np.random.default_rng(seed)
    # Drawn from rows shrunk by half an image a cell, or an unseen outcome could never be seen.
    centre = (table + 0.5) / (sizes + 0.5 * table.shape[1])[:, None]
    drawn = np.stack(
        [rng.multinomial(n, row, size=RESAMPLES) for n, row in zip(sizes, centre, strict=True)],
        axis=1,
    )
    around = _logs((centre * sizes[:, None])[None], alpha)[0]
    return _with_interval(pairs, logs, around, _logs(drawn, alpha), alpha, level)


def representation_epsilon(
    counts: ArrayLike,
    target: ArrayLike,
    *,
    alpha: float = 0.5,
    top: int = 5,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> DifferentialFairness:
    """Differential fairness of being generated at all, relative to the target.

    Args:
        counts: Images of each declared cell, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), all above 0, sums to 1.
        alpha: Images added to each cell, 0 or more.
        top: How many pairs to list.
        design_effect: Variance of the counts over that of independent images, above 0.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        Largest |ln(p_g / t_g) - ln(p_h / t_h)|, its pairs and its interval, found as in
        `differential_fairness`.

    Raises:
        ContractError: If a target is 0, there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Intersections", after Foulds et al. 2020, arXiv 1807.08362.
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    if wanted.min() <= 0:
        raise ContractError("a group with target 0 has no representation ratio; leave it out")
    _check_options(alpha, top, level)
    # One outcome, (R, K, 1): smoothing adds to each group, not to outcomes within one.
    shift = np.log(wanted)[:, None]
    logs = _group_logs(numbers[None], alpha)[0] - shift
    pairs = _pairs(logs, top, by_outcome=False)
    if not np.isfinite(pairs[0].log_ratio):
        return _infinite(pairs, alpha, None)
    worth = numbers / check_effect(design_effect)
    n = max(1, round(float(worth.sum())))
    centre = (worth + 0.5) / (worth.sum() + 0.5 * numbers.size)
    drawn = np.random.default_rng(seed).multinomial(n, centre, size=RESAMPLES)
    around = _group_logs((centre * n)[None], alpha)[0] - shift
    return _with_interval(pairs, logs, around, _group_logs(drawn, alpha) - shift, alpha, level)


def _logs(tables: NDArray[np.generic], alpha: float) -> Array:
    """Log chance of each outcome, (R, S, Y) -> (R, S, Y)."""
    smoothed = tables.astype(np.float64) + alpha
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(smoothed) - np.log(smoothed.sum(axis=2, keepdims=True)))


def _group_logs(counts: NDArray[np.generic], alpha: float) -> Array:
    """Log share of each group, (R, K) -> (R, K, 1)."""
    return np.swapaxes(_logs(counts[:, None, :], alpha), 1, 2)


def _epsilons(logs: Array) -> Array:
    """Largest range over groups of any outcome, (R, S, Y) -> (R,)."""
    return np.asarray((logs.max(axis=1) - logs.min(axis=1)).max(axis=1), dtype=np.float64)


def _pairs(logs: Array, top: int, *, by_outcome: bool) -> tuple[LogRatio, ...]:
    """The `top` largest log ratios, over pairs of rows and outcomes."""
    first, second = np.triu_indices(len(logs), 1)
    with np.errstate(invalid="ignore"):
        ratios = logs[first] - logs[second]
    ratios[np.isnan(ratios)] = 0.0  # an outcome that neither group gets is the same for both
    sizes = np.abs(ratios).ravel()
    found = []
    for place in np.argsort(-sizes, kind="stable")[:top]:
        pair, outcome = divmod(int(place), logs.shape[1])
        more, less = int(first[pair]), int(second[pair])
        if ratios[pair, outcome] < 0:
            more, less = less, more
        found.append(LogRatio(more, less, outcome if by_outcome else None, float(sizes[place])))
    return tuple(found)


def _with_interval(
    pairs: tuple[LogRatio, ...],
    logs: Array,
    around: Array,
    drawn: Array,
    alpha: float,
    level: float,
) -> DifferentialFairness:
    epsilon = pairs[0].log_ratio
    errors = drawn - around
    # Resamples that lose a cell without smoothing are as far off as can be.
    errors = errors[np.isfinite(errors).all(axis=(1, 2))]
    if len(errors) < level * len(drawn):
        low, high = 0.0, float("inf")
    else:
        kept = max(0.0, 1 - (1 - level) * len(drawn) / len(errors))
        radius = _radius(logs, errors, kept)
        low, high = max(0.0, epsilon - radius), epsilon + radius
    return DifferentialFairness(
        epsilon,
        float(np.exp(-epsilon)),
        min(low, epsilon),
        max(high, epsilon),
        pairs[0],
        pairs,
        alpha,
    )


def _radius(logs: Array, errors: Array, level: float) -> float:
    """The `level` quantile of the largest error among pairs that may be the largest in truth.

    Counting a single pair, as a percentile bootstrap nearly does, misses where several tie: the
    largest of them is too large on average, and was covered in 73 % of trials.
    """
    every = float(np.quantile(_epsilons(errors), level))
    first, second = np.triu_indices(len(logs), 1)
    gaps = np.abs(logs[first] - logs[second])
    pair, outcome = np.nonzero(gaps >= gaps.max() - 2 * every)
    if pair.size > _MOST_PAIRS:
        return every
    found = errors[:, first[pair], outcome] - errors[:, second[pair], outcome]
    return float(np.quantile(np.abs(found).max(axis=1), level))


def _infinite(
    pairs: tuple[LogRatio, ...], alpha: float, reason: Literal["empty_group"] | None
) -> DifferentialFairness:
    lost = float("inf")
    return DifferentialFairness(lost, 0.0, lost, lost, pairs[0], pairs, alpha, reason)


def _check_options(alpha: float, top: int, level: float) -> None:
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ContractError(f"alpha must be 0 or more; seen {alpha}")
    if top < 1:
        raise ContractError(f"top must be 1 or more; seen {top}")
    normal_quantile(level)  # its check
