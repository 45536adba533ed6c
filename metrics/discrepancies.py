"""The discrepancy under every norm in print.

One generator is "0.20", "0.28", "0.40" or "0.08" unfair at shares (.7, .3), by the paper; the
table of `fairbench.metrics.rosetta` says whose number is which member of the family.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from fairbench.metrics.counting import (
    Array,
    check_counts,
    check_effect,
    check_same_groups,
    check_shares,
    check_size,
    check_target,
    wilson_interval,
)
from fairbench.metrics.counting import shares as shares_of
from fairbench.metrics.fairness import (
    DiscrepancyInterval,
    IntervalMethod,
    discrepancy_interval,
    maximum_radius,
    resample,
    worst_distance,
)

__all__ = [
    "DiscrepancyFamily",
    "Member",
    "discrepancy_family",
    "family_intervals",
    "family_noise_floors",
]

Member = Literal[
    "l2",
    "normalised",
    "squared",
    "l1",
    "tv",
    "kl",
    "pairwise",
    "delta",
    "mad",
    "entropy_gap",
]

_MEMBERS: tuple[Member, ...] = get_args(Member)
_FLOOR_DRAWS = 20_000
_FLOOR_SEED = 20_241  # any constant: the same question must always give the same floor


@dataclass(frozen=True)
class DiscrepancyFamily:
    """One set of shares p against one target t, K groups. All 0 is fair, lower is better.

    Attributes:
        l2: Euclidean norm of p - t, in [0, sqrt(2)]; the one that fairbench ranks.
        normalised: `l2` over its largest possible value for this target, in [0, 1].
        squared: `l2` squared, in [0, 2].
        l1: Sum of |p - t|, in [0, 2].
        tv: Total variation, `l1` / 2, in [0, 1].
        kl: Kullback-Leibler divergence of p from t in nats; infinite if a group with target 0
            has images.
        pairwise: Mean over pairs of groups of |(p_i - t_i) - (p_j - t_j)|, which for a uniform
            target is the published mean of |p_i - p_j|. Collapse gives 2/K there, not 1.
        delta: Largest |p - t| over 1 - min t, its largest possible value, in [0, 1]; the
            published (K |p - 1/K|) / (K - 1) for a uniform target. For another target it alone
            can shrink when a group below its target vanishes.
        mad: Mean over groups of |p - t|, `l1` / K, in [0, 1].
        entropy_gap: `kl` over its largest possible value -ln min t, in [0, 1], which for a
            uniform target is the published 1 - H(p) / ln K. Groups with target 0 leave the
            minimum; 1 as soon as they have images.
    """

    l2: float
    normalised: float
    squared: float
    l1: float
    tv: float
    kl: float
    pairwise: float
    delta: float
    mad: float
    entropy_gap: float

    def columns(self) -> dict[str, float]:
        """The values under their column names, `fairness_discrepancy` for `l2`."""
        return {column_of(name): value for name, value in asdict(self).items()}


def discrepancy_family(shares: ArrayLike, target: ArrayLike) -> DiscrepancyFamily:
    """Every published distance between measured and wanted shares.

    Args:
        shares: Measured shares, (K,), in [0, 1], sum 1: `shares` of hard counts or
            `soft_shares` of probabilities.
        target: Wanted shares, (K,), sums to 1; any target, see `DiscrepancyFamily` for how
            measures published for a uniform one extend.

    Returns:
        The ten members.

    Raises:
        ContractError: If either isn't a vector of shares or the two K differ.

    Source: ``docs/metrics.md``, "Discrepancies"; papers in `fairbench.metrics.rosetta.ROSETTA`.
        Deviation: the extensions of `pairwise`, `delta` and `entropy_gap` to other targets are
        this project's, chosen so that each is 0 only at p = t.
    """
    wanted = check_target(target)
    found = check_shares(shares, "shares")
    check_same_groups(found.size, wanted.size)
    values = _members(found[None], wanted)
    return DiscrepancyFamily(**{name: float(values[name][0]) for name in _MEMBERS})


def family_intervals(
    counts: ArrayLike,
    target: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, DiscrepancyInterval]:
    """Every member with an interval that also holds at a fair generator, by column name.

    `l2`, `normalised` and `squared` are `discrepancy_interval`'s. For K = 2 the others map
    Wilson's interval of the first share, since each grows with the distance from the target on
    either side. For K > 2 the sums of sizes `l1`, `tv`, `mad` and `pairwise` take each term
    clearly off 0 with its sign and bound the others by the triangle inequality; `delta` bounds
    the terms that may be the largest. The square roots of `kl` and `entropy_gap` are treated as
    norms, which they are to second order, up to twice the noise floor; beyond it percentiles.

    Simulated coverage at 95 %, 150 trials a cell: 92…100 % for K = 4, 8, n = 100 and 1000, from
    uniform shares to (.97, .01, .01, .01).

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), sums to 1.
        design_effect: Variance of the counts over that of independent images, above 0, from
            `fairbench.metrics.clusters` for images that batches couple.
        level: Confidence level in (0, 1).
        seed: Seed of the 2000 resamples; unused for K = 2.

    Returns:
        Column name -> value and interval.

    Raises:
        ContractError: If there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Discrepancies".
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    found = shares_of(numbers)
    base = discrepancy_interval(
        numbers, wanted, design_effect=design_effect, level=level, seed=seed
    )
    worth = numbers / check_effect(design_effect)
    if wanted.size == 2:
        ends = _wilson_family(worth, wanted, level)
    else:
        ends = _resampled_family(worth, wanted, level, seed, base.method)
    worst = worst_distance(wanted)
    ends["l2"] = (base.low, base.high, base.method)
    ends["normalised"] = (base.low / worst, base.high / worst, base.method)
    ends["squared"] = (base.low**2, base.high**2, base.method)
    values = _members(found[None], wanted)
    largest = _members(np.eye(wanted.size), wanted)
    intervals = {}
    for name in _MEMBERS:
        value = float(values[name][0])
        low, high, method = ends[name]
        high = min(high, float(largest[name].max()))
        intervals[column_of(name)] = DiscrepancyInterval(
            value, min(max(low, 0.0), value), max(high, value), method
        )
    return intervals


