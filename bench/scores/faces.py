"""Faces to scores: whether there are any, how many different ones, whether copied; by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import duplicate_rate, mean_pairwise_cosine, memorisation, wilson_interval
from fairbench.metrics.jackknife import jackknife_variance, split, student
from fairbench.scores.parts.crossings import Reading
from fairbench.scores.parts.diversity import GIVEN_REFERENCE, diversity_score
from fairbench.scores.parts.evidence import Evidence, FaceEvidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.group_tables import validity_by_requested
from fairbench.scores.parts.plain import (
    NORMAL,
    auc_score,
    copies_score,
    leaving_out_batches,
    mean_score,
    share_score,
    worst_score,
)
from fairbench.scores.parts.shares import or_none

if TYPE_CHECKING:
    from fairbench.instruments.faces import Faces, Identities

__all__ = ["FALSE_MATCHES", "FAMILY", "LEAST", "SCORES", "SUBSAMPLE", "UNKNOWN", "score_faces"]

SCORES = 2
"""Raised whenever the same faces give other scores."""

SUBSAMPLE = 2000
"""Images looked at: both networks are slow without a GPU."""

FALSE_MATCHES = 1e-3
"""Share of pairs of different real faces that may pass for the same one, and of real faces that
may pass for a copy of a training image."""

LEAST = 10

UNKNOWN = "the images that the generator was trained on aren't known"


NEEDS = "--faces"
IDENTITY = "--faces and an identity network"
TRAINED = f"{IDENTITY}, known training images"
SPECS = (
    ScoreSpec(
        "face_validity",
        "with --faces: share of images with a face. Higher is better.",
        "higher",
        margin=0.02,
        unit="share",
        needs=NEEDS,
    ),
    ScoreSpec(
        "face_multiple",
        "with --faces: share of images with several faces.",
        "neither",
        unit="share",
        needs=NEEDS,
    ),
    ScoreSpec(
        "face_confidence",
        "with --faces: how sure the detector is of the surest face, 0 without one.",
        "neither",
        unit="share",
        needs=NEEDS,
        version=3,
    ),
    ScoreSpec(
        "face_area",
        "with --faces: share of the image that the surest face fills, 0 without one.",
        "neither",
        unit="share",
        needs=NEEDS,
        version=3,
    ),
    ScoreSpec(
        "identity_vendi",
        "effective number of different faces, in units of as many real ones. Higher is better.",
        "higher",
        margin=0.05,
        needs=IDENTITY,
        version=4,
    ),
    ScoreSpec(
        "identity_cosine",
        "mean cosine of two generated faces less that of real ones. Lower is better.",
        "lower",
        margin=0.03,
        needs=IDENTITY,
        version=3,
    ),
    ScoreSpec(
        "identity_duplicates",
        "share of faces that repeat another generated one. Lower is better.",
        "lower",
        margin=0.02,
        unit="share",
        needs=IDENTITY,
        version=3,
    ),
    ScoreSpec(
        "identity_vendi_worst_group",
        "effective number of different faces of the least varied group. Higher is better.",
        "higher",
        margin=0.05,
        summary=True,
        needs=IDENTITY,
        version=4,
    ),
    ScoreSpec(
        "identity_memorisation",
        "chance that a generated face lies nearer to the training images than a real face that "
        "wasn't trained on does. 0.5 without copies, lower is better.",
        "lower",
        margin=0.03,
        unit="probability",
        needs=TRAINED,
    ),
    ScoreSpec(
        "identity_memorisation_ratio",
        "mean cosine to the nearest training face over that of real faces. Lower is better.",
        "lower",
        margin=0.03,
        needs=TRAINED,
        version=3,
    ),
    ScoreSpec(
        "identity_memorisation_worst_group",
        "that chance of the group in which it is largest. Lower is better.",
        "lower",
        margin=0.05,
        unit="probability",
        summary=True,
        needs=TRAINED,
        version=3,
    ),
    ScoreSpec(
        "identity_copies",
        "share of generated faces nearer to a training face than all but 1 in 1,000 real faces "
        "are. Lower is better.",
        "lower",
        margin=0.02,
        unit="share",
        needs=TRAINED,
        version=3,
    ),
)


def compute(evidence: Evidence) -> Found:
    """Scores and facts of faces, where the face stage was asked for."""
    if evidence.faces is None:
        return Found()
    scores, facts = score_faces(evidence.faces, evidence.first, evidence.sensitive, evidence.real)
    missing = facts.pop("not_measured", {})
    scores = [leaving_out_batches(score, evidence.first) for score in scores]
    return Found(tuple(scores), {}, {"faces": facts}, missing)


def score_faces(
    found: FaceEvidence,
    reading: Reading,
    sensitive: Sequence[str],
    real_groups: NDArray[np.int64],
) -> tuple[list[Score], dict[str, Any]]:
    """Faces found, and how varied they are next to as many real ones of the same group.

    Absolute variety isn't shown: identity networks tell some groups apart worse than others.

    Args:
        found: What the detector and the identity network said.
        reading: All N generated images as the primary judge reads them.
        sensitive: Attributes whose crossing makes the groups.
        real_groups: (R,) cell of each real image in that crossing.

    Returns:
        Scores, and facts: other thresholds, images on which the detector broke off, rows by
        group, what isn't measured and why.
    """
    scores, facts = _detection(found.faces)
    groups = reading.groups(sensitive)
    by_group = validity_by_requested(reading, found.faces.valid(), found.looked)
    facts["by_requested_group"] = by_group or []
    unknown = {"identity_memorisation": found.no_training} if found.no_training else {}
    if found.identities is None or found.known is None:
        facts["not_measured"] = {"identity": found.no_identity, **unknown}
        return scores, facts
    seen, known = found.identities, found.known
    mine = reading.index(sensitive)[found.looked][seen.index]
    theirs = real_groups[found.compared][known.index]
    more, missing = _variety(seen, mine, known, theirs, groups)
    missing |= unknown
    if found.trained is not None and min(len(seen), len(known)) >= LEAST:
        sides = (seen.vectors, mine), (known.vectors, theirs)
        copied, facts["memorisation"], gaps = _memorisation(*sides, found.trained.vectors, groups)
        more += copied
        missing |= gaps
    if missing:
        facts["not_measured"] = missing
    return [*scores, *more], facts


def _detection(faces: Faces) -> tuple[list[Score], dict[str, Any]]:
    n = len(faces)
    source = "MTCNN, probability .9"
    found = int(faces.valid().sum())
    scores = [
        share_score("face_validity", found, n, "higher", source),
        share_score("face_multiple", int(faces.multiple().sum()), n, "neither", source),
    ]
    for name, values in (("face_confidence", faces.confidence), ("face_area", faces.area)):
        told = "MTCNN, surest face; 0 without one"
        scores.append(
            mean_score(name, values, "neither", told, unit="share", lowest=0.0, highest=1.0)
        )
    facts = {
        "validity_at": {f"{p:g}": float(faces.valid(p).mean()) for p in (0.7, 0.9, 0.99)},
        "failed": int(faces.failed.sum()),
    }
    return scores, facts


def _variety(
    seen: Identities,
    mine: NDArray[np.int64],
    known: Identities,
    theirs: NDArray[np.int64],
    groups: Sequence[str],
) -> tuple[list[Score], dict[str, str]]:
    """Identity diversity of all, of the least varied group, and the share of duplicates."""
    if min(len(seen), len(known)) < LEAST:
        reason = f"{len(seen)} generated and {len(known)} real faces; {LEAST} of each are needed"
        return [], {"identity": reason}
    source = "facenet-vggface2"
    n = min(len(seen), len(known))
    cosine, half = _jackknife(seen.vectors, mean_pairwise_cosine)
    unit = mean_pairwise_cosine(known.vectors)
    cosines = known.vectors.astype(np.float64) @ known.vectors.T.astype(np.float64)
    limit = float(np.quantile(cosines[np.triu_indices(len(cosines), 1)], 1 - FALSE_MATCHES))
    scores = [
        diversity_score(
            "identity_vendi",
            seen.vectors,
            known.vectors,
            f"{source}, effective number of faces in units of {n} real ones",
            seed=0,
        ),
        Score(
            name="identity_cosine",
            value=cosine - unit,
            low=cosine - unit - half,
            high=cosine - unit + half,
            n=len(seen),
            better="lower",
            interval=f"jackknife, {GIVEN_REFERENCE}",
            source=f"{source}, mean pairwise cosine less that of real faces",
        ),
        _duplicates(
            seen.vectors,
            limit,
            f"{source}, cosine above {limit:.3f}, which 1 in 1,000 pairs of different real faces "
            "reach",
        ),
    ]
    by_group = []
    for k, group in enumerate(groups):
        x, y = seen.vectors[mine == k], known.vectors[theirs == k]
        if min(len(x), len(y)) < LEAST:
            reason = f"{group} has {len(x)} generated and {len(y)} real faces; {LEAST} needed"
            return scores, {"identity_vendi_worst_group": reason}
        name = "identity_vendi_worst_group"
        by_group.append(diversity_score(name, x, y, f"{source}: {group}", seed=0))
    scores.append(worst_score(by_group))
    return scores, {}


Side = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Unit vectors of faces, (N, D), and the group of each, (N,)."""


