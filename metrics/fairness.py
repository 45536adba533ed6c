"""How far the shares of generated groups lie from the wanted ones, and how sure that is.

Every interval here assumes independent images unless a design effect says how many of them one
independent image is worth; `fairbench.metrics.clusters` finds it for images that batches couple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.calibration import (
    Measure,
    calibrated_ends,
    calibrated_interval,
    edges_of,
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
    "mean_soft_interval",
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

IntervalMethod = Literal["wilson", "fieller", "triangle", "percentile", "mixed", "calibrated"]

RESAMPLES = 2000
_SOFT_DRAWS = 1000
_SLOW_DRAWS = 250  # of numbers that are taken table by table
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
    - K > 2: what the value errs by at the shares that the counts leave plausible, simulated, see
      `fairbench.metrics.calibration`; `"calibrated"`.

    Simulated coverage at 95 %, 150 trials a cell, n = 400, at, near and far from a uniform target
    and near a collapse (`tests/simulation/coverage.py`): 95…97 % for K = 2, 97…99 % for K = 4,
    93…99 % for K = 8.

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), sums to 1.
        design_effect: Variance of the counts over that of independent images, above 0, from
            `fairbench.metrics.clusters` for images that batches couple.
        level: Confidence level in (0, 1).
        seed: Of the draws; unused for K = 2.

    Returns:
        The value and its interval within [0, the distance to the worst vertex].

    Raises:
        ContractError: If there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Discrepancies". Deviation: the counts' shares are first shrunk
        towards uniform by z² / (2 (K - 1)) images a group, after Agresti and Coull 1998; drawn
        from the plain shares the interval of a total collapse has no width at all.
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    return mean_discrepancy_interval(
        numbers[None], wanted, design_effect=design_effect, level=level, seed=seed
    )


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
        seed: Of the draws.

    Returns:
        The value with its interval, and the 95 % floor of a fair generator whose probabilities
        scatter as these do.

    Raises:
        ContractError: If N < 2, rows aren't probabilities or the two K differ.

    Source: arXiv 2402.18206 and ``docs/metrics.md``, "Shares and targets".
    """
    found, floor = mean_soft_interval(
        [probs], target, design_effect=design_effect, level=level, seed=seed
    )
    assert floor is not None
    return found, floor


