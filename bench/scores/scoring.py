"""Arrays to scores: everything that one run's stored measurements say, with intervals.

Pure functions of stored arrays; nothing here runs a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score
from fairbench.core.task import Control, Task
from fairbench.scores.audit import audit_scores
from fairbench.scores.crossings import Reading, Sample
from fairbench.scores.fairness import RANKED, RAW, FairnessScores
from fairbench.scores.group_tables import group_tables, hit_matrix, validity_by_requested
from fairbench.scores.plain import Better, mean_score, share_score
from fairbench.scores.quality import Columns, QualityScores, Reference
from fairbench.scores.strata import strata_tables

__all__ = ["METRICS", "METRIC_VERSION", "score_all"]

METRIC_VERSION = 2
"""Raised whenever the same arrays give other scores."""

METRICS: Mapping[str, str] = {
    "fairness_discrepancy_corrected": (
        "Euclidean distance of the shares of the task's groups from the target, classifier error "
        "corrected, by the judge that finds it larger; mean over prompts for *_by_* tasks. "
        "Lower is fairer; rows are ranked by it."
    ),
    "fairness_discrepancy": "the same of the primary judge's hard labels as they are",
    "fairness_discrepancy_<soft|l1|tv|kl|pairwise|delta|mad|entropy_gap|squared|normalised>": (
        "the same in the norm or with the labels that a paper uses. Lower is fairer."
    ),
    "fairness_discrepancy_penalised": "with images that aren't valid as one more, unwanted group",
    "fairness_discrepancy_<worst_prompt|pooled>": (
        "of the least fair prompt, and of all prompts together"
    ),
    "fairness_discrepancy[_corrected]_<attributes>": (
        "of any sensitive attribute and crossing, all prompts together"
    ),
    "fairness_discrepancy_given": "of the labels given by --labels, which no judge touches",
    "prompt_dependence": "mutual information of prompt and group, nats; 0 also at a collapse.",
    "joint_excess": (
        "normalised discrepancy of the joint cells less that of the worst single attribute: above "
        "0, crossings are less fair than attributes show."
    ),
    "effective_groups": "exp of the entropy of the joint shares. Higher is better.",
    "coverage_at_<m>": "share of joint cells with m or more images. Higher is better.",
    "representation_worst": "smallest share over target of a joint cell. Higher is better.",
    "representation_min_over_max": "that over the largest. Higher is better.",
    "differential_fairness": (
        "largest log ratio of share over target between two joint cells, smoothed. "
        "Lower is better."
    ),
    "mutual_information": "of two sensitive attributes, nats; 0 also at a collapse.",
    "frechet_<encoder>_<balanced|natural|reweighted>": (
        "Fréchet distance of features to real images: balanced over the groups, in the shares of "
        "the training data, or in the generator's own. Lower is better; compare at equal n."
    ),
    "kernel_<encoder>_<balanced|natural|reweighted>": (
        "unbiased squared MMD, cubic kernel, to the same. Lower is better."
    ),
    "<precision|recall|density|coverage>_<encoder>": (
        "by 5 nearest neighbours, against balanced real images. Higher is better."
    ),
    "vendi_<encoder>": (
        "effective number of different images, in units of as many real ones. Higher is better."
    ),
    "<kernel|frechet|recall>_<encoder>_<worst_group|group_gap>": (
        "of each joint cell against real images of it: the worst, and largest less smallest"
    ),
    "memorisation_<encoder>": (
        "of methods with a reference set: chance that an image lies nearer to that set than an "
        "unseen real image of its group does. 0.5 without copies, lower is better."
    ),
    "copies_<encoder>": "share of images nearer to that set than 99 % of unseen real images are.",
    "fid_*, kid_*, inception_score, inception_score_tf": (
        "with --encoder inception@clean or inception@tf: as in their papers"
    ),
    "cmmd_<encoder>_balanced, clip_score_<encoder>": (
        "with --encoder clip-…: Gaussian-kernel distance; 100 × cosine to the user's own prompt"
    ),
    "face_*": "with --faces: share of images with a face, with several, confidence, area",
    "identity_*": (
        "with --faces and an identity network: how many different faces, next to real ones; "
        "_memorisation, _copies: whether they lie nearer to the training images than real faces "
        "do that weren't trained on (run only)"
    ),
    "validity": "share of images that the validity check accepts. Higher is better.",
    "prompt_accuracy": "share of valid images that show the subject asked for. Higher is better.",
    "hit_rate": "share of valid images in the group the method asked for. Higher is better.",
    "judge_confidence_<attribute>": "mean highest probability of the primary judge.",
    "judge_agreement_<attribute>": "share of valid images read as --labels says.",
    "judge_disagreement_<attribute>": ("share of valid images that the judges read differently."),
}


def score_all(
    sample: Sample,
    reference: Reference,
    task: Task,
    attributes: Mapping[str, tuple[str, ...]],
    sensitive: Sequence[str],
    confusions: Mapping[str, Mapping[str, NDArray[np.int64]]],
    encoders: Mapping[str, Columns],
    *,
    given: Mapping[str, NDArray[np.int64]] | None = None,
    seen: Mapping[str, NDArray[np.float32]] | None = None,
    controls: Sequence[Control] = (),
    seed: int = 0,
) -> tuple[tuple[Score, ...], dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Every score, every table of groups, and further facts of one run.

    Args:
        sample: The images.
        reference: Real images that match the task's prompts, balanced over the sensitive groups.
        task: Prompts, groups, target.
        attributes: All attributes that the judges read.
        sensitive: Those whose shares are asked to be fair.
        confusions: Judge, the primary one first -> attribute or crossing -> (K, K) counts on
            labelled images, rows are the truth.
        encoders: Encoder -> how its columns are called.
        given: Attribute -> (N,) levels that somebody else saw in the images; tells how far to
            trust the judges on them.
        seen: Encoder -> features of a reference set that the method learned from, if it did.
        controls: Variables within whose levels groups are compared too, in tables and facts.
        seed: Of every resample behind the intervals.

    Shares are taken of valid images. What can't be measured is left out, and the fact
    ``not_measured`` says why: shares of nothing aren't 0.
    """
    readings = [Reading(sample, judge, attributes, task) for judge in confusions]
    first = readings[0]
    quality = QualityScores(first, sensitive, reference, encoders, seed)
    fairness = FairnessScores(readings, sensitive, confusions, seed)
    if first.n == 0:
        reason = f"none of {len(first.valid)} images is valid"
        missing = {RANKED: reason, RAW: reason}
        made = (*fairness.penalised(), *quality.scores(), *_validity(first))
        facts: dict[str, Any] = {"not_measured": missing | quality.not_measured}
        if (rows := validity_by_requested(first)) is not None:
            facts["validity_by_requested"] = rows
        return made, {}, facts
    scores = [*fairness.scores(), *quality.scores()]
    parity, by_group = quality.parity()
    scores += parity
    if seen is not None:
        scores += quality.copying(seen)
    scores += [*_validity(first), *_semantic(first), *_judges(readings, sensitive)]
    audited, audit = audit_scores(first, given or {}, seed)
    scores += audited
    tables = group_tables(first, sensitive, confusions[first.judge], by_group)
    facts = {
        "fair": fairness.floors,
        "fairness": fairness.details,
        "quality": quality.details,
    }
    if audit:
        facts["audit"] = audit
    if controls:
        more, facts["control"] = strata_tables(first, sensitive, controls)
        tables |= more
    if missing := fairness.not_measured | quality.not_measured:
        facts["not_measured"] = missing
    if (matrix := hit_matrix(first)) is not None:
        facts["hit_matrix"] = matrix
        facts["validity_by_requested"] = validity_by_requested(first)
    return tuple(scores), tables, facts


