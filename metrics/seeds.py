"""Several runs that differ in the seed as one estimate: of mean shares, and of other numbers.

Two kinds of error are looked at, and the wider interval of the two counts: that of a finite number
of images, which every run knows of itself, and what differs between runs, training luck included,
which only several runs can show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.confusion import (
    Reason,
    check_confusion,
    confusion_rates,
    judge_confusion,
    likeliest_shares,
)
from fairbench.metrics.correction import corrected_noise_floor
from fairbench.metrics.counting import Array, check_targets, normal_quantile, wilson_interval
from fairbench.metrics.fairness import worst_distance
from fairbench.metrics.floors import mean_noise_floor

__all__ = [
    "SIZES",
    "MeanShares",
    "SeedsEstimate",
    "SeedsInterval",
    "mean_number",
    "mean_rate",
    "mean_shares",
    "united_judges",
]

_DRAWS = 2000
_KEPT_GROUPS = 16
"""Draws of judges with more groups aren't kept: they take megabytes each."""
_LEAST = 1e-12
# Seeds that move shares by .03 leave three runs at the bound of a share whose mean lies .018 below
# it in 5 to 8 % of rows; this distance, over the number of runs, covers what they hide.
_HIDDEN = 0.08


def _euclidean(errors: Array) -> Array:
    return np.asarray(np.sqrt((errors**2).sum(axis=-1)), dtype=np.float64)


def _absolute(errors: Array) -> Array:
    return np.asarray(np.abs(errors).sum(axis=-1), dtype=np.float64)


def _pairwise(errors: Array) -> Array:
    """Mean over pairs of groups of |e_i - e_j|, by sorting."""
    k = errors.shape[-1]
    weights = 2 * np.arange(k) - (k - 1)
    return np.asarray((np.sort(errors, axis=-1) * weights).sum(axis=-1) / (k * (k - 1) / 2))


SIZES: Mapping[str, Callable[[Array], Array]] = {
    "l2": _euclidean,
    "l1": _absolute,
    "tv": lambda errors: _absolute(errors) / 2,
    "mad": lambda errors: _absolute(errors) / errors.shape[-1],
    "max": lambda errors: np.abs(errors).max(axis=-1),
    "pairwise": _pairwise,
}
"""Ways to measure how far shares lie from the target: (…, K) differences -> (…,), all of them
norms, so that the size of a mean is at most the mean size."""


@dataclass(frozen=True)
class SeedsEstimate:
    """A distance of mean shares from the target.

    Attributes:
        value: Distance of the mean shares, or its mean over prompts; 0 is fair, lower is better.
        low, high: Ends of the interval, within [0, largest possible]; low <= value <= high.
        wider: Which of the two errors the ends come from: ``"images"`` (finite runs) or
            ``"seeds"`` (what differs between runs).
    """

    value: float
    low: float
    high: float
    wider: Literal["images", "seeds"]


