"""Tests: are the shares the target's, are they too close to it, do two methods differ."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import (
    Array,
    check_counts,
    check_prompts,
    check_target,
    check_targets,
    count_groups,
    normal_quantile,
)
from fairbench.metrics.fairness import RESAMPLES
from fairbench.metrics.floors import noise_floor_for

__all__ = [
    "GoodnessOfFit",
    "McNemar",
    "PairedDifference",
    "QuotaCheck",
    "detect_quota",
    "goodness_of_fit",
    "holm",
    "mcnemar",
    "paired_difference",
]

_FEW_IMAGES = 50  # a group; fewer and the G-test's chi-square isn't trusted
_MOST_OUTCOMES = 200_000
_DRAWS = 100_000
_TIE = 1e-9  # relative; outcomes as likely as the one seen may differ by rounding


@dataclass(frozen=True)
class GoodnessOfFit:
    """A test of the shares being the target's.

    Attributes:
        p_value: In [0, 1].
        statistic: G, twice the log likelihood ratio, 0 or more; infinite where a group with
            target 0 has images.
        degrees: Groups with a target above 0, less 1.
        method: `"exact"`, `"monte-carlo"` (exact, with simulated outcomes) or `"g-test"`.
    """

    p_value: float
    statistic: float
    degrees: int
    method: Literal["exact", "monte-carlo", "g-test"]


@dataclass(frozen=True)
class QuotaCheck:
    """Whether shares hit their targets more closely than independent images could.

    Attributes:
        statistic: Pearson's chi-square summed over prompts.
        degrees: Its degrees of freedom for a fair generator with independent images.
        p_value: Chance of so small a statistic there.
        quota: Whether that is below the threshold.
    """

    statistic: float
    degrees: int
    p_value: float
    quota: bool


@dataclass(frozen=True)
class McNemar:
    """Two methods, two groups, the same noise.

    Attributes:
        only_first, only_second: Images that only the first, only the second method puts into
            group 1.
        difference: Share of group 1, first less second.
        p_value: Exact, two-sided.
    """

    only_first: int
    only_second: int
    difference: float
    p_value: float


@dataclass(frozen=True)
class PairedDifference:
    """Discrepancy of one method less that of another on the same noise.

    Attributes:
        value: In [-sqrt(2), sqrt(2)]; negative: the first is fairer.
        low, high: Ends of the interval.
        first, second: The two discrepancies.
        tied: Whether the interval covers 0.
    """

    value: float
    low: float
    high: float
    first: float
    second: float
    tied: bool


def goodness_of_fit(counts: ArrayLike, target: ArrayLike, *, seed: int = 0) -> GoodnessOfFit:
    """Test whether the shares could be the target's.

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), sums to 1.
        seed: Seed of the simulated outcomes; unused by the other two methods.

    Returns:
        From 50 images a group on the G-test; below, the exact multinomial test, which adds up
        all outcomes no likelier than the one seen, simulated where there are over 200,000.

    Raises:
        ContractError: If there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Quotas". Groups with target 0 leave the test, and an image in one
        ends it.
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    held = wanted > 0
    n = int(numbers.sum())
    degrees = int(held.sum()) - 1
    if numbers[~held].any():
        return GoodnessOfFit(0.0, float("inf"), degrees, "exact")
    numbers, wanted = numbers[held], wanted[held] / wanted[held].sum()
    if degrees == 0:
        return GoodnessOfFit(1.0, 0.0, 0, "exact")
    ratio = np.log(np.maximum(numbers, 1) / (n * wanted))
    statistic = max(2 * float((numbers * ratio).sum()), 0.0)
    if n >= _FEW_IMAGES * numbers.size:
        from scipy.special import chdtrc  # importing metrics should stay cheap

        return GoodnessOfFit(float(chdtrc(degrees, statistic)), statistic, degrees, "g-test")
    own = _log_probability(numbers[None], wanted)[0]
    if comb(n + degrees, degrees) <= _MOST_OUTCOMES:
        logs = _log_probability(_outcomes(n, numbers.size), wanted)
        p_value = float(np.exp(logs[logs <= own + _TIE * abs(own)]).sum())
        return GoodnessOfFit(min(p_value, 1.0), statistic, degrees, "exact")
    drawn = np.random.default_rng(seed).multinomial(n, wanted, size=_DRAWS)
    reached = int((_log_probability(drawn, wanted) <= own + _TIE * abs(own)).sum())
    return GoodnessOfFit((reached + 1) / (_DRAWS + 1), statistic, degrees, "monte-carlo")


