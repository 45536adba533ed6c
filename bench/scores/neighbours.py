"""Precision, recall, density and coverage by nearest neighbours, at equal n of both sides."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import precision_recall_density_coverage
from fairbench.scores.parts.columns import BALANCED
from fairbench.scores.parts.diversity import equally_many
from fairbench.scores.parts.evidence import NEIGHBOURS, Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import NORMAL, share_score

__all__ = ["FAMILY"]

NAMES = ("precision", "recall", "density", "coverage")
MEANINGS = {
    "precision": "share of images among the real ones",
    "recall": "share of real images among the generated ones",
    "density": "real neighbourhoods that an image lies in, in units of what is expected",
    "coverage": "share of real images with a generated one in their neighbourhood",
}
SPECS = tuple(
    ScoreSpec(
        f"{name}_*",
        f"{MEANINGS[name]}: by {NEIGHBOURS} nearest neighbours, against balanced real images. "
        "Higher is better.",
        "higher",
        unit="" if name == "density" else "share",
        summary=name == "recall",
        needs=f"{BALANCED}, more than {NEIGHBOURS} images",
        display=f"{name}_<encoder>",
    )
    for name in NAMES
)


def compute(evidence: Evidence) -> Found:
    """The four scores by each encoder, of all images."""
    scores: list[Score] = []
    details: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for encoder, columns in evidence.encoders.items():
        if reason := evidence.reference.unbalanced:
            missing |= {f"{name}_{columns.encoder}": reason for name in NAMES}
            continue
        x, y = evidence.balanced_features(encoder)
        n = min(len(x), len(y))
        if n <= NEIGHBOURS:
            reason = f"{n} images; more than {NEIGHBOURS} needed"
            missing[f"precision_{columns.encoder}"] = reason
            continue
        mine, real = equally_many(x, y, np.random.default_rng(evidence.seed))
        found = precision_recall_density_coverage(mine, real, k=NEIGHBOURS)
        source = f"encoder {encoder}, {n} balanced real images, {NEIGHBOURS} neighbours"
        details[f"expected_coverage_{columns.encoder}"] = found.expected_coverage
        scores += [
            share_score(
                f"{name}_{columns.encoder}",
                round(getattr(found, name) * n),
                n,
                "higher",
                source,
            )
            for name in ("precision", "recall", "coverage")
        ]
        half = NORMAL * found.density_error
        density = Score(
            name=f"density_{columns.encoder}",
            value=found.density,
            low=max(0.0, found.density - half),
            high=found.density + half,
            n=n,
            better="higher",
            interval="normal",
            source=source,
        )
        scores.append(density)
    return Found(tuple(scores), {}, {"quality": details}, missing)


FAMILY = ScoreFamily("neighbours", 31, SPECS, compute, needs_valid=False, each_encoder=True)
