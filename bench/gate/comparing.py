"""What is measured now against a baseline, score by score: which got worse, and how sure that is.

``docs/gate.md`` says what is compared, how, and what the gate finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fairbench.core.record import PerImage
from fairbench.core.score import Score, ScoreSpec
from fairbench.gate.baseline import SHORT, Measured
from fairbench.metrics.counting import wilson_interval
from fairbench.metrics.regression import (
    ENOUGH_SEEDS,
    LEVEL,
    Change,
    Ends,
    change,
    detectable,
    images_needed,
    pairing,
)
from fairbench.metrics.significance import holm
from fairbench.runs.config import MINIMUM_IMAGES
from fairbench.scores.catalogue import spec_of

__all__ = ["STATES", "Finding", "Handling", "State", "Verdict", "compare"]

State = Literal["regressed", "missing", "inconclusive", "improved", "new", "pass", "identical"]
STATES: tuple[State, ...] = (
    "regressed",
    "missing",
    "inconclusive",
    "improved",
    "new",
    "pass",
    "identical",
)
"""What may become of a score, the worst first."""

Handling = Literal["fail", "warn", "ignore"]
"""What is made of a state that is no regression."""

ROUNDING = 1e-6
"""Relative difference below which two numbers are the same but for rounding."""

EQUAL = 1e-9
"""Relative width below which an interval has none."""

EVERYTHING = "everything"
"""In the place of a score's name: the run as a whole."""

ALL_EQUAL = "all of its images are equal, so that nothing was sampled"
NO_WIDTH = "its interval has no width, as of features that are all equal"


@dataclass(frozen=True)
class Finding:
    """What became of one score of one run, or of one run over several seeds.

    Attributes:
        run: Which run.
        score: Name of the score, or `EVERYTHING`.
        state: What became of it.
        reason: In words; empty where the numbers say it.
        before, after: The values, mean over seeds.
        change: After less before.
        low, high: Ends of the 95 % interval of the change.
        p_value: Of no change, adjusted by Holm's method for all scores that were tested.
        margin: Smallest change that counts.
        detectable: Smallest change that would be found with 80 % power; at least the margin.
        images: Images of each side.
        needed: Images of each side with which a change by the margin would be found.
        better: Which direction is better.
        how: How the error of the change was found.
    """

    run: str
    score: str
    state: State
    reason: str = ""
    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    margin: float | None = None
    detectable: float | None = None
    images: int = 0
    needed: int | None = None
    better: str = ""
    how: str = ""


@dataclass(frozen=True)
class _Test:
    """A score that changed, before it is known how many did.

    Attributes:
        finding: What is known of it.
        change: How it changed.
        margin: Smallest change that counts.
        spec: Of the score.
    """

    finding: Finding
    change: Change
    margin: float
    spec: ScoreSpec


@dataclass(frozen=True)
class Verdict:
    """What became of all scores.

    Attributes:
        findings: The worst state first, else in the order of the plan.
        notes: What the reader should know of the runs, such as other instruments.
        refusals: Why nothing can be said of some runs; then the check never passes.
        on_inconclusive, on_missing: What is made of these states.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    refusals: tuple[str, ...]
    on_inconclusive: Handling = "warn"
    on_missing: Handling = "fail"

    def of(self, state: State) -> list[Finding]:
        """The findings of one state."""
        return [one for one in self.findings if one.state == state]

    def handling(self, state: State) -> Handling:
        """What is made of a state."""
        if state == "regressed":
            return "fail"
        return {"missing": self.on_missing, "inconclusive": self.on_inconclusive}.get(
            state, "ignore"
        )

    @property
    def failing(self) -> list[Finding]:
        """The findings for which the check fails."""
        return [one for one in self.findings if self.handling(one.state) == "fail"]

    @property
    def exit_code(self) -> int:
        """1 for what fails, 2 where something can't be compared, else 0."""
        return 1 if self.failing else 2 if self.refusals else 0

    @property
    def word(self) -> str:
        """The verdict in a word."""
        if self.failing:
            return "failed"
        if self.refusals:
            return "not comparable"
        return "identical" if all(f.state == "identical" for f in self.findings) else "passed"