def holm(p_values: ArrayLike) -> Array:
    """Adjust p-values of several tests so that one threshold serves for all of them.

    Args:
        p_values: (M,), in [0, 1].

    Returns:
        Adjusted p-values, (M,) float64 in [0, 1], in the order given.

    Raises:
        ContractError: If it isn't a non-empty vector of numbers in [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ContractError(f"p_values must be a vector in [0, 1]; seen {p_values!r}")
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted


def detect_quota(
    counts: ArrayLike, targets: ArrayLike, *, threshold: float = 0.001, seed: int = 0
) -> QuotaCheck:
    """Tell deterministic alternation of groups from independent fair sampling.

    Quotas are legitimate, but their shares have no sampling noise, so they shouldn't win a tie
    against a method that draws each image's group.

    Args:
        counts: Images of each declared group by prompt, (P, K), or (K,) for one prompt; whole
            numbers.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        threshold: Chance below which the shares are called too fair.
        seed: Seed of the simulated fair samples.

    Returns:
        The lower tail of Σ (count - n t)² / (n t), Σ n K discrepancy² for uniform targets.

    Raises:
        ContractError: If a prompt has no images, the shapes disagree or the threshold isn't in
            (0, 1).

    Source: ``docs/metrics.md``, "Quotas". Deviation: where chi-square puts the tail below 5 % it
        is taken from 100,000 simulated samples instead. Chi-square gives an exact hit probability
        0, though with one prompt, two groups and 1000 images every 40th fair sample is one.
    """
    from scipy.special import chdtr  # importing metrics should stay cheap

    if not 0 < threshold < 1:
        raise ContractError(f"threshold must lie between 0 and 1; seen {threshold}")
    wanted, numbers = check_prompts(np.atleast_2d(np.asarray(counts)), targets)
    sizes = numbers.sum(axis=1)
    degrees = int(((wanted > 0).sum(axis=1) - 1).sum())
    statistic = float(sum(_pearson(numbers, wanted)))
    if degrees == 0 or not np.isfinite(statistic):
        return QuotaCheck(statistic, degrees, 1.0, False)
    p_value = float(chdtr(degrees, statistic))
    if p_value < 0.05:
        rng = np.random.default_rng(seed)
        total = np.zeros(_DRAWS)
        for size, aim in zip(sizes, wanted, strict=True):
            drawn = rng.multinomial(size, aim / aim.sum(), size=_DRAWS)
            total += _pearson(drawn, np.broadcast_to(aim, drawn.shape))
        reached = int((total <= statistic + _TIE).sum())
        p_value = (reached + 1) / (_DRAWS + 1)
    return QuotaCheck(statistic, degrees, p_value, p_value < threshold)


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Compare the shares of two groups by two methods that saw the same noise.

    Args:
        first: Group of each image by the first method, (N,) integers in {0, 1}.
        second: The same by the second method, in the same order of noise.

    Returns:
        Exact two-sided binomial test of the images on which they differ.

    Raises:
        ContractError: If the lengths differ or a label isn't 0 or 1.

    Source: McNemar 1947, doi 10.1007/BF02295996; ``docs/metrics.md``, "Quotas".
    """
    from scipy.special import bdtr  # importing metrics should stay cheap

    (_, only_second), (only_first, _) = _pair_counts(first, second, 2).tolist()
    apart = only_first + only_second
    tail = float(bdtr(min(only_first, only_second), apart, 0.5)) if apart else 0.5
    n = np.asarray(first).size
    return McNemar(only_first, only_second, (only_first - only_second) / n, min(2 * tail, 1.0))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    target: ArrayLike,
    *,
    prompts: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compare the discrepancies of two methods that saw the same noise.

    Resampling index pairs keeps what the two share, which an interval of two independent samples
    would count as noise twice.

    Args:
        first: Group of each image by the first method, (N,) integers in [0, K).
        second: The same by the second method, in the same order of noise.
        target: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        prompts: Prompt of each image, (N,) integers in [0, P), each with images; None for one
            prompt. The discrepancies are then means over prompts.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        Percentile interval of the signed errors where both methods are beyond twice their noise
        floor. A method below it enters with the distance between resampled and measured shares
        instead, as in `mean_discrepancy_interval`.

    Raises:
        ContractError: If lengths differ, labels or prompts are out of range or a prompt has no
            images.

    Source: ``docs/metrics.md``, "Quotas".
    """
    normal_quantile(level)  # its check
    left, right = _same_images(first, second)
    wanted, places = _prompt_rows(prompts, left.size, target)
    num_groups = wanted.shape[1]
    rng = np.random.default_rng(seed)
    values = np.zeros(2)
    signed, unsigned = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for aim, rows in zip(wanted, places, strict=True):
        table = _pair_counts(left[rows], right[rows], num_groups)
        n = int(table.sum())
        drawn = rng.multinomial(n, table.ravel() / n, size=RESAMPLES)
        drawn = drawn.reshape(RESAMPLES, num_groups, num_groups)
        limit = 2 * noise_floor_for(aim, n)
        for side, sign in ((0, 1.0), (1, -1.0)):
            found, resampled = table.sum(axis=1 - side) / n, drawn.sum(axis=2 - side) / n
            value = float(np.linalg.norm(found - aim))
            values[side] += value / len(places)
            if value > limit:
                signed += sign * (np.linalg.norm(resampled - aim, axis=1) - value)
            else:
                unsigned += np.linalg.norm(resampled - found, axis=1)
    signed, unsigned = signed / len(places), unsigned / len(places)
    value = float(values[0] - values[1])
    low = value + float(np.quantile(signed - unsigned, (1 - level) / 2))
    high = value + float(np.quantile(signed + unsigned, (1 + level) / 2))
    return PairedDifference(
        value,
        min(low, value),
        max(high, value),
        float(values[0]),
        float(values[1]),
        low <= 0 <= high,
    )


def _log_probability(outcomes: NDArray[np.int64], wanted: Array) -> Array:
    from scipy.special import gammaln  # importing metrics should stay cheap

    ways = gammaln(outcomes.sum(axis=1) + 1) - gammaln(outcomes + 1).sum(axis=1)
    return np.asarray(ways + outcomes @ np.log(wanted), dtype=np.float64)


def _outcomes(n: int, num_groups: int) -> NDArray[np.int64]:
    """All ways to put n images into K groups, (outcomes, K)."""
    rows = np.zeros((1, 0), dtype=np.int64)
    for _ in range(num_groups - 1):
        left = n - rows.sum(axis=1)
        parents = np.repeat(np.arange(len(rows)), left + 1)
        starts = np.repeat(np.cumsum(left + 1) - (left + 1), left + 1)
        rows = np.column_stack([rows[parents], np.arange(len(parents)) - starts])
    return np.column_stack([rows, n - rows.sum(axis=1)])


def _pearson(counts: NDArray[np.int64], wanted: Array) -> Array:
    """Pearson's chi-square of rows, (R, K) -> (R,); infinite where target 0 has images."""
    expected = counts.sum(axis=1, keepdims=True) * wanted
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts == expected, 0.0, (counts - expected) ** 2 / expected)
    return np.asarray(terms.sum(axis=1), dtype=np.float64)


