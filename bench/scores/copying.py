"""Whether valid images lie nearer to images learned from than unseen real ones do."""

from __future__ import annotations

import numpy as np

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import memorisation
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import auc_score, copies_score, leaving_out_batches

__all__ = ["FAMILY"]

FALSE_MATCHES = 1e-2
"""Share of unseen real images that may pass for copies."""

NEEDS = "a method that learned from a reference set"
SPECS = (
    ScoreSpec(
        "memorisation_*",
        "of methods with a reference set: chance that an image lies nearer to that set than an "
        "unseen real image of its group does. 0.5 without copies, lower is better.",
        "lower",
        margin=0.03,
        unit="probability",
        needs=NEEDS,
        display="memorisation_<encoder>",
    ),
    ScoreSpec(
        "copies_*",
        "share of images nearer to that set than 99 % of unseen real images are. Lower is better.",
        "lower",
        margin=0.02,
        unit="share",
        needs=NEEDS,
        display="copies_<encoder>",
        version=3,
    ),
)


def compute(evidence: Evidence) -> Found:
    """Chance of being nearer, and share of images nearer than 99 % of the real ones, by encoder.

    Compared within each group of the sensitive crossing: where few images were learned from, the
    nearest one is far, whoever drew the image.
    """
    reading, seen, groups = evidence.first, evidence.seen, evidence.groups
    if seen is None:
        return Found()
    scores: list[Score] = []
    missing: dict[str, str] = {}
    cells = reading.index(evidence.sensitive)[reading.valid]
    counts = np.bincount(evidence.real, minlength=len(groups))
    lacking = [name for k, name in enumerate(groups) if not counts[k] and k in cells]
    for encoder, columns in evidence.encoders.items():
        name = f"memorisation_{columns.encoder}"
        if lacking:
            missing[name] = f"no real image of {', '.join(lacking)}"
            continue
        x, y = evidence.features(encoder)
        found = memorisation(
            x[reading.valid],
            seen[encoder],
            y,
            groups=(cells, evidence.real, len(groups)),
            false_matches=FALSE_MATCHES,
        )
        source = (
            f"encoder {encoder}, cosine to the nearest of {len(seen[encoder])} images learned "
            f"from, against {len(y)} unseen real images of the same group"
        )
        told = f"{source}: chance of being nearer, 0.5 without copies"
        beyond = f"{source}: nearest beyond {found.threshold:.3f}, as {FALSE_MATCHES:.1%} of "
        how = "normal, DeLong, given the images learned from"
        scores += [
            auc_score(
                name,
                found.auc,
                found.auc_error,
                reading.n,
                how,
                told,
            ),
            copies_score(
                f"copies_{columns.encoder}", found, reading.n, f"{beyond}the real ones are"
            ),
        ]
    told_of_batches = tuple(leaving_out_batches(score, reading) for score in scores)
    return Found(told_of_batches, not_measured=missing)


FAMILY = ScoreFamily("copying", 60, SPECS, compute)
