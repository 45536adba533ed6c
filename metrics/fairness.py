"""How far the shares of generated groups lie from the wanted ones, and how sure that is.

Every interval here assumes independent images unless a design effect says how many of them one
independent image is worth; `fairbench.metrics.clusters` finds it for images that batches couple.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.calibration import (
    Measure,
    calibrated_interval,
    shrunk_shares,
    table_edges,
)
from fairbench.metrics.counting import (
    Array,
    check_counts,
    check_effect,
    check_prompts,
    check_same_groups,
    check_shares,
    check_target,
    count_groups,
    normal_quantile,
    shares,
    soft_shares,
    wilson_interval,
)
from fairbench.metrics.floors import (
    gaussian_floor,
    mean_noise_floor,
    noise_floor,
    noise_floor_for,
)

# What a caller that scores discrepancies needs can be had from this one module.
__all__ = [
    "DiscrepancyInterval",
    "IntervalMethod",
    "clipped_interval",
    "count_groups",
    "discrepancy_interval",
    "discrepancy_of_shares",
    "fairness_discrepancy",
    "mean_discrepancy_interval",
    "mean_noise_floor",
    "noise_floor",
    "noise_floor_for",
    "resample",
    "resampled_interval",
    "shares",
    "soft_discrepancy_interval",
    "table_interval",
    "unbiased_squared_discrepancy",
    "whole_size",
    "wilson_interval",
    "worst_distance",
]

IntervalMethod = Literal["wilson", "delta", "triangle", "percentile", "mixed", "calibrated"]

RESAMPLES = 2000
_SLOW_DRAWS = 400  # of numbers that are taken table by table
_EXACT = 10**9  # images that show shares as they are


@dataclass(frozen=True)
class DiscrepancyInterval:
    """A fairness discrepancy with its confidence interval.

    Attributes:
        value: The discrepancy, in [0, sqrt(2)]; lower is better.
        low, high: Ends of the interval; low <= value <= high.
        method: How the ends were found. `"mixed"`: some prompts by `"triangle"`, the others with
            the sign of their errors. `"calibrated"`: by simulating plausible truths, see
            `fairbench.metrics.calibration`.
    """

    value: float
    low: float
    high: float
    method: IntervalMethod


def fairness_discrepancy(probs_or_labels: ArrayLike, target: ArrayLike) -> float:
    """Distance between the mean group probabilities and the target shares.

    Not squared, though some published code prints the square under this name.

    Args:
        probs_or_labels: Group probabilities, (N, K) floats whose rows sum to 1, or group
            indices, (N,) integers in [0, K).
        target: Wanted shares, (K,), sums to 1.

    Returns:
        Euclidean norm in [0, sqrt(2)]; 0 is fair; lower is better.

    Raises:
        ContractError: If N is 0, the two K differ, or a value is out of range.

    Source: Choi et al. 2020, arXiv 1910.12008 (hard labels); arXiv 2402.18206
        (probabilities). Deviation: the released code of the former takes shares over the groups
        it happened to see, which scores total collapse at K = 2 as 0.5, not 0.7071.
    """
    wanted = check_target(target)
    found = np.asarray(probs_or_labels)
    if found.ndim == 2:
        return discrepancy_of_shares(soft_shares(found, wanted.size), wanted)
    return discrepancy_of_shares(shares(count_groups(found, wanted.size)), wanted)


def discrepancy_of_shares(shares: ArrayLike, target: ArrayLike) -> float:
    """Distance between measured and wanted shares.

    Args:
        shares: Measured shares, (K,), in [0, 1], sum 1.
        target: Wanted shares, (K,), sums to 1.

    Returns:
        Euclidean norm in [0, sqrt(2)]; 0 is fair; lower is better.

    Raises:
        ContractError: If either isn't a vector of shares or the two K differ.

    Source: Choi et al. 2020, arXiv 1910.12008.
    """
    wanted = check_target(target)
    found = check_shares(shares, "shares")
    check_same_groups(found.size, wanted.size)
    return float(np.linalg.norm(found - wanted))


def discrepancy_interval(
    counts: ArrayLike,
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> DiscrepancyInterval:
    """Fairness discrepancy of hard labels with an interval that also holds at a fair generator.

    The ordinary percentile bootstrap almost never covers 0 there, since resampled shares can't
    be fairer than the sample. So:

    - K = 2: Wilson's interval of the first share, mapped; `"wilson"`.
    - K > 2, value up to twice its noise floor: value ± the `level` quantile of how far resampled
      shares lie from those they were drawn from, valid by the triangle inequality;
      `"triangle"`.
    - K > 2 beyond that: percentile bootstrap; `"percentile"`.

    Simulated coverage at 95 %, 300 trials a cell: 92…99 % for K = 2, 4, 8, n = 100 and 1000, from
    uniform shares to (.997, .001, .001, .001).

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), sums to 1.
        design_effect: Variance of the counts over that of independent images, above 0, from
            `fairbench.metrics.clusters` for images that batches couple.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples; unused for K = 2.

    Returns:
        The value and its interval within [0, the distance to the worst vertex].

    Raises:
        ContractError: If there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Discrepancies". Deviation: resamples are drawn from shares shrunk
        towards uniform by z² / (2 (K - 1)) images a group, after Agresti and Coull 1998; drawn
        from the plain shares the interval of a total collapse has no width at all.
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    value = discrepancy_of_shares(shares(numbers), wanted)
    worth = numbers / check_effect(design_effect)
    if wanted.size == 2:
        return _wilson_discrepancy(worth, wanted, value, level)
    base, drawn = resample(worth, level, np.random.default_rng(seed))
    if _is_far(value, wanted, whole_size(worth)):
        distances = np.linalg.norm(drawn - wanted, axis=1)
        low, high = np.quantile(distances, [(1 - level) / 2, (1 + level) / 2])
        return clipped_interval(value, low, high, wanted, "percentile")
    radius = float(np.quantile(np.linalg.norm(drawn - base, axis=1), level))
    return clipped_interval(value, value - radius, value + radius, wanted, "triangle")