def _pair_counts(first: ArrayLike, second: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    """Images by the group of the first (row) and second method (column), (K, K)."""
    left, right = _same_images(first, second)
    for labels in (left, right):
        count_groups(labels, num_groups)  # its checks
    pairs = left.astype(np.int64) * num_groups + right
    return count_groups(pairs, num_groups**2).reshape(num_groups, num_groups)


def _same_images(
    first: ArrayLike, second: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = np.asarray(first), np.asarray(second)
    if left.shape != right.shape or left.ndim != 1:
        raise ContractError(
            f"both methods need labels (N,) of the same images; seen {left.shape}, {right.shape}"
        )
    return left, right


def _prompt_rows(
    prompts: ArrayLike | None, n: int, target: ArrayLike
) -> tuple[Array, list[NDArray[np.int64]]]:
    """Targets (P, K) and the indices of each prompt's images."""
    if prompts is None:
        return check_targets(target, 1), [np.arange(n)]
    which = np.asarray(prompts)
    if which.shape != (n,) or which.dtype.kind not in "iu" or n == 0 or which.min() < 0:
        raise ContractError(f"prompts must be {n} integers, 0 or more; seen {which.shape}")
    num_prompts = int(which.max()) + 1
    return check_targets(target, num_prompts), [
        np.flatnonzero(which == prompt) for prompt in range(num_prompts)
    ]
