"""How varied rows are next to as many real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score
from fairbench.metrics import vendi_score
from fairbench.metrics.jackknife import jackknife_variance, split, student

__all__ = ["DIVERSITY_BLOCKS", "GIVEN_REFERENCE", "diversity_score", "equally_many"]

DIVERSITY_BLOCKS = 20
GIVEN_REFERENCE = "given this reference"
"""What an interval says that holds the real images fixed."""

_DRAW_SEED = 20_244


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
    quantile = round(student(0.95, len(parts) - 1), 3)
    half = quantile * float(np.sqrt(jackknife_variance(left)))
    return Score(
        name=name,
        value=value / unit,
        low=max(0.0, value - half) / unit,
        high=min(float(n), value + half) / unit,
        n=n,
        better="higher",
        interval=f"jackknife, {len(parts)} blocks, {GIVEN_REFERENCE}",
        source=source,
    )
