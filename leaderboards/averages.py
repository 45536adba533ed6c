"""Seeds to one number: a rule for every column, said in its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

import numpy as np

from fairbench.core.record import Record
from fairbench.core.score import Score
from fairbench.leaderboards.counts import (
    RAW,
    Column,
    Counted,
    Counts,
    is_discrepancy,
    judge_values,
    narrowed,
)
from fairbench.metrics.counting import wilson_size
from fairbench.metrics.fairness import worst_distance
from fairbench.metrics.seeds import (
    SIZES,
    MeanShares,
    SeedsEstimate,
    estimates,
    mean_number,
    mean_rate,
    mean_shares,
    united_judges,
)
from fairbench.scores.catalogue import is_older

__all__ = ["Averages", "Cell", "exact_mean", "means_of", "measure_together", "shifts"]

_WIDER = {"images": "finite images decide", "seeds": "differences between seeds decide"}
Errors = Literal["apart", "shared", "one way"]
_UNIT = {"share", "probability"}  # what lies in [0, 1]

# Columns whose runs are all measured against the same real images: that part of their errors
# doesn't average out.
_SHARED = (
    "frechet_*",
    "kernel_*",
    "fid_*",
    "kid_*",
    "precision_*",
    "recall_*",
    "density_*",
    "coverage_*",
    "vendi_*",
    "memorisation_*",
    "copies_*",
    "identity_copies",
)
# Shares of real images, the same in all runs, or beyond a threshold that those set.
_OF_REAL = ("recall_*", "coverage_*", "copies_*", "identity_copies")
# Columns whose runs err about as often to either side, each for itself.
_APART = ("judge_confidence_*", "clip_score*", "inception_score*")
_CHOSEN = ("*_worst_group", "*_group_gap", "coverage_at_*")  # picked for being extreme, or counts
# What can't be negative, and whether Student's t is of its logarithms.
_POSITIVE = {
    "frechet_*": True,
    "fid_*": True,
    "kid_*": False,
    "kernel_*": False,  # unbiased: a measured one may be negative, the true one can't
    "density_*": True,
    "vendi_*": True,
    "inception_score*": True,
    "differential_fairness*": False,
    "mutual_information*": False,
    "prompt_dependence": False,
}
_ROUNDING = 1e-6  # of the number of images behind an interval
_RANGES = {"effective_groups*": (1.0, math.inf), "representation_*": (0.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Cell:
    """One score of one row, over its seeds.

    Attributes:
        value: Of discrepancies that counts decide, the distance of the mean shares; of other
            columns the mean over the seeds.
        low, high: Ends of the 95 % interval, within what the score can be; None without one.
        interval: How the ends were found, and what they hold for: ``"this run: …"`` for a single
            seed, which claims nothing about others.
        floor: 95 % quantile of the value for a perfectly fair generator with as many images and
            seeds, or None.
        n: Images a run that the score rests on; the smallest of the seeds'.
        better, unit: As in `Score`.
        older: Whether the score was computed by an older version of its definition.
    """

    value: float
    low: float | None
    high: float | None
    interval: str
    floor: float | None
    n: int
    better: Literal["lower", "higher", "neither"]
    unit: str
    older: bool = False

    @property
    def at_floor(self) -> bool:
        """Whether a perfectly fair generator would often score no better."""
        return self.floor is not None and self.value <= self.floor


class Averages:
    """The columns of one row.

    Args:
        runs: One record a seed.
        counts: Reads the records' counts.
    """

    def __init__(self, runs: Sequence[Record], counts: Counts) -> None:
        self._runs, self._counts = runs, counts
        self._whole: dict[tuple[str, bool], list[dict[str, Counted]]] = {}
        self._counted: dict[Column, list[dict[str, Counted]]] = {}
        self._made: dict[tuple[str, Column], MeanShares | None] = {}
        self._parts: dict[str, _Parts | None] = {}
        self._estimates: dict[tuple[str, Column], dict[str, SeedsEstimate]] = {}

    def unmeasured(self, names: Iterable[str]) -> list[_Unmeasured]:
        """Mean shares that the columns of these names need measured, and by which sizes."""
        asked: dict[tuple[str, Column], _Unmeasured] = {}
        if len(self._runs) > 1:
            for parts in filter(None, map(self._parts_of, names)):
                for judge, made in parts.made.items():
                    place = judge, _without_size(parts.column)
                    had = asked.setdefault(place, (self, place, made, []))
                    had[3].append(parts.column.size)
        return list(asked.values())

    def hold(self, place: tuple[str, Column], found: Mapping[str, SeedsEstimate]) -> None:
        """Keep what `unmeasured` asked for."""
        self._estimates.setdefault(place, {}).update(found)

    def cell(self, scores: Sequence[Score]) -> Cell | None:
        """One score over the seeds; None if that would mix versions of its definition.

        Args:
            scores: The score in each run, in the order of the runs.
        """
        first = scores[0]
        if len(scores) == 1:
            return _of_one(first)
        n = min(score.n for score in scores)
        versions = {score.version if is_older(score) else None for score in scores}
        older = versions != {None}
        if (found := self._of_counts(scores)) is not None:
            one, floor, rule = found
            interval = f"mean shares of {len(scores)} seeds, {_WIDER[one.wider]}{rule}"
            ends = one.value, one.low, one.high
            older = False  # counts are what they were
            return Cell(*ends, interval, floor, n, first.better, first.unit, older)
        if len(versions) > 1:
            return None
        target = self._runs[0].config.get("target") or {}
        value, low, high, interval = _of_numbers(scores, list(target.values()))
        return Cell(value, low, high, interval, None, n, first.better, first.unit, older)

    def _of_counts(
        self, scores: Sequence[Score]
    ) -> tuple[SeedsEstimate, float | None, str] | None:
        """Distance of the mean shares, its floor and what is to be said of it."""
        name = scores[0].name
        parts = self._parts_of(name)
        if parts is None:
            return None
        column, judges, by_run = parts.column, list(parts.made), parts.by_run
        found = [self._measured(judge, one, column) for judge, one in parts.made.items()]
        rule = ""
        if column.corrected:
            others = shifts([judge_values(run, name) for run in self._runs], judges)
            if others is None:
                return None
            for judge, shift in others.items():
                found.append(_shifted(found[0], shift))
                rule = f"; judge {judge} by how far its distances lie from those of {judges[0]}"
            if len(found) > 1:
                rule = f", the worse of {len(found)} judges{rule}"
        # Where batches can't be seen, the spread of a fair generator isn't known.
        seen = all(one[judge].effect is not None for one in by_run for judge in judges)
        floor = None
        if seen and _has_floor(column):
            floor = max(_floor(one, column) for one in parts.made.values())
        return united_judges(found), floor, rule

    def _parts_of(self, name: str) -> _Parts | None:
        """What a column is made of; None if counts don't decide it, or aren't known."""
        if not is_discrepancy(name):  # most names
            return None
        if name not in self._parts:
            self._parts[name] = self._parts_from(name)
        return self._parts[name]

    def _parts_from(self, name: str) -> _Parts | None:
        columns = {self._counts.column(run, name) for run in self._runs}
        if len(columns) != 1 or (column := columns.pop()) is None:
            return None
        by_run = self._by_run(column)
        judges = [judge for judge in by_run[0] if all(judge in one for one in by_run)]
        made = {
            judge: one
            for judge in judges
            if (one := self._means(judge, column, [one[judge] for one in by_run])) is not None
        }
        return _Parts(column, by_run, made) if judges and len(made) == len(judges) else None

    def _means(self, judge: str, column: Column, counted: Sequence[Counted]) -> MeanShares | None:
        """Mean shares of one judge; None if its errors aren't known or can't be undone."""
        place = judge, _without_size(column)
        if place not in self._made:
            self._made[place] = means_of(counted, corrected=column.corrected)
        return self._made[place]

    def _by_run(self, column: Column) -> list[dict[str, Counted]]:
        """What every judge counted in each run."""
        place = _without_size(column)
        if place not in self._counted:
            whole = column.crossing, column.by_prompt
            if whole not in self._whole:
                self._whole[whole] = [self._counts.held(run, *whole) for run in self._runs]
            both = zip(self._runs, self._whole[whole], strict=True)
            self._counted[place] = [narrowed(run, column, judges) for run, judges in both]
        return self._counted[place]

    def _measured(self, judge: str, made: MeanShares, column: Column) -> SeedsEstimate:
        known = self._estimates.setdefault((judge, _without_size(column)), {})
        if column.size not in known:
            known[column.size] = made.estimate(column.size)
        one = known[column.size]
        scale = 1 / _largest(made, column.size) if column.relative else 1.0
        return SeedsEstimate(one.value * scale, one.low * scale, one.high * scale, one.wider)


def _of_one(score: Score) -> Cell:
    return Cell(
        score.value,
        score.low,
        score.high,
        f"this run: {score.interval}" if score.interval else "",
        score.floor,
        score.n,
        score.better,
        score.unit,
        is_older(score),
    )


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a column is made of.

    Attributes:
        column: How it comes from counts.
        by_run: What every judge counted in each run.
        made: Judge -> mean shares, the first judge first.
    """

    column: Column
    by_run: Sequence[Mapping[str, Counted]]
    made: Mapping[str, MeanShares]


