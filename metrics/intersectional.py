"""Representation of every crossing of attributes, from single levels to the joint cells.

Cells are always the full product of the declared levels. Shares that are fair for each attribute
can still leave a joint cell empty, so each order of crossing is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics.counting import Array, check_counts, check_shares, check_target, shares
from fairbench.metrics.fairness import discrepancy_of_shares, worst_distance
from fairbench.metrics.floors import noise_floor_for
from fairbench.metrics.information import entropy

__all__ = [
    "Marginal",
    "RepresentationRatios",
    "SubgroupCoverage",
    "SubgroupLattice",
    "check_levels",
    "joint_counts",
    "joint_target",
    "representation_ratios",
    "subgroup_coverage",
    "subgroup_lattice",
]

FOUR_FIFTHS = 0.8
FEW_IMAGES = 30  # in a cell; below, its own numbers are shown greyed
_DRAWS = 10_000


@dataclass(frozen=True, eq=False)
class Marginal:
    """The shares of one crossing of attributes.

    Attributes:
        attributes: The attributes crossed, in declared order.
        groups: Level names of each cell, row-major, M of them.
        counts: Images of each cell, (M,) int64, zeros included.
        shares: Their shares, (M,) float64.
        target: Wanted shares, (M,) float64.
        discrepancy: Euclidean norm of shares - target; lower is better.
        normalised: That over its largest possible value, in [0, 1].
        floor: What a fair generator's discrepancy stays below in 95 % of samples.
    """

    attributes: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    counts: NDArray[np.int64]
    shares: Array
    target: Array
    discrepancy: float
    normalised: float
    floor: float

    @property
    def order(self) -> int:
        """Number of attributes crossed."""
        return len(self.attributes)


@dataclass(frozen=True)
class SubgroupLattice:
    """The marginals over every non-empty set of attributes, by order.

    Attributes:
        marginals: Lower orders first, each in declared order; the joint one is last.
    """

    marginals: tuple[Marginal, ...]

    def at_order(self, order: int) -> tuple[Marginal, ...]:
        """The marginals over `order` attributes; none if there are fewer."""
        return tuple(found for found in self.marginals if found.order == order)

    def mean_at(self, order: int) -> float:
        """Mean discrepancy at one order; NaN if there are fewer attributes."""
        found = [marginal.discrepancy for marginal in self.at_order(order)]
        return float(np.mean(found)) if found else float("nan")

    def worst_at(self, order: int) -> float:
        """Largest discrepancy at one order; NaN if there are fewer attributes."""
        return max((found.discrepancy for found in self.at_order(order)), default=float("nan"))

    @property
    def joint(self) -> Marginal:
        """The marginal over all attributes."""
        return self.marginals[-1]

    @property
    def joint_excess(self) -> float:
        """Normalised joint discrepancy less the largest normalised one of a single attribute.

        Above 0 the crossings are less fair than any attribute alone shows.
        """
        alone = max(found.normalised for found in self.at_order(1))
        return self.joint.normalised - alone


@dataclass(frozen=True, eq=False)
class RepresentationRatios:
    """Share over target of each group, 1 is fair.

    Attributes:
        ratios: (K,) float64, 0 where a group has no images.
        smallest, largest: Ends of `ratios`; higher is better for `smallest`.
        min_over_max: `smallest` / `largest`, in [0, 1]; higher is better.
        gap: Largest less smallest share, in [0, 1]; lower is better.
        smoothed_smallest, smoothed_min_over_max: The same from shares (n_g + alpha) /
            (n + alpha K), which no empty group makes 0.
        below_four_fifths: Whether `min_over_max` is below 0.8.
        worst_group: Index of the smallest ratio.
        expected_smallest: Mean of `smallest` over fair samples of as many images.
        expected_min_over_max: Likewise.
        p_value: Chance of so small a `smallest` in a fair sample.
        p_below_four_fifths: Chance of a fair sample to fall below four fifths.
        few: Groups with fewer than 30 images, (K,) bool: shown greyed, never dropped.
    """

    ratios: Array
    smallest: float
    largest: float
    min_over_max: float
    gap: float
    smoothed_smallest: float
    smoothed_min_over_max: float
    below_four_fifths: bool
    worst_group: int
    expected_smallest: float
    expected_min_over_max: float
    p_value: float
    p_below_four_fifths: float
    few: NDArray[np.bool_]


@dataclass(frozen=True)
class SubgroupCoverage:
    """How many joint cells a set of images reaches.

    Attributes:
        coverage: m -> share of cells with m images or more, in [0, 1]; higher is better.
        effective_groups: exp of the entropy of the shares, in [1, K]; higher is better.
        normalised_entropy: Entropy over ln K, in [0, 1]; higher is better.
        empty: Indices of the cells without images.
        empty_upper_bound: 95 % upper bound 3/n, at most 1, on the true share of each of those.
    """

    coverage: dict[int, float]
    effective_groups: float
    normalised_entropy: float
    empty: tuple[int, ...]
    empty_upper_bound: float


def joint_counts(labels: ArrayLike, levels: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Count the images of every cell of the product of the attributes.

    Args:
        labels: Level index of each image and attribute, (N, A) integers.
        levels: Attribute -> names of its declared levels, in order.

    Returns:
        Counts, int64, one axis an attribute; cells without images keep their 0.

    Raises:
        ContractError: If N is 0, the widths differ or a label isn't a declared level.
    """
    sizes = check_levels(levels)
    table = np.asarray(labels)
    if table.ndim != 2 or table.shape[1] != len(sizes) or len(table) == 0:
        raise ContractError(f"labels must have shape (N, {len(sizes)}); seen {table.shape}")
    if table.dtype.kind not in "iu":
        raise ContractError(f"labels must be integers; seen {table.dtype}")
    if table.min() < 0 or (table >= np.array(sizes)).any():
        raise ContractError(
            f"labels must lie below {sizes} by attribute and not be negative; seen up to "
            f"{table.max(axis=0).tolist()}: declare the level or drop the image as invalid"
        )
    flat = np.ravel_multi_index(tuple(table.astype(np.int64).T), sizes)
    return np.bincount(flat, minlength=int(np.prod(sizes))).reshape(sizes).astype(np.int64)


