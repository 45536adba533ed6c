"""Several runs that differ in the seed as one estimate: of mean shares, and of other numbers.

Two kinds of error are looked at, and the wider interval of the two counts: that of a finite number
of images, which every run knows of itself, and what differs between runs, training luck included,
which only several runs can show.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
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
from fairbench.metrics.counting import (
    Array,
    check_targets,
    normal_quantile,
    quantile,
    wilson_interval,
)
from fairbench.metrics.fairness import worst_distance
from fairbench.metrics.floors import mean_noise_floor

__all__ = [
    "SIZES",
    "MeanShares",
    "SeedsEstimate",
    "SeedsInterval",
    "estimates",
    "mean_number",
    "mean_rate",
    "mean_shares",
    "united_judges",
]

_DRAWS = 2000
_AT_ONCE = 64
"""Shares whose errors are drawn together: 1 MiB, what a processor keeps at hand."""
_KEPT_GROUPS = 16
"""Draws of judges with more groups aren't kept: they take megabytes each."""
_MANY = 100
"""Expected images of every group from which the error of their shares is drawn as normal: its
quantiles then differ by less than those of so many draws err, and it takes a tenth of the time."""
_LEAST = 1e-12
# Seeds that move shares by .03 leave three runs at the bound of a share whose mean lies .018 below
# it in 5 to 8 % of rows; this distance, over the number of runs, covers what they hide.
_HIDDEN = 0.08


def _euclidean(errors: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("...k,...k->...", errors, errors)), dtype=np.float64)


def _absolute(errors: Array) -> Array:
    return np.asarray(np.abs(errors).sum(axis=-1), dtype=np.float64)


def _pairwise(errors: Array) -> Array:
    """Mean over pairs of groups of |e_i - e_j|, by sorting."""
    k = errors.shape[-1]
    if k == 2:
        return np.asarray(np.abs(errors[..., 1] - errors[..., 0]))
    weights = 2 * np.arange(k) - (k - 1)
    return np.asarray((np.sort(errors, axis=-1) * weights).sum(axis=-1) / (k * (k - 1) / 2))


Measure = Callable[[Array], Array]