def mean_soft_interval(
    tables: Sequence[ArrayLike],
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[DiscrepancyInterval, float | None]:
    """Mean over prompts of `soft_discrepancy_interval`'s value, with an interval of that mean.

    Simulated coverage at 95 %, 100 trials a cell, probabilities from Dirichlet distributions whose
    mean is fair, slightly off, far off or near a collapse: 94…100 % for 1 and 5 prompts of 100
    images, K = 2, 4 and 8; 95…100 % for 20 prompts, K = 2.

    Args:
        tables: Group probabilities of each prompt's images, (N, K) floats each, N >= 2.
        target: Wanted shares of every prompt, (K,), sums to 1.
        design_effect: As in `soft_discrepancy_interval`.
        level: Confidence level in (0, 1).
        seed: Of the draws.

    Returns:
        The mean with its interval, calibrated at the mean probabilities that are plausible, see
        `fairbench.metrics.calibration`; and the floor of a single prompt, else None.

    Raises:
        ContractError: As `soft_discrepancy_interval`, or if there is no prompt.

    Source: ``docs/metrics.md``, "Prompts". The mean of N rows is taken as normal with their
        covariance / N, shrunk as counts are, instead of being resampled, which costs N times less
        and agrees from about 100 images on.
    """
    z = normal_quantile(level)
    wanted = check_target(target)
    if not tables:
        raise ContractError("need the probabilities of one prompt or more; seen none")
    check_effect(design_effect)
    found, centre, roots, floor = [], [], [], None
    added = z**2 / (2 * (wanted.size - 1))
    for table in tables:
        rows = np.asarray(table)
        found.append(soft_shares(rows, wanted.size))
        if len(rows) < 2:
            raise ContractError("an interval of mean probabilities needs 2 images or more; seen 1")
        rows = rows.astype(np.float64)
        if len(tables) == 1:
            plain = np.cov(rows, rowvar=False) / len(rows) * design_effect
            floor = gaussian_floor(plain)
        # Sure answers of one group would leave no width; as counts do, each group gets some more.
        weight = np.append(np.ones(len(rows)), np.full(wanted.size, added * design_effect))
        rows = np.concatenate([rows, np.eye(wanted.size)])
        total = weight.sum()
        middle = weight @ rows / total
        centre.append(middle)
        scatter = (weight[:, None] * (rows - middle)).T @ (rows - middle) / total
        values, vectors = np.linalg.eigh(scatter * design_effect / total)
        roots.append(vectors * np.sqrt(np.maximum(values, 0)))
    shares, middles, factors = np.stack(found), np.stack(centre), np.stack(roots)
    inverse = np.linalg.pinv(factors, rcond=1e-6)
    normals = np.random.default_rng(seed).standard_normal((_SOFT_DRAWS, *shares.shape))
    errors = np.einsum("pij,rpj->rpi", factors, normals)

    def draw(truth: Array, rng: np.random.Generator) -> Array:
        return np.asarray(truth + errors)

    def far(truth: Array) -> Array:
        return np.asarray(np.einsum("pij,pj->pi", inverse, shares - truth))

    def measure(samples: Array) -> Array:
        return np.asarray(np.linalg.norm(samples - wanted, axis=2).mean(axis=1, keepdims=True))

    targets = np.tile(wanted, (len(shares), 1))
    near = (far(targets) ** 2).sum(axis=1, keepdims=True) <= 2 * z**2 * (wanted.size - 1)
    edges = [targets, np.where(near, targets, middles), np.eye(wanted.size)[shares.argmax(axis=1)]]
    low, high = calibrated_ends(
        shares,
        middles,
        edges,
        measure,
        draw=draw,
        deviance=lambda truth: float((far(truth) ** 2).sum()),
        degrees=len(shares) * (wanted.size - 1),
        level=level,
        seed=seed,
    )
    value = float(measure(shares[None])[0, 0])
    return clipped_interval(value, float(low[0]), float(high[0]), wanted, "calibrated"), floor


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

    Simulated coverage: ``mean`` of `tests/simulation/coverage.py`. Checked so far in small
    samples only: 60 trials of 5 and 20 fair prompts, K = 2, held 0 in 95 and 98 %.

    Args:
        counts: Images of each declared group by prompt, (P, K) whole numbers, zeros included.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        design_effect: As in `discrepancy_interval`.
        level: Confidence level in (0, 1).
        seed: Of the draws.

    Returns:
        The value and its interval, found as `discrepancy_interval` does, over all prompts at once:
        errors of prompts far from the target cancel, those of fair ones only push up.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: ``docs/metrics.md``, "Prompts".
    """
    wanted, numbers = check_prompts(counts, targets)
    worth = numbers / check_effect(design_effect)

    def measure(samples: Array) -> Array:
        return np.asarray(np.linalg.norm(samples - wanted, axis=2).mean(axis=1, keepdims=True))

    shares = numbers / numbers.sum(axis=1, keepdims=True)
    value = float(measure(shares[None])[0, 0])
    if worth.shape == (1, 2):
        return _wilson_discrepancy(worth[0], wanted[0], value, level)
    low, high = calibrated_interval(
        worth, edges_of(worth, wanted), measure, level=level, seed=seed
    )
    return clipped_interval(value, float(low[0]), float(high[0]), wanted, "calibrated")


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
        seed: Seed of the 250 draws from each plausible truth.

    Returns:
        Ends that contain the value and lie within what is possible, see
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
    wanted = np.full(worth.size, 1 / worth.size) if target is None else np.ravel(target)
    lows, highs = calibrated_interval(
        worth.reshape(1, -1),
        table_edges(worth, wanted.reshape(worth.shape)),
        measure,
        level=level,
        seed=seed,
        draws=draws,
    )
    return float(lows[0]), float(highs[0])


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
    base = shrunk_shares(np.asarray(counts, dtype=np.float64), level)
    return base, rng.multinomial(n, base, size=RESAMPLES) / n


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
