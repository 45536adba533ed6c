"""Equal images: within the run, and of the data set's own splits."""

from __future__ import annotations

from fairbench.core.score import Score, ScoreSpec
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily

__all__ = ["FAMILY"]

EXACT = "images with equal pixels, all counted: no interval"
SPECS = (
    ScoreSpec(
        "duplicates",
        "share of images that are exact copies of another image of the run; intervals hold for "
        "independent images, and copies say nothing new. Lower is better.",
        "lower",
        margin=0.01,
        unit="share",
        summary=True,
    ),
    ScoreSpec(
        "leaked",
        "share of images that are exact copies of real images that quality is measured against. "
        "Lower is better.",
        "lower",
        margin=0.005,
        unit="share",
        summary=True,
        needs="real images to compare with",
    ),
)


def compute(evidence: Evidence) -> Found:
    """Shares of the counted copies, which the fact ``copies`` holds too."""
    copies = evidence.copies
    if copies is None:
        return Found()
    n = copies["images"]
    counts = {"duplicates": n - copies["distinct"]}
    if "evaluation" in copies:
        counts["leaked"] = copies["evaluation"]
    scores = tuple(
        Score(name, count / n, None, None, n, "lower", unit="share", source=EXACT)
        for name, count in counts.items()
    )
    return Found(scores, facts={"copies": dict(copies)})


FAMILY = ScoreFamily("duplicates", 95, SPECS, compute, needs_valid=False)
