"""Intervals for methods that couple the images of a batch.

A method that steers a whole batch makes its images depend on each other, so a thousand images may
tell as little as a hundred. Resampling batches instead of images counts that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import (
    Array,
    check_target,
    count_groups,
    normal_quantile,
    soft_shares,
    wilson_interval,
)
from fairbench.metrics.fairness import (
    RESAMPLES,
    DiscrepancyInterval,
    clipped_interval,
    discrepancy_interval,
    discrepancy_of_shares,
)
from fairbench.metrics.floors import noise_floor_for
from fairbench.metrics.jackknife import student

__all__ = [
    "ClusteredDiscrepancy",
    "GroupEffects",
    "cluster_counts",
    "clustered_discrepancy",
    "clustered_share_intervals",
    "design_effect",
    "group_design_effects",
    "soft_design_effect",
]


@dataclass(frozen=True)
class ClusteredDiscrepancy:
    """A fairness discrepancy of images that come in batches.

    Attributes:
        interval: The value with its ends, found by resampling batches.
        floor: The noise floor for as many images in such batches.
        design_effect: Variance of the shares over that of independent images; above 1 the images
            of a batch agree, below 1 they make up for each other.
        num_clusters: Batches.
    """

    interval: DiscrepancyInterval
    floor: float
    design_effect: float
    num_clusters: int


@dataclass(frozen=True, eq=False)
class GroupEffects:
    """How many coupled images an independent one is worth, group by group.

    Attributes:
        by_group: For the share of each group, (K,), 1 or more; the overall one where a group has
            no image or all of them.
        overall: For all shares together, above 0; below 1 where batches are steered.
        seen: The same before it is stretched for how few batches it rests on.
    """

    by_group: Array
    overall: float
    seen: float


def cluster_counts(labels: ArrayLike, clusters: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    """Count the images of each group in each batch.

    Args:
        labels: Group of each image, (N,) integers in [0, K).
        clusters: Batch of each image, (N,) integers, any values.
        num_groups: K, the number of declared groups.

    Returns:
        Counts, (M, K) int64, batches in ascending order.

    Raises:
        ContractError: If the lengths differ, or a label or batch is not as above.
    """
    count_groups(labels, num_groups)  # its checks
    found, where = np.asarray(labels, dtype=np.int64), np.asarray(clusters)
    if where.shape != found.shape or where.dtype.kind not in "iu":
        raise ContractError(
            f"clusters must be {found.size} integers; seen {where.dtype} {where.shape}"
        )
    names, places = np.unique(where, return_inverse=True)
    flat = np.bincount(places * num_groups + found, minlength=names.size * num_groups)
    return flat.reshape(names.size, num_groups).astype(np.int64)


def design_effect(counts: ArrayLike) -> float:
    """How many times the variance of independent images the batches have.

    Args:
        counts: Images of each declared group by batch, (M, K), M >= 2.

    Returns:
        Variance of the shares between batches over the multinomial one, 0 or more; 1 where all
        images are in one group and neither can be seen.

    Raises:
        ContractError: If there are fewer than 2 batches or a batch is empty.

    Source: Kish 1965, Survey Sampling; ``docs/metrics.md``, "Batches that depend on each other".
    """
    table = _check_clusters(counts)
    n = table.sum()
    found = table.sum(axis=0) / n
    independent = (found * (1 - found)).sum() / n
    if independent == 0:
        return 1.0
    return float((_linearised(table) ** 2).sum() / independent)


def group_design_effects(
    labels: ArrayLike,
    clusters: ArrayLike,
    num_groups: int,
    *,
    strata: ArrayLike | None = None,
    level: float = 0.95,
) -> GroupEffects | None:
    """Design effects that an interval of a share may rely on.

    Args:
        labels: Group of each image, (N,) integers in [0, K).
        clusters: Batch of each image, (N,) integers.
        num_groups: K, the number of declared groups.
        strata: Stratum of each image, such as its prompt, (N,) integers; None for a single one.
            What differs between strata isn't a batch's doing. One with a single batch is taken
            to be like the others.
        level: Confidence level in (0, 1) of the intervals that will rest on them.

    Returns:
        Variance of the shares over that of independent images, times the squared ratio of
        Student's to the normal quantile: few batches that happen to balance each other are no
        proof that they always do, which is what the stretch allows for. Of a single group at
        least 1, since its share may rest on a handful of images; of all groups together as it is
        seen, but no less than if z² images had gone astray in all batches. None if no stratum has
        two batches: then their variance can't be seen.

    Raises:
        ContractError: If the lengths differ, or a label or batch is not as above.

    Source: Kish 1965, Survey Sampling; Korn and Graubard 1998, Survey Methodology 24, 193, for the
        use of Student's quantile; ``docs/metrics.md``, "Batches that depend on each other".
    """
    found, where = np.asarray(labels), np.asarray(clusters)
    cluster_counts(found, where, num_groups)  # its checks
    parts = np.zeros(found.shape, dtype=np.int64) if strata is None else np.asarray(strata)
    if parts.shape != found.shape or parts.dtype.kind not in "iu":
        raise ContractError(f"strata must be {found.size} integers; seen {parts.dtype}")
    clustered, independent, degrees = np.zeros(num_groups), np.zeros(num_groups), 0
    for part in np.unique(parts):
        mine = parts == part
        table = cluster_counts(found[mine], where[mine], num_groups)
        if len(table) < 2:
            continue
        n = table.sum()
        share = table.sum(axis=0) / n
        # Errors of a pooled share add up in the proportions of the strata.
        clustered += n**2 * (_linearised(table) ** 2).sum(axis=0)
        independent += n * share * (1 - share)
        degrees += len(table) - 1
    if not degrees:
        return None
    stretch = _stretch(degrees, level) ** 2
    seen = _seen(float(clustered.sum()), float(independent.sum()), level)
    by_group = np.full(num_groups, max(1.0, seen))
    held = independent > 0
    by_group[held] = np.maximum(1, clustered[held] / independent[held])
    return GroupEffects(by_group * stretch, seen * stretch, seen)


def clustered_share_intervals(
    counts: ArrayLike, effects: GroupEffects, *, level: float = 0.95
) -> tuple[Array, Array]:
    """Wilson intervals of shares, as of the independent images that coupled ones are worth.

    Resampled batches would give a group without images an interval without width.

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        effects: Of `group_design_effects`.
        level: Confidence level in (0, 1), the same as there.

    Returns:
        Lower and upper ends, each (K,) float64 in [0, 1].

    Raises:
        ContractError: If there are no images or the two K differ.

    Simulated coverage at 95 %, 400 trials a cell: 92…96 % for 2 and 4 groups, 10…30 batches of 32
    and 64 images that correlate by .1 and .2, where Wilson's plain interval covers 41…68 %.

    Source: Korn and Graubard 1998, Survey Methodology 24, 193; ``docs/metrics.md``, "Batches that
        depend on each other".
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if numbers.shape != effects.by_group.shape:
        raise ContractError(f"counts must be {effects.by_group.shape}; seen {numbers.shape}")
    low, high = wilson_interval(
        numbers / effects.by_group, numbers.sum() / effects.by_group, level=level
    )
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def soft_design_effect(
    probs: ArrayLike, clusters: ArrayLike, strata: ArrayLike, *, level: float = 0.95
) -> float | None:
    """As `GroupEffects.overall`, for mean group probabilities.

    Args:
        probs: Group probabilities, (N, K) floats, rows sum to 1.
        clusters: Batch of each image, (N,) integers.
        strata: Stratum of each image, such as its prompt, (N,) integers.
        level: Confidence level in (0, 1) of the intervals that will rest on it.

    Returns:
        Above 0; None if no stratum has two batches.

    Raises:
        ContractError: If shapes disagree or rows aren't probabilities.
    """
    rows = np.asarray(probs, dtype=np.float64)
    soft_shares(rows, rows.shape[-1])  # its checks
    where, parts = np.asarray(clusters), np.asarray(strata)
    if not where.shape == parts.shape == rows.shape[:1]:
        raise ContractError(f"need one batch and stratum for each of {len(rows)} images")
    clustered = independent = 0.0
    degrees = 0
    for part in np.unique(parts):
        mine = parts == part
        names, places = np.unique(where[mine], return_inverse=True)
        if len(names) < 2:
            continue
        centred = rows[mine] - rows[mine].mean(axis=0)
        totals = np.zeros((len(names), rows.shape[1]))
        np.add.at(totals, places, centred)
        clustered += float((totals**2).sum()) * len(names) / (len(names) - 1)
        independent += float((centred**2).sum())
        degrees += len(names) - 1
    if not degrees:
        return None
    return _seen(clustered, independent, level) * _stretch(degrees, level) ** 2


