"""Noise floors: the discrepancy that a perfectly fair generator shows by chance.

Every floor assumes independent images.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import (
    SUM_TOLERANCE,
    Array,
    check_size,
    check_target,
    check_targets,
    quantile,
)

__all__ = [
    "gaussian_floor",
    "mean_noise_floor",
    "noise_floor",
    "noise_floor_for",
    "worst_prompt_floor",
]

FLOOR_LEVEL = 0.95
_FLOOR_DRAWS = 100_000
_FLOOR_SEED = 20_240  # any constant: the same question must always give the same floor


def noise_floor(n: int, num_groups: int) -> float:
    """Discrepancy that a perfectly fair generator stays below in 95 % of samples.

    Args:
        n: Number of images, positive.
        num_groups: K, 2 or more; the target is uniform.

    Returns:
        sqrt(chi-square quantile / (n K)), for n large enough that every group is expected about
        five times; a value below it can't be told from fair.

    Raises:
        ContractError: If n or K is too small.

    Source: ``docs/metrics.md``, "Floors".
    """
    from scipy.special import chdtri  # 0.2 s, and importing metrics should stay cheap

    if num_groups < 2:
        raise ContractError(f"num_groups must be 2 or more; seen {num_groups}")
    check_size(n)
    quantile = float(chdtri(num_groups - 1, 1 - FLOOR_LEVEL))
    return float(np.sqrt(quantile / (n * num_groups)))


def noise_floor_for(target: ArrayLike, n: int) -> float:
    """The noise floor for any target; `noise_floor` where all wanted shares that aren't 0 agree.

    Args:
        target: Wanted shares, (K,), sums to 1. Groups with target 0 never occur in a fair
            sample, so they change nothing.
        n: Number of images, positive.

    Returns:
        95 % quantile of the discrepancy of a generator whose shares are the target, to about
        0.5 %; 0 if the target is a single group.

    Raises:
        ContractError: If the target isn't a vector of shares or n isn't positive.

    Source: ``docs/metrics.md``, "Floors"; n D² tends to a chi-square mixture weighted by the
        eigenvalues of diag(t) - t tᵀ.
    """
    wanted = check_target(target)
    check_size(n)
    held = wanted[wanted > 0]
    if held.size < 2:
        return 0.0
    if np.allclose(held, 1 / held.size, rtol=0, atol=SUM_TOLERANCE):
        return noise_floor(n, held.size)
    draws = _fair_discrepancies(wanted, n, np.random.default_rng(_FLOOR_SEED))
    return float(quantile(draws, FLOOR_LEVEL))


def worst_prompt_floor(n_per_prompt: ArrayLike, targets: ArrayLike) -> float:
    """The noise floor of the largest of per-prompt discrepancies.

    Args:
        n_per_prompt: Images of each prompt, (P,) positive whole numbers.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.

    Returns:
        95 % quantile of the largest discrepancy when every prompt is fair, to about 0.5 %.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: ``docs/metrics.md``, "Floors".
    """
    sizes = np.atleast_1d(np.asarray(n_per_prompt))
    mean_noise_floor(sizes, targets)  # its checks
    rng = np.random.default_rng(_FLOOR_SEED)
    most = np.zeros(_FLOOR_DRAWS)
    for aim, size in zip(check_targets(targets, sizes.size), sizes, strict=True):
        most = np.maximum(most, _fair_discrepancies(aim, int(size), rng))
    return float(quantile(most, FLOOR_LEVEL))


def mean_noise_floor(n_per_prompt: ArrayLike, targets: ArrayLike) -> float:
    """The noise floor of a mean over prompts of per-prompt discrepancies.

    Args:
        n_per_prompt: Images of each prompt, (P,) positive whole numbers.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.

    Returns:
        95 % quantile of the mean discrepancy when every prompt is fair, to about 0.5 %;
        `noise_floor_for` for a single prompt.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: ``docs/metrics.md``, "Floors".
    """
    sizes = np.atleast_1d(np.asarray(n_per_prompt))
    if sizes.ndim != 1 or sizes.size == 0:
        raise ContractError(f"n_per_prompt must be a vector (P,); seen shape {sizes.shape}")
    wanted = check_targets(targets, sizes.size)
    for size in sizes:
        check_size(size)
    if sizes.size == 1:
        return noise_floor_for(wanted[0], int(sizes[0]))
    rng = np.random.default_rng(_FLOOR_SEED)
    total = np.zeros(_FLOOR_DRAWS)
    for aim, size in zip(wanted, sizes, strict=True):
        total += _fair_discrepancies(aim, int(size), rng)
    return float(quantile(total / sizes.size, FLOOR_LEVEL))


def gaussian_floor(covariance: ArrayLike) -> float:
    """95 % quantile of the norm of a normal error around 0.

    Args:
        covariance: Covariance of the error of the measured shares, (K, K), symmetric.

    Returns:
        The quantile to about 0.5 %, 0 or more.

    Raises:
        ContractError: If the matrix isn't square and finite.
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ContractError(f"covariance must be square and finite; seen shape {matrix.shape}")
    weights = _weights(matrix)
    if len(weights) == 1:  # one direction: two groups, which most rows have
        return math.sqrt(weights[0]) * _absolute_floor()
    squared: Array = np.zeros(_FLOOR_DRAWS)
    for place, weight in enumerate(weights):
        squared += weight * _squared_normals(place)
    return float(quantile(np.sqrt(squared), FLOOR_LEVEL))


@cache
def _absolute_floor() -> float:
    """`gaussian_floor` along one direction, for a variance of 1."""
    return float(quantile(np.sqrt(_squared_normals(0)), FLOOR_LEVEL))


@cache
def _squared_normals(place: int) -> Array:
    """The draws of `_gaussian_norms` for the weight at that place, from the floor's own seed."""
    rng = np.random.default_rng(_FLOOR_SEED)
    for _ in range(place):
        rng.standard_normal(_FLOOR_DRAWS)
    return np.asarray(rng.standard_normal(_FLOOR_DRAWS) ** 2, dtype=np.float64)


def _fair_discrepancies(target: Array, n: int, rng: np.random.Generator) -> Array:
    """Discrepancies of fair samples of n images, (draws,), in the limit of large n."""
    norms = _gaussian_norms(np.diag(target) - np.outer(target, target), rng)
    return np.asarray(norms / np.sqrt(n), dtype=np.float64)


def _gaussian_norms(covariance: Array, rng: np.random.Generator) -> Array:
    squared: Array = np.zeros(_FLOOR_DRAWS)
    for weight in _weights(covariance):
        squared += weight * rng.standard_normal(_FLOOR_DRAWS) ** 2
    return np.sqrt(squared)


def _weights(covariance: Array) -> Array:
    """Eigenvalues that aren't 0, ascending."""
    weights = np.linalg.eigvalsh(covariance)
    return np.asarray(weights[weights > 1e-12 * max(weights[-1], 1e-300)], dtype=np.float64)