SeedsInterval = tuple[float, float]
_Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class MeanShares:
    """Mean shares over the runs of one row, with both of their errors.

    Made by :func:`mean_shares`; :meth:`estimate` measures them.

    Attributes:
        shares: (P, K) mean shares, each run equally, the judge's errors undone; in [0, 1].
        target: (P, K) wanted shares.
        runs: (S, P, K) shares of each run, the judge's errors undone without the bounds.
        pooled: (P,) independent images that would make the mean as sure.
        measured: (P, K) mean shares as the judge counted them.
        level: Level at which resampled shares are shrunk towards even ones.
        seed: Seed of the draws, which are made when they are asked for.
        confusion: (K, K) counts of the judge's errors; None if its word is taken as it is.
        reason: ``"ill_conditioned"`` if the judge is too poor to be corrected, else None; the
            arrays are then of no use.
    """

    shares: Array
    target: Array
    runs: Array
    pooled: NDArray[np.int64]
    measured: Array
    level: float
    seed: int
    confusion: NDArray[np.int64] | None = None
    reason: Reason | None = None

    @cached_property
    def images(self) -> Array:
        """(R, P, K) draws of the error of finite runs in the mean, with the confusion's part."""
        errors = _resampled(self.measured, self.pooled, self.level, self.seed)
        if self.confusion is None:
            return errors
        undone: Array = errors @ _judge_of(_rows(self.confusion)).inverse
        undone += self.judge
        return undone

    @cached_property
    def judge(self) -> Array:
        """(R, P, K) draws of the confusion's part alone; zeros without one.

        It is the same in all runs, so it doesn't average out.
        """
        if self.confusion is None:
            return np.zeros((1, *self.shares.shape))
        rows = _rows(self.confusion)
        misread = _misread if len(rows) <= _KEPT_GROUPS else _misread.__wrapped__
        drawn = misread(rows, self.seed)  # (K, R, K)
        parts = np.tensordot(self.shares, drawn, axes=1)
        return np.asarray(np.moveaxis(parts, 0, 1))

    @cached_property
    def _spread(self) -> Array:
        """(S, P, K) shares of each run less the mean."""
        return np.asarray(self.runs - self.runs.mean(axis=0), dtype=np.float64)

    @cached_property
    def _bounds(self) -> dict[float, list[float]]:
        """Level -> `_between_bound` of each prompt alone, which all ways to measure share."""
        return {}

    def _bounds_at(self, level: float) -> list[float]:
        if level not in self._bounds:
            self._bounds[level] = [
                _between_bound(self._spread[:, [p]], level) for p in range(len(self.shares))
            ]
        return self._bounds[level]

    @cached_property
    def floor(self) -> float:
        """95 % quantile of the Euclidean distance of the mean shares of a fair generator.

        Its runs differ by chance alone; the errors of the judge don't average out over them.
        """
        confusion = None if self.confusion is None else _rows(self.confusion)
        return _floor(tuple(self.pooled.tolist()), confusion, _rows(self.target))

    def estimate(self, size: str = "l2", *, level: float = 0.95) -> SeedsEstimate:
        """Distance of the mean shares from the target, with an interval.

        Errors of prompts far from the target may have either sign and partly cancel; near it
        they only push the value up, so there the norm of the error bounds it.

        - Error of finite runs: resampled pooled counts, mapped through the distance.
        - Error between runs: far from the target, Student's t of the runs' distances along the
          direction of the mean, S - 1 degrees of freedom. Near it the root of the trace of the
          covariance between runs, over S, times the root of a quantile of F with f and
          f (S - 1) degrees, f the number of directions that the runs spread over, estimated from
          them (1 if all lie on a line, where this is Student's t).

        The wider interval of the two is given. Where it would pass a total collapse, errors aren't
        symmetric: twice what lies beyond is added at the other end, and at least .08 / S is given
        there, since runs that all collapsed hide what differs between them. So intervals of rows
        at a collapse are wider than they need be if seeds change nothing (coverage above .99).

        Args:
            size: One of `SIZES`.
            level: Confidence level in (0, 1).

        Returns:
            The estimate; for a single run it holds for that run alone.

        Simulated coverage (``tests/simulation/seeds.py`` prints it): .93 to .99 with an effect of
        the seed of .03, .96 to 1 without one, where the error between seeds is still asked for
        and a wider interval than either error needs is the price; near fairness the distance is
        cut at 0, and two judges that are united are wider still (up to 1).
        """
        measure = SIZES[size]
        wanted, count = self.target, len(self.runs)
        gaps = self.shares - wanted
        sizes = measure(gaps)
        value = float(sizes.mean())
        worst = _worst(measure, wanted)
        each = np.zeros(len(gaps))
        if count > 1:
            each = np.array(self._bounds_at(level)) * _largest_ratio(measure, gaps.shape[1])
        errors = measure(self.images)
        noise = _quantile(errors, level)
        far = sizes > 2 * np.maximum(noise, each)
        low, high = self._within(measure, gaps, sizes, errors, far, level)
        wider: Literal["images", "seeds"] = "images"
        if count > 1:
            radius = self._between(measure, gaps, far, each, level)
            if 2 * radius > high - low:
                wider = "seeds"
            low, high = min(low, value - radius), max(high, value + radius)
            more = self._hidden(radius)
            if self._falls_inwards(measure, gaps):
                low -= more
            else:
                high += more
        low, high = max(0.0, low), min(worst, high)
        return SeedsEstimate(value, min(low, value), max(high, value), wider)

    def _hidden(self, radius: float) -> float:
        """What to add to the inner end where shares lie so near a collapse that it cuts errors.

        Runs that all sit at the bound hide what would differ between them.
        """
        room = float(np.sqrt(2) * (1 - self.shares.max(axis=1)).mean())
        least = _HIDDEN / len(self.runs)
        return max(0.0, 2 * (radius - room), least - max(room, radius))

    def _falls_inwards(self, measure: Callable[[Array], Array], gaps: Array) -> bool:
        """Whether the distance shrinks as shares become more even."""
        inwards = 1 / gaps.shape[1] - self.shares
        return float(measure(gaps + 1e-6 * inwards).mean()) < float(measure(gaps).mean())

    def _within(
        self,
        measure: Callable[[Array], Array],
        gaps: Array,
        sizes: Array,
        errors: Array,
        far: NDArray[np.bool_],
        level: float,
    ) -> SeedsInterval:
        """Interval of the error of finite runs, whose sizes are given, (R, P)."""
        value = float(sizes.mean())
        if not far.any():
            radius = float(_quantile(errors.sum(axis=1), level)) / len(far)
            return value - radius, value + radius
        if far.all() and len(far) == 1:
            signed = measure(gaps + self.images)[:, 0] - sizes[0]
            low, high = (
                float(_quantile(signed, end)) for end in ((1 - level) / 2, (1 + level) / 2)
            )
            return value + low, value + high
        signed = (measure(gaps[far] + self.images[:, far]) - sizes[far]).sum(axis=1)
        unsigned = errors[:, ~far].sum(axis=1)
        radius = float(_quantile(np.abs(signed) + unsigned, level)) / len(far)
        return value - radius, value + radius

    def _between(
        self,
        measure: Callable[[Array], Array],
        gaps: Array,
        far: NDArray[np.bool_],
        each: Array,
        level: float,
    ) -> float:
        """Radius of the error between runs, with the confusion's.

        ``each``, (P,), bounds the size of the error between runs for every prompt alone.
        """
        spread = self._spread
        prompts, count = len(far), len(spread)
        known = self.confusion is not None
        radius, of_judge = 0.0, np.zeros(len(self.judge) if known else 1)
        if far.any():
            along = _along(measure, gaps[far], spread[:, far]).sum(axis=1)
            error = float(np.sqrt((along**2).sum() / (count * (count - 1))))
            radius += _student(level, count - 1) * error / prompts
            if known:
                judge = self.judge if far.all() else self.judge[:, far]
                shift = measure(gaps[far] + judge) - measure(gaps[far])
                of_judge += np.abs(shift.sum(axis=1)) / prompts
        if not far.all():
            near = int((~far).sum())
            if prompts == 1:
                radius += float(each[0])
            else:
                bound = _between_bound(spread[:, ~far], level)
                ratio = _largest_ratio(measure, gaps.shape[1])
                radius += near / prompts * (bound * ratio)
            if known:
                judge = self.judge[:, ~far] if far.any() else self.judge
                of_judge += measure(judge).sum(axis=1) / prompts
        return float(np.hypot(radius, _quantile(of_judge, level))) if known else float(radius)


