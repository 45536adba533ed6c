"""Encoders that read texts: distance by their own kernel, and fit to the prompt."""

from __future__ import annotations

from dataclasses import replace

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import gaussian_kernel_distance
from fairbench.scores.parts.columns import BALANCED
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import kernel_score, mean_score

__all__ = ["FAMILY"]

SPECS = (
    ScoreSpec(
        "cmmd_*_balanced",
        "with --encoder clip-…: Gaussian-kernel distance to real images balanced over the "
        "groups. Lower is better.",
        "lower",
        margin=0.2,
        relative=True,
        needs=f"--encoder clip-…, {BALANCED}",
        display="cmmd_<encoder>_balanced",
        version=3,
    ),
    ScoreSpec(
        "clip_score_*",
        "with --encoder clip-…: 100 × cosine to the user's own prompt. Higher is better.",
        "higher",
        margin=0.5,
        summary=True,
        needs="--encoder clip-…, known prompts",
        display="clip_score_<encoder>",
        version=4,
        batches_since=3,
    ),
)


def compute(evidence: Evidence) -> Found:
    """Both scores by each encoder that reads texts, of all images."""
    scores: list[Score] = []
    missing: dict[str, str] = {}
    alignment = evidence.first.sample.measured.alignment
    for encoder, columns in evidence.encoders.items():
        if not encoder.startswith("clip-"):
            continue
        name = f"cmmd_{columns.encoder}_balanced"
        if reason := evidence.reference.unbalanced:
            missing[name] = reason
        else:
            x, y = evidence.balanced_features(encoder)
            source = f"encoder {encoder}, {len(y)} balanced real images"
            distance = gaussian_kernel_distance(
                x, y, clusters=evidence.first.all_batches, seed=evidence.seed
            )
            score = kernel_score(name, distance, len(x), source)
            how = f"{score.interval}{evidence.first.given_batches}"
            scores.append(replace(score, interval=how))
        name = f"clip_score_{columns.encoder}"
        if encoder not in alignment:
            missing[name] = "the prompts that the images were made from aren't known"
            continue
        source = f"encoder {encoder}: 100 × cosine to the user's own prompt"
        scores.append(
            mean_score(name, alignment[encoder], "higher", source, reading=evidence.first)
        )
    return Found(tuple(scores), not_measured=missing)


FAMILY = ScoreFamily("texts", 41, SPECS, compute, needs_valid=False)
