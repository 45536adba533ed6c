"""Whether images are valid, and whether they show what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairbench.core.score import Score, ScoreSpec
from fairbench.scores.parts.crossings import NO_CHECK, Reading
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.group_tables import hit_matrix, validity_by_requested
from fairbench.scores.parts.plain import leaving_out_batches, share_of_valid, share_score

__all__ = ["FAMILY"]

SPECS = (
    ScoreSpec(
        "validity",
        "share of images that the data set's validity check accepts. Higher is better.",
        "higher",
        margin=0.02,
        of_labels=True,
        unit="share",
        summary=True,
        main=6,
        compact=True,
        needs="a validity check",
    ),
    ScoreSpec(
        "prompt_accuracy",
        "share of valid images that show the subject asked for. Higher is better.",
        "higher",
        margin=0.02,
        of_labels=True,
        unit="share",
        summary=True,
        needs="prompts whose subject a judge reads",
    ),
    ScoreSpec(
        "hit_rate",
        "share of valid images in the group the method asked for. Higher is better.",
        "higher",
        margin=0.02,
        of_labels=True,
        unit="share",
        summary=True,
        needs="groups asked for",
    ),
)


def compute(evidence: Evidence) -> Found:
    """Validity of all images; of valid ones, how many show what was asked for."""
    reading = evidence.first
    scores: list[Score] = []
    facts: dict[str, Any] = {}
    missing = {}
    if reading.checked:
        scores.append(_validity(reading))
        if (rows := validity_by_requested(reading)) is not None:
            facts["validity_by_requested"] = rows
    else:
        missing["validity"] = NO_CHECK
    if not reading.n:
        return Found(tuple(scores), {}, facts, missing)
    source = f"judge {reading.judge}, valid images"
    right = reading.right_subject()
    if right is not None:
        scores.append(share_of_valid(reading, "prompt_accuracy", right, "higher", source))
    requested = reading.sample.requested
    if requested is not None:
        hits = (reading.index(tuple(reading.task.attributes)) == requested)[reading.valid]
        scores.append(share_of_valid(reading, "hit_rate", hits, "higher", source))
        facts["hit_matrix"] = hit_matrix(reading)
    return Found(tuple(scores), {}, facts, missing)


def _validity(reading: Reading) -> Score:
    source = "validity check, all images"
    effects = reading.effects(reading.valid.astype(np.int64), 2, every=True)
    total = len(reading.valid)
    score = share_score("validity", reading.n, total, "higher", source, effects=effects)
    return score if effects is not None else leaving_out_batches(score, reading)


FAMILY = ScoreFamily("semantics", 70, SPECS, compute, needs_valid=False)
