"""Which of several rows differ in discrepancy: tests of pairs, tie classes, intervals of ranks.

A test looks at the same two errors as an interval over seeds: that of finite runs, where images
made from the same noise are resampled in pairs, and what differs between runs. The larger p-value
of the two counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.confusion import confusion_rates, likeliest_shares
from fairbench.metrics.counting import Array, normal_quantile, quantile
from fairbench.metrics.significance import holm

__all__ = [
    "Contender",
    "ImageLabels",
    "RankInterval",
    "Standing",
    "difference_p",
    "least_p",
    "may_differ",
    "standings",
]

_DRAWS = 20_000
_SEED = 20_261  # any constant: the same rows must always give the same ranks
_KEPT = 160  # prompts times groups up to which normal draws are kept: 49 MiB
_RARE = 20  # draws below which a tail is taken from a normal distribution
ENOUGH_SEEDS = 3
LEVEL = 0.05

RankInterval = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """What a judge said of each image of one run.

    Attributes:
        group: (N,) declared group, -1 where the image isn't valid.
        prompt: (N,) index of the prompt.
        index: (N,) number among the images of its prompt; images of two runs with the same seed,
            prompt and number start from the same noise.
        batch: (N,) equal for images that depend on each other.
    """

    group: NDArray[np.int64]
    prompt: NDArray[np.int64]
    index: NDArray[np.int64]
    batch: NDArray[np.int64]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows by prompt, then number."""
        return np.lexsort((self.index, self.prompt))

    @cached_property
    def coupled(self) -> bool:
        """Whether any images depend on each other."""
        return len(np.unique(self.batch)) < len(self.batch)


@dataclass(frozen=True, eq=False)
class Contender:
    """What is known of a row that is compared with others.

    Attributes:
        counts: (S, P, K) images of each declared group by run and prompt.
        seeds: (S,) seed of each run, all different.
        target: (P, K) wanted shares; rows sum to 1.
        judge: Name of the judge that counted; the same name means the same errors.
        confusion: (K, K) labelled images by true (row) and judged group; None: taken as it is.
        effects: (S,) variance of each run's counts over that of independent images.
        labels: Seed -> the judge's label of each image; seeds without them are left out.
        shift: Added to the discrepancy, where it is known that another judge finds it larger.
    """

    counts: NDArray[np.int64]
    seeds: tuple[int, ...]
    target: Array
    judge: str = ""
    confusion: NDArray[np.int64] | None = None
    effects: tuple[float, ...] = ()
    labels: Mapping[int, ImageLabels] = field(default_factory=dict)
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or len(self.counts) != len(self.seeds):
            raise ContractError(f"counts must be (S, P, K); seen {self.counts.shape}")

    @cached_property
    def inverse(self) -> Array:
        """(K, K) what turns measured shares, as rows, into corrected ones."""
        groups = self.counts.shape[2]
        if self.confusion is None:
            return np.eye(groups)
        return np.asarray(np.linalg.inv(confusion_rates(self.confusion)), dtype=np.float64)

    @cached_property
    def gaps(self) -> Array:
        """(P, K) corrected mean shares less the target."""
        mean = (self.counts / self.counts.sum(axis=2, keepdims=True)).mean(axis=0)
        if self.confusion is None:
            return np.asarray(mean - self.target)
        return likeliest_shares(mean, confusion_rates(self.confusion)) - self.target

    @cached_property
    def value(self) -> float:
        """Discrepancy of the mean shares, or its mean over prompts."""
        return float(np.linalg.norm(self.gaps, axis=1).mean()) + self.shift

    @cached_property
    def by_seed(self) -> Array:
        """(S,) parts of the runs along the direction of the mean; they average to the value."""
        runs = self.counts / self.counts.sum(axis=2, keepdims=True) @ self.inverse
        deviations = runs - runs.mean(axis=0)
        length = np.linalg.norm(self.gaps, axis=1)[:, None]
        along = np.divide(self.gaps, length, out=np.zeros_like(self.gaps), where=length > 0)
        return np.asarray(self.value + (deviations * along).sum(axis=2).mean(axis=1))

    @cached_property
    def covariance(self) -> Array:
        """(P, K, K) of the measured mean shares, for runs that no other shares its noise with."""
        weights = np.ones(len(self.counts)) if not self.effects else np.array(self.effects)
        total = np.zeros((self.counts.shape[1], self.counts.shape[2], self.counts.shape[2]))
        for run, effect in zip(self.counts, weights, strict=True):
            for prompt, row in enumerate(run):
                total[prompt] += effect * _shrunk_covariance(row) / len(self.counts) ** 2
        return total