def subgroup_lattice(
    labels: ArrayLike, levels: Mapping[str, Sequence[str]], target: ArrayLike | None = None
) -> SubgroupLattice:
    """Fairness discrepancy of every crossing of attributes.

    Args:
        labels: Level index of each image and attribute, (N, A) integers.
        levels: Attribute -> names of its declared levels, in order.
        target: Wanted shares of the joint cells, row-major (cells,) or one axis an attribute;
            None for uniform. Targets of marginals are its sums.

    Returns:
        All 2^A - 1 marginals.

    Raises:
        ContractError: If labels or target don't fit the levels.

    Source: ``docs/metrics.md``, "Intersections".
    """
    counts = joint_counts(labels, levels)
    wanted = joint_target(target, counts.shape)
    names = tuple(levels)
    marginals = []
    for order in range(1, len(names) + 1):
        for kept in combinations(range(len(names)), order):
            gone = tuple(axis for axis in range(len(names)) if axis not in kept)
            attributes = tuple(names[axis] for axis in kept)
            marginals.append(
                _marginal(
                    attributes,
                    tuple(product(*(levels[name] for name in attributes))),
                    counts.sum(axis=gone).ravel(),
                    wanted.sum(axis=gone).ravel(),
                )
            )
    return SubgroupLattice(tuple(marginals))


