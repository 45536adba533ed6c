"""Fidelity and diversity by nearest neighbours: precision, recall, density, coverage.

A set's manifold is the union of balls around its rows, each reaching the row's k-th nearest
neighbour in the same set.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics._features import Array, check_count, check_pair, chunks
from fairbench.metrics.jackknife import degrees_of_freedom, jackknife_variance, split

__all__ = ["NeighbourScores", "expected_coverage", "precision_recall_density_coverage"]

_BLOCKS = 20
_BLOCK_SEED = 20_243  # any constant: the same sets must always give the same errors
_PAIR_VALUES = 4_000_000  # of differences held at once: 32 MB


@dataclass(frozen=True)
class NeighbourScores:
    """Precision, recall, density and coverage of one set of generated features.

    Attributes:
        precision: Share of generated rows inside a reference ball, in [0, 1]; higher is better.
        recall: Share of reference rows inside a generated ball, in [0, 1]; higher is better.
        density: Reference balls that hold a generated row, in units of k, 0 or more, about 1 for
            equal distributions; higher is better, but over 1 only says that images are typical.
        coverage: Share of reference balls that hold a generated row, in [0, 1]; higher is better.
        expected_coverage: What coverage is on average for equal distributions at these N and M.
        density_error: Standard error of density over generated rows, the balls held fixed.
        k: Neighbours of the radii.
        precision_error: The same of precision.
        recall_error, coverage_error: Standard errors over samples of generated rows, given the
            reference, by a delete-one-block jackknife (20 blocks) that keeps the radii.
        precision_degrees, recall_degrees, density_degrees, coverage_degrees: Degrees of freedom
            that these errors rest on, fewer where few blocks carry them
            (`fairbench.metrics.jackknife.degrees_of_freedom`); infinite for the errors of
            independent rows.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    expected_coverage: float
    density_error: float
    k: int
    precision_error: float = 0.0
    recall_error: float = 0.0
    coverage_error: float = 0.0
    precision_degrees: float = np.inf
    recall_degrees: float = np.inf
    density_degrees: float = np.inf
    coverage_degrees: float = np.inf


def precision_recall_density_coverage(
    generated: ArrayLike,
    reference: ArrayLike,
    *,
    k: int,
    clusters: NDArray[np.integer[Any]] | None = None,
) -> NeighbourScores:
    """Precision, recall, density and coverage from one pass over the distances.

    Compare at equal N and M only: recall and coverage move with both. A row on the edge of a ball
    is inside for precision and recall and outside for density and coverage, as in the packages
    below; that is what makes density exactly 1 for identical sets.

    Args:
        generated: Features of generated images, (N, D) floats, N > k.
        reference: Features of reference images, (M, D) floats, M > k.
        k: Neighbours of the radii, 1 or more; 3 and 5 are usual.
        clusters: Batch of each generated row, (N,) integers, where batches make rows depend on
            each other: the errors are then of whole ones. None: every row is independent.

    Returns:
        The four scores; higher is better. Memory grows with N, not N².

    Raises:
        ContractError: If k is below 1, a set has no more than k rows, has NaN or infinity, or the
            two D differ.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991 (precision, recall; agrees with
        torch-fidelity 0.4.0), Naeem et al. 2020, arXiv 2002.09797 (density, coverage; agrees with
        prdc 0.2). Deviation: distances are screened in float32, and each that rounding could put
        on the wrong side is taken again in float64, so ties are exact in any order of rows.
    """
    check_count(k, "k", least=1)
    fake, real = check_pair(generated, reference, rows=k + 1)
    fakes, reals = _Screened.pair(fake, real)
    fake_radii, real_radii = _squared_radii(fakes, k), _squared_radii(reals, k)
    precise, balls = np.zeros(len(fake), dtype=bool), np.zeros(len(fake))
    # By block of generated rows: a row that only one block reaches is lost without it.
    rng = np.random.default_rng(_BLOCK_SEED)
    parts = split(len(fake), min(_BLOCKS, len(fake)), rng, clusters) if len(fake) > 3 else []
    block = np.zeros(len(fake), dtype=np.int64)
    for index, rows in enumerate(parts):
        block[rows] = index
    recalled, covered = np.zeros((2, max(1, len(parts)), len(real)), dtype=bool)
    margins = fakes.margins(reals)
    for part in chunks(len(fake), len(real)):
        chosen = np.arange(part.start, part.stop)
        square, margin = fakes.squared_distances(part, reals), margins[part, None]
        near, touching = _compare((fakes, reals), chosen, square, margin, real_radii[None, :])
        precise[part] = touching.any(axis=1)
        _add_by_block(covered, near, block[part])
        balls[part] = near.sum(axis=1)
        own = fake_radii[part][:, None]
        _, touching = _compare((fakes, reals), chosen, square, margin, own)
        _add_by_block(recalled, touching, block[part])
    density_error, density_degrees = _mean_error(balls / k, block, clusters)
    precision_error, precision_degrees = _mean_error(precise, block, clusters)
    recall_error, recall_degrees = _block_error(recalled)
    coverage_error, coverage_degrees = _block_error(covered)
    return NeighbourScores(
        precision=float(precise.mean()),
        recall=float(recalled.any(axis=0).mean()),
        density=float(balls.mean()) / k,
        coverage=float(covered.any(axis=0).mean()),
        expected_coverage=expected_coverage(len(fake), len(real), k=k),
        density_error=density_error,
        precision_error=precision_error,
        k=k,
        recall_error=recall_error,
        coverage_error=coverage_error,
        precision_degrees=precision_degrees,
        recall_degrees=recall_degrees,
        density_degrees=density_degrees,
        coverage_degrees=coverage_degrees,
    )