@dataclass(frozen=True)
class Standing:
    """Where a row stands among the rows it is compared with.

    Attributes:
        tie_class: 0 for the class of the best row, rising.
        ranks: First and last rank that it may have: 1 more than the number of rows that are
            significantly better, and the number of rows less those significantly worse.
    """

    tie_class: int
    ranks: RankInterval


def difference_p(first: Contender, second: Contender) -> float:
    """Two-sided p-value of no difference in discrepancy between two rows.

    Args:
        first: A row.
        second: Another of the same task: the same P and K.

    Returns:
        The larger of two p-values in [0, 1]:

        - of the error of finite runs. The covariance of both rows' shares is that of resampled
          index pairs, in whole batches where either row couples images, for the seeds that both
          have labels of; of independent samples else. Its normal draws are mapped through the
          discrepancy: with their sign for prompts beyond twice the row's noise floor, by their
          norm below it, where chance only ever adds. Both rows' correction for the errors of one
          judge errs alike.
        - of a paired t-test over the seeds that both have, or of Welch's test if those are fewer
          than three; only where both rows have three seeds or more.

    Raises:
        ContractError: If the rows have other prompts or groups.

    Source: ``docs/metrics.md``, "Ties".
    """
    of_seeds = least_p(first, second)
    return max(_p_of_images(first, second), of_seeds)


def least_p(first: Contender, second: Contender) -> float:
    """What `difference_p` is at least: the p-value of the runs alone, a quick one.

    Args:
        first: A row.
        second: Another of the same task: the same P and K.

    Returns:
        In [0, 1]; 0 where a row has fewer than three seeds.

    Raises:
        ContractError: As `difference_p`.
    """
    if first.counts.shape[1:] != second.counts.shape[1:]:
        raise ContractError(
            f"rows of one task have the same prompts and groups; seen {first.counts.shape[1:]} "
            f"and {second.counts.shape[1:]}"
        )
    if min(len(first.seeds), len(second.seeds)) < ENOUGH_SEEDS:
        return 0.0
    return _p_of_seeds(first, second)


def may_differ(least: ArrayLike, *, level: float = LEVEL) -> NDArray[np.bool_]:
    """Which pairs `standings` could find to differ, whatever their p-values above given ones.

    Holm's method finds no more differences with larger p-values than with smaller ones. So a pair
    that it doesn't find with the least p-values doesn't differ, and its least p-value may stand
    for its own without changing what is found of the others.

    Args:
        least: What the two-sided p-values of all pairs are at least, (M, M), symmetric; the
            diagonal is unused.
        level: As `standings` takes it.

    Returns:
        (M, M), symmetric, False on the diagonal.
    """
    table = np.asarray(least, dtype=np.float64)
    differ = np.zeros(table.shape, dtype=bool)
    above = np.triu_indices(len(table), 1)
    if len(above[0]):
        differ[above] = holm(table[above]) <= level
        differ |= differ.T
    return differ


def standings(
    values: ArrayLike,
    p_values: ArrayLike,
    *,
    at_floor: ArrayLike | None = None,
    level: float = LEVEL,
) -> list[Standing]:
    """Tie classes and intervals of ranks.

    Args:
        values: Discrepancies, (M,); lower is better.
        p_values: Two-sided p-values of all pairs, (M, M), symmetric; the diagonal is unused.
        at_floor: (M,) whether each row is at its noise floor; two that are don't differ.
        level: Chance of finding any difference where there is none, by Holm's method.

    Returns:
        One a row, in the order given. The best row is an anchor; rows that don't differ from it
        form its class with it, and so do rows at the floor if it is at the floor. The best of
        the other rows opens the next class.
    """
    numbers = np.asarray(values, dtype=np.float64)
    table = np.array(p_values, dtype=np.float64)
    count = len(numbers)
    if table.shape != (count, count):
        raise ContractError(f"p_values must be ({count}, {count}); seen {table.shape}")
    low = np.zeros(count, dtype=bool) if at_floor is None else np.asarray(at_floor, dtype=bool)
    table[low[:, None] & low[None]] = 1.0
    differ = may_differ(table, level=level)
    better = (differ & (numbers[None] < numbers[:, None])).sum(axis=1)
    worse = (differ & (numbers[None] > numbers[:, None])).sum(axis=1)
    classes = np.full(count, -1)
    left = [int(i) for i in np.argsort(numbers, kind="stable")]
    number = 0
    while left:
        anchor = left[0]
        members = [i for i in left if i == anchor or not differ[anchor, i]]
        classes[members] = number
        left = [i for i in left if i not in members]
        number += 1
    return [
        Standing(int(classes[i]), (1 + int(better[i]), count - int(worse[i])))
        for i in range(count)
    ]


