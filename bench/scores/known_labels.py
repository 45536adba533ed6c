"""Scores from what a record kept of its images: hard labels, validity and batches, no pixels.

Which scores that is enough for isn't kept in any list: what isn't known is filled in twice, in
different ways, and what comes out the same both times doesn't depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.measurements import Measurements
from fairbench.core.score import Score
from fairbench.core.task import Task
from fairbench.scores.parts.crossings import Sample
from fairbench.scores.parts.evidence import Reference
from fairbench.scores.parts.family import Table
from fairbench.scores.scoring import score_all

__all__ = ["KnownLabels", "expanded", "scores_of_labels"]

Labels = Mapping[str, Mapping[str, NDArray[np.int64]]]

SHARED = ("fair", "fairness")
"""Facts to which several families add entries."""


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """What is known of N images without looking at them.

    Attributes:
        labels: Judge -> attribute -> (N,) level; judges and attributes may be missing.
        valid: (N,) bool.
        validity_checked: Whether a validity check says so.
        prompt_index: (N,) prompt of each.
        batch_id: (N,) equal for images that depend on each other.
        requested: (N,) group that was asked for; None if none was, or if it isn't known.
        copies: Counts of equal images; None if they weren't counted.
    """

    labels: Labels
    valid: NDArray[np.bool_]
    validity_checked: bool
    prompt_index: NDArray[np.int64]
    batch_id: NDArray[np.int64]
    requested: NDArray[np.int64] | None = None
    copies: Mapping[str, int] | None = None


def scores_of_labels(
    known: KnownLabels,
    task: Task,
    attributes: Mapping[str, tuple[str, ...]],
    sensitive: Sequence[str],
    confusions: Mapping[str, Mapping[str, NDArray[np.int64]]],
    *,
    seed: int = 0,
) -> tuple[tuple[Score, ...], dict[str, Table], dict[str, Any]]:
    """Every score, table and fact for which hard labels and validity are enough.

    Args:
        known: The images.
        task: Prompts, groups, target.
        attributes: All attributes that the judges read.
        sensitive: Those whose shares are asked to be fair.
        confusions: Judge, the primary one first -> attribute or crossing -> (K, K) counts.
        seed: Of every resample behind the intervals.

    Returns:
        As `score_all`, without what rests on anything else; the facts don't say what isn't
        measured.
    """
    one, other = (
        score_all(
            Sample(measured, known.prompt_index, known.requested, known.batch_id),
            _NOTHING,
            task,
            attributes,
            sensitive,
            confusions,
            {},
            copies=known.copies,
            seed=seed,
        )
        for measured in _filled(known, attributes, list(confusions))
    )
    twice = {score.name: score for score in other[0]}
    scores = tuple(score for score in one[0] if twice.get(score.name) == score)
    facts = _same_facts(one[2], other[2])
    if "fair" in facts:  # what floors rest on, of a score that itself isn't known, says nothing
        known_ones = {score.name for score in scores}
        facts["fair"] = {name: it for name, it in facts["fair"].items() if name in known_ones}
    return scores, _same_rows(one[1], other[1]), facts


_NOTHING = Reference({}, {}, np.empty(0, np.int64), None)


def _filled(
    known: KnownLabels, attributes: Mapping[str, tuple[str, ...]], judges: Sequence[str]
) -> Iterator[Measurements]:
    """What is known, with the rest filled in, in two different ways."""
    n = len(known.valid)
    drawn = np.random.default_rng(0)
    sizes = {len(levels) for levels in attributes.values()}
    # All the first level, then any: in no level would the two agree, not even at none.
    fillings = (
        {size: np.zeros(n, np.int64) for size in sizes},
        {size: drawn.integers(0, size, n) for size in sorted(sizes)},
    )
    for filling, doubt in zip(fillings, (0.1, 0.3), strict=True):
        probabilities = {}
        for judge in judges:
            read = known.labels.get(judge, {})
            probabilities[judge] = {
                name: _soft(read.get(name, filling[len(levels)]), len(levels), doubt)
                for name, levels in attributes.items()
            }
        yield Measurements({}, probabilities, known.valid, validity_checked=known.validity_checked)


def _soft(labels: NDArray[np.int64], size: int, doubt: float) -> NDArray[np.float32]:
    """(N, K) probabilities with those likeliest levels, of a judge that is in doubt."""
    rows = np.full((len(labels), size), doubt / size, np.float32)
    rows[np.arange(len(labels)), labels] += 1 - doubt
    return rows


def _same_rows(one: Mapping[str, Table], other: Mapping[str, Table]) -> dict[str, Table]:
    """The cells in which two readings of the same tables are equal."""
    return {
        name: [_same(mine, theirs) for mine, theirs in zip(rows, other[name], strict=True)]
        for name, rows in one.items()
        if name in other and len(other[name]) == len(rows)
    }


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are equal as a whole: half of one may belong to what isn't known."""
    return {name: value for name, value in one.items() if name in other and value == other[name]}


def _same_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that are equal, and the equal entries of those that families share."""
    kept = _same(one, other)
    for name in SHARED:
        if name in one and name in other:
            kept[name] = _same(one[name], other[name])
    kept.pop("not_measured", None)
    return kept


def expanded(
    counts: Mapping[int, NDArray[np.int64]],
    images: NDArray[np.int64],
    chosen: Sequence[str],
    attributes: Mapping[str, tuple[str, ...]],
    judge: str,
    *,
    validity_checked: bool,
    copies: Mapping[str, int] | None = None,
) -> KnownLabels:
    """Independent images that have the counts of a table: their order says nothing.

    Args:
        counts: Prompt -> (K,) valid images of each cell of the crossing, row-major.
        images: (P,) images of each prompt, valid or not.
        chosen: The attributes of the crossing.
        attributes: Attribute -> its levels.
        judge: Whose labels were counted.
        validity_checked: Whether a validity check said which images are valid.
        copies: Counts of equal images; None if they weren't counted.
    """
    shape = [len(attributes[name]) for name in chosen]
    cells, valid, prompts = [], [], []
    for prompt, total in enumerate(images.tolist()):
        mine = np.repeat(np.arange(len(counts[prompt])), counts[prompt])
        lacking = total - len(mine)
        cells.append(np.concatenate([mine, np.zeros(lacking, np.int64)]))
        valid.append(np.arange(total) < len(mine))
        prompts.append(np.full(total, prompt))
    levels = np.unravel_index(np.concatenate(cells), shape)
    labels = {name: np.asarray(level) for name, level in zip(chosen, levels, strict=True)}
    n = int(images.sum())
    return KnownLabels(
        {judge: labels},
        np.concatenate(valid),
        validity_checked,
        np.concatenate(prompts),
        np.arange(n),
        copies=copies,
    )
