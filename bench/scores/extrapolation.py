"""The balanced Fréchet distance without the bias of a finite sample, where n allows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fairbench.core.errors import ContractError
from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import frechet_infinity
from fairbench.metrics.jackknife import student
from fairbench.scores.parts.columns import BALANCED, distance_specs
from fairbench.scores.parts.diversity import GIVEN_REFERENCE
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import distance_score

__all__ = ["FAMILY"]

INFINITY_N = 5000
"""Images that extrapolating a distance to infinitely many needs."""

SPECS = distance_specs(
    "frechet",
    ScoreSpec(
        "infinity_balanced",
        "Fréchet distance to real images balanced over the groups, extrapolated to infinitely "
        "many images. Lower is better.",
        "lower",
        margin=0.1,
        relative=True,
        summary=True,
        main=2,
        needs=f"{BALANCED}, {INFINITY_N} images",
        version=3,
    ),
)


def compute(evidence: Evidence) -> Found:
    """The extrapolated distance by each encoder, of all images."""
    scores: list[Score] = []
    details: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for encoder, columns in evidence.encoders.items():
        name = f"{columns.frechet}_infinity_balanced"
        if reason := evidence.reference.unbalanced:
            missing[name] = reason
            continue
        x, y = evidence.balanced_features(encoder)
        try:
            found = frechet_infinity(x, y, clusters=evidence.first.all_batches, seed=evidence.seed)
        except ContractError as error:
            few = len(x) < INFINITY_N
            missing[name] = "not measurable at this n" if few else str(error)
            continue
        details[name] = {"r_squared": found.r_squared, "slope": found.slope}
        half = student(0.95, found.degrees) * found.standard_error
        source = f"encoder {encoder}, {len(y)} balanced real images, extrapolated to infinite n"
        # The fit may end slightly below 0, where no distance is.
        ends = (found.value, max(0.0, found.value - half), max(0.0, found.value + half))
        score = distance_score(name, ends, len(x), source)
        how = f"fitted line and jackknife of {found.degrees + 1} blocks, {GIVEN_REFERENCE}"
        how += evidence.first.given_batches
        scores.append(replace(score, interval=how))
    return Found(tuple(scores), {}, {"quality": details}, missing)


FAMILY = ScoreFamily("extrapolation", 33, SPECS, compute, needs_valid=False, each_encoder=True)
