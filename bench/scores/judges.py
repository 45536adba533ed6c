"""How sure the primary judge is, and how often the others read an image differently."""

from __future__ import annotations

import numpy as np

from fairbench.core.score import Score, ScoreSpec
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import mean_score, share_of_valid

__all__ = ["FAMILY"]

SPECS = (
    ScoreSpec(
        "judge_confidence_*",
        "mean highest probability of the primary judge.",
        "neither",
        margin=0.03,
        unit="probability",
        summary=True,
        main=7,
        display="judge_confidence_<attribute>",
        version=4,
        batches_since=3,
    ),
    ScoreSpec(
        "judge_disagreement_*",
        "share of valid images that the judges read differently.",
        "neither",
        margin=0.03,
        of_labels=True,
        unit="share",
        summary=True,
        needs="two or more judges",
        display="judge_disagreement_<attribute>",
    ),
)


def compute(evidence: Evidence) -> Found:
    """Confidence; with several judges, disagreement too."""
    first, readings = evidence.first, evidence.readings
    scores: list[Score] = []
    for name in evidence.sensitive:
        sure = mean_score(
            f"judge_confidence_{name}",
            first.probabilities[name][first.valid].max(1),
            "neither",
            f"judge {first.judge}, valid images",
            unit="probability",
            lowest=0.0,
            highest=1.0,
            reading=first,
            within=first.valid,
        )
        scores.append(sure)
    for name in evidence.sensitive if len(readings) > 1 else ():
        labels = np.stack([reading.labels[name][reading.valid] for reading in readings])
        differ = (labels != labels[0]).any(axis=0)
        source = f"judges {' and '.join(r.judge for r in readings)}, valid images"
        scores.append(
            share_of_valid(first, f"judge_disagreement_{name}", differ, "neither", source)
        )
    return Found(tuple(scores))


FAMILY = ScoreFamily("judges", 80, SPECS, compute)
