"""Effective number of different images, in units of as many real ones."""

from __future__ import annotations

from dataclasses import replace

from fairbench.core.score import Score, ScoreSpec
from fairbench.scores.parts.columns import BALANCED
from fairbench.scores.parts.diversity import DIVERSITY_BLOCKS, diversity_score
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily

__all__ = ["FAMILY"]

LEAST = 2 * DIVERSITY_BLOCKS
SPECS = (
    ScoreSpec(
        "vendi_*",
        "effective number of different images, in units of as many real ones. Higher is better.",
        "higher",
        margin=0.05,
        needs=f"{BALANCED}, {LEAST} images",
        display="vendi_<encoder>",
        version=4,
    ),
)


def compute(evidence: Evidence) -> Found:
    """Vendi score by each encoder, of all images."""
    scores: list[Score] = []
    missing: dict[str, str] = {}
    for encoder, columns in evidence.encoders.items():
        name = f"vendi_{columns.encoder}"
        if reason := evidence.reference.unbalanced:
            missing[name] = reason
            continue
        x, y = evidence.balanced_features(encoder)
        n = min(len(x), len(y))
        if n < LEAST:
            missing[name] = f"{n} images, {LEAST} needed"
            continue
        source = f"encoder {encoder}, in units of {n} balanced real images"
        score = diversity_score(
            name, x, y, source, seed=evidence.seed, batches=evidence.first.all_batches
        )
        how = f"{score.interval}{evidence.first.given_batches}"
        scores.append(replace(score, interval=how))
    return Found(tuple(scores), not_measured=missing)


FAMILY = ScoreFamily("diversity", 32, SPECS, compute, needs_valid=False, each_encoder=True)
