"""How far the shares of generated groups lie from the wanted ones, and how sure that is.

K always comes from the task's declared groups, never from the labels seen, so a group that nobody
generated counts as a share of 0. Every interval assumes independent images; images that one
batch couples need another.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.errors import ContractError

__all__ = [
    "DiscrepancyInterval",
    "count_groups",
    "discrepancy_interval",
    "discrepancy_of_shares",
    "fairness_discrepancy",
    "mean_discrepancy_interval",
    "mean_noise_floor",
    "noise_floor",
    "noise_floor_for",
    "shares",
    "wilson_interval",
]

Array = NDArray[np.float64]

_RESAMPLES = 2000
_FLOOR_DRAWS = 100_000
_FLOOR_SEED = 20_240  # any constant: the same question must always give the same floor
_FLOOR_LEVEL = 0.95
_SUM_TOLERANCE = 1e-6
_ROW_TOLERANCE = 1e-4  # a float16 or float32 softmax does not sum to 1 any closer


@dataclass(frozen=True)
class DiscrepancyInterval:
    """A fairness discrepancy with its confidence interval.

    Attributes:
        value: The discrepancy, in [0, sqrt(2)]; lower is better.
        low, high: Ends of the interval; low <= value <= high.
        method: How the ends were found. `"mixed"`: some prompts by `"triangle"`, the others by
            `"percentile"`.
    """

    value: float
    low: float
    high: float
    method: Literal["wilson", "triangle", "percentile", "mixed"]


def count_groups(labels: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    """Count the images of each declared group.

    Args:
        labels: Group index of each image, (N,) integers in [0, K).
        num_groups: K, the number of declared groups.

    Returns:
        Counts, (K,) int64; a group without any image keeps its 0.

    Raises:
        ContractError: If N is 0, or labels aren't a vector of integers in [0, K).
    """
    found = np.asarray(labels)
    if found.ndim != 1 or found.size == 0:
        raise ContractError(f"labels must be a non-empty vector (N,); seen shape {found.shape}")
    if found.dtype.kind not in "iu":
        raise ContractError(f"labels must be integers; seen {found.dtype}")
    if num_groups < 1:
        raise ContractError(f"num_groups must be 1 or more; seen {num_groups}")
    if found.min() < 0 or found.max() >= num_groups:
        raise ContractError(
            f"labels must lie in 0…{num_groups - 1}; seen {found.min()}…{found.max()}: "
            "declare the group or drop the image as invalid"
        )
    return np.bincount(found.astype(np.int64), minlength=num_groups).astype(np.int64)


def shares(counts: ArrayLike) -> Array:
    """Turn counts of all declared groups into shares.

    Args:
        counts: Images of each group, (K,), finite and not negative, zeros included.

    Returns:
        Shares, (K,) float64 in [0, 1], sum 1.

    Raises:
        ContractError: If there are no groups or no images; an empty set isn't a fair one.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ContractError(f"counts must be a non-empty vector (K,); seen shape {numbers.shape}")
    if not np.isfinite(numbers).all() or numbers.min() < 0:
        raise ContractError(f"counts must be finite and not negative; seen {numbers.tolist()}")
    total = numbers.sum()
    if total == 0:
        raise ContractError("counts must hold at least one image; seen only zeros")
    return np.asarray(numbers / total, dtype=np.float64)


