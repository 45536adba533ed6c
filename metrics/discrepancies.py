"""The discrepancy under every norm in print.

One generator is "0.20", "0.28", "0.40" or "0.08" unfair at shares (.7, .3), by the paper; the
table of `fairbench.metrics.rosetta` says whose number is which member of the family.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from fairbench.metrics.calibration import calibrated_interval, edges_of
from fairbench.metrics.counting import (
    Array,
    check_counts,
    check_effect,
    check_prompts,
    check_same_groups,
    check_shares,
    check_size,
    check_target,
    wilson_interval,
)
from fairbench.metrics.fairness import (
    DiscrepancyInterval,
    IntervalMethod,
    mean_discrepancy_interval,
    worst_distance,
)

__all__ = [
    "DiscrepancyFamily",
    "Member",
    "discrepancy_family",
    "family_intervals",
    "family_noise_floors",
    "family_of_fair",
    "mean_family_intervals",
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
    either side. For K > 2 they are calibrated: `fairbench.metrics.calibration` asks by how much
    each errs at the truths that the counts leave plausible.

    Simulated coverage at 95 %, 300 trials a cell, n = 100 and 1000: 95…100 % for K = 4, from
    uniform shares to (.97, .01, .01, .01), where the largest possible value bounds the interval,
    and 96…99 % for 8 uniform shares; ``family`` of `tests/simulation/coverage.py` has the rest.

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), sums to 1.
        design_effect: Variance of the counts over that of independent images, above 0, from
            `fairbench.metrics.clusters` for images that batches couple.
        level: Confidence level in (0, 1).
        seed: Seed of the draws; unused for K = 2.

    Returns:
        Column name -> value and interval. The upper end of `kl` is infinite where a group with
        target 0 may have images, though none was seen.

    Raises:
        ContractError: If there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Discrepancies".
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    return mean_family_intervals(
        numbers[None], wanted, design_effect=design_effect, level=level, seed=seed
    )


def mean_family_intervals(
    counts: ArrayLike,
    targets: ArrayLike,
    *,
    design_effect: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, DiscrepancyInterval]:
    """Mean over prompts of every member, with an interval of that mean, by column name.

    The mean of the prompts' own ends would be no interval of anything: at 20 fair prompts of 100
    images it held 0 in 30 % of trials, since noise pushes every prompt up and nothing cancels.

    Simulated: `l1` of 5 and 20 fair prompts, K = 2, held 0 in 95 and 98 % of 60 trials; the table
    is ``family`` of `tests/simulation/coverage.py`.

    Args:
        counts: Images of each declared group by prompt, (P, K) whole numbers, zeros included.
        targets: Wanted shares, (K,) for all prompts or (P, K); rows sum to 1.
        design_effect: As in `family_intervals`.
        level: Confidence level in (0, 1).
        seed: Seed of the draws.

    Returns:
        Column name -> mean and interval; `family_intervals`'s own for a single prompt. `l2` is
        `mean_discrepancy_interval`'s.

    Raises:
        ContractError: If a prompt has no images or the shapes disagree.

    Source: ``docs/metrics.md``, "Prompts".
    """
    wanted, numbers = check_prompts(counts, targets)
    found = numbers / numbers.sum(axis=1, keepdims=True)
    worth = numbers / check_effect(design_effect)

    def measure(samples: Array) -> Array:
        each = [_members(samples[:, p], aim) for p, aim in enumerate(wanted)]
        return np.stack(
            [np.mean([one[name] for one in each], axis=0) for name in _MEMBERS], axis=1
        )

    method: IntervalMethod = "calibrated"
    if worth.shape == (1, 2):
        ends, method = _wilson_family(worth[0], wanted[0], level), "wilson"
    else:
        low, high = calibrated_interval(
            worth, edges_of(worth, wanted), measure, level=level, seed=seed
        )
        ends = {name: (low[i], high[i]) for i, name in enumerate(_MEMBERS)}
    values = dict(zip(_MEMBERS, measure(found[None])[0], strict=True))
    largest = [_members(np.eye(aim.size), aim) for aim in wanted]
    intervals = {}
    for name in _MEMBERS:
        value, (least, most) = float(values[name]), ends[name]
        most = min(float(most), float(np.mean([one[name].max() for one in largest])))
        intervals[column_of(name)] = DiscrepancyInterval(
            value, min(max(float(least), 0.0), value), max(most, value), method
        )
    base = mean_discrepancy_interval(
        numbers, wanted, design_effect=design_effect, level=level, seed=seed
    )
    intervals[column_of("l2")] = base
    worst = [worst_distance(aim) for aim in wanted]
    if np.ptp(worst) < 1e-12:
        intervals[column_of("normalised")] = DiscrepancyInterval(
            base.value / worst[0], base.low / worst[0], base.high / worst[0], base.method
        )
    if len(numbers) == 1:
        intervals[column_of("squared")] = DiscrepancyInterval(
            base.value**2, base.low**2, base.high**2, base.method
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


def family_of_fair(target: ArrayLike, n: int) -> dict[str, float]:
    """Mean of every member over samples of a perfectly fair generator.

    Args:
        target: Wanted shares, (K,), sums to 1.
        n: Number of images, positive.

    Returns:
        Member -> its mean over 20,000 simulated samples of n images, to about 1 %.

    Raises:
        ContractError: If the target isn't a vector of shares or n isn't positive.
    """
    wanted = check_target(target)
    check_size(n)
    rng = np.random.default_rng(_FLOOR_SEED)
    values = _members(rng.multinomial(n, wanted / wanted.sum(), size=_FLOOR_DRAWS) / n, wanted)
    return {name: float(values[name].mean()) for name in _MEMBERS}


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
) -> dict[Member, tuple[float, float]]:
    low, high = (float(end) for end in wilson_interval(counts[0], counts.sum(), level=level))
    ends = np.array([[low, 1 - low], [high, 1 - high]])
    values = _members(ends, wanted)
    covered = low <= wanted[0] <= high
    return {
        name: (0.0 if covered else float(values[name].min()), float(values[name].max()))
        for name in _MEMBERS
    }


def _entropy_scale(wanted: Array) -> float:
    """1 over the divergence of the rarest wanted group, or 1 where only one is wanted."""
    held = wanted[wanted > 0]
    return float(-1 / np.log(held.min())) if held.size > 1 else 1.0