def representation_ratios(
    counts: ArrayLike, target: ArrayLike, *, alpha: float = 0.5, seed: int = 0
) -> RepresentationRatios:
    """Share over target of each group, with what chance alone would do to the worst.

    Args:
        counts: Images of each declared group, (K,) whole numbers, zeros included.
        target: Wanted shares, (K,), all above 0, sums to 1.
        alpha: Images added to each group by smoothing, above 0.
        seed: Seed of 10,000 fair samples.

    Returns:
        The ratios, their summary, and the same summary of fair samples: of many groups the
        worst is far from 1 by chance.

    Raises:
        ContractError: If a target is 0, there are no images or the two K differ.

    Source: ``docs/metrics.md``, "Intersections"; the four-fifths rule is 29 CFR 1607.4 D.
    """
    wanted = check_target(target)
    numbers = check_counts(counts, wanted.size)
    if wanted.min() <= 0:
        raise ContractError("a group with target 0 has no representation ratio; leave it out")
    if not (np.isfinite(alpha) and alpha > 0):
        raise ContractError(f"alpha must be above 0; seen {alpha}")
    n = int(numbers.sum())
    found = numbers / n
    ratios = found / wanted
    smoothed = (numbers + alpha) / (n + alpha * wanted.size) / wanted
    drawn = np.random.default_rng(seed).multinomial(n, wanted / wanted.sum(), size=_DRAWS)
    fair = drawn / n / wanted
    lows = fair.min(axis=1)
    quotients = lows / fair.max(axis=1)
    smallest, largest = float(ratios.min()), float(ratios.max())
    reached = int((lows <= smallest + 1e-12).sum())
    return RepresentationRatios(
        ratios=ratios,
        smallest=smallest,
        largest=largest,
        min_over_max=smallest / largest,
        gap=float(found.max() - found.min()),
        smoothed_smallest=float(smoothed.min()),
        smoothed_min_over_max=float(smoothed.min() / smoothed.max()),
        below_four_fifths=smallest / largest < FOUR_FIFTHS,
        worst_group=int(ratios.argmin()),
        expected_smallest=float(lows.mean()),
        expected_min_over_max=float(quotients.mean()),
        p_value=(reached + 1) / (_DRAWS + 1),
        p_below_four_fifths=float((quotients < FOUR_FIFTHS).mean()),
        few=numbers < FEW_IMAGES,
    )


def subgroup_coverage(counts: ArrayLike, *, at: Sequence[int] = (1, 10)) -> SubgroupCoverage:
    """How many cells have images, and how evenly.

    Args:
        counts: Images of each declared cell, (K,) or one axis an attribute; whole numbers.
        at: Numbers of images m to ask for, each 1 or more.

    Returns:
        Coverage at each m, effective number of groups, and the bound for empty cells.

    Raises:
        ContractError: If there are no images or an m is below 1.

    Source: ``docs/metrics.md``, "Intersections"; 3/n is the rule of three, Hanley and Lippman-Hand
        1983, doi 10.1001/jama.1983.03330370053031.
    """
    numbers = np.asarray(counts)
    flat = check_counts(numbers.ravel(), numbers.size)
    if not all(m == int(m) and m >= 1 for m in at):
        raise ContractError(f"`at` must hold whole numbers, 1 or more; seen {list(at)}")
    held = entropy(shares(flat))
    return SubgroupCoverage(
        coverage={int(m): float((flat >= m).mean()) for m in at},
        effective_groups=float(np.exp(held)),
        normalised_entropy=held / float(np.log(flat.size)) if flat.size > 1 else 1.0,
        empty=tuple(np.flatnonzero(flat == 0).tolist()),
        empty_upper_bound=min(1.0, 3 / int(flat.sum())),
    )


def check_levels(levels: Mapping[str, Sequence[str]]) -> tuple[int, ...]:
    """Number of declared levels by attribute; refuses a repeated level or fewer than two."""
    if not levels:
        raise ContractError("levels must name one attribute or more; seen none")
    for name, known in levels.items():
        if isinstance(known, str) or len(known) < 2 or len(set(known)) != len(known):
            raise ContractError(f"{name!r} needs 2 different levels or more; seen {known!r}")
    return tuple(len(known) for known in levels.values())


def _marginal(
    attributes: tuple[str, ...],
    groups: tuple[tuple[str, ...], ...],
    counts: NDArray[np.int64],
    target: Array,
) -> Marginal:
    found = shares(counts)
    value = discrepancy_of_shares(found, target)
    return Marginal(
        attributes,
        groups,
        counts,
        found,
        target,
        value,
        value / worst_distance(target),
        noise_floor_for(target, int(counts.sum())),
    )


def joint_target(target: ArrayLike | None, sizes: tuple[int, ...]) -> Array:
    """Target shares with one axis an attribute."""
    if target is None:
        return np.full(sizes, 1 / np.prod(sizes), dtype=np.float64)
    wanted = np.asarray(target, dtype=np.float64)
    if wanted.shape not in (sizes, (int(np.prod(sizes)),)):
        raise ContractError(f"target must have shape {sizes}, flat or not; seen {wanted.shape}")
    return check_shares(wanted.ravel(), "target").reshape(sizes)
