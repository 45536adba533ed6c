"""How varied generated images are among themselves, and how close to those trained on.

All by cosine between embeddings, such as a face encoder's. Rows are scaled to length 1 here.
Embeddings are worse at telling some groups apart than others: compare a group only with the
reference of that same group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fairbench.errors import ContractError
from fairbench.metrics._features import Array, check_features, chunks, unit_rows

__all__ = [
    "Memorisation",
    "duplicate_rate",
    "mean_pairwise_cosine",
    "memorisation",
    "vendi_score",
]


@dataclass(frozen=True)
class Memorisation:
    """How much nearer generated images lie to the training images than fresh real ones do.

    Attributes:
        generated: Mean over generated images of the cosine to the nearest training image.
        held_out: The same of real images that weren't trained on.
        ratio: generated / held_out; 1 without memorisation, higher is worse. None if held_out
            isn't positive.
        auc: Chance that a generated image is nearer to its nearest training image than a
            held-out one, ties counting half; in [0, 1], ½ without memorisation, higher is worse.
            Below ½, generated images lie farther away than real ones: poor, not original.
    """

    generated: float
    held_out: float
    ratio: float | None
    auc: float


def vendi_score(embeddings: ArrayLike) -> float:
    """Effective number of different images: exp of the entropy of the cosine matrix / N.

    Args:
        embeddings: (N, D) floats, N >= 1, no row of zeros.

    Returns:
        A number in [1, min(N, D)], n for n orthogonal images, 1 for n copies; higher is more
        varied. It grows with N: compare at equal N only.

    Raises:
        ContractError: If there are no rows, a row is all zeros, or a value isn't finite.

    Source: Friedman & Dieng 2022, arXiv 2210.02410, eq. 3, cosine kernel. Deviation: the
        eigenvalues come from the smaller of the N × N and D × D products, whose others are 0.
    """
    rows = _unit(embeddings, "embeddings", 1)
    small = rows if len(rows) <= rows.shape[1] else rows.T
    shares = np.linalg.eigvalsh(small @ small.T / len(rows))
    shares = shares[shares > 0]
    entropy = -float((shares * np.log(shares)).sum())
    return float(np.clip(np.exp(entropy), 1, min(rows.shape)))


def mean_pairwise_cosine(embeddings: ArrayLike) -> float:
    """Mean cosine between different images.

    Args:
        embeddings: (N, D) floats, N >= 2, no row of zeros.

    Returns:
        A number in [-1 / (N - 1), 1]; lower is more varied.

    Raises:
        ContractError: If there are fewer than two rows, a row is all zeros, or a value isn't
            finite.

    Source: metric card D2. The sum over pairs is (‖Σ eᵢ‖² − N), which needs no N × N matrix.
    """
    rows = _unit(embeddings, "embeddings", 2)
    n = len(rows)
    total = rows.sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def duplicate_rate(embeddings: ArrayLike, threshold: float) -> float:
    """Share of images that have another image closer than a threshold.

    Args:
        embeddings: (N, D) floats, N >= 2, no row of zeros.
        threshold: Cosine in [-1, 1) above which two images are duplicates. Calibrate it on
            labelled pairs of the encoder; there is no good default.

    Returns:
        A share in [0, 1]; lower is more varied. It grows with N: compare at equal N only.

    Raises:
        ContractError: If there are fewer than two rows, a row is all zeros, a value isn't finite,
            or the threshold is out of range.

    Source: metric card D2.
    """
    if not -1 <= threshold < 1:
        raise ContractError(f"threshold must lie in [-1, 1); seen {threshold}")
    rows = _unit(embeddings, "embeddings", 2)
    return float((_nearest(rows, None) > threshold).mean())


def memorisation(generated: ArrayLike, training: ArrayLike, held_out: ArrayLike) -> Memorisation:
    """Compare the nearest training image of generated images with that of unseen real images.

    Both look for neighbours in the same training set, so its size doesn't matter; held-out images
    must come from the distribution that training images do.

    Args:
        generated: Embeddings of generated images, (N, D) floats, no row of zeros in any set.
        training: Embeddings of the images trained on, (T, D).
        held_out: Embeddings of real images not trained on, (H, D).

    Returns:
        Mean nearest cosines, their ratio, and the AUC between the two distributions.

    Raises:
        ContractError: If a set is empty, has a row of zeros, a value isn't finite, or D differs.

    Source: Meehan et al. 2020, arXiv 2004.05675 (the AUC is their three-sample statistic before
        standardising, over one cell); metric card D2.
    """
    near, seen, fresh = (
        _unit(values, name, 1)
        for values, name in (
            (generated, "generated embeddings"),
            (training, "training embeddings"),
            (held_out, "held-out embeddings"),
        )
    )
    if not near.shape[1] == seen.shape[1] == fresh.shape[1]:
        raise ContractError(
            f"all sets need the same D; seen {near.shape}, {seen.shape} and {fresh.shape}"
        )
    mine, theirs = _nearest(near, seen), _nearest(fresh, seen)
    base = float(theirs.mean())
    return Memorisation(
        generated=float(mine.mean()),
        held_out=base,
        ratio=float(mine.mean()) / base if base > 0 else None,
        auc=_auc(mine, theirs),
    )


def _unit(values: ArrayLike, name: str, rows: int) -> Array:
    return unit_rows(check_features(values, name, rows=rows), name)


def _nearest(rows: Array, others: Array | None) -> Array:
    """Highest cosine of each row to any of the others, or to any other row of its own set."""
    targets = rows if others is None else others
    found = np.empty(len(rows))
    for part in chunks(len(rows), max(targets.shape)):
        cosines = rows[part] @ targets.T
        if others is None:
            cosines[np.arange(part.stop - part.start), np.arange(part.start, part.stop)] = -np.inf
        found[part] = cosines.max(axis=1)
    return np.clip(found, -1, 1)


def _auc(first: Array, second: Array) -> float:
    """Chance that a value of the first is above one of the second, ties counting half."""
    order = np.sort(second)
    below = np.searchsorted(order, first, side="left")
    not_above = np.searchsorted(order, first, side="right")
    return float((below + not_above).mean() / (2 * len(second)))
