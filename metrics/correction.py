"""Shares and discrepancies corrected for the errors of the classifier that read the groups.

With symmetric errors every raw discrepancy is too small; with other errors a fair generator looks
unfair and rankings can flip. Here the classifier's confusion, counted on labelled images, is
undone, and its own uncertainty enters every interval and floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.calibration import calibrated_ends, edges_of, shrunk_shares
from fairbench.metrics.confusion import (
    Reason,
    check_confusion,
    confusion_rates,
    judge_confusion,
    likeliest_shares,
)
from fairbench.metrics.counting import (
    Array,
    check_counts,
    check_same_groups,
    check_size,
    check_targets,
    normal_quantile,
    quantile,
)
from fairbench.metrics.fairness import (
    RESAMPLES,
    DiscrepancyInterval,
    IntervalMethod,
    clipped_interval,
    resample,
)
from fairbench.metrics.floors import FLOOR_LEVEL, gaussian_floor

__all__ = [
    "CorrectedDiscrepancy",
    "CorrectedShares",
    "correct_shares",
    "corrected_discrepancy",
    "corrected_noise_floor",
    "worse_interval",
    "worse_noise_floor",
    "worse_of_judges",
]

_FLOOR_DRAWS = 20_000
_FLOOR_SEED = 20_242  # any constant: the same question must always give the same floor


@dataclass(frozen=True, eq=False)
class CorrectedShares:
    """Shares with the classifier's errors undone.

    Attributes:
        shares: Maximum-likelihood shares, (K,) float64, sum 1; NaN where refused.
        raw: Solution of the linear system without the bounds, (K,), sum 1; may leave [0, 1]. NaN
            where refused.
        low, high: Ends of the interval of each share, (K,), in [0, 1]; NaN where refused.
        condition: 2-norm condition number of the confusion matrix.
        method: `"fieller"` for K = 2, `"bootstrap"` beyond.
        reason: `"ill_conditioned"` if the classifier is too poor to be corrected, else None.
    """

    shares: Array
    raw: Array
    low: Array
    high: Array
    condition: float
    method: Literal["fieller", "bootstrap"]
    reason: Reason | None = None


@dataclass(frozen=True)
class CorrectedDiscrepancy:
    """A fairness discrepancy of corrected shares.

    Attributes:
        value: The discrepancy, or its mean over prompts, in [0, sqrt(2)]; lower is better. NaN
            where refused, as are the next three.
        low, high: Ends of the interval; low <= value <= high.
        floor: What a fair generator stays below in 95 % of samples after the correction.
        condition: 2-norm condition number of the confusion matrix.
        method: How the ends were found; None where refused.
        reason: `"ill_conditioned"` if the classifier is too poor to be corrected, else None.
    """

    value: float
    low: float
    high: float
    floor: float
    condition: float
    method: IntervalMethod | None
    reason: Reason | None = None


def correct_shares(
    counts: ArrayLike,
    confusion_counts: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> CorrectedShares:
    """Estimate the true shares from what an imperfect classifier counted.

    Args:
        counts: Images that the classifier put into each declared group, (K,) whole numbers.
        confusion_counts: Labelled images by true group (row) and classified group (column),
            (K, K) whole numbers, every row with an image.
        design_effect: As in `corrected_discrepancy`.
        level: Confidence level in (0, 1) of each share's interval.
        seed: Seed of the 2000 resamples; unused for K = 2.

    Returns:
        The shares that make the counts likeliest, found by expectation maximisation, which equal
        the inverse of the confusion wherever that is a set of shares. Intervals count the error
        of the confusion matrix too: by Fieller's theorem for K = 2, by a bootstrap of both tables
        beyond, solved without the bounds. Refused with a reason if the condition number is above
        10 or the classifier is right about fewer than half the images of a group.

    Raises:
        ContractError: If shapes disagree, a row or all counts are 0, or the design effect is
            negative.

    Source: Teo et al. 2023 (CLEAM) for the binary point; ``docs/metrics.md``, "Classifier error".
        Deviations: their interval takes the confusion as exact and calls resamples of one pool
        independent batches; here variances use Agresti and Coull's shrunk rates, since 50 right
        answers out of 50 don't make a rate of 1 certain. Re-solving each resample within the
        simplex was tried: the interval of a share of 1 covers it in 1 % of trials, since bounded
        errors all point inwards.
    """
    table = check_confusion(confusion_counts)
    numbers = check_counts(counts, len(table))
    z = normal_quantile(level)
    _check_effect(design_effect)
    confusion = confusion_rates(table)
    method: Literal["fieller", "bootstrap"] = "fieller" if len(table) == 2 else "bootstrap"
    condition, reason = judge_confusion(confusion)
    if reason is not None:
        lost = np.full(len(table), np.nan)
        return CorrectedShares(lost, lost, lost, lost, condition, method, reason)
    measured = numbers / numbers.sum()
    raw = np.linalg.solve(confusion.T, measured)
    point = likeliest_shares(measured[None], confusion)[0]
    if method == "fieller":
        first = _binary_ends(numbers, table, z, design_effect)
        low, high = np.clip([first, (1 - first[1], 1 - first[0])], 0, 1).T
    else:
        rng = np.random.default_rng(seed)
        errors = _bootstrap(numbers[None], table, level, rng, design_effect)[:, 0]
        ends = np.quantile(errors, [(1 - level) / 2, (1 + level) / 2], axis=0)
        low, high = np.clip(raw + ends, 0, 1)
    return CorrectedShares(
        point, raw, np.minimum(low, point), np.maximum(high, point), condition, method
    )


def corrected_discrepancy(
    counts: ArrayLike,
    confusion_counts: ArrayLike,
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> CorrectedDiscrepancy:
    """Fairness discrepancy after correction for classifier error, with interval and floor.

    Args:
        counts: Images that the classifier put into each declared group, (K,), or by prompt,
            (P, K), for the mean over prompts; whole numbers.
        confusion_counts: Labelled images by true group (row) and classified group (column),
            (K, K) whole numbers, every row with an image.
        target: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        design_effect: Variance of the counts over that of independent images, 0 or more, from
            `fairbench.metrics.clusters` for images that batches couple.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples; unused for one prompt and K = 2.

    Returns:
        For one prompt and K = 2 Fieller's interval of the share, mapped: all rates shrunk as
        Agresti and Coull do. Otherwise each resample draws every row of the confusion from its
        posterior and all counts from a multinomial, one confusion for all prompts; what the value
        errs by is taken at the shares that these errors leave plausible, as in
        `mean_discrepancy_interval`.

    Raises:
        ContractError: As `correct_shares`, or if the targets don't fit the counts or the design
            effect is negative.

    Simulated coverage at 95 % for one prompt and K = 2, 20,000 trials a cell, 100 to 1,000 images,
    judges right about 70 to 99 % by 20 to 400 labelled images a group, shares of .5 to 1:
    95…100 %, a fair generator excluded in at most 5 %; above 99.5 % with 20 labelled images or at
    a collapse, where an end is cut at the bound. The delta method covered down to 88 % there.

    Source: Fieller 1954, J. R. Statist. Soc. B 16, 175; ``docs/metrics.md``, "Classifier error".
    """
    table = check_confusion(confusion_counts)
    z = normal_quantile(level)
    numbers, wanted = _check_rows(counts, target, len(table))
    confusion = confusion_rates(table)
    condition, reason = judge_confusion(confusion)
    if reason is not None:
        lost = float("nan")
        return CorrectedDiscrepancy(lost, lost, lost, lost, condition, None, reason)
    measured = numbers / numbers.sum(axis=1, keepdims=True)
    point = likeliest_shares(measured, confusion)
    values = np.linalg.norm(point - wanted, axis=1)
    _check_effect(design_effect)
    floor = _floor(wanted, numbers.sum(axis=1), table, design_effect)
    if numbers.shape == (1, 2):
        ends = _binary_ends(numbers[0], table, z, design_effect)
        found = _mapped(*ends, wanted[0], float(values[0]))
    else:
        found = _mean_interval(numbers, table, wanted, point, design_effect, level, seed)
    return CorrectedDiscrepancy(found.value, found.low, found.high, floor, condition, found.method)


def worse_of_judges(scores: Sequence[CorrectedDiscrepancy]) -> CorrectedDiscrepancy:
    """The score that counts where several classifiers judged the same images.

    Args:
        scores: One score a classifier, at least one.

    Returns:
        The first refused one if any is, since it could be the worse; else that of largest value.

    Raises:
        ContractError: If there are none.

    Source: ``docs/metrics.md``, "Judges".
    """
    if not scores:
        raise ContractError("need the score of one classifier or more; seen none")
    refused = [score for score in scores if score.reason is not None]
    return refused[0] if refused else max(scores, key=lambda score: score.value)


def worse_interval(scores: Sequence[CorrectedDiscrepancy]) -> tuple[float, float]:
    """Ends for the score that `worse_of_judges` picks, which it picks for being larger.

    Simulated coverage at 95 %, 300 trials a cell, 1,000 images: 96…99.7 % for two judges that are
    right about 80, 90 and 99 % of images, K = 2 and 4, where the interval of the worse judge
    alone covers as little as 89 %. It is too wide for poorer judges, whose intervals differ most.

    Args:
        scores: One score a classifier, at least one, none refused.

    Returns:
        The worse judge's interval, united with each other one that overlaps it. Judges whose
        intervals lie apart disagree by more than chance, and then the worse one counts alone.

    Raises:
        ContractError: If there are none, or one was refused.

    Source: ``docs/metrics.md``, "Judges".
    """
    worse = worse_of_judges(scores)
    if worse.reason is not None:
        raise ContractError(f"the score of a judge was refused: {worse.reason}")
    meeting = [one for one in scores if one.low <= worse.high and worse.low <= one.high]
    return min(one.low for one in meeting), max(one.high for one in meeting)


def worse_noise_floor(
    n_per_prompt: ArrayLike,
    confusions: Sequence[ArrayLike],
    target: ArrayLike,
    *,
    design_effects: Sequence[float] | None = None,
) -> float:
    """What the worse of several judges of a fair generator stays below in 95 % of samples.

    Args:
        n_per_prompt: Images, one number or one a prompt, (P,); positive whole numbers.
        confusions: Of each judge, (K, K) labelled images by true (row) and classified group.
        target: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        design_effects: Of each judge's counts, 0 or more; 1 each if None.

    Returns:
        The floor, to about 1 %, that of a single judge if there is one. Judges share the images'
        errors; what they misread is taken as independent, which puts the floor of judges that
        err alike slightly too high.

    Raises:
        ContractError: As `corrected_noise_floor`, or if there is no judge.

    Source: ``docs/metrics.md``, "Judges".
    """
    if not len(confusions):
        raise ContractError("need the confusion of one judge or more; seen none")
    sizes = np.atleast_1d(np.asarray(n_per_prompt))
    tables = [check_confusion(one) for one in confusions]
    effects = [1.0] * len(tables) if design_effects is None else list(design_effects)
    wanted = check_targets(target, sizes.size)
    for table, effect in zip(tables, effects, strict=True):
        corrected_noise_floor(sizes, table, target)  # its checks
        _check_effect(effect)
    if len(tables) == 1:
        return _floor(wanted, sizes, tables[0], effects[0])
    rng = np.random.default_rng(_FLOOR_SEED)
    inverses = [np.linalg.inv(confusion_rates(table)) for table in tables]
    learned = [_confusion_errors(table, rng) for table in tables]
    totals = np.zeros((len(tables), _FLOOR_DRAWS))
    for aim, size in zip(wanted, sizes, strict=True):
        common = _normal(aim, int(size), _FLOOR_DRAWS, rng)
        for j, (table, inverse, effect) in enumerate(zip(tables, inverses, effects, strict=True)):
            read = inverse.T @ _multinomial(aim @ confusion_rates(table)) @ inverse
            values, vectors = np.linalg.eigh((read - _multinomial(aim)) / int(size))
            root = vectors * np.sqrt(np.maximum(values, 0))
            misread = rng.standard_normal((_FLOOR_DRAWS, aim.size)) @ root.T
            error = np.sqrt(effect) * (common + misread)
            error = error - np.einsum("i,dij->dj", aim, learned[j]) @ inverse
            totals[j] += np.linalg.norm(error, axis=1)
    return float(quantile(totals.max(axis=0) / len(wanted), FLOOR_LEVEL))


def corrected_noise_floor(
    n_per_prompt: ArrayLike, confusion_counts: ArrayLike, target: ArrayLike
) -> float:
    """What a fair generator stays below in 95 % of samples after the correction.

    Args:
        n_per_prompt: Images, one number or one a prompt, (P,); positive whole numbers.
        confusion_counts: Labelled images by true (row) and classified group, (K, K).
        target: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.

    Returns:
        The floor of the discrepancy, of its mean over prompts where there are several, to about
        1 %. Larger than `noise_floor_for`: undoing errors magnifies the noise of the counts and
        adds that of the confusion.

    Raises:
        ContractError: If shapes disagree or the confusion can't be inverted.

    Source: ``docs/metrics.md``, "Classifier error"; errors are taken as normal, with the delta
        method's covariance.
    """
    sizes = np.atleast_1d(np.asarray(n_per_prompt))
    if sizes.ndim != 1 or sizes.size == 0:
        raise ContractError(f"n_per_prompt must be a vector (P,); seen shape {sizes.shape}")
    for size in sizes:
        check_size(size)
    table = check_confusion(confusion_counts)
    wanted = check_targets(target, sizes.size)
    check_same_groups(wanted.shape[1], len(table))
    _, reason = judge_confusion(confusion_rates(table))
    if reason is not None:
        raise ContractError(f"the confusion can't be undone: {reason}")
    return _floor(wanted, sizes, table)


def _binary_ends(
    counts: NDArray[np.int64], table: NDArray[np.int64], z: float, effect: float = 1.0
) -> tuple[float, float]:
    """Shares p of the first group whose measured share isn't further off than chance puts it.

    Those with (q - p right0 - (1 - p) wrong1)² at most z² times its variance: a quadratic in p,
    whose solutions may lie beyond [0, 1]; every share where the classifier may be no better than
    chance.
    """
    (right0, wrong0), (wrong1, right1) = table.tolist()
    read, of_read = _shrunk(int(counts[0]), int(counts.sum()), z)
    first, of_first = _shrunk(right0, right0 + wrong0, z)
    second, of_second = _shrunk(right1, right1 + wrong1, z)
    slope, gap = first + second - 1, read + second - 1
    square = slope**2 - z**2 * (of_first + of_second)
    if square <= 0:
        return 0.0, 1.0
    linear = gap * slope - z**2 * of_second
    rest = gap**2 - z**2 * (effect * of_read + of_second)
    root = float(np.sqrt(max(0.0, linear**2 - square * rest)))
    return (linear - root) / square, (linear + root) / square


def _shrunk(hits: int, n: int, z: float) -> tuple[float, float]:
    """A rate, shrunk towards a half so that it is never 0, and its variance."""
    rate = (hits + z**2 / 2) / (n + z**2)
    return rate, rate * (1 - rate) / (n + z**2)


def _mapped(low: float, high: float, wanted: Array, value: float) -> DiscrepancyInterval:
    """An interval of the first of two shares, mapped through sqrt(2) |p - t|."""
    ends = np.clip([low, high], 0, 1)
    distances = np.sqrt(2) * np.abs(ends - wanted[0])
    least = 0.0 if low <= wanted[0] <= high else float(distances.min())
    return DiscrepancyInterval(
        value, min(least, value), max(float(distances.max()), value), "fieller"
    )


def _bootstrap(
    counts: NDArray[np.int64],
    table: NDArray[np.int64],
    level: float,
    rng: np.random.Generator,
    effect: float = 1.0,
) -> Array:
    """Errors of corrected shares without their bounds, (resamples, P, K).

    With the bounds a share of exactly 0 or 1 could only err inwards, and no interval would cover
    the truth of a collapsed generator.
    """
    smoothed = table + 0.5
    confusion = np.stack([rng.dirichlet(row, size=RESAMPLES) for row in smoothed], axis=1)
    centre = smoothed / smoothed.sum(axis=1, keepdims=True)
    bases, resampled = zip(*[resample(row, level, rng) for row in counts], strict=True)
    middle = np.stack(bases, axis=1)  # (K, P), as solve wants its columns
    measured = middle + np.sqrt(effect) * (np.stack(resampled, axis=2) - middle)
    drawn = np.swapaxes(np.linalg.solve(np.swapaxes(confusion, 1, 2), measured), 1, 2)
    return np.asarray(drawn - np.linalg.solve(centre.T, middle).T)


def _mean_interval(
    counts: NDArray[np.int64],
    table: NDArray[np.int64],
    wanted: Array,
    point: Array,
    effect: float,
    level: float,
    seed: int,
) -> DiscrepancyInterval:
    errors = _bootstrap(counts, table, level, np.random.default_rng(seed), effect)
    degrees = counts.shape[0] * (counts.shape[1] - 1)
    variances, axes = np.linalg.eigh(np.cov(errors.reshape(len(errors), -1), rowvar=False))
    # Shares sum to 1, so as many directions as there are prompts have no variance.
    inverse = axes[:, -degrees:] / np.sqrt(variances[-degrees:])
    # Images that would leave as much unsure if a judge never erred.
    spread = errors.var(axis=0).sum(axis=1)
    worth = point * ((1 - (point**2).sum(axis=1)) / spread + 1)[:, None]

    def measure(samples: Array) -> Array:
        return np.asarray(np.linalg.norm(samples - wanted, axis=2).mean(axis=1, keepdims=True))

    def deviance(truth: Array) -> float:
        return float((((point - truth).ravel() @ inverse) ** 2).sum())

    def draw(truth: Array, rng: np.random.Generator) -> Array:
        return np.asarray(truth + errors)

    low, high = calibrated_ends(
        point,
        shrunk_shares(worth, level),
        edges_of(worth, wanted),
        measure,
        draw=draw,
        deviance=deviance,
        degrees=degrees,
        level=level,
        seed=seed,
    )
    mean = float(measure(point[None])[0, 0])
    return clipped_interval(mean, float(low[0]), float(high[0]), wanted, "calibrated")


def _floor(
    wanted: Array, sizes: NDArray[np.int64], table: NDArray[np.int64], effect: float = 1.0
) -> float:
    """95 % quantile of the mean over prompts of |error| at a fair generator."""
    inverse = np.linalg.inv(confusion_rates(table))
    smoothed = table + 0.5
    centre = smoothed / smoothed.sum(axis=1, keepdims=True)
    if len(wanted) == 1:
        errors = wanted[0] ** 2 / table.sum(axis=1)
        covariance = effect / int(sizes[0]) * _multinomial(wanted[0] @ confusion_rates(table))
        for weight, row in zip(errors, centre, strict=True):
            covariance = covariance + weight * _multinomial(row)
        return gaussian_floor(inverse.T @ covariance @ inverse)
    rng = np.random.default_rng(_FLOOR_SEED)
    shared = _confusion_errors(table, rng)  # one for all prompts
    total = np.zeros(_FLOOR_DRAWS)
    for aim, size in zip(wanted, sizes, strict=True):
        error = _normal(aim @ confusion_rates(table), int(size), _FLOOR_DRAWS, rng)
        error = np.sqrt(effect) * error - np.einsum("i,dij->dj", aim, shared)
        total += np.linalg.norm(error @ inverse, axis=1)
    return float(quantile(total / len(wanted), FLOOR_LEVEL))


def _confusion_errors(table: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Errors of the rates of a confusion, (draws, true group, classified group)."""
    smoothed = table + 0.5
    centre = smoothed / smoothed.sum(axis=1, keepdims=True)
    rows = zip(centre, table.sum(axis=1), strict=True)
    return np.stack([_normal(row, int(n), _FLOOR_DRAWS, rng) for row, n in rows], axis=1)


