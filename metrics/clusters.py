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
from fairbench.metrics.fairness import DiscrepancyInterval, discrepancy_interval
from fairbench.metrics.floors import noise_floor_for
from fairbench.metrics.jackknife import degrees_of_freedom, student

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
        interval: The value with its ends, as of the independent images that they are worth.
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
        proof that they always do, and one batch in twenty that holds all misses doesn't say how
        bad such a batch can be (`fairbench.metrics.jackknife.degrees_of_freedom`). No more than
        if each batch were one observation. Of a single group at least 1, since its share may rest
        on a handful of images; of all groups together as it is seen, but no less than if z²
        images had gone astray in all batches; where all images are in one group batches show
        nothing, and one observation is all that the effect of 1 rests on. None if no stratum has
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
    clustered, independent = np.zeros(num_groups), np.zeros(num_groups)
    rows, largest, degrees, counted = [], 0.0, 0, 0
    for part in np.unique(parts):
        mine = parts == part
        table = cluster_counts(found[mine], where[mine], num_groups)
        if len(table) < 2:
            continue
        n = table.sum()
        share = table.sum(axis=0) / n
        # Errors of a pooled share add up in the proportions of the strata.
        rows.append(n * _linearised(table))
        clustered += (rows[-1] ** 2).sum(axis=0)
        independent += n * share * (1 - share)
        largest += float((table.sum(axis=1) ** 2).sum())
        counted += int(n)
        degrees += len(table) - 1
    if not degrees:
        return None
    squares = np.concatenate(rows) ** 2
    limit = largest / counted * _stretch(degrees, level) ** 2
    sums = float(clustered.sum()), float(independent.sum())
    overall = min(limit, _relied_on(*sums, squares.sum(axis=1), degrees, level))
    by_group = np.full(num_groups, max(1.0, overall))
    for k in np.flatnonzero(independent > 0):
        effect = max(1.0, clustered[k] / independent[k])
        stretch = _stretch(degrees_of_freedom(squares[:, k], degrees), level) ** 2
        by_group[k] = max(1.0, min(limit, effect * stretch))
    return GroupEffects(by_group, overall, _seen(*sums, level))


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

    Simulated coverage at 95 %, 4,000 trials a cell, shares of .75 to .995, 8 to 60 batches of 25
    to 64 images that correlate by .1, .2 and .4: 94…99.6 %, where Student's quantile of as many
    degrees as there are batches gave as little as 49 %. Above 99 % where no more than a batch or
    two hold all misses, and the limit of a batch as one observation is reached.

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
    clustered = independent = largest = 0.0
    squares, degrees, counted = [], 0, 0
    for part in np.unique(parts):
        mine = parts == part
        names, places, sizes = np.unique(where[mine], return_inverse=True, return_counts=True)
        if len(names) < 2:
            continue
        centred = rows[mine] - rows[mine].mean(axis=0)
        totals = np.zeros((len(names), rows.shape[1]))
        np.add.at(totals, places, centred)
        squares.append((totals**2).sum(axis=1) * len(names) / (len(names) - 1))
        clustered += float(squares[-1].sum())
        independent += float((centred**2).sum())
        largest += float((sizes**2).sum())
        counted += int(sizes.sum())
        degrees += len(names) - 1
    if not degrees:
        return None
    limit = largest / counted * _stretch(degrees, level) ** 2
    relied_on = _relied_on(clustered, independent, np.concatenate(squares), degrees, level)
    return min(limit, relied_on)


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
        seed: Of the draws, for K > 2.

    Returns:
        `discrepancy_interval` of the independent images that the coupled ones are worth, see
        `group_design_effects`; the floor is that of as many images as the batches show.

    Raises:
        ContractError: If lengths differ, a label is out of range or there is a single batch.

    Source: Kish 1965, Survey Sampling; ``docs/metrics.md``, "Batches that depend on each other".
    """
    wanted = check_target(target)
    table = _check_clusters(cluster_counts(labels, clusters, wanted.size))
    effects = group_design_effects(labels, clusters, wanted.size, level=level)
    assert effects is not None  # there are two batches
    total = table.sum(axis=0)
    interval = discrepancy_interval(
        total, wanted, design_effect=effects.overall, level=level, seed=seed
    )
    effect = design_effect(table)
    floor = float(noise_floor_for(wanted, int(total.sum())) * np.sqrt(effect))
    return ClusteredDiscrepancy(interval, floor, effect, len(table))


def _seen(clustered: float, independent: float, level: float) -> float:
    """Ratio of two variances of counts; exact balance isn't taken to be without any error."""
    if independent == 0:
        return 1.0
    least = min(1.0, normal_quantile(level) ** 2 / independent)
    return max(least, clustered / independent)


def _relied_on(
    clustered: float, independent: float, squares: Array, degrees: int, level: float
) -> float:
    """That ratio, stretched for how few observations it rests on."""
    if independent == 0:
        return _stretch(1, level) ** 2
    freedom = degrees_of_freedom(squares, degrees)
    return max(
        _seen(0.0, independent, level) * _stretch(degrees, level) ** 2,
        clustered / independent * _stretch(freedom, level) ** 2,
    )


def _stretch(degrees: float, level: float) -> float:
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