_Unmeasured = tuple[Averages, tuple[str, Column], MeanShares, list[str]]


def measure_together(rows: Iterable[tuple[Averages, Iterable[str]]]) -> None:
    """Measure what the columns of many rows need at once, in a fraction of the time.

    Args:
        rows: Of each row its averages and the names of its columns.
    """
    asked = [one for averages, names in rows for one in averages.unmeasured(names)]
    found = estimates([(made, sizes) for _, _, made, sizes in asked])
    for (averages, place, _, _), one in zip(asked, found, strict=True):
        averages.hold(place, one)


@lru_cache(maxsize=1024)
def _without_size(column: Column) -> Column:
    """What decides which counts a column comes from."""
    return replace(column, size="", relative=False)


def means_of(counted: Sequence[Counted], *, corrected: bool) -> MeanShares | None:
    """Mean shares of one judge over runs; None if its errors aren't known or can't be undone."""
    confusion = counted[0].confusion if corrected else None
    if (corrected and confusion is None) or len({one.counts.shape for one in counted}) != 1:
        return None
    made = mean_shares(
        np.stack([one.counts for one in counted]),
        counted[0].target,
        confusion=confusion,
        effects=[one.effect or 1.0 for one in counted],
    )
    return made if made.reason is None else None


def shifts(values: Sequence[Mapping[str, float]], held: Sequence[str]) -> dict[str, float] | None:
    """How far judges lie above the first in the mean, of those whose counts aren't held.

    Older records hold one judge's counts and every judge's discrepancy.

    Args:
        values: Of each run: judge -> corrected discrepancy.
        held: Judges whose counts are held, at least one.

    Returns:
        Judge -> difference; None if a run lacks a discrepancy that this needs.
    """
    judges = [judge for judge in values[0] if judge not in held]
    if any(not {held[0], *judges} <= one.keys() for one in values if judges):
        return None
    return {judge: exact_mean(one[judge] - one[held[0]] for one in values) for judge in judges}