def family_noise_floors(target: ArrayLike, n: int) -> dict[str, float]:
    """Value of every member that a fair generator stays below in 95 % of samples.

    Args:
        target: Wanted shares, (K,), sums to 1.
        n: Number of images, positive.

    Returns:
        Column name -> floor, from 20,000 simulated samples of n images, to about 1 %. The
        floors of norms move in steps of 1/n, so `l2` differs a little from `noise_floor`.

    Raises:
        ContractError: If the target isn't a vector of shares or n isn't positive.

    Source: ``docs/metrics.md``, "Floors".
    """
    wanted = check_target(target)
    check_size(n)
    rng = np.random.default_rng(_FLOOR_SEED)
    drawn = rng.multinomial(n, wanted / wanted.sum(), size=_FLOOR_DRAWS) / n
    values = _members(drawn, wanted)
    return {column_of(name): float(np.quantile(values[name], 0.95)) for name in _MEMBERS}


def column_of(member: str) -> str:
    """The column that holds a member of the family."""
    return "fairness_discrepancy" if member == "l2" else f"fairness_discrepancy_{member}"


def _members(found: Array, wanted: Array) -> dict[Member, Array]:
    """All members of rows of shares, (R, K) -> name -> (R,)."""
    gaps = found - wanted
    sizes = np.abs(gaps)
    num_groups = wanted.size
    l2 = np.linalg.norm(gaps, axis=1)
    l1 = sizes.sum(axis=1)
    kl = _divergence(found, wanted)
    first, second = np.triu_indices(num_groups, 1)
    return {
        "l2": l2,
        "normalised": l2 / worst_distance(wanted),
        "squared": l2**2,
        "l1": l1,
        "tv": l1 / 2,
        "kl": kl,
        "pairwise": np.abs(gaps[:, first] - gaps[:, second]).mean(axis=1),
        "delta": sizes.max(axis=1) / (1 - wanted.min()),
        "mad": l1 / num_groups,
        "entropy_gap": np.minimum(kl * _entropy_scale(wanted), 1),
    }