@overload
def wilson_interval(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]: ...
@overload
def wilson_interval(
    k: ArrayLike, n: ArrayLike, *, level: float = 0.95
) -> tuple[float, float] | tuple[Array, Array]: ...
def wilson_interval(
    k: ArrayLike, n: ArrayLike, *, level: float = 0.95
) -> tuple[float, float] | tuple[Array, Array]:
    """Confidence interval of a share by Wilson's score method.

    Args:
        k: Images in the group, a number or an array, in [0, n].
        n: Images in all, broadcast against `k`, positive.
        level: Confidence level in (0, 1).

    Returns:
        Lower and upper ends in [0, 1], float64 of the broadcast shape, plain floats for two
        numbers. The lower end is exactly 0 at k = 0, the upper exactly 1 at k = n.

    Raises:
        ContractError: If a count is out of range or the shapes can't be broadcast.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    z = _normal_quantile(level)
    hits, trials = _broadcast_counts(k, n)
    share = hits / trials
    weight = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / weight
    half = z / weight * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding leaves about 1e-17 where the formula's end is exactly 0 or 1.
    low = np.where(hits == 0, 0.0, centre - half)
    high = np.where(hits == trials, 1.0, centre + half)
    if low.ndim == 0:
        return float(low), float(high)
    return low, high


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
    wanted = _check_target(target)
    found = np.asarray(probs_or_labels)
    if found.ndim == 2:
        return discrepancy_of_shares(_mean_probabilities(found, wanted.size), wanted)
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
    wanted = _check_target(target)
    found = _check_shares(shares, "shares")
    _check_same_groups(found.size, wanted.size)
    return float(np.linalg.norm(found - wanted))


def discrepancy_interval(
    counts: ArrayLike, target: ArrayLike, *, level: float = 0.95, seed: int = 0
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
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples; unused for K = 2.

    Returns:
        The value and its interval within [0, the distance to the worst vertex].

    Raises:
        ContractError: If there are no images or the two K differ.

    Source: metric card B5. Deviation: resamples are drawn from shares shrunk towards uniform by
        z² / (2 (K - 1)) images a group, after Agresti and Coull 1998; drawn from the plain shares
        the interval of a total collapse has no width at all.
    """
    wanted = _check_target(target)
    numbers = _check_counts(counts, wanted.size)
    value = discrepancy_of_shares(shares(numbers), wanted)
    if wanted.size == 2:
        return _wilson_discrepancy(numbers, wanted, value, level)
    base, drawn = _resample(numbers, level, np.random.default_rng(seed))
    if _is_far(value, wanted, int(numbers.sum())):
        distances = np.linalg.norm(drawn - wanted, axis=1)
        low, high = np.quantile(distances, [(1 - level) / 2, (1 + level) / 2])
        return _clipped(value, low, high, wanted, "percentile")
    radius = float(np.quantile(np.linalg.norm(drawn - base, axis=1), level))
    return _clipped(value, value - radius, value + radius, wanted, "triangle")


