"""Inception score: how sure a classifier is of each image, and how varied its answers are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from fairbench.metrics._features import Array, check_count, check_features, check_seed

__all__ = ["InceptionScore", "inception_score"]


@dataclass(frozen=True)
class InceptionScore:
    """An inception score over splits.

    Attributes:
        mean: Mean over the splits, in [1, C]; higher is better. Unranked for faces, which no
            class of ImageNet is about.
        std: Standard deviation over the splits, divided by their number, as others print it.
        splits: How many.
    """

    mean: float
    std: float
    splits: int


def inception_score(logits: ArrayLike, *, splits: int = 10, seed: int) -> InceptionScore:
    """Exponential of the mean divergence KL(p(y|x) ‖ p(y)), in shuffled splits.

    Args:
        logits: Classifier outputs before the softmax, (N, C) floats, N >= splits. Inception's are
            taken without the last layer's bias, 1008 of them.
        splits: Disjoint parts, each with its own p(y); 1 or more.
        seed: Seed of the shuffle, in [0, 2³²).

    Returns:
        Mean and standard deviation over the splits; each split lies between 1 and C.

    Raises:
        ContractError: If there are fewer rows than splits, no classes, or NaN or infinity.

    Source: Salimans et al. 2016, arXiv 1606.03498. With equal seeds the splits are those of
        torch-fidelity 0.4.0 (its default is 2020). Deviation: classes that no image of a split
        has count 0 there, also where their probability underflows.
    """
    check_count(splits, "splits", least=1)
    values = check_features(logits, "logits", rows=splits)
    order = np.random.RandomState(check_seed(seed)).permutation(len(values))
    bounds = [i * len(values) // splits for i in range(splits + 1)]
    scores = [
        _score(values[order[start:stop]].astype(np.float64)) for start, stop in pairwise(bounds)
    ]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


def _score(logits: Array) -> float:
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    seen = marginal > 0
    terms = p[:, seen] * (log_p[:, seen] - np.log(marginal[seen]))
    # The bounds hold exactly; only rounding passes them.
    return float(np.clip(np.exp(terms.sum(axis=1).mean()), 1, logits.shape[1]))