def _p_of_images(first: Contender, second: Contender) -> float:
    prompts, groups = first.gaps.shape
    between = _shared_covariance(first, second)
    blocks = np.block(
        [[first.covariance, between], [between.transpose(0, 2, 1), second.covariance]]
    )
    misread = [np.empty(0), np.empty(0)]
    judges: list[str] = []
    for place, row in enumerate((first, second)):
        if row.confusion is not None:
            if row.judge not in judges:
                judges.append(row.judge)
            table = tuple(tuple(one) for one in row.confusion.tolist())
            misread[place] = _misread(table, prompts, judges.index(row.judge))
    signed, unsigned = np.zeros(_DRAWS), np.zeros(_DRAWS)
    draws = iter(_normals(prompts, groups))
    for prompt, block in enumerate(blocks):
        normals = next(draws)
        weights, vectors = np.linalg.eigh(block)
        root = (vectors * np.sqrt(np.maximum(weights, 0))).T
        for sign, row, judge, part in (
            (1.0, first, misread[0], root[:, :groups]),
            (-1.0, second, misread[1], root[:, groups:]),
        ):
            error = normals @ (part @ row.inverse)
            gap = row.gaps[prompt]
            if row.confusion is not None:
                error -= ((gap + row.target[prompt]) @ judge).reshape(error.shape)
            size, norms = float(np.linalg.norm(gap)), _lengths(error)
            if size > 2 * quantile(norms, 0.95):
                signed += sign / prompts * (_lengths(gap + error) - size)
            else:
                unsigned += norms / prompts
    gap = first.value - second.value
    # What the difference could be pushed to if there were none.
    pushed = (signed if gap > 0 else -signed) + unsigned
    reached = int((pushed >= abs(gap)).sum())
    if reached >= _RARE:
        return min(1.0, 2 * reached / _DRAWS)
    spread = float(pushed.std())
    if spread == 0:
        return 1.0 if gap == 0 else 0.0
    tail = NormalDist().cdf((float(pushed.mean()) - abs(gap)) / spread)
    return min(2 * tail, 2 * _RARE / _DRAWS)


def _lengths(rows: Array) -> Array:
    """(R, K) -> (R,) Euclidean lengths, in a fraction of the time of `np.linalg.norm`."""
    return np.asarray(np.sqrt(np.einsum("rk,rk->r", rows, rows)), dtype=np.float64)


def _p_of_seeds(first: Contender, second: Contender) -> float:
    from scipy.special import stdtr  # importing metrics should stay cheap

    common = [seed for seed in first.seeds if seed in second.seeds]
    left, right = first.by_seed, second.by_seed
    if len(common) >= ENOUGH_SEEDS:
        apart = np.array(
            [left[first.seeds.index(s)] - right[second.seeds.index(s)] for s in common]
        )
        gap, degrees = float(apart.mean()), float(len(common) - 1)
        error = float(apart.std(ddof=1)) / np.sqrt(len(common))
    else:
        parts = [one.var(ddof=1) / len(one) for one in (left, right)]
        gap, error = first.value - second.value, float(np.sqrt(sum(parts)))
        below = sum(p**2 / (len(one) - 1) for p, one in zip(parts, (left, right), strict=True))
        degrees = float(sum(parts) ** 2 / below) if below > 0 else 1.0
    if error == 0:
        return 1.0 if gap == 0 else 0.0
    return float(2 * stdtr(degrees, -abs(gap) / error))