def mean_discrepancy_interval(
    counts: ArrayLike, targets: ArrayLike, *, level: float = 0.95, seed: int = 0
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
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples.

    Returns:
        The value and its interval; `discrepancy_interval`'s own for a single prompt.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: metric card B5, B7; the split into A and C is this project's. Resamples are shrunk as
        in `discrepancy_interval`.
    """
    wanted, numbers = _check_prompts(counts, targets)
    if len(numbers) == 1:
        return discrepancy_interval(numbers[0], wanted[0], level=level, seed=seed)
    rng = np.random.default_rng(seed)
    values = np.linalg.norm(numbers / numbers.sum(axis=1, keepdims=True) - wanted, axis=1)
    signed, unsigned = np.zeros(_RESAMPLES), np.zeros(_RESAMPLES)
    num_far = 0
    for row, aim, value in zip(numbers, wanted, values, strict=True):
        base, drawn = _resample(row, level, rng)
        if _is_far(float(value), aim, int(row.sum())):
            num_far += 1
            signed += np.linalg.norm(drawn - aim, axis=1) - np.linalg.norm(base - aim)
        else:
            unsigned += np.linalg.norm(drawn - base, axis=1)
    radius = float(np.quantile(np.abs(signed) + unsigned, level)) / len(values)
    mean = float(values.mean())
    method: Literal["triangle", "percentile", "mixed"] = "mixed"
    if num_far in (0, len(values)):
        method = "percentile" if num_far else "triangle"
    return _clipped(mean, mean - radius, mean + radius, wanted, method)


def noise_floor(n: int, num_groups: int) -> float:
    """Discrepancy that a perfectly fair generator stays below in 95 % of samples.

    Args:
        n: Number of images, positive.
        num_groups: K, 2 or more; the target is uniform.

    Returns:
        sqrt(chi-square quantile / (n K)), for n large enough that every group is expected about
        five times; a value below it can't be told from fair.

    Raises:
        ContractError: If n or K is too small.

    Source: metric card B5.
    """
    from scipy.special import chdtri  # 0.2 s, and importing metrics should stay cheap

    if num_groups < 2:
        raise ContractError(f"num_groups must be 2 or more; seen {num_groups}")
    _check_size(n)
    quantile = float(chdtri(num_groups - 1, 1 - _FLOOR_LEVEL))
    return float(np.sqrt(quantile / (n * num_groups)))


def noise_floor_for(target: ArrayLike, n: int) -> float:
    """The noise floor for any target; `noise_floor` where all wanted shares that aren't 0 agree.

    Args:
        target: Wanted shares, (K,), sums to 1. Groups with target 0 never occur in a fair
            sample, so they change nothing.
        n: Number of images, positive.

    Returns:
        95 % quantile of the discrepancy of a generator whose shares are the target, to about
        0.5 %; 0 if the target is a single group.

    Raises:
        ContractError: If the target isn't a vector of shares or n isn't positive.

    Source: metric card B5; n D² tends to a chi-square mixture weighted by the eigenvalues of
        diag(t) - t tᵀ.
    """
    wanted = _check_target(target)
    _check_size(n)
    held = wanted[wanted > 0]
    if held.size < 2:
        return 0.0
    if np.allclose(held, 1 / held.size, rtol=0, atol=_SUM_TOLERANCE):
        return noise_floor(n, held.size)
    draws = _fair_discrepancies(wanted, n, np.random.default_rng(_FLOOR_SEED))
    return float(np.quantile(draws, _FLOOR_LEVEL))


def mean_noise_floor(n_per_prompt: ArrayLike, targets: ArrayLike) -> float:
    """The noise floor of a mean over prompts of per-prompt discrepancies.

    Args:
        n_per_prompt: Images of each prompt, (P,) positive whole numbers.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.

    Returns:
        95 % quantile of the mean discrepancy when every prompt is fair, to about 0.5 %;
        `noise_floor_for` for a single prompt.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: metric card B5, B7.
    """
    sizes = np.atleast_1d(np.asarray(n_per_prompt))
    if sizes.ndim != 1 or sizes.size == 0:
        raise ContractError(f"n_per_prompt must be a vector (P,); seen shape {sizes.shape}")
    wanted = _check_targets(targets, sizes.size)
    for size in sizes:
        _check_size(size)
    if sizes.size == 1:
        return noise_floor_for(wanted[0], int(sizes[0]))
    rng = np.random.default_rng(_FLOOR_SEED)
    total = np.zeros(_FLOOR_DRAWS)
    for aim, size in zip(wanted, sizes, strict=True):
        total += _fair_discrepancies(aim, int(size), rng)
    return float(np.quantile(total / sizes.size, _FLOOR_LEVEL))


def _fair_discrepancies(target: Array, n: int, rng: np.random.Generator) -> Array:
    """Discrepancies of fair samples of n images, (draws,), in the limit of large n."""
    weights = np.linalg.eigvalsh(np.diag(target) - np.outer(target, target))
    squared: Array = np.zeros(_FLOOR_DRAWS)
    for weight in weights[weights > 1e-12]:
        squared += weight * rng.standard_normal(_FLOOR_DRAWS) ** 2
    return np.sqrt(squared / n)


def _wilson_discrepancy(
    counts: NDArray[np.int64], target: Array, value: float, level: float
) -> DiscrepancyInterval:
    """Wilson's interval of the first of two shares, mapped through sqrt(2) |p - t|."""
    ends = wilson_interval(int(counts[0]), int(counts.sum()), level=level)
    distances = [float(np.sqrt(2) * abs(end - target[0])) for end in ends]
    low = 0.0 if ends[0] <= target[0] <= ends[1] else min(distances)
    return DiscrepancyInterval(value, min(low, value), max(*distances, value), "wilson")


def _resample(
    counts: NDArray[np.int64], level: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Shrunk shares (K,) and shares resampled from them, (resamples, K)."""
    n = int(counts.sum())
    # Half z² images in the K - 1 other groups of a collapsed sample: Wilson's centre at K = 2.
    added = _normal_quantile(level) ** 2 / (2 * (counts.size - 1))
    base = np.asarray((counts + added) / (n + added * counts.size), dtype=np.float64)
    return base, rng.multinomial(n, base, size=_RESAMPLES) / n


def _is_far(value: float, target: Array, n: int) -> bool:
    """Whether a discrepancy is far enough from 0 for its error to be nearly symmetric."""
    return value > 2 * noise_floor_for(target, n)


def _clipped(
    value: float,
    low: float,
    high: float,
    targets: Array,
    method: Literal["triangle", "percentile", "mixed"],
) -> DiscrepancyInterval:
    """An interval cut to what a discrepancy can be, and never without its value."""
    rows = np.atleast_2d(targets)
    worst = np.sqrt(np.maximum(0, 1 - 2 * rows.min(axis=1) + (rows**2).sum(axis=1))).mean()
    low, high = max(0.0, float(low)), min(float(worst), float(high))
    return DiscrepancyInterval(value, min(low, value), max(high, value), method)


def _mean_probabilities(probs: NDArray[np.generic], num_groups: int) -> Array:
    """Mean over images of checked group probabilities, (K,), sum 1."""
    if probs.dtype.kind != "f":
        raise ContractError(f"group probabilities must be floats; seen {probs.dtype}")
    if len(probs) == 0:
        raise ContractError(f"expected at least one image; seen shape {probs.shape}")
    _check_same_groups(probs.shape[1], num_groups)
    rows = probs.astype(np.float64)
    if not np.isfinite(rows).all() or rows.min() < -_ROW_TOLERANCE:
        raise ContractError("group probabilities must be finite and not negative")
    sums = rows.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _ROW_TOLERANCE:
        raise ContractError(
            f"rows of group probabilities must sum to 1; row {worst} sums to {sums[worst]:g}: "
            "pass probabilities, not logits"
        )
    mean = np.maximum(rows.mean(axis=0), 0)
    return np.asarray(mean / mean.sum(), dtype=np.float64)


def _check_shares(values: ArrayLike, name: str) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ContractError(f"{name} must be a non-empty vector (K,); seen shape {vector.shape}")
    sound = np.isfinite(vector).all() and vector.min() >= 0
    if not sound or abs(vector.sum() - 1) > _SUM_TOLERANCE:
        raise ContractError(f"{name} must be in [0, 1] and sum to 1; seen {vector.tolist()}")
    return vector


def _check_target(target: ArrayLike) -> Array:
    wanted = _check_shares(target, "target")
    if wanted.size < 2:
        raise ContractError("target must name 2 groups or more; seen 1")
    return wanted


def _check_targets(targets: ArrayLike, num_prompts: int) -> Array:
    """Targets as (P, K), one row repeated for all prompts if there is only one."""
    rows = np.asarray(targets, dtype=np.float64)
    if rows.ndim == 1:
        return np.tile(_check_target(rows), (num_prompts, 1))
    if rows.ndim != 2 or len(rows) != num_prompts:
        raise ContractError(
            f"targets must have shape (K,) or ({num_prompts}, K); seen {rows.shape}"
        )
    return np.stack([_check_target(row) for row in rows])


def _check_prompts(counts: ArrayLike, targets: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Targets and counts, both (P, K)."""
    table = np.asarray(counts)
    if table.ndim != 2 or len(table) == 0:
        raise ContractError(f"counts must have shape (P, K); seen {table.shape}")
    wanted = _check_targets(targets, len(table))
    numbers = np.stack([_check_counts(row, wanted.shape[1]) for row in table])
    return wanted, numbers


def _check_counts(counts: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    numbers = np.asarray(counts, dtype=np.float64)
    shares(numbers)  # its checks: a vector, finite, not negative, not empty
    _check_same_groups(numbers.size, num_groups)
    if not (numbers == np.floor(numbers)).all():
        raise ContractError(f"counts must be whole numbers; seen {numbers.tolist()}")
    return numbers.astype(np.int64)


def _check_same_groups(seen: int, num_groups: int) -> None:
    if seen != num_groups:
        raise ContractError(
            f"expected {num_groups} groups as in the target; seen {seen}: "
            "count over the declared groups, not the observed ones"
        )


def _check_size(n: float) -> None:
    if not n >= 1 or n != int(n):
        raise ContractError(f"the number of images must be a whole number above 0; seen {n}")


def _broadcast_counts(k: ArrayLike, n: ArrayLike) -> tuple[Array, Array]:
    try:
        hits, trials = np.broadcast_arrays(
            np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
        )
    except ValueError as error:
        raise ContractError(f"k and n must have shapes that broadcast; {error}") from error
    # Written so that NaN fails too.
    if not ((trials > 0) & (hits >= 0) & (hits <= trials) & np.isfinite(trials)).all():
        raise ContractError(f"need 0 <= k <= n and n > 0; seen k = {k!r}, n = {n!r}")
    return np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)


def _normal_quantile(level: float) -> float:
    """Two-sided standard normal quantile, 1.96 at 95 %."""
    if not 0 < level < 1:
        raise ContractError(f"level must lie between 0 and 1; seen {level}")
    return NormalDist().inv_cdf((1 + level) / 2)