def _largest(made: MeanShares, size: str) -> float:
    """Largest possible size of the differences from the target."""
    vertices = np.eye(made.target.shape[1])
    return float(np.mean([SIZES[size](vertices - row).max() for row in made.target]))


def _has_floor(column: Column) -> bool:
    return column.size == "l2" and not column.penalised


def _floor(made: MeanShares, column: Column) -> float:
    return made.floor / (_largest(made, "l2") if column.relative else 1.0)


def _shifted(one: SeedsEstimate, shift: float) -> SeedsEstimate:
    value, low, high = (max(0.0, end + shift) for end in (one.value, one.low, one.high))
    return SeedsEstimate(value, low, high, one.wider)


def _of_numbers(
    scores: Sequence[Score], target: Sequence[float]
) -> tuple[float, float | None, float | None, str]:
    """Mean of numbers that no counts of groups decide, its ends and how they were found."""
    try:
        return _of_sound_numbers(scores, target)
    except (OverflowError, ZeroDivisionError):  # numbers of 1e200, or intervals of no images
        return exact_mean(score.value for score in scores), None, None, ""


def _of_sound_numbers(
    scores: Sequence[Score], target: Sequence[float]
) -> tuple[float, float | None, float | None, str]:
    name, unit, count = scores[0].name, scores[0].unit, len(scores)
    kind = _kind(name)
    values = [score.value for score in scores]
    known = [(s.low, s.high) for s in scores if s.low is not None and s.high is not None]
    if unit == "share" and len(known) == count and kind.pooled:
        mean, (low, high) = mean_rate(values, [_worth(score) for score in scores])
        return mean, low, high, f"pooled counts of {count} seeds, wilson, their spread included"
    ends = known if len(known) == count else None
    _, found = mean_number(
        values,
        None if ends is None else [low for low, _ in ends],
        None if ends is None else [high for _, high in ends],
        bounds=_bounds(name, unit, target),
        errors=kind.errors,
        logarithms=kind.logarithms,
    )
    mean = exact_mean(values)
    if found is None:
        return mean, None, None, ""
    rule = f"t over {count} seeds{' of logarithms' if kind.logarithms else ''}"
    if ends is not None:
        rule = f"{_OWN[kind.errors]} or {rule}, whichever is wider"
    return mean, min(found[0], mean), max(found[1], mean), rule


