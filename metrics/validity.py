"""Images that can't be read, and classifiers that can't be trusted.

An unreadable image belongs to no group. Leaving it out is right for the main number but invites
a generator to make its hard cases unreadable, so the numbers here count it against the generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import (
    Array,
    check_same_groups,
    check_target,
    count_groups,
    soft_shares,
    wilson_interval,
)
from fairbench.metrics.fairness import DiscrepancyInterval, mean_discrepancy_interval

__all__ = [
    "Validity",
    "WorstCase",
    "check_calibration",
    "mean_penalised_discrepancy",
    "penalised_discrepancy",
    "validity_rate",
    "worst_case_bounds",
]


@dataclass(frozen=True)
class Validity:
    """Share of images that could be read, with its Wilson interval.

    Attributes:
        value: In [0, 1]; higher is better.
        low, high: Ends of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class WorstCase:
    """What the discrepancy could be if the unreadable images were known.

    Attributes:
        low: With every unreadable image in whichever group helps most.
        high: With all of them in the group that hurts most.
        worst_group: That group.
    """

    low: float
    high: float
    worst_group: int


def validity_rate(num_valid: int, num_images: int, *, level: float = 0.95) -> Validity:
    """Share of generated images that could be read.

    Args:
        num_valid: Readable images, in [0, num_images].
        num_images: All images generated, positive.
        level: Confidence level in (0, 1).

    Returns:
        The share with its interval.

    Raises:
        ContractError: If a count is out of range.

    Source: ``docs/metrics.md``, "Invalid images".
    """
    low, high = wilson_interval(num_valid, num_images, level=level)
    return Validity(num_valid / num_images, low, high)