def _validity(reading: Reading) -> list[Score]:
    """Share of images that the validity check accepts; nothing without a check."""
    if not reading.sample.measured.validity_checked:
        return []
    source = "validity check, all images"
    effects = reading.effects(reading.valid.astype(np.int64), 2, every=True)
    total = len(reading.valid)
    return [share_score("validity", reading.n, total, "higher", source, effects=effects)]


def _share_of_valid(
    reading: Reading, name: str, hits: NDArray[np.bool_], better: Better, source: str
) -> Score:
    """Share of the valid images for which something holds, (n,)."""
    effects = reading.effects(hits.astype(np.int64), 2)
    return share_score(name, int(hits.sum()), reading.n, better, source, effects=effects)


def _semantic(reading: Reading) -> list[Score]:
    """Whether images show what was asked for."""
    source = f"judge {reading.judge}, valid images"
    scores = []
    right = reading.right_subject()
    if right is not None:
        scores.append(_share_of_valid(reading, "prompt_accuracy", right, "higher", source))
    requested = reading.sample.requested
    if requested is not None:
        hits = (reading.index(tuple(reading.task.attributes)) == requested)[reading.valid]
        scores.append(_share_of_valid(reading, "hit_rate", hits, "higher", source))
    return scores


def _judges(readings: Sequence[Reading], sensitive: Sequence[str]) -> list[Score]:
    """How sure the primary judge is, and how often the others read an image differently."""
    first = readings[0]
    scores = []
    for name in sensitive:
        scores.append(
            mean_score(
                f"judge_confidence_{name}",
                first.probabilities[name][first.valid].max(1),
                "neither",
                f"judge {first.judge}, valid images",
                unit="probability",
                highest=1.0,
            )
        )
    if len(readings) == 1:  # nothing to differ from
        return scores
    for name in sensitive:
        labels = np.stack([reading.labels[name][reading.valid] for reading in readings])
        differ = (labels != labels[0]).any(axis=0)
        source = f"judges {' and '.join(r.judge for r in readings)}, valid images"
        scores.append(
            _share_of_valid(first, f"judge_disagreement_{name}", differ, "neither", source)
        )
    return scores