def mean_shares(
    counts: ArrayLike,
    target: ArrayLike,
    *,
    confusion: ArrayLike | None = None,
    effects: ArrayLike = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> MeanShares:
    """Mean shares over runs that differ in the seed, each run equally.

    Args:
        counts: Images that the judge put into each declared group, by run and prompt, (S, P, K)
            whole numbers; every run has images of every prompt.
        target: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        confusion: Labelled images by true group (row) and judged group (column), (K, K); None:
            the judge's word is taken as it is.
        effects: Variance of a run's counts over that of independent images, one number or one a
            run, (S,), above 0.
        level: Level at which resampled shares are shrunk towards even ones, as
            `fairbench.metrics.fairness.resample` does.
        seed: Seed of the draws.

    Returns:
        What :meth:`MeanShares.estimate` measures.

    Raises:
        ContractError: If shapes disagree or a prompt of a run has no images.

    Source: ``docs/metrics.md``, "Several seeds".
    """
    table = np.asarray(counts)
    if table.ndim != 3 or table.size == 0 or (table < 0).any():
        raise ContractError(f"counts must have shape (S, P, K); seen {table.shape}")
    sizes = table.sum(axis=2)
    if not sizes.all():
        raise ContractError("every run needs images of every prompt; seen a prompt without")
    runs, prompts, _ = table.shape
    wanted = check_targets(target, prompts)
    worth = sizes / np.broadcast_to(np.asarray(effects, dtype=np.float64), (runs,))[:, None]
    measured = table / sizes[:, :, None]
    mean = measured.mean(axis=0)
    # As many independent images would make the mean as sure.
    pooled = np.maximum(1, np.round(runs**2 / (1 / worth).sum(axis=0)).astype(np.int64))
    if confusion is None:
        return MeanShares(mean, wanted, measured, pooled, mean, level, seed)
    answers = np.asarray(confusion)
    read = _judge_of(_rows(answers if answers.ndim == 2 else check_confusion(answers)))
    if read.reason is not None:
        return MeanShares(
            mean, wanted, measured, pooled, mean, level, seed, read.answers, read.reason
        )
    point, apart = likeliest_shares(mean, read.rates), measured @ read.inverse
    return MeanShares(point, wanted, apart, pooled, mean, level, seed, read.answers)


def united_judges(found: Sequence[SeedsEstimate]) -> SeedsEstimate:
    """One estimate where several judges read the same images.

    Args:
        found: One estimate a judge, at least one.

    Returns:
        The one of largest value. Each interval is right as often as it says, the larger of two
        values less often, so an interval that overlaps the chosen one is united with it.
    """
    worst = max(found, key=lambda one: one.value)
    near = [one for one in found if one.low <= worst.high and one.high >= worst.low]
    return SeedsEstimate(
        worst.value,
        min(one.low for one in near),
        max(one.high for one in near),
        worst.wider,
    )


def mean_rate(
    rates: ArrayLike, sizes: ArrayLike, *, level: float = 0.95
) -> tuple[float, SeedsInterval]:
    """Mean of shares that runs measured, such as of valid images, each run equally.

    Args:
        rates: Share of each run, (S,) in [0, 1].
        sizes: Images of each run, (S,), above 0.
        level: Confidence level in (0, 1).

    Returns:
        The mean and Wilson's interval of the pooled counts, at the number of images that
        independent ones would need for the spread between the runs if that is smaller than
        their own; ends in [0, 1].

    Source: Korn and Graubard 1998, Survey Methodology 24, 193: the effective number of images
        times the squared ratio of the normal to Student's quantile.
    """
    found, images = np.asarray(rates, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    mean, count = min(1.0, max(0.0, float(found.mean()))), len(found)
    worth = count**2 / float((1 / images).sum())
    shrunk = (mean * worth + 2) / (worth + 4)
    if count > 1:
        between = float(found.var(ddof=1)) / count
        if between > 0:
            ratio = normal_quantile(level) / _student(level, count - 1)
            worth = min(worth, shrunk * (1 - shrunk) / between * ratio**2)
    low, high = wilson_interval(mean * worth, worth, level=level)
    return mean, (min(float(low), mean), max(float(high), mean))


def mean_number(
    values: ArrayLike,
    lows: ArrayLike | None,
    highs: ArrayLike | None,
    *,
    bounds: SeedsInterval = (-np.inf, np.inf),
    errors: Literal["apart", "shared", "one way"],
    logarithms: bool = False,
    level: float = 0.95,
) -> tuple[float, SeedsInterval | None]:
    """Mean of any number that runs measured, each run equally.

    Args:
        values: Of each run, (S,).
        lows: Lower ends of the runs' own intervals, (S,); None if runs have none.
        highs: Their upper ends.
        bounds: What the number can be.
        errors: How the runs' own errors add up. ``"apart"``: they average out, and the ends are
            the mean ± the root of the sum of squares of the runs' half widths over S.
            ``"shared"``: all runs are measured against the same real images, whose error stays
            in a mean; the ends are the means of the runs' ends. ``"one way"``: chance pushes the
            number one way (a smallest share over the largest is pushed down), and a mean keeps
            that; the ends enclose all the runs' intervals.
        logarithms: Whether Student's t is of the logarithms: for numbers above 0 whose spread
            grows with them.
        level: Confidence level in (0, 1).

    Returns:
        The mean, and an interval wide enough for both those ends and Student's t over the runs,
        cut to the bounds. None if there is neither, or if the runs have no intervals and all
        agree.
    """
    found = np.asarray(values, dtype=np.float64)
    mean, count = float(found.mean()), len(found)
    ends: list[SeedsInterval] = []
    if lows is not None and highs is not None:
        bottom, top = np.asarray(lows, dtype=np.float64), np.asarray(highs, dtype=np.float64)
        if errors == "apart":
            below = float(np.sqrt(((found - bottom) ** 2).sum())) / count
            above = float(np.sqrt(((top - found) ** 2).sum())) / count
            ends.append((mean - below, mean + above))
        elif errors == "shared":
            ends.append((float(bottom.mean()), float(top.mean())))
        else:
            ends.append((float(bottom.min()), float(top.max())))
    if count > 1 and (ends or np.ptp(found) > 0):
        ends.append(_student_interval(found, logarithms, level))
    if not ends:
        return mean, None
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    # A measured number may leave what the true one can be, such as an unbiased square.
    return mean, (min(max(low, bounds[0]), mean), max(min(high, bounds[1]), mean))


def _student_interval(values: Array, logarithms: bool, level: float) -> SeedsInterval:
    count, mean = len(values), float(values.mean())
    quantile = _student(level, count - 1) / np.sqrt(count)
    if logarithms and values.min() > 0:
        logs = np.log(values)
        # Centred on the mean: its logarithm lies above the mean logarithm.
        factor = float(np.exp(quantile * logs.std(ddof=1)))
        return mean / factor, mean * factor
    half = float(quantile * values.std(ddof=1))
    return mean - half, mean + half


def _rows(table: NDArray[Any]) -> _Rows:
    return tuple(tuple(row) for row in table.tolist())


@dataclass(frozen=True, eq=False)
class _Judge:
    """What undoing the errors of a judge takes.

    Attributes:
        answers: (K, K) labelled images by true (row) and judged group.
        rates: (K, K) their shares of each row.
        inverse: (K, K) what turns measured shares, as rows, into true ones; zeros if refused.
        reason: Why it is refused, None if it isn't.
    """

    answers: NDArray[np.int64]
    rates: Array
    inverse: Array
    reason: Reason | None


@lru_cache(maxsize=32)  # a few judges read all rows
def _judge_of(confusion: _Rows) -> _Judge:
    answers = check_confusion(confusion)
    rates = confusion_rates(answers)
    _, reason = judge_confusion(rates)
    inverse = np.zeros_like(rates) if reason is not None else np.linalg.inv(rates)
    for table in (answers, rates, inverse):
        table.flags.writeable = False
    return _Judge(answers, rates, np.asarray(inverse, dtype=np.float64), reason)


@lru_cache(maxsize=1024)
def _floor(sizes: tuple[int, ...], confusion: _Rows | None, target: _Rows) -> float:
    """As `MeanShares.floor`; rows of as many images have the same, and it takes long."""
    if confusion is None:
        return mean_noise_floor(sizes, target)
    return corrected_noise_floor(sizes, confusion, target)


def _between_bound(spread: Array, level: float) -> float:
    """Bound of the mean over prompts of the Euclidean sizes of the error between runs.

    Times `_largest_ratio` it bounds that of other sizes.

    Args:
        spread: (S, P, K) shares of each run less the mean.
        level: Confidence level.
    """
    count, prompts, _ = spread.shape
    flat = spread.reshape(count, -1)
    trace = float((flat**2).sum()) / (count - 1)
    if trace < _LEAST**2:
        return 0.0
    directions = _directions(flat)
    # Mean size <= root of the mean square: Cauchy and Schwarz.
    radius = np.sqrt(_fisher(level, directions, directions * (count - 1)) * trace / count)
    return float(radius / np.sqrt(prompts))


def _directions(flat: Array) -> float:
    """How many directions the rows of (S, D) spread over: (tr C)² / tr C², in [1, S - 1].

    With few runs it is too small, which errs on the wide side; corrected for that, it is too
    large too often where runs differ along a line.
    """
    gram = flat @ flat.T
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def _along(measure: Callable[[Array], Array], gaps: Array, spread: Array) -> Array:
    """Change of each prompt's size with the shares of a run, (S, P): the derivative."""
    step = 1e-6
    return np.asarray((measure(gaps + step * spread) - measure(gaps - step * spread)) / (2 * step))


@cache
def _largest_ratio(measure: Callable[[Array], Array], groups: int) -> float:
    """Largest size of differences of Euclidean length 1 that sum to 0."""
    if measure is _euclidean:
        return 1.0
    halves = groups // 2
    even = np.r_[np.full(halves, 1 / halves), np.full(groups - halves, -1 / (groups - halves))]
    ramp = np.arange(groups) - (groups - 1) / 2
    peak = np.r_[1.0, np.full(groups - 1, -1 / (groups - 1))]
    return max(float(measure(one / np.linalg.norm(one))) for one in (even, ramp, peak))


def _worst(measure: Callable[[Array], Array], wanted: Array) -> float:
    """Largest possible mean size: the convex size is largest at a vertex."""
    return _worst_of(measure, _rows(wanted))


@lru_cache(maxsize=1024)
def _worst_of(measure: Callable[[Array], Array], rows: _Rows) -> float:
    wanted = np.array(rows)
    if measure is _euclidean:
        return float(np.mean([worst_distance(row) for row in wanted]))
    vertices = np.eye(wanted.shape[1])
    return float(np.mean([measure(vertices - row).max() for row in wanted]))


@lru_cache(maxsize=32)  # the same for all rows that a judge has read
def _misread(confusion: tuple[tuple[int, ...], ...], seed: int) -> Array:
    """What each group's share adds to the error of the shares if the rates are others, (K, R, K).

    Rates are drawn as if so many images of each group had been read once more; their error is
    taken through the inverse of the rates that are known.
    """
    rng = np.random.default_rng([seed, 1])  # apart from the draws of finite runs
    smoothed = np.array(confusion) + 0.5
    centre = smoothed / smoothed.sum(axis=1, keepdims=True)
    inverse = np.linalg.inv(confusion_rates(np.array(confusion)))
    drawn = np.stack(
        [
            rng.dirichlet(row, size=_DRAWS) - mean
            for row, mean in zip(smoothed, centre, strict=True)
        ]
    )
    parts = -(drawn @ inverse)
    parts.flags.writeable = False
    return np.asarray(parts, dtype=np.float64)


def _resampled(mean: Array, sizes: NDArray[np.int64], level: float, seed: int) -> Array:
    """Errors of pooled shares, (R, P, K), drawn from shares shrunk towards even ones."""
    return _resampled_once(_rows(mean), tuple(sizes.tolist()), level, seed)


@lru_cache(maxsize=16)  # a row asks several times, with the judge's errors undone and without
def _resampled_once(mean: _Rows, sizes: tuple[int, ...], level: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    added = normal_quantile(level) ** 2 / (2 * (len(mean[0]) - 1))
    errors = []
    for row, size in zip(np.array(mean), sizes, strict=True):
        base = (row * size + added) / (size + added * len(row))
        errors.append(rng.multinomial(size, base, size=_DRAWS) / size - base)
    drawn = np.stack(errors, axis=1)
    drawn.flags.writeable = False
    return drawn


def _quantile(values: Array, level: float) -> Array:
    """As `np.quantile` along the first axis, to the last digit, in a fifth of the time."""
    place = (len(values) - 1) * level
    below = int(place)
    above, part = min(below + 1, len(values) - 1), place - below
    ordered = np.partition(values, (below, above), axis=0)
    low, high = ordered[below], ordered[above]
    gap = high - low
    return np.asarray(high - gap * (1 - part) if part >= 0.5 else low + gap * part)


@lru_cache(maxsize=1024)
def _student(level: float, degrees: float) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # scipy.stats has it too, but takes a second to import

    # Rounded, so that tables don't change with the last digits of another scipy.
    return round(float(stdtrit(degrees, (1 + level) / 2)), 9)


def _fisher(level: float, upper: float, lower: float) -> float:
    """Quantile of the F distribution."""
    from scipy.special import fdtri

    return round(float(fdtri(upper, lower, level)), 9)
