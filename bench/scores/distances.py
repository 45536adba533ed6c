"""Features to scores: Fréchet and kernel distances to real images in three proportions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError
from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import (
    FrechetMoments,
    frechet_interval,
    kernel_distance,
    reference_weights,
    stratified_kernel_distance,
)
from fairbench.scores.parts.columns import BALANCED, distance_specs
from fairbench.scores.parts.crossings import NO_VALID
from fairbench.scores.parts.evidence import Columns, Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import distance_score, kernel_score

__all__ = ["FAMILY"]

KERNEL_SUBSET = 500
KID_SUBSET = 1000

FRECHET = "Fréchet distance of features to real images"
KERNEL = "unbiased squared MMD, cubic kernel, of features to real images"
LOWER = "Lower is better; compare at equal n."
SPECS = tuple(
    spec
    for kind, what in (("frechet", FRECHET), ("kernel", KERNEL))
    for made in (
        ScoreSpec(
            "balanced",
            f"{what} balanced over the groups. {LOWER}",
            "lower",
            margin=0.1,
            relative=True,
            summary=True,
            main=2 if kind == "frechet" else 3,
            compact=kind == "frechet",
            needs=BALANCED,
            version=3,
        ),
        ScoreSpec(
            "natural",
            f"{what} in the shares of the training data. {LOWER}",
            "lower",
            margin=0.1,
            relative=True,
            needs="known shares of the training data",
            version=3,
        ),
        ScoreSpec(
            "reweighted",
            f"{what} in the generator's own shares: what is left is no matter of composition. "
            f"{LOWER}",
            "lower",
            margin=0.1,
            relative=True,
            summary=kind == "kernel",
            main=4 if kind == "kernel" else None,
            needs="a valid image of each prompt",
            version=3,
        ),
    )
    for spec in distance_specs(kind, made)
)


def compute(evidence: Evidence) -> Found:
    """Distances by each encoder, of all images."""
    scores: list[Score] = []
    missing: dict[str, str] = {}
    mixtures = _mixtures(evidence, missing)
    for encoder, columns in evidence.encoders.items():
        scores += _balanced(evidence, encoder, columns, missing)
        for name, strata, shares in mixtures:
            scores += _mixture(evidence, encoder, columns, (name, strata, shares), missing)
    return Found(tuple(scores), not_measured=missing)


def _balanced(
    evidence: Evidence, encoder: str, columns: Columns, missing: dict[str, str]
) -> list[Score]:
    if reason := evidence.reference.unbalanced:
        missing |= {f"{name}_balanced": reason for name in (columns.frechet, columns.kernel)}
        return []
    x, y = evidence.balanced_features(encoder)
    source = f"encoder {encoder}, {len(y)} balanced real images"
    batches, told_of = evidence.first.all_batches, evidence.first.given_batches
    found = frechet_interval(x, y, clusters=batches, seed=evidence.seed)
    published = KID_SUBSET if columns.kernel.startswith("kid") else KERNEL_SUBSET
    size = min(published, len(x), len(y))
    distance = kernel_distance(x, y, subset_size=size, clusters=batches, seed=evidence.seed)
    ends = (found.value, found.low, found.high)
    told = f"{source}, 100 subsets of {size}"
    return [
        _said(distance_score(f"{columns.frechet}_balanced", ends, len(x), source), told_of),
        _said(kernel_score(f"{columns.kernel}_balanced", distance, len(x), told), told_of),
    ]


def _said(score: Score, of_batches: str) -> Score:
    return replace(score, interval=f"{score.interval}{of_batches}")


Mixture = tuple[str, NDArray[np.int64], NDArray[np.float64]]


def _mixtures(evidence: Evidence, missing: dict[str, str]) -> list[Mixture]:
    """References of other proportions: name, cell of each real image, share of each cell.

    Cells are prompt × group. Prompts keep the shares that the sample has.
    """
    reading, reference = evidence.first, evidence.reference
    strata = reference.prompt_index * len(evidence.groups) + evidence.real
    prompts = reading.sample.prompt_index
    mix = np.bincount(prompts, minlength=len(reading.task.prompts)) / len(prompts)
    mixtures = []
    if reference.natural is not None:
        natural = (mix[:, None] * reference.natural).ravel()
        mixtures.append(("natural", strata, natural))
    if reading.n:
        counts = reading.counts_by_prompt(evidence.sensitive).astype(np.float64)
        sizes = counts.sum(axis=1, keepdims=True)
        if (sizes > 0).all():
            own = (mix[:, None] * counts / sizes).ravel()
            mixtures.append(("reweighted", strata, own))
        else:
            missing["reweighted"] = f"{NO_VALID} of a prompt"
    return mixtures


def _mixture(
    evidence: Evidence,
    encoder: str,
    columns: Columns,
    mixture: Mixture,
    missing: dict[str, str],
) -> list[Score]:
    name, strata, shares = mixture
    x, y = evidence.features(encoder)
    whose = "training" if name == "natural" else "measured"
    scores = []
    try:
        weights = reference_weights(strata, shares)
        source = (
            f"{len(y)} real images weighted to the {whose} shares, worth {weights.effective_n:.0f}"
        )
        batches, told_of = evidence.first.all_batches, evidence.first.given_batches
        distance = stratified_kernel_distance(
            x, y, strata, shares, clusters=batches, seed=evidence.seed
        )
        score = kernel_score(f"{columns.kernel}_{name}", distance, len(x), source)
        scores.append(_said(score, told_of))
        moments = FrechetMoments.of(y, weights.weights)
        found = frechet_interval(x, moments, clusters=batches, seed=evidence.seed)
        ends = (found.value, found.low, found.high)
        score = distance_score(f"{columns.frechet}_{name}", ends, len(x), source)
        scores.append(_said(score, told_of))
    except ContractError as error:
        missing[f"{columns.frechet}_{name}"] = str(error)
    return scores


FAMILY = ScoreFamily("distances", 30, SPECS, compute, needs_valid=False, each_encoder=True)