def _mean_error(
    values: NDArray[Any], block: NDArray[np.int64], clusters: NDArray[np.integer[Any]] | None
) -> tuple[float, float]:
    """Standard error of the mean over rows, or over blocks of whole clusters; its degrees."""
    n = len(values)
    if clusters is None:
        return float(values.std(ddof=1)) / float(np.sqrt(n)), np.inf
    sums = np.asarray(np.bincount(block, weights=values - values.mean()), dtype=np.float64)
    error = float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1))) / n
    return error, degrees_of_freedom(sums**2, len(sums) - 1)


def _add_by_block(
    reached: NDArray[np.bool_], inside: NDArray[np.bool_], block: NDArray[np.int64]
) -> None:
    """Note which reference rows, (M,), each block of generated rows reaches, (b, M)."""
    for index in np.unique(block):
        reached[index] |= inside[block == index].any(axis=0)


def _block_error(reached: NDArray[np.bool_]) -> tuple[float, float]:
    """Jackknife error of the share of columns that any block reaches, (blocks, M); its degrees."""
    times = reached.sum(axis=0)
    left_out = np.array([((times - one) > 0).mean() for one in reached.astype(np.int64)])
    squares = (left_out - left_out.mean()) ** 2
    degrees = degrees_of_freedom(squares, max(1, len(left_out) - 1))
    return float(np.sqrt(jackknife_variance(left_out))), degrees


def expected_coverage(num_generated: int, num_reference: int, *, k: int) -> float:
    """Mean coverage when generated and reference images come from one distribution.

    Args:
        num_generated: N, 1 or more.
        num_reference: M, more than k.
        k: Neighbours of the radii, 1 or more.

    Returns:
        A share in [0, 1]; near 1 − 2⁻ᵏ for N = M.

    Raises:
        ContractError: If a number is out of range.

    Source: Naeem et al. 2020, arXiv 2002.09797, lemma on expected coverage.
    """
    if num_generated < 1 or not 1 <= k < num_reference:
        raise ContractError(
            "need 1 generated image or more and more than k >= 1 reference images; "
            f"seen {num_generated}, {num_reference}, k = {k}"
        )
    rank = np.arange(1, k + 1)
    missed = (num_reference - rank) / (num_generated + num_reference - rank)
    return float(1 - missed.prod())