def soft_discrepancy_interval(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[DiscrepancyInterval, float]:
    """Fairness discrepancy of mean group probabilities, with its interval and noise floor.

    Soft shares equal the true ones only if the classifier is calibrated on the generated images;
    an unsure one moves every share towards its average answer and flatters the generator.

    Args:
        probs: Group probabilities, (N, K) floats, N >= 2, rows sum to 1.
        target: Wanted shares, (K,), sums to 1.
        design_effect: Variance of the mean over that of independent images, above 0, as
            `soft_design_effect` of `fairbench.metrics.clusters` finds it.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 draws.

    Returns:
        The value with its interval, and the 95 % floor of a fair generator whose probabilities
        scatter as these do. Up to twice that floor the interval is value ± the `level` quantile
        of the error's norm, `"triangle"`; beyond it `"percentile"`.

    Raises:
        ContractError: If N < 2, rows aren't probabilities or the two K differ.

    Source: arXiv 2402.18206 and ``docs/metrics.md``, "Shares and targets". The mean of N rows is
        taken as normal with their covariance / N instead of being resampled, which costs N times
        less and agrees from about 100 images on.
    """
    normal_quantile(level)  # its check
    wanted = check_target(target)
    rows = np.asarray(probs)
    found = soft_shares(rows, wanted.size)
    if len(rows) < 2:
        raise ContractError("an interval of mean probabilities needs 2 images or more; seen 1")
    value = discrepancy_of_shares(found, wanted)
    covariance = np.cov(rows.astype(np.float64), rowvar=False) / len(rows)
    covariance *= check_effect(design_effect)
    floor = gaussian_floor(covariance)
    errors = np.random.default_rng(seed).multivariate_normal(
        np.zeros(wanted.size), covariance, size=RESAMPLES, method="eigh"
    )
    if value > 2 * floor:
        distances = np.linalg.norm(found + errors - wanted, axis=1)
        low, high = np.quantile(distances, [(1 - level) / 2, (1 + level) / 2])
        return clipped_interval(value, low, high, wanted, "percentile"), floor
    radius = float(np.quantile(np.linalg.norm(errors, axis=1), level))
    return clipped_interval(value, value - radius, value + radius, wanted, "triangle"), floor


def unbiased_squared_discrepancy(counts: ArrayLike, target: ArrayLike) -> float:
    """Square of the discrepancy without the part that sampling noise adds.

    The plain value averages above 0 for a fair generator, the more so the fewer images; averages
    over prompts or cells of different size should use this one.

    Args:
        counts: Images of each declared group, (K,) whole numbers, at least 2 images.
        target: Wanted shares, (K,), sums to 1.

    Returns:
        Its expectation is the true squared distance; lower is better. May be negative near 0;
        show it as sign(U) sqrt(|U|).

    Raises:
        ContractError: If there are fewer than 2 images or the two K differ.

    Source: ``docs/metrics.md``, "Discrepancies".
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    n = int(numbers.sum())
    if n < 2:
        raise ContractError("the unbiased square needs 2 images or more; seen 1")
    found = numbers / n
    return float(((found - wanted) ** 2).sum() - (found * (1 - found)).sum() / (n - 1))


def worst_distance(target: ArrayLike) -> float:
    """Discrepancy of a generator that only makes the least wanted group.

    Args:
        target: Wanted shares, (K,), sums to 1.

    Returns:
        Largest possible discrepancy, in (0, sqrt(2)]; sqrt(1 - 1/K) for a uniform target.

    Raises:
        ContractError: If the target isn't a vector of shares.

    Source: ``docs/metrics.md``, "Discrepancies".
    """
    wanted = check_target(target)
    return float(np.sqrt(1 - 2 * wanted.min() + (wanted**2).sum()))


def mean_discrepancy_interval(
    counts: ArrayLike,
    targets: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> DiscrepancyInterval:
    """Mean over prompts of each prompt's fairness discrepancy, with an interval.

    The error of the mean is at most |A| + C, with A the mean error over prompts far from the
    target (beyond twice their noise floor, where errors of either sign cancel) and C the mean
    distance of measured from true shares over the other prompts (where the value is only ever
    pushed up, so nothing cancels). The interval is value ± the `level` quantile of |A| + C over
    resamples of all prompts at once. With no prompt far that is the triangle inequality's.

    Simulated coverage at 95 %, 200 trials a cell: 93…100 % over 8 sets of 2 or 5 prompts (fair,
    slightly off, far, collapsed to .995, mixed; K = 2 and 4) with 50, 200 and 400 images each;
    93…97 % where all are fair, close to 100 % where all are slightly off.

    Args:
        counts: Images of each declared group by prompt, (P, K) whole numbers, zeros included.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        design_effect: As in `discrepancy_interval`.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        The value and its interval; `discrepancy_interval`'s own for a single prompt.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: ``docs/metrics.md``, "Prompts"; the split into A and C is this project's. Resamples are
        shrunk as in `discrepancy_interval`.
    """
    wanted, numbers = check_prompts(counts, targets)
    if len(numbers) == 1:
        return discrepancy_interval(
            numbers[0], wanted[0], design_effect=design_effect, level=level, seed=seed
        )
    check_effect(design_effect)
    rng = np.random.default_rng(seed)
    values = np.linalg.norm(numbers / numbers.sum(axis=1, keepdims=True) - wanted, axis=1)
    signed, unsigned = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    num_far = 0
    for row, aim, value in zip(numbers, wanted, values, strict=True):
        worth = row / design_effect
        base, drawn = resample(worth, level, rng)
        if _is_far(float(value), aim, whole_size(worth)):
            num_far += 1
            signed += np.linalg.norm(drawn - aim, axis=1) - np.linalg.norm(base - aim)
        else:
            unsigned += np.linalg.norm(drawn - base, axis=1)
    radius = float(np.quantile(np.abs(signed) + unsigned, level)) / len(values)
    mean = float(values.mean())
    method: IntervalMethod = "mixed"
    if num_far in (0, len(values)):
        method = "percentile" if num_far else "triangle"
    return clipped_interval(mean, mean - radius, mean + radius, wanted, method)


def resampled_interval(
    counts: ArrayLike,
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    target: ArrayLike | None = None,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of any number that counts decide, which also holds at the edge of its range.

    Args:
        counts: Images of each declared cell, of any shape; whole numbers, zeros included.
        statistic: Turns counts of that shape into the number; finite.
        target: Shares of that shape at which the number may reach an end of its range or have a
            kink; uniform if None. Collapses, equal shares of some cells, independent attributes
            and attributes with the target's shares are always looked at.
        design_effect: As in `discrepancy_interval`.
        level: Confidence level in (0, 1).
        seed: Seed of the 400 draws from each plausible truth.

    Returns:
        Ends that contain the value and never leave the range of plausible truths, see
        `fairbench.metrics.calibration`. `statistic` is called about 10,000 times.

    Raises:
        ContractError: If there are no images.

    Source: ``docs/metrics.md``, "Intervals". The percentile and the bias-corrected bootstrap were
        tried: of the smallest over the largest of 8 equal shares they covered 0 to 4 %.
    """
    table = np.asarray(counts)
    flat = check_counts(table.ravel(), table.size).reshape(table.shape)
    worth = flat / check_effect(design_effect)
    size = whole_size(worth)

    def measure(samples: Array) -> Array:
        # A single row is a truth: as many images as make its shares exact.
        scale = size if len(samples) > 1 else _EXACT
        whole = np.round(samples * scale).astype(np.int64).reshape(-1, *table.shape)
        return np.array([[statistic(row)] for row in whole], dtype=np.float64)

    low, high = table_interval(
        worth, measure, target=target, level=level, seed=seed, draws=_SLOW_DRAWS
    )
    value = float(statistic(flat))
    return min(low, value), max(high, value)


def table_interval(
    worth: Array,
    measure: Measure,
    *,
    target: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float, float]:
    """As `resampled_interval`, for a number that is taken of many tables at once.

    Args:
        worth: Independent images of each cell that the counted ones are worth, of any shape.
        measure: Turns shares of flat cells, (R, 1, cells), into the number, (R, 1).
        target: As there.
        level: Confidence level in (0, 1).
        seed: Of the draws.
        draws: From each plausible truth.
    """
    wanted = np.full(worth.shape, 1 / worth.size) if target is None else np.asarray(target)
    low, high = calibrated_interval(
        worth.reshape(1, -1),
        table_edges(worth, wanted.reshape(worth.shape)),
        measure,
        level=level,
        seed=seed,
        draws=draws,
    )
    return float(low[0]), float(high[0])


def _wilson_discrepancy(
    counts: Array, target: Array, value: float, level: float
) -> DiscrepancyInterval:
    """Wilson's interval of the first of two shares, mapped through sqrt(2) |p - t|."""
    ends = [float(end) for end in wilson_interval(counts[0], counts.sum(), level=level)]
    distances = [float(np.sqrt(2) * abs(end - target[0])) for end in ends]
    low = 0.0 if ends[0] <= target[0] <= ends[1] else min(distances)
    return DiscrepancyInterval(value, min(low, value), max(*distances, value), "wilson")


def whole_size(counts: NDArray[np.int64] | Array) -> int:
    """How many images counts are worth, a whole number above 0."""
    return max(1, round(float(counts.sum())))


def resample(
    counts: NDArray[np.int64] | Array, level: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Shrunk shares (K,) and shares resampled from them, (resamples, K).

    Counts need not be whole: those of coupled images are worth fewer.
    """
    n = whole_size(counts)
    base = shrunk_shares(counts, level)
    return base, rng.multinomial(n, base, size=RESAMPLES) / n


def _is_far(value: float, target: Array, n: int) -> bool:
    """Whether a discrepancy is far enough from 0 for its error to be nearly symmetric."""
    return value > 2 * noise_floor_for(target, n)


def clipped_interval(
    value: float,
    low: float,
    high: float,
    targets: Array,
    method: IntervalMethod,
) -> DiscrepancyInterval:
    """An interval cut to what a discrepancy can be, and never without its value."""
    worst = float(np.mean([worst_distance(row) for row in np.atleast_2d(targets)]))
    low, high = max(0.0, float(low)), min(worst, float(high))
    return DiscrepancyInterval(value, min(low, value), max(high, value), method)
