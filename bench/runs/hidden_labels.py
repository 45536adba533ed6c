"""What labels that a method never sees say of what it inferred about its training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet

__all__ = ["area_under_curve", "group_facts", "hidden_label_facts", "rare_for_subject"]


def area_under_curve(values: NDArray[Any], positive: NDArray[np.bool_]) -> float | None:
    """Chance that a random positive has a higher value than a random negative, ties counted half.

    Args:
        values: (N,) any finite numbers.
        positive: (N,) which of them are to be found.
    Returns:
        In [0, 1], 0.5 for values that say nothing; None without both kinds.
    """
    from scipy.stats import rankdata  # importing this module should stay cheap

    hits = int(positive.sum())
    misses = len(positive) - hits
    if not hits or not misses:
        return None
    ranks = rankdata(values)
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def rare_for_subject(
    labels: NDArray[Any], subjects: NDArray[np.int64], levels: int
) -> NDArray[np.bool_]:
    """Which images have a level that less than 1 / `levels` of their subject's images have.

    Args:
        labels: (N,) indices of levels.
        subjects: (N,) what each image shows.
        levels: How many levels there are.
    """
    rare = np.zeros(len(labels), dtype=bool)
    for subject in np.unique(subjects):
        own = subjects == subject
        shares = np.bincount(labels[own], minlength=levels) / own.sum()
        rare[own] = shares[labels[own]] < 1 / levels
    return rare


def hidden_label_facts(
    scores: Mapping[str, NDArray[Any]],
    images: ImageSet,
    attributes: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """How well scores of training images find attributes that the method was never given.

    Args:
        scores: Name -> (N,) one number an image, such as a risk or the weight in a group; or
            (N, G) weights in groups, see :func:`group_facts`.
        images: The same images with their labels.
        attributes: Attribute -> its levels.
    Returns:
        Name -> attribute -> level, and ``rare``: a level that less than its fair share of the
        images of the same subject have -> ``share`` of the images; ``auc`` of the score, see
        :func:`area_under_curve`; and ``weighted_share``, which for the weight in a group is the
        purity of the group, None for scores below 0 or all 0. Of groups it is what
        :func:`group_facts` says.
    Raises:
        ContractError: If a score isn't finite or there isn't one an image.
    """
    labels = images.labels
    if labels is None:
        raise ContractError("expected images with labels, seen none")
    facts: dict[str, Any] = {}
    for name, values in scores.items():
        shape = np.shape(values)
        if len(shape) not in (1, 2) or shape[0] != len(images) or not np.isfinite(values).all():
            raise ContractError(
                f"scores {name!r}: expected finite numbers, {len(images)} rows, one an image; "
                f"seen shape {shape}"
            )
        facts[name] = {}
        for attribute, levels in attributes.items():
            own = labels[attribute]
            found = {level: own == i for i, level in enumerate(levels)}
            found["rare"] = rare_for_subject(own, images.subjects, len(levels))
            facts[name][attribute] = {
                key: _found(values, hit)
                if len(shape) == 1
                else group_facts(values, hit, images.subjects)
                for key, hit in found.items()
            }
    return facts


def group_facts(
    weights: NDArray[Any], positive: NDArray[np.bool_], subjects: NDArray[np.int64]
) -> dict[str, Any]:
    """What a model would generate that makes the mean risk of these groups as small as it can be.

    Each group counts alike, so that at this optimum the images are an equal mixture of the groups;
    given a subject, one by the groups' shares of it. It is the ceiling of a training on the
    groups, however well it goes; a variance of the groups' risks moves it a little.

    Args:
        weights: (N, G) of each image in each group, at least 0.
        positive: (N,) which images have a level.
        subjects: (N,) what each image shows.
    Returns:
        ``share`` of the images that have the level; ``purity``, its share of the group that has
        the most of it; ``optimum``, its share at the optimum without prompts;
        ``optimum_by_subject``, given each subject in the order of their numbers.
    """
    mass = weights.sum(0)
    parts = weights[:, mass > 0] / mass[mass > 0]
    within = parts[positive].sum(0)
    by_subject = []
    for subject in np.unique(subjects):
        own = subjects == subject
        by_subject.append(float(parts[own & positive].sum() / max(parts[own].sum(), 1e-12)))
    return {
        "share": float(positive.mean()),
        "purity": float(within.max()) if len(within) else None,
        "optimum": float(within.mean()) if len(within) else None,
        "optimum_by_subject": by_subject,
    }


def _found(values: NDArray[Any], positive: NDArray[np.bool_]) -> dict[str, float | None]:
    weights = np.asarray(values, dtype=np.float64)
    total = float(weights.sum())
    weighted = None
    if weights.min() >= 0 and total > 0:
        weighted = float(weights[positive].sum()) / total
    return {
        "share": float(positive.mean()),
        "auc": area_under_curve(weights, positive),
        "weighted_share": weighted,
    }