@dataclass(frozen=True, eq=False)
class _Screened:
    """A set twice: as given, and in float32 around a common centre for fast, coarse distances.

    Attributes:
        exact: (N, D) in the caller's precision.
        coarse: (N, D) float32, centred and scaled so that neither norms nor products overflow.
        norms: Length of each coarse row, (N,) float64.
        scale: Coarse distance = distance / scale.
    """

    exact: NDArray[np.floating[Any]]
    coarse: NDArray[np.float32]
    norms: Array
    scale: float

    @classmethod
    def pair(
        cls, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]
    ) -> tuple[_Screened, _Screened]:
        centre = y.mean(axis=0, dtype=np.float64)
        largest = max(float(np.abs(z - centre).max()) for z in (x, y)) or 1.0
        # A power of two, since any other division would round, and break ties between distances.
        scale = float(np.ldexp(1.0, min(int(np.frexp(largest)[1]), 1023)))
        return cls._of(x, centre, scale), cls._of(y, centre, scale)

    @classmethod
    def _of(cls, x: NDArray[np.floating[Any]], centre: Array, scale: float) -> _Screened:
        coarse = np.empty(x.shape, dtype=np.float32)
        for part in chunks(*x.shape):
            coarse[part] = (x[part] - centre) / scale
        norms = np.sqrt(np.einsum("nd,nd->n", coarse, coarse, dtype=np.float64))
        return cls(x, coarse, norms, scale)

    def squared_distances(
        self, rows: NDArray[np.intp] | slice, other: _Screened
    ) -> NDArray[np.float32]:
        """Coarse squared distances of rows to all others, (b, M)."""
        square: NDArray[np.float32] = self.coarse[rows] @ other.coarse.T
        square *= -2
        square += (self.norms[rows] ** 2).astype(np.float32)[:, None]
        square += (other.norms**2).astype(np.float32)
        return square

    def margins(self, other: _Screened) -> NDArray[np.float32]:
        """What the coarse squared distances of each row to all others are off by at most, (N,).

        The textbook bound for a sum of D products, 2 ‖a‖ ‖b‖ being at most (‖a‖ + ‖b‖)² / 2.
        """
        d = self.coarse.shape[1]
        reach = (self.norms + other.norms.max()) ** 2
        rounding = float(np.finfo(np.float32).eps) / 2
        margin = (d / 2 + 16) * rounding * reach + d * float(np.finfo(np.float32).tiny)
        return np.asarray(margin, dtype=np.float32)

    def take(self, rows: NDArray[np.intp] | slice) -> _Screened:
        """Some rows, in that order; a slice copies nothing."""
        return _Screened(self.exact[rows], self.coarse[rows], self.norms[rows], self.scale)

    def exactly(
        self, rows: NDArray[np.intp], other: _Screened, columns: NDArray[np.intp]
    ) -> Array:
        """Squared distances of given pairs in float64, (P,), the same in either order."""
        found = np.empty(len(rows))
        step = max(1, _PAIR_VALUES // self.exact.shape[1])
        for start in range(0, len(rows), step):
            pairs = slice(start, start + step)
            difference = self.exact[rows[pairs]].astype(np.float64, copy=False)
            difference = (difference - other.exact[columns[pairs]]) / self.scale
            found[pairs] = np.einsum("pd,pd->p", difference, difference)
        return found


def _squared_radii(points: _Screened, k: int) -> Array:
    """Exact squared distance of each row to its k-th nearest other row, (N,), in coarse units.

    Each pair is screened once: a chunk of rows meets only the rows from its own start on, and
    what those have seen of earlier chunks waits for them.
    """
    radii = np.zeros(len(points.norms))
    # More than k copies leave a radius of 0. Not only quicker: in a collapsed sample nearly every
    # pair would be too close to call.
    copied = _copies(points.exact) > k
    order = np.argsort(copied, kind="stable")  # open rows first
    num_open = int((~copied).sum())
    if num_open < len(order):
        points = points.take(order)
    margins = points.margins(points)[:, None]
    # Of the rows met so far; itself at 0 and k others lie no farther than the (k + 1)-th of the
    # upper bounds.
    nearest = np.full((num_open, k + 1), np.inf, dtype=np.float32)
    waiting = _Pairs()
    for part in chunks(num_open, len(radii)):
        own = part.stop - part.start
        square = points.squared_distances(part, points.take(slice(part.start, None)))
        nearest[part] = _smallest(nearest[part], square, k)
        bound = nearest[part, k:] + 2 * margins[part]
        rows, columns = np.nonzero(square <= bound)
        earlier = waiting.pop(part, bound[:, 0])
        rows = np.concatenate([rows, earlier[0] - part.start])
        columns = np.concatenate([columns + part.start, earlier[1]])
        later = slice(part.stop, num_open)
        if later.start < later.stop:
            across = np.ascontiguousarray(square[:, own : num_open - part.start].T)
            nearest[later] = _smallest(nearest[later], across, k)
            found = np.nonzero(across <= nearest[later, k:] + 2 * margins[later])
            waiting.add(found[0] + part.stop, found[1] + part.start, across[found])
        exact = points.exactly(rows + part.start, points, columns)
        by_row = np.lexsort((exact, rows))
        first = np.searchsorted(rows[by_row], np.arange(own))
        radii[order[part]] = exact[by_row][first + k]
    return radii


def _smallest(
    known: NDArray[np.float32], square: NDArray[np.float32], k: int
) -> NDArray[np.float32]:
    """The k + 1 smallest values of each row of both, (b, k + 1), the largest last."""
    if square.shape[1] > k + 1:
        square = np.partition(square, k, axis=1)[:, : k + 1]
    both = np.concatenate([known, square], axis=1)
    return np.partition(both, k, axis=1)[:, : k + 1]


class _Pairs:
    """Pairs of rows that may be neighbours, found before it is the first one's turn."""

    def __init__(self) -> None:
        self.rows = np.empty(0, dtype=np.intp)
        self.columns = np.empty(0, dtype=np.intp)
        self.square = np.empty(0, dtype=np.float32)

    def add(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], square: NDArray[np.float32]
    ) -> None:
        """Keep pairs and their coarse squared distances for later."""
        self.rows = np.concatenate([self.rows, rows])
        self.columns = np.concatenate([self.columns, columns])
        self.square = np.concatenate([self.square, square])

    def pop(
        self, part: slice, bound: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The pairs whose rows are in a part, none beyond its row's bound; kept no longer."""
        mine = (self.rows >= part.start) & (self.rows < part.stop)
        rows, columns = self.rows[mine], self.columns[mine]
        near = self.square[mine] <= bound[rows - part.start]
        self.rows, self.columns = self.rows[~mine], self.columns[~mine]
        self.square = self.square[~mine]
        return rows[near], columns[near]


def _copies(x: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """How often each row occurs in all, (N,)."""
    keys = [blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    count = Counter(keys)
    return np.array([count[key] for key in keys])


def _compare(
    pairs: tuple[_Screened, _Screened],
    chosen: NDArray[np.intp],
    square: NDArray[np.float32],
    margin: NDArray[np.float32],
    radii: Array,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which squared distances are below the radii, and which at most equal, (b, M) each."""
    edge = radii.astype(np.float32)
    near = square < edge
    rows, columns = np.nonzero(np.abs(square - edge) <= margin)
    exact = pairs[0].exactly(chosen[rows], pairs[1], columns)
    bounds = np.broadcast_to(radii, square.shape)[rows, columns]
    near[rows, columns] = exact < bounds
    touching = near.copy()
    touching[rows, columns] = exact <= bounds
    return near, touching