def _shared_covariance(first: Contender, second: Contender) -> Array:
    """Covariance (P, K, K) between the mean shares of two rows, 0 without labels of images."""
    total = np.zeros_like(first.covariance)
    for seed in first.seeds:
        left, right = first.labels.get(seed), second.labels.get(seed)
        if left is None or right is None or seed not in second.seeds:
            continue
        total += _of_pairs(left, right, *first.gaps.shape)
    return total / (len(first.seeds) * len(second.seeds))


def _of_pairs(left: ImageLabels, right: ImageLabels, prompts: int, groups: int) -> Array:
    """Covariance between the shares of two runs that share their noise, (P, K, K)."""
    ours, theirs = left.order, right.order
    named = [
        np.stack([one.prompt[order], one.index[order]])
        for one, order in ((left, ours), (right, theirs))
    ]
    if named[0].shape != named[1].shape or (named[0] != named[1]).any():
        keys = [table[0] * (1 + max(t[1].max() for t in named)) + table[1] for table in named]
        _, kept, others = np.intersect1d(*keys, return_indices=True)
        ours, theirs = ours[kept], theirs[others]
    total = np.zeros((prompts, groups, groups))
    for prompt in range(prompts):
        mine = left.prompt[ours] == prompt
        rows, columns = ours[mine], theirs[mine]
        # Whole batches, where either method couples their images.
        batches = left.batch[rows] if left.coupled else right.batch[columns]
        names, places = np.unique(batches, return_inverse=True)
        parts = []
        for one, images in ((left, rows), (right, columns)):
            every = one.group[one.prompt == prompt]
            share = np.bincount(every[every >= 0], minlength=groups) / max(1, (every >= 0).sum())
            held = one.group[images] >= 0
            part = np.zeros((len(images), groups))
            part[held] = np.eye(groups)[one.group[images][held]] - share
            sums = np.zeros((len(names), groups))
            np.add.at(sums, places, part / max(1, (every >= 0).sum()))
            parts.append(sums)
        total[prompt] = parts[0].T @ parts[1]
    return total


def _shrunk_covariance(counts: NDArray[np.int64]) -> Array:
    """Covariance of the shares of independent images, with a trace of even ones, (K, K).

    Without it a collapsed row would be known for sure.
    """
    n, groups = int(counts.sum()), len(counts)
    added = normal_quantile(0.95) ** 2 / (2 * (groups - 1))
    share = (counts + added) / (n + added * groups)
    return np.asarray((np.diag(share) - np.outer(share, share)) / n, dtype=np.float64)


def _normals(prompts: int, groups: int) -> Iterable[Array]:
    """Standard normal draws for two rows' shares of each prompt, (R, 2 K): same for all pairs."""
    few = prompts * groups <= _KEPT
    return _kept_normals(prompts, groups) if few else _drawn(prompts, groups)


def _drawn(prompts: int, groups: int) -> Iterator[Array]:
    """Draws for each prompt, then (R, K, K) for a judge, of up to two."""
    rng = np.random.default_rng(_SEED)
    for _ in range(prompts):
        yield rng.standard_normal((_DRAWS, 2 * groups))
    for _ in range(2):
        yield rng.standard_normal((_DRAWS, groups, groups))


@lru_cache(maxsize=2)
def _kept_normals(prompts: int, groups: int) -> tuple[Array, ...]:
    return tuple(islice(_drawn(prompts, groups), prompts))


@lru_cache(maxsize=4)
def _misread(table: tuple[tuple[int, ...], ...], prompts: int, judge: int) -> Array:
    """What the errors of a judge's rates add to corrected shares, the same for every pair of rows.

    Its K rows, (K, R K), are added in the shares of the groups; each holds R draws of K numbers.

    Args:
        table: (K, K) labelled images by true and judged group.
        prompts: P.
        judge: 0 or 1, which of the judges' normal draws these are.
    """
    # In place: draws of many groups take tens of megabytes.
    errors = next(islice(_drawn(prompts, len(table)), prompts + judge, None))
    smoothed = np.array(table) + 0.5
    rates = smoothed / smoothed.sum(axis=1, keepdims=True)
    errors *= np.sqrt(rates)
    errors -= rates * errors.sum(axis=2, keepdims=True)
    errors /= np.sqrt(smoothed.sum(axis=1))[:, None]
    corrected = errors @ np.linalg.inv(confusion_rates(np.array(table)))
    return np.ascontiguousarray(corrected.transpose(1, 0, 2)).reshape(len(table), -1)