def _worth(score: Score) -> float:
    """Independent images behind a share: fewer than there are where batches couple them."""
    if score.low is None or score.high is None or not 0 < score.high - score.low < 1:
        return float(score.n)
    size = wilson_size(score.value, score.low, score.high, level=score.level)
    return size if size < score.n * (1 - _ROUNDING) else float(score.n)


_OWN: Mapping[Errors, str] = {
    "apart": "errors within runs, which average out,",
    "shared": "mean ends within runs, given these real images,",
    "one way": "all of the runs' intervals",
}


@dataclass(frozen=True)
class _Kind:
    """What the name of a column says of its average.

    Attributes:
        errors: How errors of runs add up.
        logarithms: Whether Student's t is of logarithms.
        pooled: Whether a share is that of the images of all runs.
        ends: What the true number can be, if its unit and the target don't say.
    """

    errors: Errors
    logarithms: bool
    pooled: bool
    ends: tuple[float, float]


@lru_cache(maxsize=4096)  # few names, asked for in every row
def _kind(name: str) -> _Kind:
    errors: Errors = "one way"
    if not _matches(name, _CHOSEN):
        if _matches(name, _SHARED):
            errors = "shared"
        elif _matches(name, _APART):
            errors = "apart"
    ranges = {**dict.fromkeys(_POSITIVE, (0.0, math.inf)), **_RANGES}
    return _Kind(
        errors,
        next((logs for p, logs in _POSITIVE.items() if fnmatchcase(name, p)), False),
        not _matches(name, (*_CHOSEN, *_OF_REAL)),
        next((e for p, e in ranges.items() if fnmatchcase(name, p)), (-math.inf, math.inf)),
    )


def _bounds(name: str, unit: str, target: Sequence[float]) -> tuple[float, float]:
    """What the true number can be."""
    if unit in _UNIT:
        return 0.0, 1.0
    if is_discrepancy(name):
        return 0.0, _largest_discrepancy(name, target)
    return _kind(name).ends


def _largest_discrepancy(name: str, target: Sequence[float]) -> float:
    end = name.removeprefix(RAW).removeprefix("_")
    if end in ("normalised", "entropy_gap", "delta"):
        return 1.0
    if end in ("l1", "kl"):
        return 2.0 if end == "l1" else math.inf
    if len(target) > 1 and end in ("", "corrected", "soft", "worst_prompt", "squared"):
        worst = worst_distance(target)
        return worst**2 if end == "squared" else worst
    return math.sqrt(2)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def exact_mean(values: Iterable[float]) -> float:
    """The same in whatever order, and never outside of the values."""
    held = [float(value) for value in values]
    if held.count(held[0]) == len(held):
        return held[0] + 0.0  # never a negative zero
    try:
        return min(max(min(held), math.fsum(held) / len(held)), max(held))
    except OverflowError:  # a sum of numbers of 1e308
        return float(statistics.mean(held))