def _divergence(found: Array, wanted: Array) -> Array:
    """Kullback-Leibler divergence of rows from the target, 0 ln 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(found > 0, found * np.log(found / wanted), 0.0)
    # Rounding leaves about -1e-17 at p = t.
    return np.asarray(np.maximum(terms.sum(axis=1), 0), dtype=np.float64)


def _wilson_family(
    counts: Array, wanted: Array, level: float
) -> dict[Member, tuple[float, float, IntervalMethod]]:
    low, high = (float(end) for end in wilson_interval(counts[0], counts.sum(), level=level))
    ends = np.array([[low, 1 - low], [high, 1 - high]])
    values = _members(ends, wanted)
    covered = low <= wanted[0] <= high
    return {
        name: (0.0 if covered else float(values[name].min()), float(values[name].max()), "wilson")
        for name in _MEMBERS
    }


def _resampled_family(
    counts: Array, wanted: Array, level: float, seed: int, base: IntervalMethod
) -> dict[Member, tuple[float, float, IntervalMethod]]:
    """Ends of the other members from the resamples that `discrepancy_interval` draws."""
    centre, drawn = resample(counts, level, np.random.default_rng(seed))
    gaps, errors = shares_of(counts) - wanted, drawn - centre
    first, second = np.triu_indices(wanted.size, 1)
    pair_gaps, pair_errors = gaps[first] - gaps[second], errors[:, first] - errors[:, second]
    l1, l1_radius, l1_method = _sum_of_sizes(gaps, errors, level)
    pairwise, pairwise_radius, pairwise_method = _sum_of_sizes(pair_gaps, pair_errors, level)
    largest = float(np.abs(gaps).max())
    delta_radius = maximum_radius(np.abs(gaps), errors, level)
    terms: tuple[tuple[Member, float, float, float, IntervalMethod], ...] = (
        ("l1", l1, l1_radius, 1.0, l1_method),
        ("tv", l1, l1_radius, 2.0, l1_method),
        ("mad", l1, l1_radius, float(wanted.size), l1_method),
        ("pairwise", pairwise, pairwise_radius, float(first.size), pairwise_method),
        ("delta", largest, delta_radius, float(1 - wanted.min()), "triangle"),
    )
    ends: dict[Member, tuple[float, float, IntervalMethod]] = {
        name: ((value - radius) / scale, (value + radius) / scale, method)
        for name, value, radius, scale, method in terms
    }
    low, high = _divergence_ends(counts, wanted, centre, drawn, level, base)
    scale = _entropy_scale(wanted)
    ends["kl"] = (low, high, base)
    ends["entropy_gap"] = (low * scale, high * scale, base)
    return ends


def _sum_of_sizes(gaps: Array, errors: Array, level: float) -> tuple[float, float, IntervalMethod]:
    """Σ |gap| with the radius of its interval.

    A gap clearly off 0 errs with its sign, and such errors cancel; |gap| of one near 0 can only
    err upwards. One percentile bootstrap over both covered in as few as 31 % of trials.
    """
    far = np.abs(gaps) > 3 * errors.std(axis=0)
    signed = errors[:, far] @ np.sign(gaps[far])
    unsigned = np.abs(errors[:, ~far]).sum(axis=1)
    radius = float(np.quantile(np.abs(signed) + unsigned, level))
    return float(np.abs(gaps).sum()), radius, "mixed" if far.any() else "triangle"


def _divergence_ends(
    counts: Array,
    wanted: Array,
    centre: Array,
    drawn: Array,
    level: float,
    base: IntervalMethod,
) -> tuple[float, float]:
    if base == "percentile":
        # An infinite divergence can't be interpolated.
        low, high = np.quantile(
            _divergence(drawn, wanted), [(1 - level) / 2, (1 + level) / 2], method="nearest"
        )
        return float(low), float(high)
    root = float(np.sqrt(_divergence(shares_of(counts)[None], wanted)[0]))
    radius = float(np.sqrt(np.quantile(_divergence(drawn, centre), level)))
    return max(0.0, root - radius) ** 2, (root + radius) ** 2


def _entropy_scale(wanted: Array) -> float:
    """1 over the divergence of the rarest wanted group, or 1 where only one is wanted."""
    held = wanted[wanted > 0]
    return float(-1 / np.log(held.min())) if held.size > 1 else 1.0
