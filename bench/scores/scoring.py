"""Arrays to scores: asks every score family and joins what they find.

Pure functions of stored arrays; nothing here runs a network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.score import Score
from fairbench.core.task import Control, Task
from fairbench.scores.catalogue import broken_families, families, spec_of
from fairbench.scores.parts.auditing import audited_confusions
from fairbench.scores.parts.crossings import Reading, Sample
from fairbench.scores.parts.evidence import Columns, Evidence, FaceEvidence, Reference
from fairbench.scores.parts.family import Found, ScoreFamily, Table

__all__ = ["METRIC_VERSION", "found_in", "score_all"]

METRIC_VERSION = 2
"""Part of run keys; what becomes of the same arrays is said score by score, `Score.version`."""


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
    faces: FaceEvidence | None = None,
    copies: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[tuple[Score, ...], dict[str, Table], dict[str, Any]]:
    """Every score, every table of groups, and further facts of one run.

    Args:
        sample: The images.
        reference: Real images that match the task's prompts.
        task: Prompts, groups, target.
        attributes: All attributes that the judges read.
        sensitive: Those whose shares are asked to be fair.
        confusions: Judge, the primary one first -> attribute or crossing -> (K, K) counts on
            labelled images, rows are the truth.
        encoders: Encoder -> how its columns are called.
        given: Attribute -> (N,) levels that a person saw in the images, -1 where nobody told.
            With enough of every group the judges' errors are counted on these images, in place of
            `confusions`; see `audited_confusions`.
        seen: Encoder -> features of a reference set that the method learned from, if it did.
        controls: Variables within whose levels groups are compared too, in tables and facts.
        faces: What the face stage said, if it was asked for.
        copies: Counts of equal images, as in `Evidence`.
        seed: Of every resample behind the intervals.

    Shares are taken of valid images. What can't be measured is left out, and the fact
    ``not_measured`` says why: shares of nothing aren't 0.
    """
    readings = tuple(Reading(sample, judge, attributes, task) for judge in confusions)
    confusions, audited = audited_confusions(readings, given or {}, confusions)
    evidence = Evidence(
        readings=readings,
        sensitive=tuple(sensitive),
        confusions=confusions,
        audited=audited,
        encoders=encoders,
        reference=reference,
        given=given or {},
        seen=seen,
        controls=controls,
        faces=faces,
        copies=copies,
        seed=seed,
    )
    found = found_in(evidence, families())
    facts = dict(found.facts)
    if missing := {**found.not_measured, **broken_families()}:
        facts["not_measured"] = missing
    return tuple(map(_stamped, found.scores)), dict(found.tables), facts


def _stamped(score: Score) -> Score:
    """The score with the version of what is known of it; families needn't say."""
    spec = spec_of(score.name)
    return score if spec is None else replace(score, version=spec.version)


def found_in(evidence: Evidence, asked: Sequence[ScoreFamily]) -> Found:
    """What some families find, joined in their order."""
    scores: list[Score] = []
    tables: dict[str, Table] = {}
    facts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for found in _each(evidence, asked):
        scores += found.scores
        tables |= found.tables
        missing |= found.not_measured
        _merge(facts, found.facts)
    return Found(tuple(scores), tables, facts, missing)


def _each(evidence: Evidence, asked: Sequence[ScoreFamily]) -> Iterator[Found]:
    possible = [family for family in asked if evidence.first.n or not family.needs_valid]
    for each_encoder, same in itertools.groupby(possible, key=lambda family: family.each_encoder):
        parts = [evidence]
        if each_encoder:
            parts = [evidence.of_encoder(encoder) for encoder in evidence.encoders]
        together = list(same)
        for part in parts:
            for family in together:
                yield family.compute(part)


def _merge(facts: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add facts; dictionaries of the same name become one."""
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(facts.get(name), dict):
            _merge(facts[name], value)
        else:
            facts[name] = dict(value) if isinstance(value, Mapping) else value
