"""Intervals for methods that couple the images of a batch.

A method that steers a whole batch makes its images depend on each other, so a thousand images may
tell as little as a hundred. Resampling batches instead of images counts that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.errors import ContractError
from fairbench.metrics.counting import Array, check_target, count_groups, normal_quantile
from fairbench.metrics.fairness import (
    RESAMPLES,
    DiscrepancyInterval,
    clipped_interval,
    discrepancy_interval,
    discrepancy_of_shares,
)
from fairbench.metrics.floors import noise_floor_for

__all__ = ["ClusteredDiscrepancy", "cluster_counts", "clustered_discrepancy", "design_effect"]


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

    Source: Kish 1965, Survey Sampling; metric card B5.
    """
    table = _check_clusters(counts)
    n = table.sum()
    found = table.sum(axis=0) / n
    independent = (found * (1 - found)).sum() / n
    if independent == 0:
        return 1.0
    return float((_linearised(table) ** 2).sum() / independent)


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

    Source: Cameron, Gelbach and Miller 2008, doi 10.1162/rest.90.3.414; metric card B5.
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
