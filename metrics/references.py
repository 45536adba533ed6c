"""Which real images quality is measured against: balanced, reweighted, or of the same cell.

Distances from a reference of other proportions punish a generator for its proportions, so a
biased reference prefers the biased generator. A cell is one combination of attribute values; the
number of declared cells is given and never read off the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics._features import (
    Array,
    check_cells,
    check_count,
    check_numbers,
    check_pair,
    check_seed,
)
from fairbench.metrics.frechet import frechet_distance
from fairbench.metrics.kernel import KernelDistance, kernel_distance
from fairbench.metrics.neighbours import NeighbourScores, precision_recall_density_coverage

__all__ = [
    "BalancedSubset",
    "CellQuality",
    "GroupQuality",
    "Parity",
    "ReferenceWeights",
    "balanced_subset",
    "group_quality",
    "reference_weights",
]

_SUM_TOLERANCE = 1e-6
_DRAWS = 20
_FEWEST_DRAWS = 4
_OVERLAPPING_DRAWS = 5
_MINIMUM = 30


@dataclass(frozen=True, eq=False)
class BalancedSubset:
    """Equally many images of every declared cell.

    Attributes:
        indices: Chosen rows, (m K,) int64, rising, none twice.
        counts: Images of each cell that there were to choose from, (K,) int64.
        per_cell: m, the images of each cell chosen.
    """

    indices: NDArray[np.int64]
    counts: NDArray[np.int64]
    per_cell: int


@dataclass(frozen=True, eq=False)
class ReferenceWeights:
    """Weights that give the cells of a reference the wanted shares.

    Attributes:
        weights: Weight of each image, (N,) float64, sum 1, equal within a cell.
        effective_n: (Σw)² / Σw², in [1, N]: equally weighted images that would be as good.
        counts: Images of each cell, (K,) int64.
    """

    weights: Array
    effective_n: float
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class CellQuality:
    """Generated images of one cell against real images of the same cell.

    Attributes:
        cell: Index of the cell.
        n_generated, n_reference: Images of each.
        kernel: Kernel distance of all its images, unbiased at any n; lower is better.
        frechet: Fréchet distance at the common n, the mean over draws; lower is better.
        neighbours: Precision, recall, density and coverage there, likewise; higher is better.
        draws: How many draws without a common image these are means of; 0 if draws overlap.
        frechet_error, recall_error: Standard errors of the means, from how far draws lie apart;
            None where they overlap.
        reason: Why the numbers that are None aren't measurable; "" if none is.
    """

    cell: int
    n_generated: int
    n_reference: int
    kernel: KernelDistance | None
    frechet: float | None
    neighbours: NeighbourScores | None
    reason: str
    draws: int = 0
    frechet_error: float | None = None
    recall_error: float | None = None


@dataclass(frozen=True)
class Parity:
    """One quality number over all declared cells.

    Attributes:
        better: Which direction is better.
        by_cell: The number of each cell, None where it isn't measurable.
        worst: The worst cell's.
        gap: Largest − smallest, 0 or more; lower is better.
        ratio: Smallest / largest, in [0, 1]; higher is better; 1 if all are 0. None also where
            a value is negative, as an unbiased distance can be.
        reason: Why worst, gap and ratio are None; "" if they're measurable. One cell that isn't
            is enough: without it the others would look better than the whole is.
    """

    better: Literal["lower", "higher"]
    by_cell: tuple[float | None, ...]
    worst: float | None
    gap: float | None
    ratio: float | None
    reason: str


@dataclass(frozen=True)
class GroupQuality:
    """Quality of every declared cell, and how evenly it is spread.

    Attributes:
        cells: One entry a cell, in declared order.
        common_n: Images of each cell and side behind all but the kernel distance; None if no cell
            is measurable.
        kernel, frechet, precision, recall, density, coverage: Each number over the cells.
    """

    cells: tuple[CellQuality, ...]
    common_n: int | None
    kernel: Parity
    frechet: Parity
    precision: Parity
    recall: Parity
    density: Parity
    coverage: Parity


def balanced_subset(
    cells: ArrayLike, num_cells: int, *, per_cell: int | None = None, seed: int
) -> BalancedSubset:
    """Choose equally many images of every declared cell, none twice.

    Args:
        cells: Cell of each reference image, (N,) integers in [0, num_cells).
        num_cells: K, the number of declared cells.
        per_cell: m, images of each, 1 or more; None means as many as the smallest cell has.
        seed: Seed of the choice, in [0, 2³²). The choice also depends on the images' order.

    Returns:
        Chosen rows and the counts they were chosen from.

    Raises:
        ContractError: If a declared cell has no image or fewer than m, or an argument is out of
            range. Drawing with replacement would repeat images, and repeats lower the effective
            N, which raises every Fréchet distance.

    Source: Choi et al. 2020, arXiv 1910.12008 (balanced reference statistics);
        ``docs/metrics.md``, "References".
    """
    found = check_cells(cells, num_cells, "cells")
    counts = np.bincount(found, minlength=num_cells)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise ContractError(
            f"a balanced reference needs an image of every declared cell; none of cells "
            f"{empty.tolist()}"
        )
    most = int(counts.min())
    m = most if per_cell is None else check_count(per_cell, "per_cell", least=1)
    if m > most:
        raise ContractError(
            f"per_cell must be at most {most}, the images of cell {counts.argmin()}; seen {m}"
        )
    rng = np.random.default_rng(check_seed(seed))
    chosen = [rng.choice(np.flatnonzero(found == cell), m, False) for cell in range(num_cells)]
    return BalancedSubset(np.sort(np.concatenate(chosen)), counts.astype(np.int64), m)


def reference_weights(cells: ArrayLike, shares: ArrayLike) -> ReferenceWeights:
    """Weigh reference images so that their cells have the wanted shares.

    With the generator's own shares the distance that is left is image quality alone.

    Args:
        cells: Cell of each reference image, (N,) integers in [0, K).
        shares: Wanted share of each declared cell, (K,), in [0, 1], sums to 1.

    Returns:
        Weights for `FrechetMoments.of`, which refuses an effective n too small for it.

    Raises:
        ContractError: If a share is wanted of a cell without any image: no weight can make up
            for it, and dropping the cell would hide what the generator makes. Or if an argument
            is out of range.

    Source: ``docs/metrics.md``, "References".
    """
    wanted = check_numbers(shares, "shares").astype(np.float64)
    if wanted.ndim != 1 or wanted.size == 0:
        raise ContractError(f"shares must be a non-empty vector (K,); seen shape {wanted.shape}")
    if not np.isfinite(wanted).all() or wanted.min() < 0:
        raise ContractError(f"shares must be finite and not negative; seen {wanted.tolist()}")
    if abs(wanted.sum() - 1) > _SUM_TOLERANCE:
        raise ContractError(f"shares must sum to 1; seen {wanted.sum():g}")
    found = check_cells(cells, wanted.size, "cells")
    counts = np.bincount(found, minlength=wanted.size)
    missing = np.flatnonzero((counts == 0) & (wanted > 0))
    if missing.size:
        raise ContractError(
            f"cells {missing.tolist()} are wanted with shares {wanted[missing].tolist()}, but the "
            "reference has no image of them: not measurable"
        )
    each = np.divide(wanted, counts, out=np.zeros_like(wanted), where=counts > 0)
    weights = each[found] / wanted.sum()
    return ReferenceWeights(weights, 1 / float(weights @ weights), counts.astype(np.int64))


def group_quality(
    generated: ArrayLike,
    generated_cells: ArrayLike,
    reference: ArrayLike,
    reference_cells: ArrayLike,
    num_cells: int,
    *,
    k: int = 5,
    common_n: int | None = None,
    minimum: int = _MINIMUM,
    seed: int,
) -> GroupQuality:
    """Compare generated with real images cell by cell: shares can be fair and quality not.

    Kernel distances use all images of a cell. The other numbers depend on n, so every cell and
    both sides get the same: subsets of `common_n`, averaged over draws. Where both sides have
    images for 4 draws or more that have none in common, there are as many, 20 at most; they are
    independent, so their spread gives the mean's error. Else there are five that overlap, whose
    spread says nothing.

    Args:
        generated: Features of generated images, (N, D) floats.
        generated_cells: Cell of each, (N,) integers in [0, num_cells).
        reference: Features of real images, (M, D) floats.
        reference_cells: Cell of each, (M,), likewise.
        num_cells: K, the number of declared cells.
        k: Neighbours of precision, recall, density and coverage.
        common_n: Images of each cell and side. None means the smallest count of the cells that
            have `minimum` on both sides: to compare methods, give all the same number.
        minimum: Fewest images of a cell, on either side, whose numbers mean anything; more than
            k, and 4 or more.
        seed: Seed of draws and blocks, in [0, 2³²).

    Returns:
        A row for each declared cell, and each number's worst, gap and ratio. A cell with too few
        images stays in the table with its reason, and leaves the summaries without a value.

    Raises:
        ContractError: If features or cells are unusable, or a number is out of range.

    Source: ``docs/metrics.md``, "References"; for equal quality of groups as a goal see arXiv
        2602.08660. Generated images' cells are a classifier's guess unless they were asked for,
        and its errors leak into every row.
    """
    x, y = check_pair(generated, reference)
    mine = check_cells(generated_cells, num_cells, "generated_cells")
    theirs = check_cells(reference_cells, num_cells, "reference_cells")
    if len(mine) != len(x) or len(theirs) != len(y):
        raise ContractError(
            f"each image needs a cell; seen {len(x)} and {len(y)} images, "
            f"{len(mine)} and {len(theirs)} cells"
        )
    check_count(minimum, "minimum", least=max(4, check_count(k, "k", least=1) + 1))
    if common_n is not None:
        check_count(common_n, "common_n", least=minimum)
    counts = np.stack([np.bincount(c, minlength=num_cells) for c in (mine, theirs)])
    smaller = counts.min(axis=0)
    enough = smaller[smaller >= minimum]
    n = common_n if common_n is not None else int(enough.min()) if enough.size else None
    check_seed(seed)
    cells = []
    for cell in range(num_cells):
        sides = (x[mine == cell], y[theirs == cell])
        cells.append(_measure(cell, sides, minimum=minimum, n=n, k=k, seed=seed))
    return _summarise(tuple(cells), n if enough.size else None)


def _measure(
    cell: int,
    sides: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    *,
    minimum: int,
    n: int | None,
    k: int,
    seed: int,
) -> CellQuality:
    x, y = sides
    if n is None or min(len(x), len(y)) < minimum:
        return CellQuality(
            cell, len(x), len(y), None, None, None, _too_few(cell, len(x), len(y), minimum)
        )
    kernel = kernel_distance(x, y, seed=seed)
    if min(len(x), len(y)) < n:
        return CellQuality(
            cell, len(x), len(y), kernel, None, None, _too_few(cell, len(x), len(y), n)
        )
    rng = np.random.default_rng([seed, cell])  # so that no cell hangs on another's images
    draws = min(_DRAWS, len(x) // n, len(y) // n)
    if apart := draws >= _FEWEST_DRAWS:
        chosen = [rng.permutation(len(side))[: draws * n].reshape(draws, n) for side in sides]
    else:
        draws = _OVERLAPPING_DRAWS if max(len(x), len(y)) > n else 1
        chosen = [
            np.stack([rng.choice(len(side), n, replace=False) for _ in range(draws)])
            for side in sides
        ]
    frechet, neighbours = [], []
    for mine, theirs in zip(*chosen, strict=True):
        frechet.append(frechet_distance(x[mine], y[theirs]))
        neighbours.append(precision_recall_density_coverage(x[mine], y[theirs], k=k))
    return CellQuality(
        cell,
        len(x),
        len(y),
        kernel,
        float(np.mean(frechet)),
        _mean(neighbours),
        "",
        draws=draws if apart else 0,
        frechet_error=_error(frechet) if apart else None,
        recall_error=_error([one.recall for one in neighbours]) if apart else None,
    )


def _error(draws: list[float]) -> float:
    """Standard error of the mean of independent draws."""
    return float(np.std(draws, ddof=1) / np.sqrt(len(draws)))


def _too_few(cell: int, generated: int, reference: int, needed: int) -> str:
    return (
        f"cell {cell} has {generated} generated and {reference} reference images; "
        f"{needed} of each are needed"
    )


def _mean(found: list[NeighbourScores]) -> NeighbourScores:
    return NeighbourScores(
        precision=float(np.mean([f.precision for f in found])),
        recall=float(np.mean([f.recall for f in found])),
        density=float(np.mean([f.density for f in found])),
        coverage=float(np.mean([f.coverage for f in found])),
        expected_coverage=found[0].expected_coverage,
        density_error=float(np.mean([f.density_error for f in found])),
        precision_error=float(np.mean([f.precision_error for f in found])),
        recall_error=float(np.mean([f.recall_error for f in found])),
        coverage_error=float(np.mean([f.coverage_error for f in found])),
        # An error is worth no more than in the draw that says the least of it.
        density_degrees=min(f.density_degrees for f in found),
        precision_degrees=min(f.precision_degrees for f in found),
        recall_degrees=min(f.recall_degrees for f in found),
        coverage_degrees=min(f.coverage_degrees for f in found),
        k=found[0].k,
    )


def _summarise(cells: tuple[CellQuality, ...], common_n: int | None) -> GroupQuality:
    def parity(
        better: Literal["lower", "higher"], read: Callable[[CellQuality], float | None]
    ) -> Parity:
        by_cell = tuple(read(cell) for cell in cells)
        measured = [value for value in by_cell if value is not None]
        if len(measured) < len(by_cell):
            reasons = [c.reason for c, value in zip(cells, by_cell, strict=True) if value is None]
            return Parity(better, by_cell, None, None, None, "; ".join(reasons))
        low, high = min(measured), max(measured)
        ratio = None if low < 0 else low / high if high > 0 else 1.0
        worst = high if better == "lower" else low
        return Parity(better, by_cell, worst, high - low, ratio, "")

    def neighbour(name: str) -> Parity:
        return parity(
            "higher",
            lambda cell: None if cell.neighbours is None else getattr(cell.neighbours, name),
        )

    return GroupQuality(
        cells=cells,
        common_n=common_n,
        kernel=parity("lower", lambda cell: None if cell.kernel is None else cell.kernel.value),
        frechet=parity("lower", lambda cell: cell.frechet),
        precision=neighbour("precision"),
        recall=neighbour("recall"),
        density=neighbour("density"),
        coverage=neighbour("coverage"),
    )