def compare(
    baseline: Sequence[Measured],
    candidate: Sequence[Measured],
    *,
    on_inconclusive: Handling = "warn",
    on_missing: Handling = "fail",
    lacking: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare runs with those of a baseline that answer the same questions.

    Args:
        baseline: What is compared with.
        candidate: What is measured now.
        on_inconclusive: What is made of scores of which a regression can't be excluded.
        on_missing: What is made of scores and runs that aren't there any more.
        lacking: Identity of a run -> why it isn't among the candidates.
    """
    now = {one.identity: one for one in candidate}
    known = {one.identity for one in baseline}
    findings: list[Finding] = []
    notes: list[str] = []
    refusals: list[str] = []
    pending: list[_Test] = []
    for family in _families(baseline):
        pairs: list[tuple[Measured, Measured]] = []
        for before in family:
            after = now.get(before.identity)
            if after is None:
                why = (lacking or {}).get(before.identity, "no record answers its question")
                findings.append(Finding(_titled(before), EVERYTHING, "missing", why))
                continue
            refused, worse = _unusable(before, after)
            if refused:
                refusals.append(f"{_titled(before)}: {refused}")
            elif worse:
                findings.append(
                    Finding(_titled(before), EVERYTHING, "regressed", worse, images=after.count)
                )
            else:
                pairs.append((before, after))
                notes += _told(before, after)
        if pairs:
            made, tested = _of_runs(pairs)
            findings += made
            pending += tested
    findings += [
        Finding(_titled(one), EVERYTHING, "new", "the baseline has no such run")
        for one in candidate
        if one.identity not in known
    ]
    findings += _judged(pending)
    compared = sum(
        one.score != EVERYTHING and one.state not in ("missing", "new") for one in findings
    )
    if not compared and not refusals:
        refusals.append("no score was compared: nothing is measured on both sides")
    ordered = sorted(findings, key=lambda one: STATES.index(one.state))
    return Verdict(
        tuple(ordered),
        tuple(dict.fromkeys(notes)),
        tuple(refusals),
        on_inconclusive,
        on_missing,
    )


def _families(runs: Sequence[Measured]) -> Iterator[list[Measured]]:
    """The runs of each question, whatever their seeds."""
    found: dict[str, list[Measured]] = {}
    for one in runs:
        found.setdefault(one.family, []).append(one)
    yield from found.values()


def _titled(run: Measured) -> str:
    return f"{run.name} seed {run.seed}" if "method" in run.question else run.name


def _unusable(before: Measured, after: Measured) -> tuple[str, str]:
    """Why two runs can't be compared, and why the new one is worse without any comparison."""
    for what, run in (("the baseline", before), ("it", after)):
        if run.count < MINIMUM_IMAGES:
            return f"{what} has {run.count} images; at least {MINIMUM_IMAGES} are needed", ""
    if not any(_watched(name) for name in before.scores):
        return "the baseline measured none of the scores that are watched", ""
    ways = (_all_equal, _no_spread)
    for way in ways:
        if way(before):
            return f"of the baseline, {way(before)}", ""
    return "", next((reason for way in ways if (reason := way(after))), "")


def _all_equal(run: Measured) -> str:
    """Why its images are no sample; empty if they are."""
    images = run.images
    if images is not None:
        return ALL_EQUAL if len(set(images.sha256)) == 1 else ""
    copies = run.scores.get("duplicates")
    return ALL_EQUAL if copies is not None and copies.value == 1 else ""


def _no_spread(run: Measured) -> str:
    """Why its features are no sample; empty if they are."""
    for score in run.scores.values():
        spec = spec_of(score.name)
        if spec is None or not spec.relative or score.low is None or score.high is None:
            continue
        if math.isclose(score.low, score.high, rel_tol=EQUAL):
            return f"{score.name}: {NO_WIDTH}"
    return ""


def _told(before: Measured, after: Measured) -> Iterator[str]:
    """What sets two runs apart beside their images."""
    both = before.hashes.keys() & after.hashes.keys()
    for name in sorted(name for name in both if before.hashes[name] != after.hashes[name]):
        yield f"{_titled(before)}: {name} is another than the baseline's"
    if before.images is None or after.images is None:
        yield f"{_titled(before)}: nothing is known of its images, so none are paired"


def _watched(name: str) -> bool:
    spec = spec_of(name)
    return spec is not None and spec.margin is not None


def _of_runs(
    pairs: Sequence[tuple[Measured, Measured]],
) -> tuple[list[Finding], list[_Test]]:
    """Of the runs of one question with one or more seeds: what is clear, and what is to be tested.

    Returns:
        Findings, and tests whose outcome depends on how many there are.
    """
    same = [_same_images(before, after) for before, after in pairs]
    factors = [_Pairs.of(before.images, after.images) for before, after in pairs]
    title = pairs[0][0].name if len(pairs) > 1 else _titled(pairs[0][0])
    if len(pairs) > 1:
        title += f" seeds {', '.join(str(before.seed) for before, _ in pairs)}"
    names = dict.fromkeys(
        name for pair in pairs for run in pair for name in run.scores if _relevant(name, pair)
    )
    findings: list[Finding] = []
    pending: list[_Test] = []
    for name in names:
        held = [(b.scores.get(name), a.scores.get(name)) for b, a in pairs]
        count = min(after.count for _, after in pairs)
        gone = [place for place, (b, a) in enumerate(held) if b is not None and a is None]
        if gone:
            after = pairs[gone[0]][1]
            why = after.not_measured.get(name, "it isn't measured any more")
            value = _mean(b.value for b, _ in held if b is not None)
            findings.append(Finding(title, name, "missing", why, before=value, images=count))
            continue
        if any(b is None for b, _ in held):
            value = _mean(a.value for _, a in held if a is not None)
            findings.append(Finding(title, name, "new", after=value, images=count))
            continue
        spec = spec_of(name)
        both = [(b, a) for b, a in held if b is not None and a is not None]
        if spec is None or spec.margin is None:
            continue
        if any(b.version != a.version for b, a in both):
            why = "its definition is another than the baseline's; --update takes today's"
            findings.append(Finding(title, name, "inconclusive", why, images=count))
            continue
        start = Finding(
            title,
            name,
            "pass",
            before=_mean(b.value for b, _ in both),
            after=_mean(a.value for _, a in both),
            images=count,
            better=spec.better,
        )
        margin = _margin(spec, [b for b, _ in both])
        equal = all(_rounded(b.value, a.value) for b, a in both)
        if all(same) and equal:
            findings.append(replace(start, state="identical", change=0.0, margin=margin))
            continue
        pending.append(_tested(start, spec, margin, both, same, factors))
    return findings, pending


def _relevant(name: str, pair: tuple[Measured, Measured]) -> bool:
    """Whether a score is watched, or was and isn't known to this version any more."""
    if _watched(name):
        return True
    return spec_of(name) is None and name in pair[0].scores and name not in pair[1].scores


def _tested(
    start: Finding,
    spec: ScoreSpec,
    margin: float,
    both: Sequence[tuple[Score, Score]],
    same: Sequence[bool],
    factors: Sequence[_Pairs],
) -> _Test:
    weights: list[float] = []
    for is_same, pairs in zip(same, factors, strict=True):
        weights.append(0.0 if is_same else pairs.of_labels if spec.of_labels else pairs.of_pixels)
    ends = [_ends(b, spec) for b, _ in both], [_ends(a, spec) for _, a in both]
    if all(same):
        how = "the same images, measured otherwise"
    elif max(weights) < 1:
        how = "paired by seed and image"
    else:
        how = "as of independent images"
    if all(same):
        found = change(_bare(ends[0]), _bare(ends[1]), weights)
    elif any(math.isnan(end[1]) for side in ends for end in side):
        found = _of_seeds(ends)
        how = "scatter over seeds" if not math.isinf(found.error) else "no interval and few seeds"
    else:
        found = change(ends[0], ends[1], weights)
    return _Test(replace(start, margin=margin, how=how), found, margin, spec)


def _bare(side: Sequence[Ends]) -> list[Ends]:
    """Values that are known for sure."""
    return [(value, value, value) for value, _, _ in side]


def _of_seeds(ends: tuple[list[Ends], list[Ends]]) -> Change:
    """The change of a score without an interval, as three seeds or more tell it."""
    found = change(_bare(ends[0]), _bare(ends[1]), [0.0] * len(ends[0]))
    if len(ends[0]) < ENOUGH_SEEDS or found.error == 0:
        return Change(found.value, -math.inf, math.inf, 1.0, math.inf)
    return found


def _judged(pending: Sequence[_Test]) -> Iterator[Finding]:
    """States of all scores that were tested, after Holm's method."""
    if not pending:
        return
    adjusted = holm([test.change.p_value for test in pending])
    for test, p_value in zip(pending, adjusted.tolist(), strict=True):
        start, found, margin = test.finding, test.change, test.margin
        known = math.isfinite(found.error)
        smallest = max(margin, detectable(found.error, len(pending))) if known else None
        needed = None
        if known and found.error > 0:
            needed = images_needed(start.images, found.error, margin, len(pending))
        yield replace(
            start,
            state=_state(found, p_value, margin, test.spec),
            change=found.value,
            low=found.low if known else None,
            high=found.high if known else None,
            p_value=p_value,
            detectable=smallest,
            needed=needed,
        )


def _state(found: Change, p_value: float, margin: float, spec: ScoreSpec) -> State:
    """What became of a score; of one that is best where it was, any change is for the worse."""
    clear = p_value <= LEVEL
    if not math.isfinite(found.error):  # the values alone are compared
        sign = -1.0 if spec.better == "higher" else 1.0
        harm = abs(found.value) if spec.better == "neither" else sign * found.value
        return "pass" if harm <= margin else "inconclusive"
    if spec.better == "neither":
        if clear and abs(found.value) > margin:
            return "regressed"
        return "pass" if max(-found.low, found.high) <= margin else "inconclusive"
    sign = 1.0 if spec.better == "lower" else -1.0
    harm, most = sign * found.value, found.high if sign > 0 else -found.low
    if clear and harm > margin:
        return "regressed"
    if clear and harm < -margin:
        return "improved"
    return "pass" if most <= margin else "inconclusive"


# --- pairs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """What images that were made from the same noise have in common.

    Attributes:
        of_labels: Variance of a difference of shares over that of independent images.
        of_pixels: Share of the images that aren't the same to the byte.
    """

    of_labels: float
    of_pixels: float

    @classmethod
    def of(cls, before: PerImage | None, after: PerImage | None) -> _Pairs:
        if before is None or after is None:
            return cls(1.0, 1.0)
        rows, columns = _matched(before, after)
        whole = max(len(before), len(after))
        if len(rows) < whole:  # a part is paired; what that says of the rest isn't known
            return cls(1.0, 1.0)
        left, right = _short(before), _short(after)
        changed = [
            left[i] != right[j] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        coupled = any(len(np.unique(one.batch_id)) < len(one) for one in (before, after))
        # Of coupled images one that changed may have changed its whole batch.
        clusters = before.batch_id[rows] if coupled else None
        differing = np.array(changed, dtype=bool)
        if clusters is not None:
            differing = np.isin(clusters, clusters[differing])
        pixels = min(1.0, (float(differing.sum()) + 1) / whole)
        return cls(_of_labels(before, after, rows, columns, clusters), pixels)


def _of_labels(
    before: PerImage,
    after: PerImage,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    clusters: NDArray[np.int64] | None,
) -> float:
    """The largest of what any judge's reading of any attribute says, and validity."""
    said = [
        (before.labels[judge][name], after.labels[judge][name])
        for judge in before.labels.keys() & after.labels.keys()
        for name in before.labels[judge].keys() & after.labels[judge].keys()
    ]
    if not said:
        return 1.0
    prompts = before.prompt_index[rows]
    valid = before.valid[rows], after.valid[columns]
    found = []
    for left, right in said:
        parts = [
            np.where(ok, labels[order], -1)
            for labels, order, ok in zip((left, right), (rows, columns), valid, strict=True)
        ]
        size = 2 + max(int(part.max(initial=0)) for part in parts)
        strata = [(prompts * size + part + 1) for part in parts]
        found.append(pairing(strata[0], strata[1], clusters))
    return max(found)


def _matched(before: PerImage, after: PerImage) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of both sides with the same prompt and number."""
    wide = 1 + max(int(one.image_index.max(initial=0)) for one in (before, after))
    keys = [one.prompt_index * wide + one.image_index for one in (before, after)]
    _, rows, columns = np.intersect1d(keys[0], keys[1], return_indices=True)
    return rows.astype(np.int64), columns.astype(np.int64)


def _short(images: PerImage) -> list[str]:
    return [digest[:SHORT] for digest in images.sha256]


def _same_images(before: Measured, after: Measured) -> bool:
    """Whether both are the same images in the same order."""
    left, right = before.images, after.images
    return (
        left is not None
        and right is not None
        and len(left) == len(right) > 0
        and _short(left) == _short(right)
        and bool((left.prompt_index == right.prompt_index).all())
        and bool((left.image_index == right.image_index).all())
    )


# --- numbers -------------------------------------------------------------------------------


def _ends(score: Score, spec: ScoreSpec) -> Ends:
    """A value with its interval; NaN for the ends of one that has none.

    A share of images that was counted exactly, such as that of copies, gets Wilson's: of other
    images it would be another.
    """
    low, high = score.low, score.high
    if low is None or high is None:
        if spec.unit != "share" or spec.of_labels or not 0 <= score.value <= 1 or score.n < 1:
            return score.value, math.nan, math.nan
        low, high = wilson_interval(round(score.value * score.n), score.n)
    return score.value, min(low, score.value), max(high, score.value)


def _margin(spec: ScoreSpec, before: Sequence[Score]) -> float:
    """The margin in the score's unit.

    A relative one is of the value, or of what chance alone makes of it where that is more: a
    distance that is 0 but for noise leaves no scale.
    """
    if spec.margin is None:
        return 0.0
    if not spec.relative:
        return spec.margin
    halves = [
        (score.high - score.low) / 2
        for score in before
        if score.low is not None and score.high is not None
    ]
    scale = max(abs(_mean(score.value for score in before)), _mean(halves) if halves else 0.0)
    return spec.margin * scale


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _rounded(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-9)