def _memorisation(
    generated: Side, real: Side, trained: NDArray[np.float32], groups: Sequence[str]
) -> tuple[list[Score], dict[str, Any], dict[str, str]]:
    """Whether generated faces lie nearer to the training images than unseen real ones do.

    Real and generated faces are compared within each group: few training images of a group make
    its neighbours far, whoever draws it.
    """
    name = "identity_memorisation"
    counts = np.bincount(real[1], minlength=len(groups))
    unseen = [
        group for k, group in enumerate(groups) if not counts[k] and (generated[1] == k).any()
    ]
    if unseen or len(trained) < LEAST:
        reason = f"no real face of {', '.join(unseen)}"
        if len(trained) < LEAST:
            reason = f"{len(trained)} faces in the training images; {LEAST} are needed"
        return [], {}, {name: reason}
    found = memorisation(
        generated[0],
        trained,
        real[0],
        groups=(generated[1], real[1], len(groups)),
        false_matches=FALSE_MATCHES,
    )
    n = len(generated[0])
    source = (
        f"facenet-vggface2, cosine to the nearest of {len(trained)} training faces, against "
        f"{len(real[0])} unseen real faces of the same group"
    )

    told = f"{source}: chance of being nearer, 0.5 without copies"
    how = "normal, DeLong, given the training images"
    scores = [auc_score(name, found.auc, found.auc_error, n, how, told)]
    if found.ratio is not None and found.ratio_error is not None:
        half = NORMAL * found.ratio_error
        ratio = Score(
            name=f"{name}_ratio",
            value=found.ratio,
            low=max(0.0, found.ratio - half),
            high=found.ratio + half,
            n=n,
            better="lower",
            interval="normal, given the training images",
            source=f"{source}: ratio of mean cosines",
        )
        scores.append(ratio)
    beyond = f"facenet-vggface2, nearest training face beyond {found.threshold:.3f}, which 1 in "
    beyond += f"{1 / FALSE_MATCHES:,.0f} unseen real faces reach"
    scores.append(copies_score("identity_copies", found, n, beyond))
    rows = [
        {
            "group": group,
            "n": one.num_generated,
            "n_real": one.num_held_out,
            "auc": or_none(one.auc),
            "copies": or_none(one.copies),
            "real_copies": or_none(one.held_out_copies),
        }
        for group, one in zip(groups, found.by_group, strict=True)
    ]
    facts = {
        "training_faces": len(trained),
        "threshold": found.threshold,
        "nearest_generated": found.generated,
        "nearest_real": found.held_out,
        "by_group": rows,
    }
    for group, one in zip(groups, found.by_group, strict=True):
        if min(one.num_generated, one.num_held_out) < LEAST:
            few = f"{one.num_generated} generated and {one.num_held_out} real faces"
            return scores, facts, {f"{name}_worst_group": f"{group} has {few}; {LEAST} needed"}
    by_group = [
        auc_score(
            f"{name}_worst_group",
            one.auc,
            one.auc_error,
            one.num_generated,
            how,
            f"{told}; {group}",
        )
        for group, one in zip(groups, found.by_group, strict=True)
    ]
    scores.append(worst_score(by_group))
    return scores, facts, {}