def clustered_discrepancy(
    labels: ArrayLike,
    clusters: ArrayLike,
    target: ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> ClusteredDiscrepancy:
    """Fairness discrepancy with an interval that allows for coupled batches.

    Args:
        labels: Group of each image, (N,) integers in [0, K).
        clusters: Batch of each image, (N,) integers; 2 batches or more.
        target: Wanted shares, (K,), sums to 1.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        As `discrepancy_interval`: by the triangle inequality up to twice the floor, by
        percentiles beyond. Errors are stretched by Student's over the normal quantile, as few
        batches need. Where all images are in one group the batches show no variance and the
        interval is that of independent images.

    Raises:
        ContractError: If lengths differ, a label is out of range or there is a single batch.

    Source: Cameron, Gelbach and Miller 2008, doi 10.1162/rest.90.3.414; ``docs/metrics.md``,
        "Batches that depend on each other".
    """
    from scipy.special import stdtrit  # importing metrics should stay cheap

    z = normal_quantile(level)
    wanted = check_target(target)
    table = _check_clusters(cluster_counts(labels, clusters, wanted.size))
    total = table.sum(axis=0)
    n, num_clusters = int(total.sum()), len(table)
    found = total / n
    value = discrepancy_of_shares(found, wanted)
    effect = design_effect(table)
    floor = float(noise_floor_for(wanted, n) * np.sqrt(effect))
    if np.count_nonzero(total) == 1:
        plain = discrepancy_interval(total, wanted, level=level, seed=seed)
        return ClusteredDiscrepancy(plain, floor, effect, num_clusters)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), RESAMPLES)
    resampled = weights @ table
    stretch = float(stdtrit(num_clusters - 1, (1 + level) / 2)) / z
    stretch *= np.sqrt(num_clusters / (num_clusters - 1))
    errors = stretch * (resampled / resampled.sum(axis=1, keepdims=True) - found)
    if value > 2 * floor:
        distances = np.linalg.norm(found + errors - wanted, axis=1)
        low, high = np.quantile(distances, [(1 - level) / 2, (1 + level) / 2])
        interval = clipped_interval(value, low, high, wanted, "percentile")
    else:
        radius = float(np.quantile(np.linalg.norm(errors, axis=1), level))
        interval = clipped_interval(value, value - radius, value + radius, wanted, "triangle")
    return ClusteredDiscrepancy(interval, floor, effect, num_clusters)


