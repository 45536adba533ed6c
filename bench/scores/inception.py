"""Inception score, of encoders that classify."""

from __future__ import annotations

import numpy as np

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import inception_score
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import leaving_out_batches

__all__ = ["FAMILY"]

STUDENT_9 = 2.262  # 9 degrees of freedom
SPECS = tuple(
    ScoreSpec(
        name,
        f"with --encoder inception@{resizing}: as in its paper; unranked, since people are no "
        "class of ImageNet's. Higher is better.",
        "higher",
        margin=0.1,
        relative=True,
        needs=f"--encoder inception@{resizing}",
    )
    for name, resizing in (("inception_score", "clean"), ("inception_score_tf", "tf"))
)


def compute(evidence: Evidence) -> Found:
    """The score by each classifying encoder, of all images."""
    scores = []
    for encoder, logits in evidence.first.sample.measured.logits.items():
        splits = min(10, len(logits))
        found = inception_score(logits, splits=splits, seed=2020)
        half = STUDENT_9 * found.std / np.sqrt(splits)
        score = Score(
            name="inception_score" if encoder.endswith("clean") else "inception_score_tf",
            value=found.mean,
            low=max(1.0, found.mean - half),
            high=found.mean + half,
            n=len(logits),
            better="higher",
            interval=f"t over {splits} splits",
            source=f"encoder {encoder}",
        )
        scores.append(leaving_out_batches(score, evidence.first))
    return Found(tuple(scores))


FAMILY = ScoreFamily("inception", 40, SPECS, compute, needs_valid=False)