def _multinomial(probs: Array) -> Array:
    """Covariance of one multinomial draw, (K, K)."""
    return np.asarray(np.diag(probs) - np.outer(probs, probs), dtype=np.float64)


def _normal(probs: Array, n: int, draws: int, rng: np.random.Generator) -> Array:
    """Normal errors with a multinomial's covariance, (draws, K)."""
    scaled = np.sqrt(probs) * rng.standard_normal((draws, probs.size))
    return np.asarray((scaled - probs * scaled.sum(axis=1, keepdims=True)) / np.sqrt(n))


def _check_effect(design_effect: float) -> None:
    # 0 is fine here: the error of the confusion remains.
    if not (np.isfinite(design_effect) and design_effect >= 0):
        raise ContractError(f"design_effect must be 0 or more; seen {design_effect}")


def _check_rows(
    counts: ArrayLike, target: ArrayLike, num_groups: int
) -> tuple[NDArray[np.int64], Array]:
    """Counts and targets by prompt, both (P, K); one row for plain counts."""
    rows = np.atleast_2d(np.asarray(counts))
    if rows.ndim != 2 or len(rows) == 0:
        raise ContractError(f"counts must have shape (K,) or (P, K); seen {rows.shape}")
    wanted = check_targets(target, len(rows))
    check_same_groups(wanted.shape[1], num_groups)
    return np.stack([check_counts(row, num_groups) for row in rows]), wanted
