"""Differences between two measurements of one score: how sure, how small a one would be found."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import Array

__all__ = ["POWER", "Change", "Ends", "change", "detectable", "images_needed", "pairing"]

LEVEL = 0.05
POWER = 0.8
"""Chance with which the smallest detectable effect is found."""

ENOUGH_SEEDS = 3
_UNIT = NormalDist()
_HALF = _UNIT.inv_cdf(1 - LEVEL / 2)

Ends = tuple[float, float, float]
"""A value and the ends of its 95 % interval, low <= value <= high."""


@dataclass(frozen=True)
class Change:
    """How a score changed.

    Attributes:
        value: After less before, mean over seeds.
        low, high: Ends of the 95 % interval of that.
        p_value: Two-sided, of no change.
        error: Standard error, the larger of the two directions'.
    """

    value: float
    low: float
    high: float
    p_value: float
    error: float


def change(before: list[Ends], after: list[Ends], factors: list[float]) -> Change:
    """The change of a score between two measurements, over one or more seeds.

    The interval of a difference is recovered from those of its two ends, each to the side that
    counts (Zou and Donner), which keeps what made them right where a score lies at its bound. With
    three seeds or more the differences' own scatter enters as well, by Student's t, and the wider
    of the two counts.

    Args:
        before: A value with its ends for each seed.
        after: The same, of the same seeds.
        factors: For each seed, variance of the difference over that of independent measurements,
            as `pairing` tells it; 1 for measurements that share nothing.

    Raises:
        ContractError: If there is no seed, or not one of each for every seed.

    Source: Zou and Donner 2008, Statistics in Medicine 27, 1693-1702.
    """
    if not before or len({len(before), len(after), len(factors)}) != 1:
        raise ContractError("expected a value before, one after and a factor for each seed")
    first, second = np.array(before, dtype=float), np.array(after, dtype=float)
    apart = second[:, 0] - first[:, 0]
    weights = np.array(factors, dtype=float)
    down = weights * ((second[:, 0] - second[:, 1]) ** 2 + (first[:, 2] - first[:, 0]) ** 2)
    up = weights * ((second[:, 2] - second[:, 0]) ** 2 + (first[:, 0] - first[:, 1]) ** 2)
    seeds, value = len(apart), float(apart.mean())
    sides = [float(np.sqrt(one.sum())) / seeds for one in (down, up)]
    errors = [side / _HALF for side in sides]
    # What is in doubt is the side of no change.
    error = errors[0] if value > 0 else errors[1]
    p_value = _two_sided(value, error)
    if seeds >= ENOUGH_SEEDS:
        from scipy.special import stdtr, stdtrit  # importing metrics should stay cheap

        spread = float(apart.std(ddof=1)) / np.sqrt(seeds)
        if spread > 0:
            p_value = max(p_value, float(2 * stdtr(seeds - 1, -abs(value) / spread)))
            wide = float(stdtrit(seeds - 1, 1 - LEVEL / 2)) * spread
            sides = [max(side, wide) for side in sides]
            errors = [max(one, spread) for one in errors]
    return Change(value, value - sides[0], value + sides[1], p_value, max(errors))


def _two_sided(value: float, error: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * _UNIT.cdf(-abs(value) / error)


def pairing(
    before: ArrayLike, after: ArrayLike, clusters: NDArray[np.int64] | None = None
) -> float:
    """Variance of a difference of shares over that of independent images.

    Args:
        before: Group of each of N images, any integers.
        after: Of the images that were made from the same noise, in the same order.
        clusters: (N,) equal for images that depend on each other; None: none do.

    Returns:
        0 or more; 1 for groups that have nothing to do with each other, about the share of images
        that changed their group where few did. One more image counts as changed than did, so that
        no change at all isn't known for sure.

    Raises:
        ContractError: If lengths differ or there are no images.
    """
    left, right = np.asarray(before, dtype=np.int64), np.asarray(after, dtype=np.int64)
    if left.shape != right.shape or left.ndim != 1 or not left.size:
        raise ContractError(f"expected pairs of groups; seen {left.shape} and {right.shape}")
    names, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    tables = [_centred(half, len(names)) for half in np.split(places, 2)]
    if clusters is not None:
        _, blocks = np.unique(clusters, return_inverse=True)
        tables = [_summed(table, blocks) for table in tables]
    apart = float(((tables[1] - tables[0]) ** 2).sum())
    alone = float(sum((table**2).sum() for table in tables))
    return (apart + 2) / (alone + 2)


def _centred(groups: NDArray[np.int64], size: int) -> Array:
    table = np.eye(size)[groups]
    return np.asarray(table - table.mean(axis=0))


def _summed(table: Array, blocks: NDArray[np.int64]) -> Array:
    total = np.zeros((int(blocks.max()) + 1, table.shape[1]))
    np.add.at(total, blocks, table)
    return total


def detectable(error: float, tests: int) -> float:
    """Effect that a test among several finds with 80 % power, by Bonferroni's bound on Holm's.

    Args:
        error: Standard error of the difference.
        tests: How many tests share the 5 %.
    """
    return (_UNIT.inv_cdf(1 - LEVEL / (2 * max(1, tests))) + _UNIT.inv_cdf(POWER)) * error


def images_needed(images: int, error: float, effect: float, tests: int) -> int | None:
    """Images of each side with which a given effect would be found; None if no number is enough.

    Args:
        images: How many there are.
        error: Standard error of the difference with those.
        effect: Above 0.
        tests: As for `detectable`.
    """
    if effect <= 0:
        return None
    return max(1, int(np.ceil(images * (detectable(error, tests) / effect) ** 2)))
