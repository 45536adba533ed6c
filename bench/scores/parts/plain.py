"""The two plainest kinds of scores, which every stage makes: a share, and a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Better, Score
from fairbench.metrics import (
    GroupEffects,
    KernelDistance,
    clustered_share_intervals,
    wilson_interval,
)
from fairbench.scores.parts.crossings import WORTH_BATCHES, Reading

__all__ = [
    "NORMAL",
    "auc_score",
    "distance_score",
    "kernel_score",
    "mean_score",
    "share_of_valid",
    "share_score",
]

NORMAL = 1.96


def share_score(
    name: str,
    count: int,
    total: int,
    better: Better,
    source: str,
    *,
    n: int | None = None,
    interval: bool = True,
    effects: GroupEffects | None = None,
) -> Score:
    """A share with Wilson's interval, unless the things counted aren't a sample.

    `effects` are those of the two groups, misses and hits, where batches couple images.
    """
    low, high = wilson_interval(count, total) if interval else (None, None)
    if effects is not None:
        ends = clustered_share_intervals([total - count, count], effects)
        low, high = (float(end[1]) for end in ends)
    return Score(
        name=name,
        value=count / total,
        low=low,
        high=high,
        n=total if n is None else n,
        better=better,
        interval=f"wilson{f', {WORTH_BATCHES}' if effects else ''}" if interval else "",
        unit="share",
        source=source,
    )


def auc_score(name: str, auc: float, error: float, n: int, interval: str, source: str) -> Score:
    """Chance that a generated image lies nearer than a real one; lower is better.

    Args:
        name: Of the column.
        auc: In [0, 1].
        error: Its standard error; the interval is auc ± 1.96 errors, within [0, 1].
        n: Generated images.
        interval: How the error was found.
        source: What was compared with what.
    """
    return Score(
        name=name,
        value=auc,
        low=max(0.0, auc - NORMAL * error),
        high=min(1.0, auc + NORMAL * error),
        n=n,
        better="lower",
        interval=interval,
        unit="probability",
        source=source,
    )


def mean_score(
    name: str,
    values: NDArray[np.floating[Any]],
    better: Better,
    source: str,
    *,
    unit: str = "",
    highest: float = np.inf,
) -> Score:
    """The mean of one number an image, (N,), with the normal interval, cut at `highest`."""
    numbers = values.astype(np.float64)
    n, mean = len(numbers), float(numbers.mean())
    half = float(NORMAL * numbers.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return Score(
        name=name,
        value=mean,
        low=mean - half,
        high=min(highest, mean + half),
        n=n,
        better=better,
        interval="normal",
        unit=unit,
        source=source,
    )


def distance_score(name: str, ends: tuple[float, float, float], n: int, source: str) -> Score:
    """A distance with the ends of its interval, (value, low, high); lower is better."""
    value, low, high = ends
    return Score(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        better="lower",
        interval="jackknife, 20 blocks",
        source=source,
    )


def kernel_score(name: str, found: KernelDistance, n: int, source: str) -> Score:
    """A kernel distance; lower is better."""
    return distance_score(name, (found.value, found.low, found.high), n, source)


def share_of_valid(
    reading: Reading, name: str, hits: NDArray[np.bool_], better: Better, source: str
) -> Score:
    """Share of the valid images for which something holds, (n,)."""
    effects = reading.effects(hits.astype(np.int64), 2)
    return share_score(name, int(hits.sum()), reading.n, better, source, effects=effects)