def _seen(clustered: float, independent: float, level: float) -> float:
    """Ratio of two variances of counts; exact balance isn't taken to be without any error."""
    if independent == 0:
        return 1.0
    least = min(1.0, normal_quantile(level) ** 2 / independent)
    return max(least, clustered / independent)


def _stretch(degrees: int, level: float) -> float:
    """Student's over the normal quantile."""
    return student(level, degrees) / normal_quantile(level)


def _linearised(table: NDArray[np.int64]) -> Array:
    """Each batch's part in the error of the shares, (M, K)."""
    n, num_clusters = table.sum(), len(table)
    found = table.sum(axis=0) / n
    parts = (table - table.sum(axis=1, keepdims=True) * found) / n
    return np.asarray(parts * np.sqrt(num_clusters / (num_clusters - 1)), dtype=np.float64)


def _check_clusters(counts: ArrayLike) -> NDArray[np.int64]:
    table = np.asarray(counts)
    if table.ndim != 2 or len(table) < 2:
        raise ContractError(f"need 2 batches or more, counts (M, K); seen {table.shape}")
    if table.dtype.kind not in "iu" or table.min() < 0 or not table.any(axis=1).all():
        raise ContractError("counts must be whole, not negative, with an image in every batch")
    return table.astype(np.int64)
