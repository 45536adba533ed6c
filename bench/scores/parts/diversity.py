"""How varied rows are next to as many real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score
from fairbench.metrics import vendi_score
from fairbench.metrics.jackknife import (
    degrees_of_freedom,
    jackknife_variance,
    split,
    student,
)

__all__ = ["DIVERSITY_BLOCKS", "GIVEN_REFERENCE", "diversity_score", "equally_many"]

DIVERSITY_BLOCKS = 20
GIVEN_REFERENCE = "given this reference"
"""What an interval says that holds the real images fixed."""

_DRAW_SEED = 20_244
_LEAST = 1e-9


def equally_many(
    x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of as many rows of either, drawn without replacement, in their order.

    Always the same ones: intervals are given the reference, so a seed mustn't change it.
    """
    rng = np.random.default_rng(_DRAW_SEED)
    n = min(len(x), len(y))
    mine, real = (np.sort(rng.choice(len(side), n, replace=False)) for side in (x, y))
    return mine, real


def diversity_score(
    name: str,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    source: str,
    *,
    seed: int,
    batches: NDArray[np.int64] | None = None,
) -> Score:
    """Effective number of different rows of x, in units of as many rows of y.

    Near the largest possible number, min(n, D), chance pushes it down much further than up. So the
    jackknife's error is of the logarithm of (v - 1) / (min(n, D) - v), with Student's quantile of
    the degrees that it rests on.

    Simulated coverage at 95 %, 1,500 trials a cell, N = 300 and 640, D = 8 and 24, independent
    images and 12 to 20 batches that correlate by .1 to .3: 94.6…99.3 %, the latter at the largest
    possible number; without the logarithm down to 93 %, all of them too high.

    Args:
        name: Of the score.
        x: (N, D) generated embeddings, N >= 4.
        y: (M, D) real ones, M >= 4.
        source: What they are.
        batches: (N,) batch of each row of x that depends on others.
        seed: Of the jackknife's blocks, 20 or as many as n allows.
    """
    places, others = equally_many(x, y)
    mine, real = x[places], y[others]
    value, unit, n = vendi_score(mine), vendi_score(real), len(mine)
    clusters = None if batches is None else batches[places]
    parts = split(n, min(DIVERSITY_BLOCKS, n // 2), np.random.default_rng(seed), clusters)
    left = np.array([vendi_score(np.delete(mine, part, axis=0)) for part in parts])
    most = float(min(mine.shape))
    low, high = _ends(value, left, most)
    return Score(
        name=name,
        value=value / unit,
        low=low / unit,
        high=high / unit,
        n=n,
        better="higher",
        interval=f"jackknife of log odds, {len(parts)} blocks, {GIVEN_REFERENCE}",
        source=source,
    )


def _ends(value: float, left_out: NDArray[np.float64], most: float) -> tuple[float, float]:
    """Ends of a number between 1 and `most`, by its values with each block left out."""

    def odds(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.clip(numbers, 1 + _LEAST, most - _LEAST)
        return np.asarray(np.log((inside - 1) / (most - inside)))

    left = odds(left_out)
    degrees = degrees_of_freedom((left - left.mean()) ** 2, len(left) - 1)
    half = student(0.95, degrees) * float(np.sqrt(jackknife_variance(left)))
    middle = float(odds(np.array([value]))[0])
    low, high = (1 + (most - 1) / (1 + np.exp(-at)) for at in (middle - half, middle + half))
    return min(float(low), value), max(float(high), value)
