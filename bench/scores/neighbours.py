"""Precision, recall, density and coverage by nearest neighbours, at equal n of both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import NeighbourScores, precision_recall_density_coverage
from fairbench.metrics.jackknife import student
from fairbench.scores.parts.columns import BALANCED
from fairbench.scores.parts.diversity import GIVEN_REFERENCE, equally_many
from fairbench.scores.parts.evidence import NEIGHBOURS, Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import share_of_worth

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
        margin=0.05,
        unit="" if name == "density" else "share",
        summary=name == "recall",
        needs=f"{BALANCED}, more than {NEIGHBOURS} images",
        display=f"{name}_<encoder>",
        version=4,
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
        places, others = equally_many(x, y)
        batches = evidence.first.all_batches
        clusters = None if batches is None else batches[places]
        found = precision_recall_density_coverage(
            x[places], y[others], k=NEIGHBOURS, clusters=clusters
        )
        source = f"encoder {encoder}, {n} balanced real images, {NEIGHBOURS} neighbours"
        details[f"expected_coverage_{columns.encoder}"] = found.expected_coverage
        scores += [
            replace(score, interval=f"{score.interval}{evidence.first.given_batches}")
            for score in scores_of(found, columns.encoder, n, source, coupled=clusters is not None)
        ]
    return Found(tuple(scores), {}, {"quality": details}, missing)


def scores_of(
    found: NeighbourScores,
    encoder: str,
    n: int,
    source: str,
    *,
    coupled: bool,
) -> list[Score]:
    """The four scores with their intervals, given the reference.

    Args:
        found: Values and errors.
        encoder: In the names of the columns.
        n: Images of either side.
        source: What was compared.
        coupled: Whether batches make images depend on each other.
    """
    scores = []
    for name in ("precision", "recall", "coverage"):
        value, error = getattr(found, name), getattr(found, f"{name}_error")
        half = student(0.95, getattr(found, f"{name}_degrees")) * error
        if name == "precision" and not coupled:
            half = 0.0  # images are independent, given the reference: Wilson's own
        how = f"wilson, error by jackknife of blocks, {GIVEN_REFERENCE}"
        if not half:
            how = f"wilson, {GIVEN_REFERENCE}"
        scores.append(share_of_worth(f"{name}_{encoder}", value, half, n, source, how))
    half = student(0.95, found.density_degrees) * found.density_error
    density = Score(
        name=f"density_{encoder}",
        value=found.density,
        low=max(0.0, found.density - half),
        high=found.density + half,
        n=n,
        better="higher",
        interval=f"{'t' if coupled else 'normal'}, {GIVEN_REFERENCE}",
        source=source,
    )
    return [*scores, density]


FAMILY = ScoreFamily("neighbours", 31, SPECS, compute, needs_valid=False, each_encoder=True)