def penalised_discrepancy(
    counts: ArrayLike,
    num_invalid: int,
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> DiscrepancyInterval:
    """Fairness discrepancy with the unreadable images as one more, unwanted group.

    Args:
        counts: Readable images of each declared group, (K,) whole numbers; may all be 0 if some
            image is unreadable.
        num_invalid: Unreadable images, 0 or more.
        target: Wanted shares, (K,), sums to 1.
        design_effect: As in `discrepancy_interval`.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        The value and its interval, in [0, sqrt(2)]; the plain one if every image is readable.

    Raises:
        ContractError: If there are no images, the two K differ or a count is negative.

    Source: ``docs/metrics.md``, "Invalid images".
    """
    check_target(target)
    if num_invalid != int(num_invalid):
        raise ContractError(f"num_invalid must be a whole number, 0 or more; seen {num_invalid}")
    return mean_penalised_discrepancy(
        np.asarray(counts)[None],
        [int(num_invalid)],
        target,
        design_effect=design_effect,
        level=level,
        seed=seed,
    )


def mean_penalised_discrepancy(
    counts: ArrayLike,
    num_invalid: ArrayLike,
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> DiscrepancyInterval:
    """Mean over prompts of `penalised_discrepancy`, with an interval of that mean.

    Args:
        counts: Readable images of each declared group by prompt, (P, K) whole numbers.
        num_invalid: Unreadable images of each prompt, (P,), 0 or more.
        target: Wanted shares of every prompt, (K,), sums to 1.
        design_effect: As in `discrepancy_interval`.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        `mean_discrepancy_interval` with the unreadable images as one more, unwanted group, unless
        every image is readable.

    Raises:
        ContractError: If a prompt has no images, shapes differ or a count is negative.

    Source: ``docs/metrics.md``, "Invalid images".
    """
    wanted = check_target(target)
    rows, invalid = np.asarray(counts), np.asarray(num_invalid)
    if rows.ndim != 2 or invalid.shape != rows.shape[:1]:
        raise ContractError(f"need counts (P, K) and P numbers; seen {rows.shape}")
    numbers = np.stack(
        [
            _check_invalid(row, int(lost), wanted.size)
            for row, lost in zip(rows, invalid, strict=True)
        ]
    )
    if invalid.any():
        numbers = np.concatenate([numbers, invalid[:, None].astype(np.int64)], axis=1)
        wanted = np.append(wanted, 0.0)
    return mean_discrepancy_interval(
        numbers, wanted, design_effect=design_effect, level=level, seed=seed
    )


def worst_case_bounds(counts: ArrayLike, num_invalid: int, target: ArrayLike) -> WorstCase:
    """Least and largest discrepancy that the unreadable images leave open.

    Args:
        counts: Readable images of each declared group, (K,) whole numbers.
        num_invalid: Unreadable images, 0 or more.
        target: Wanted shares, (K,), sums to 1.

    Returns:
        Bounds on the discrepancy of all images, equal if every image is readable.

    Raises:
        ContractError: If there are no images, the two K differ or a count is negative.

    Source: ``docs/metrics.md``, "Invalid images". Deviation: the lower bound spreads the images
        over the groups that lack some, in fractions of images; putting them all into one group is
        no lower bound.
    """
    wanted = check_target(target)
    numbers = _check_invalid(counts, num_invalid, wanted.size)
    total = int(numbers.sum()) + num_invalid
    distances = np.linalg.norm(
        (numbers + num_invalid * np.eye(wanted.size)) / total - wanted, axis=1
    )
    lacking = numbers - total * wanted
    best = (lacking + _level_up(lacking, num_invalid)) / total
    worst = int(distances.argmax())
    return WorstCase(float(np.linalg.norm(best)), float(distances[worst]), worst)


def check_calibration(probs: ArrayLike, labels: ArrayLike, *, tolerance: float = 0.1) -> float:
    """Refuse a classifier whose probabilities don't match how often it is right.

    A zero-shot reader without its model's logit scale says .525 where it is always right, and
    then calls a collapsed generator nearly fair.

    Args:
        probs: Group probabilities of labelled images, (N, K) floats, rows sum to 1.
        labels: Their true groups, (N,) integers in [0, K).
        tolerance: Largest allowed |accuracy - mean confidence|, in (0, 1).

    Returns:
        Accuracy less mean confidence, in [-1, 1]; near 0 is calibrated.

    Raises:
        ContractError: If shapes disagree or the classifier is further off than the tolerance.

    Source: ``docs/metrics.md``, "Shares and targets"; Guo et al. 2017, arXiv 1706.04599, with a
        single bin.
    """
    if not 0 < tolerance < 1:
        raise ContractError(f"tolerance must lie between 0 and 1; seen {tolerance}")
    rows = np.asarray(probs)
    if rows.ndim != 2:
        raise ContractError(f"group probabilities must be (N, K); seen shape {rows.shape}")
    soft_shares(rows, rows.shape[1])  # its checks
    truth = np.asarray(labels)
    count_groups(truth, rows.shape[1])  # its checks
    if len(truth) != len(rows):
        raise ContractError(f"expected {len(rows)} labels; seen {len(truth)}")
    gap = float((rows.argmax(axis=1) == truth).mean() - rows.max(axis=1).mean())
    if abs(gap) > tolerance:
        raise ContractError(
            f"the classifier is right {gap:+.3f} more often than its probabilities say; at most "
            f"{tolerance:g} is allowed: apply the model's own logit scale, or use hard labels"
        )
    return gap


def _level_up(lacking: Array, amount: float) -> Array:
    """Spread an amount over the lowest entries so that they end up level, (K,)."""
    if amount == 0:
        return np.zeros_like(lacking)
    order = np.sort(lacking)
    # Level reached if only the j lowest entries are filled; the right j leaves the next above it.
    levels = (amount + np.cumsum(order)) / np.arange(1, order.size + 1)
    return np.asarray(np.maximum(levels[order < levels][-1] - lacking, 0), dtype=np.float64)


def _check_invalid(counts: ArrayLike, num_invalid: int, num_groups: int) -> NDArray[np.int64]:
    numbers = np.asarray(counts, dtype=np.float64)
    if numbers.ndim != 1:
        raise ContractError(f"counts must be a vector (K,); seen shape {numbers.shape}")
    check_same_groups(numbers.size, num_groups)
    if num_invalid != int(num_invalid) or num_invalid < 0:
        raise ContractError(f"num_invalid must be a whole number, 0 or more; seen {num_invalid}")
    sound = np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all()
    if not sound or numbers.min() < 0 or numbers.sum() + num_invalid == 0:
        raise ContractError(
            f"counts must be whole, not negative, and not all 0; seen {numbers.tolist()}"
        )
    return numbers.astype(np.int64)
