"""What labels by people say: how far judges can be trusted on these images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score, ScoreSpec
from fairbench.metrics import count_groups, discrepancy_interval, noise_floor_for
from fairbench.metrics.fairness import whole_size
from fairbench.scores.parts.auditing import errors_of, labelled
from fairbench.scores.parts.crossings import GIVEN_BATCHES, WORTH_BATCHES, Reading
from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.plain import leaving_out_batches, share_score

__all__ = ["FAMILY"]

SPECS = (
    ScoreSpec(
        "judge_agreement_*",
        "share of valid images read as --labels says.",
        "neither",
        margin=0.03,
        unit="share",
        summary=True,
        needs="--labels with levels",
        display="judge_agreement_<attribute>",
        version=2,
    ),
    ScoreSpec(
        "fairness_discrepancy_given",
        "the ranked discrepancy of the labels given by --labels, which no judge touches. Lower is "
        "fairer.",
        "lower",
        margin=0.02,
        summary=True,
        needs="--labels with every attribute of the task",
        version=2,
    ),
)


def _audit(
    reading: Reading, given: Mapping[str, NDArray[np.int64]], seed: int
) -> tuple[list[Score], dict[str, Any]]:
    """Agreement with given labels, and the ranked question answered by them.

    Args:
        reading: The sample as the primary judge reads it.
        given: Attribute -> (N,) level that a person saw in each image, -1 where nobody told.
        seed: Of every resample.

    Returns:
        ``judge_agreement_<attribute>``; and, if every attribute of the task is given,
        ``fairness_discrepancy_given`` of these labels themselves, which no judge's errors touch:
        on what a generator makes a judge may do worse than on the real images that its errors
        were counted on. The facts hold the errors counted here.
    """
    scores, facts = [], {}
    for name in given:
        told, truth = labelled(reading, given, (name,))
        if not told.any():
            continue
        read = reading.labels[name][told]
        same, total = int((read == truth).sum()), int(told.sum())
        source = f"judge {reading.judge} and given labels, valid images that have one"
        agreed = (read == truth).astype(np.int64)
        effects = reading.effects(agreed, 2, told, every=True)
        agreement = share_score(
            f"judge_agreement_{name}", same, total, "neither", source, effects=effects
        )
        if effects is None:
            agreement = leaving_out_batches(agreement, reading)
        scores.append(agreement)
        facts[name] = errors_of(reading, given, (name,)).tolist()
    chosen = tuple(reading.task.attributes)
    if not all(name in given for name in chosen):
        return scores, facts
    told, truth = labelled(reading, given, chosen)
    if not told.any():
        return scores, facts
    target, size = reading.target(chosen), len(reading.groups(chosen))
    total = int(told.sum())
    counts = count_groups(truth, size)
    effects = reading.effects(truth, size, told, every=True)
    effect = 1.0 if effects is None else effects.overall
    unseen = reading.coupled and effects is None
    given_batches = f", {GIVEN_BATCHES if unseen else WORTH_BATCHES}" if reading.coupled else ""
    found = discrepancy_interval(counts, target, design_effect=effect, seed=seed)
    scores.append(
        Score(
            name="fairness_discrepancy_given",
            value=found.value,
            low=found.low,
            high=found.high,
            n=total,
            better="lower",
            interval=f"{found.method}{given_batches}",
            floor=None if unseen else noise_floor_for(target, whole_size(counts / effect)),
            source="given labels, valid images that have one, all prompts together",
        )
    )
    facts["/".join(chosen)] = errors_of(reading, given, chosen).tolist()
    return scores, facts


def compute(evidence: Evidence) -> Found:
    """What given labels say, where there are any."""
    scores, facts = _audit(evidence.first, evidence.given, evidence.seed)
    if evidence.audited:
        facts["errors counted on these images"] = dict(evidence.audited)
    return Found(tuple(scores), facts={"audit": facts} if facts else {})


FAMILY = ScoreFamily("audit", 90, SPECS, compute)