def _duplicates(vectors: NDArray[np.float32], limit: float, source: str) -> Score:
    """Faces that repeat another one: repeats come in sets, so a set counts as one observation."""
    n = len(vectors)
    near = vectors.astype(np.float64) @ vectors.T.astype(np.float64) > min(limit, 1 - 1e-9)
    np.fill_diagonal(near, False)
    # Of m images that repeat each other each has m - 1 such others.
    sizes = near.sum(axis=1)[near.any(axis=1)] + 1
    repeats = round(duplicate_rate(vectors, min(limit, 1 - 1e-9)) * n)
    effect = float(sizes.mean()) if len(sizes) else 1.0
    low, high = map(float, wilson_interval(repeats / effect, n / effect))
    score = share_score("identity_duplicates", repeats, n, "lower", source)
    return replace(score, low=low, high=high, interval="wilson, of sets of repeated faces")


def _jackknife(
    x: NDArray[np.float32], statistic: Callable[[NDArray[np.float32]], float]
) -> tuple[float, float]:
    """A statistic of rows, and half the width of its 95 % interval."""
    blocks = min(20, len(x) // 2)
    parts = split(len(x), blocks, np.random.default_rng(0))
    left = np.array([statistic(np.delete(x, part, axis=0)) for part in parts])
    return statistic(x), student(0.95, blocks - 1) * float(np.sqrt(jackknife_variance(left)))


FAMILY = ScoreFamily("faces", 120, SPECS, compute, needs_valid=False)