SIZES: Mapping[str, Measure] = {
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

        - Error of finite runs: resampled pooled counts (normal errors where every group is
          expected 100 times or more), mapped through the distance.
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
        return estimates([(self, (size,))], level=level)[0][size]


def estimates(
    asked: Sequence[tuple[MeanShares, Collection[str]]], *, level: float = 0.95
) -> list[dict[str, SeedsEstimate]]:
    """As `MeanShares.estimate`, of many at once, in a fraction of the time.

    Args:
        asked: Mean shares, and which of `SIZES` to measure them by.
        level: Confidence level in (0, 1).

    Returns:
        Size -> estimate, of each.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for place, (one, _) in enumerate(asked):
        rows = None if one.confusion is None else _rows(one.confusion)
        alike[one.runs.shape, rows, one.level, one.seed].append(place)
    found: list[dict[str, SeedsEstimate]] = [{} for _ in asked]
    for places in alike.values():
        step = max(1, _AT_ONCE // asked[places[0]][0].shares.size)
        for start in range(0, len(places), step):
            portion = places[start : start + step]
            table = _table([asked[place][0] for place in portion])
            for size in dict.fromkeys(size for place in portion for size in asked[place][1]):
                chosen = [i for i, place in enumerate(portion) if size in asked[place][1]]
                some = table if len(chosen) == len(portion) else table.only(chosen)
                for i, estimate in zip(chosen, some.estimates(SIZES[size], level), strict=True):
                    found[portion[i]][size] = estimate
    return found


@dataclass(frozen=True, eq=False)
class _Table:
    """Mean shares of B rows with as many runs, prompts and groups, and the same judge.

    Attributes:
        shares: (B, P, K).
        target: (B, P, K).
        runs: (B, S, P, K).
        images: (B, P, R, K) draws of the error of finite runs in the mean, with the confusion's
            part.
        judge: (B, P, R, K) draws of the confusion's part alone, which is the same in all runs, so
            that it doesn't average out; None without one.

    Draws of one group lie beside each other in memory: there are many draws and few groups.
    """

    shares: Array
    target: Array
    runs: Array
    images: Array
    judge: Array | None

    def only(self, chosen: Sequence[int]) -> _Table:
        """Some of its rows."""
        judge = None if self.judge is None else self.judge[chosen]
        return _Table(
            self.shares[chosen], self.target[chosen], self.runs[chosen], self.images[chosen], judge
        )

    def estimates(self, measure: Measure, level: float) -> list[SeedsEstimate]:
        """An estimate of each row."""
        count = self.runs.shape[1]
        gaps = self.shares - self.target
        sizes = measure(gaps)
        values = sizes.mean(axis=1)
        errors = measure(self.images)
        spread = self.runs - self.runs.mean(axis=1, keepdims=True)
        gram = np.einsum("bspk,btpk->bpst", spread, spread)
        each = np.zeros_like(sizes)
        if count > 1:
            each = _between_bound(gram, level) * _largest_ratio(measure, gaps.shape[2])
        far = sizes > 2 * np.maximum(quantile(errors, level), each)
        low, high = self._within(measure, gaps, sizes, errors, far, level)
        seeds = np.zeros(len(values), dtype=bool)
        if count > 1:
            radius = self._between(measure, gaps, sizes, spread, gram, far, level)
            seeds = 2 * radius > high - low
            low, high = np.minimum(low, values - radius), np.maximum(high, values + radius)
            more = self._hidden(radius)
            inwards = measure(gaps + 1e-6 * (1 / gaps.shape[2] - self.shares)).mean(axis=1)
            # Whether the distance shrinks as shares become more even.
            low, high = low - more * (inwards < values), high + more * (inwards >= values)
        worst = [_worst(measure, wanted) for wanted in self.target]
        low, high = np.maximum(0.0, low), np.minimum(worst, high)
        return [
            SeedsEstimate(value, min(start, value), max(end, value), "seeds" if of else "images")
            for value, start, end, of in zip(
                values.tolist(), low.tolist(), high.tolist(), seeds.tolist(), strict=True
            )
        ]

    def _within(
        self,
        measure: Measure,
        gaps: Array,
        sizes: Array,
        errors: Array,
        far: NDArray[np.bool_],
        level: float,
    ) -> tuple[Array, Array]:
        """Ends of the intervals of the error of finite runs, (B,) each.

        Args:
            measure: How to measure.
            gaps: (B, P, K) differences from the target.
            sizes: (B, P) their sizes.
            errors: (B, P, R) sizes of the errors.
            far: (B, P) whether a prompt lies far from the target.
            level: Confidence level.
        """
        values, prompts = sizes.mean(axis=1), sizes.shape[1]
        radius = quantile(errors.sum(axis=1), level) / prompts
        low, high = values - radius, values + radius
        some = far.any(axis=1)
        if not some.any():
            return low, high
        moved = measure(gaps[some][:, :, None] + self.images[some]) - sizes[some][..., None]
        if prompts == 1:
            ends = [quantile(moved[:, 0], end) for end in ((1 - level) / 2, (1 + level) / 2)]
            low[some], high[some] = values[some] + ends[0], values[some] + ends[1]
            return low, high
        outer = far[some][..., None]
        both = np.abs((moved * outer).sum(axis=1)) + (errors[some] * ~outer).sum(axis=1)
        radius = quantile(both, level) / prompts
        low[some], high[some] = values[some] - radius, values[some] + radius
        return low, high

    def _between(
        self,
        measure: Measure,
        gaps: Array,
        sizes: Array,
        spread: Array,
        gram: Array,
        far: NDArray[np.bool_],
        level: float,
    ) -> Array:
        """Radius of the error between runs, with the confusion's, (B,).

        Args:
            measure: How to measure.
            gaps: (B, P, K) differences from the target.
            sizes: (B, P) their sizes.
            spread: (B, S, P, K) shares of each run less the mean.
            gram: (B, P, S, S) its inner products.
            far: (B, P) whether a prompt lies far from the target.
            level: Confidence level.
        """
        count, prompts = spread.shape[1:3]
        # The derivative of each prompt's size by the shares of a run.
        step, middle = 1e-6, gaps[:, None]
        along = (measure(middle + step * spread) - measure(middle - step * spread)) / (2 * step)
        along = (along * far[:, None]).sum(axis=2)
        error = np.sqrt((along**2).sum(axis=1) / (count * (count - 1)))
        near = prompts - far.sum(axis=1)
        bound = _between_bound((gram * ~far[..., None, None]).sum(axis=1), level, near)
        bound = bound * _largest_ratio(measure, gaps.shape[2])
        radius: Array = (_student(level, count - 1) * error + near * bound) / prompts
        if self.judge is None:
            return radius
        # Near the target the size of the error itself, far from it what it adds to the distance.
        point = gaps * far[..., None]
        shift = measure(point[:, :, None] + self.judge) - (sizes * far)[..., None]
        if prompts == 1:  # as below, in fewer steps
            return np.asarray(np.hypot(radius, quantile(np.abs(shift[:, 0]), level)))
        outer = far[..., None]
        of_judge = np.abs((shift * outer).sum(axis=1)) + (shift * ~outer).sum(axis=1)
        return np.asarray(np.hypot(radius, quantile(of_judge, level) / prompts))

    def _hidden(self, radius: Array) -> Array:
        """What to add to the inner end where shares lie so near a collapse that it cuts errors.

        Runs that all sit at the bound hide what would differ between them.
        """
        room = math.sqrt(2) * (1 - self.shares.max(axis=2).mean(axis=1))
        least = _HIDDEN / self.runs.shape[1]
        hidden = np.maximum(2 * (radius - room), least - np.maximum(room, radius))
        return np.asarray(np.maximum(0.0, hidden))


def _table(made: Sequence[MeanShares]) -> _Table:
    first = made[0]
    shares = np.stack([one.shares for one in made])
    images = np.empty((*shares.shape, _DRAWS))
    judge = None
    _resample(made, images)
    if first.confusion is not None:
        rows = _rows(first.confusion)
        undoing = np.ascontiguousarray(_judge_of(rows).inverse.T)
        misread = _misread if len(rows) <= _KEPT_GROUPS else _misread.__wrapped__
        errors, judge = misread(rows, first.seed), np.empty_like(images)
        # Row by row, so that a row's last digit doesn't depend on how many it is worked out with.
        for place, one in enumerate(made):
            np.matmul(one.shares, errors, out=judge[place].reshape(len(one.shares), -1))
            np.add(undoing @ images[place], judge[place], out=images[place])
    return _Table(
        shares,
        np.stack([one.target for one in made]),
        np.stack([one.runs for one in made]),
        images.swapaxes(2, 3),
        None if judge is None else judge.swapaxes(2, 3),
    )


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
    wanted = _wanted(np.asarray(target, dtype=np.float64), prompts)
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


def _wanted(target: Array, prompts: int) -> Array:
    if target.ndim != 1:
        rows = check_targets(target, prompts)
        rows.flags.writeable = False
        return rows
    return _same_for_all(tuple(target.tolist()), prompts)


@lru_cache(maxsize=256)  # few targets, of many rows
def _same_for_all(target: tuple[float, ...], prompts: int) -> Array:
    rows = check_targets(target, prompts)
    rows.flags.writeable = False
    return rows


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
    found, images = _floats(rates), _floats(sizes)
    count = len(found)
    mean = min(1.0, max(0.0, math.fsum(found) / count))
    worth = count**2 / math.fsum(1 / size for size in images)
    shrunk = (mean * worth + 2) / (worth + 4)
    if count > 1:
        between = _deviation(found) ** 2 / count
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
    found = _floats(values)
    count = len(found)
    mean = math.fsum(found) / count
    ends: list[SeedsInterval] = []
    if lows is not None and highs is not None:
        bottom, top = _floats(lows), _floats(highs)
        if errors == "apart":
            below, above = math.dist(found, bottom) / count, math.dist(top, found) / count
            ends.append((mean - below, mean + above))
        elif errors == "shared":
            ends.append((math.fsum(bottom) / count, math.fsum(top) / count))
        else:
            ends.append((min(bottom), max(top)))
    if count > 1 and (ends or max(found) > min(found)):
        ends.append(_student_interval(found, logarithms, level))
    if not ends:
        return mean, None
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    # A measured number may leave what the true one can be, such as an unbiased square.
    return mean, (min(max(low, bounds[0]), mean), max(min(high, bounds[1]), mean))


def _floats(values: ArrayLike) -> list[float]:
    """A vector as plain numbers: arrays take ten times as long for three of them."""
    found: list[float] = np.asarray(values, dtype=np.float64).tolist()
    return found


def _student_interval(values: Sequence[float], logarithms: bool, level: float) -> SeedsInterval:
    count, mean = len(values), math.fsum(values) / len(values)
    quantile = _student(level, count - 1) / math.sqrt(count)
    if logarithms and min(values) > 0:
        # Centred on the mean: its logarithm lies above the mean logarithm.
        factor = math.exp(quantile * _deviation([math.log(value) for value in values]))
        return mean / factor, mean * factor
    half = quantile * _deviation(values)
    return mean - half, mean + half


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation, by one degree of freedom fewer than there are values."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


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


def _between_bound(gram: Array, level: float, prompts: int | NDArray[np.int64] = 1) -> Array:
    """Bound of the mean over prompts of the Euclidean sizes of the error between runs, (…,).

    Times `_largest_ratio` it bounds that of other sizes.

    Args:
        gram: (…, S, S) inner products of the runs' shares less their mean, of all prompts.
        level: Confidence level.
        prompts: How many prompts they are of.
    """
    from scipy.special import fdtri

    count = gram.shape[-1]
    total, squares = np.trace(gram, axis1=-2, axis2=-1), (gram**2).sum(axis=(-2, -1))
    moved = total / (count - 1) >= _LEAST**2
    # How many directions the runs spread over: (tr C)² / tr C², in [1, S - 1]. With few runs it is
    # too small, which errs on the wide side; corrected for that, it is too large too often where
    # runs differ along a line.
    directions = np.divide(total**2, squares, out=np.ones_like(total), where=moved)
    # Rounded, so that tables don't change with the last digits of another scipy.
    quantiles = np.round(fdtri(directions, directions * (count - 1), level), 9)
    # Mean size <= root of the mean square: Cauchy and Schwarz.
    squared = quantiles * total / (count - 1) / count / np.maximum(1, prompts)
    return np.asarray(np.sqrt(np.where(moved, squared, 0.0)), dtype=np.float64)


@cache
def _largest_ratio(measure: Measure, groups: int) -> float:
    """Largest size of differences of Euclidean length 1 that sum to 0."""
    if measure is _euclidean:
        return 1.0
    halves = groups // 2
    even = np.r_[np.full(halves, 1 / halves), np.full(groups - halves, -1 / (groups - halves))]
    ramp = np.arange(groups) - (groups - 1) / 2
    peak = np.r_[1.0, np.full(groups - 1, -1 / (groups - 1))]
    return max(float(measure(one / np.linalg.norm(one))) for one in (even, ramp, peak))


def _worst(measure: Measure, wanted: Array) -> float:
    """Largest possible mean size: the convex size is largest at a vertex."""
    return _worst_of(measure, _rows(wanted))


@lru_cache(maxsize=1024)
def _worst_of(measure: Measure, rows: _Rows) -> float:
    wanted = np.array(rows)
    if measure is _euclidean:
        return float(np.mean([worst_distance(row) for row in wanted]))
    vertices = np.eye(wanted.shape[1])
    return float(np.mean([measure(vertices - row).max() for row in wanted]))


@lru_cache(maxsize=32)  # the same for all rows that a judge has read
def _misread(confusion: tuple[tuple[int, ...], ...], seed: int) -> Array:
    """What each group's share adds to the error of the shares if the rates are others, (K, K R).

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
    parts = -(drawn @ inverse).swapaxes(1, 2).reshape(len(smoothed), -1)
    parts.flags.writeable = False
    return np.asarray(parts, dtype=np.float64)


def _resample(made: Sequence[MeanShares], drawn: Array) -> None:
    """Draw errors of pooled shares, (B, P, K, R), from shares shrunk towards even ones."""
    groups, seed = drawn.shape[2], made[0].seed
    added = normal_quantile(made[0].level) ** 2 / (2 * (groups - 1))
    sizes = np.stack([one.pooled for one in made])[..., None]
    bases = (np.stack([one.measured for one in made]) * sizes + added) / (sizes + added * groups)
    normal = sizes[..., 0] * bases.min(axis=-1) >= _MANY
    free = bases[normal][:, :-1]
    covariances = np.eye(groups - 1) * free[:, None] - free[:, :, None] * free[:, None]
    roots = np.linalg.cholesky(covariances / sizes[normal][..., None])
    roots = np.concatenate([roots, -roots.sum(axis=1, keepdims=True)], axis=1)
    for (row, prompt), root in zip(np.argwhere(normal).tolist(), roots, strict=True):
        np.matmul(root, _normals(groups, prompt, seed), out=drawn[row, prompt])
    for row in np.flatnonzero(~normal.all(axis=1)).tolist():
        rng = np.random.default_rng(seed)  # of its own, and the same whatever it is drawn with
        for prompt in np.flatnonzero(~normal[row]).tolist():
            base, size = bases[row, prompt], int(sizes[row, prompt, 0])
            drawn[row, prompt] = (rng.multinomial(size, base, size=_DRAWS) / size - base).T


@lru_cache(maxsize=32)  # the same for all rows of as many groups
def _normals(groups: int, prompt: int, seed: int) -> Array:
    """Standard normal draws, (K - 1, R), as even in each direction as so many can be.

    Source: McKay, Beckman and Conover 1979, doi 10.2307/1268522.
    """
    from scipy.special import ndtri

    rng = np.random.default_rng([seed, 2, prompt])  # apart from the other draws
    places = np.tile(np.arange(_DRAWS)[:, None], (1, groups - 1))
    permuted = np.ascontiguousarray(rng.permuted(places, axis=0).T)
    return np.asarray(ndtri((permuted + 0.5) / _DRAWS), dtype=np.float64)


@lru_cache(maxsize=1024)
def _student(level: float, degrees: float) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit  # scipy.stats has it too, but takes a second to import

    # Rounded, so that tables don't change with the last digits of another scipy.
    return round(float(stdtrit(degrees, (1 + level) / 2)), 9)
