"""Fréchet distance of two sets of features: one number, its interval, its limit at infinite N.

Encoders and reference sets are named elsewhere; nothing here knows what the features mean. The
distance of two normal distributions is ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₂^½ Σ₁ Σ₂^½)^½, and the
last trace is the nuclear norm of F₁ᵀF₂ for any factors F Fᵀ = Σ. Of a set with no more rows than
columns the centred rows are such a factor already; that is the whole trick below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fairbench.core.errors import ContractError
from fairbench.metrics._features import (
    Array,
    check_count,
    check_features,
    check_numbers,
    check_seed,
    check_weights,
    chunks,
)
from fairbench.metrics.jackknife import jackknife_variance, split, student

__all__ = [
    "FrechetInfinity",
    "FrechetInterval",
    "FrechetMoments",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
    "frechet_interval",
]

_NEGATIVE_TOLERANCE = 1e-6
_SQUARED_ROUNDING = 1e-15  # of an eigenvalue, in units of the largest: its root is lost below
_INFINITY_SIZES = 15
_INFINITY_DRAWS = 3
_INFINITY_BLOCKS = 20
_INFINITY_MINIMUM = 5000
_INFINITY_FIT = 0.9
_TRIANGULAR_MINIMUM = 256


@dataclass(frozen=True)
class FrechetInterval:
    """A Fréchet distance with its interval.

    Attributes:
        value: The distance, 0 or more; lower is better.
        low, high: Ends of the interval of the distance's mean over samples of this same size.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FrechetInfinity:
    """A Fréchet distance extrapolated to infinitely many generated images.

    Attributes:
        value: Intercept of the distance on 1 / N; lower is better. Not clipped: the fit may end
            slightly below 0.
        standard_error: Of the intercept, given the reference: by a jackknife of the whole
            sample's distance, since every size is drawn from these same images, and by ordinary
            least squares for the draws. The latter alone covers the limit in 55 % of trials.
        r_squared: Share of the variance that the line explains, in [0, 1].
        slope: Rise of the distance with 1 / N, the size of the small-sample bias.
        sizes: The N of each point, rising.
        distances: The mean distance at each.
        degrees: Of freedom of the standard error.
    """

    value: float
    standard_error: float
    r_squared: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    degrees: int = _INFINITY_SIZES - 2


@dataclass(frozen=True, eq=False)
class FrechetMoments:
    """Mean and covariance of a set of features, with what distances to it have in common.

    Make one of a reference and use it again: its factor is found once, at the first distance that
    needs it.

    Attributes:
        mean: (D,) float64.
        n: Images behind it; 0 where only the moments are known.
        effective_n: (Σw)² / Σw², which is n without weights.
        rows: Up to N = D the scaled rows, (N, D), with rowsᵀ rows the covariance; else None.
        full: The covariance, (D, D), where rows is None.
    """

    mean: Array
    n: int
    effective_n: float
    rows: Array | None
    full: Array | None

    @classmethod
    def of(cls, features: ArrayLike, weights: ArrayLike | None = None) -> FrechetMoments:
        """Moments of features, weighted or not, summed in float64.

        Args:
            features: (N, D) floats, N >= 2.
            weights: Weight of each row, (N,), not negative; scaled to sum 1 here. The covariance
                is Σ wᵢ (xᵢ − μ)(xᵢ − μ)ᵀ / (1 − Σ wᵢ²), and 1 / (N − 1) with equal weights.

        Raises:
            ContractError: If features or weights are unusable, or the weights leave an effective
                N below 2 D: too few for a distance to mean anything, so use the kernel distance.
        """
        x = check_features(features, "features")
        n, d = x.shape
        if weights is None:
            mean = sum((_wide(x, part).sum(axis=0) for part in chunks(n, d)), np.zeros(d)) / n
            if n <= d:
                return cls(mean, n, float(n), (_wide(x) - mean) / np.sqrt(n - 1), None)
            return cls(mean, n, float(n), None, _scatter(x, mean, np.full(n, 1 / (n - 1))))
        w = check_weights(weights, n)
        effective = 1 / float(w @ w)
        if effective < 2 * d:
            raise ContractError(
                f"weights leave {effective:.1f} effective images for D = {d}; a Fréchet distance "
                f"needs {2 * d}: use the kernel distance"
            )
        mean = sum((w[part] @ _wide(x, part) for part in chunks(n, d)), np.zeros(d))
        return cls(mean, n, effective, None, _scatter(x, mean, w / (1 - float(w @ w))))

    @classmethod
    def of_moments(cls, mean: ArrayLike, covariance: ArrayLike, *, n: int = 0) -> FrechetMoments:
        """Moments known from elsewhere.

        Args:
            mean: (D,) floats.
            covariance: (D, D) floats, symmetric, no eigenvalue negative; a singular one is fine,
                and nothing is added to its diagonal.
            n: Images behind them, 0 if unknown.

        Raises:
            ContractError: If shapes disagree, a value isn't finite or the matrix isn't symmetric.
        """
        mu, sigma = _check_moments(mean, covariance)
        return cls(mu, n, float(n), None, sigma)

    @property
    def low_n(self) -> bool:
        """Whether N <= D: no full rank, and a distance that is far too high."""
        return 0 < self.effective_n <= self.mean.size

    @property
    def covariance(self) -> Array:
        """(D, D) float64."""
        if self.full is not None:
            return self.full
        assert self.rows is not None
        return np.asarray(self.rows.T @ self.rows)

    @cached_property
    def trace(self) -> float:
        """Trace of the covariance, the total variance."""
        if self.full is not None:
            return float(np.trace(self.full))
        assert self.rows is not None
        return float((self.rows**2).sum())

    @cached_property
    def factor(self) -> Array:
        """F with F Fᵀ the covariance, (D, R): rows, else Cholesky's, else the symmetric root's.

        Raises:
            ContractError: If the covariance has a negative eigenvalue.
        """
        if self.rows is not None:
            return self.rows.T
        assert self.full is not None
        try:
            return np.asarray(np.linalg.cholesky(self.full))
        except np.linalg.LinAlgError:  # singular: a feature is constant or repeats others
            values, vectors = np.linalg.eigh(self.full)
            root = np.sqrt(_not_negative(values, float(np.linalg.norm(self.full))))
            return np.asarray(vectors * root)

    def distance(self, generated: FrechetMoments | ArrayLike) -> float:
        """Fréchet distance of generated features from this reference.

        With n <= D for either side the trace is a nuclear norm of products with that side's rows;
        else it comes from a symmetric eigenproblem in this reference's cached factor, unless so
        many of its eigenvalues are rounding that the slower nuclear norm is needed.

        Args:
            generated: Features, (N, D) floats, or their moments.

        Returns:
            The distance, 0 or more; lower is better.

        Raises:
            ContractError: If the two D differ, features are unusable, or the result is more
                negative than rounding explains.
        """
        other = (
            generated if isinstance(generated, FrechetMoments) else FrechetMoments.of(generated)
        )
        if other.mean.size != self.mean.size:
            raise ContractError(
                f"both need the same D; seen {other.mean.size} and {self.mean.size}"
            )
        shift = other.mean - self.mean
        base = float(shift @ shift) + other.trace + self.trace
        if other.full is None or self.full is None:
            value = base - 2 * _nuclear_norm(other, self)
        else:
            spectrum = _spectrum(other.full, self)
            value = base - 2 * float(np.sqrt(spectrum).sum())
            lost = spectrum < _SQUARED_ROUNDING * spectrum[-1]
            doubt = 2 * lost.sum() * np.sqrt(_SQUARED_ROUNDING * spectrum[-1])
            if doubt > _NEGATIVE_TOLERANCE * abs(value):
                value = base - 2 * _nuclear_norm(other, self)
        traces = other.trace + self.trace
        if value < -_NEGATIVE_TOLERANCE * traces:
            raise ContractError(
                f"a Fréchet distance can't be {value:g}; check that both covariances are sound"
            )
        return max(0.0, value)


def frechet_from_moments(
    mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike
) -> float:
    """Fréchet distance between two normal distributions.

    Args:
        mu1: Mean of the first, (D,) floats.
        sigma1: Its covariance, (D, D) floats, symmetric, no eigenvalue negative; a singular one
            is fine, and nothing is added to its diagonal.
        mu2: Mean of the second, (D,) floats.
        sigma2: Its covariance, likewise; quicker if positive definite.

    Returns:
        Squared Wasserstein distance, 0 or more; lower is better.

    Raises:
        ContractError: If shapes disagree, a value isn't finite, a matrix isn't a covariance, or
            the result is more negative than rounding explains.

    Source: Heusel et al. 2017, arXiv 1706.08500, eq. 6. Deviation: the trace of the matrix root
        comes from a symmetric eigenproblem, which can't turn complex.
    """
    reference = FrechetMoments.of_moments(mu2, sigma2)
    return reference.distance(FrechetMoments.of_moments(mu1, sigma1))


def frechet_distance(x: ArrayLike, y: ArrayLike | FrechetMoments) -> float:
    """Fréchet distance between normal distributions fitted to two sets of features.

    Biased upwards, by about D / N + D (D + 1) / (4 N) a side for normal features: compare at equal
    N only.

    Args:
        x: Generated features, (N, D) floats, N >= 2.
        y: Reference features, (M, D) floats, M >= 2, or their moments: make those once for many
            distances from one reference, or to give it weights.

    Returns:
        The distance, 0 or more; lower is better. Covariances have 1 / (n - 1), float64.

    Raises:
        ContractError: If a set is too small, has NaN or infinity, or the two D differ.

    Source: Heusel et al. 2017, arXiv 1706.08500, eq. 6; agrees with torch-fidelity 0.4.0.
        Up to N or M = D the equal nuclear norm of the two centred sets' product is used instead.
    """
    generated = check_features(x, "generated features")
    return _moments_of(y).distance(generated)


def frechet_interval(
    x: ArrayLike,
    y: ArrayLike | FrechetMoments,
    *,
    blocks: int = 20,
    clusters: NDArray[np.integer[Any]] | None = None,
    level: float = 0.95,
    seed: int,
) -> FrechetInterval:
    """Fréchet distance with a delete-one-block jackknife interval.

    The reference set is held fixed, and the interval is for the distance that samples of this N
    have on average: it says how much another seed's images would move the number, not how far
    the small-sample bias pushes it up.

    Simulated coverage of that average at 95 %, 200 trials, D = 8 and 16, N = 200 and 400: 94…96 %
    for different distributions, 97…99 % for equal ones, where it is a third too wide.

    Args:
        x: Generated features, (N, D) floats, N >= blocks and N >= 4.
        y: Reference features, (M, D) floats, M >= 2, or their moments: make those once for many
            distances from one reference, or to give it weights.
        blocks: Number of random blocks of `x`, of equal size up to one row, 2 or more.
        clusters: Batch of each row of `x`, (N,) integers, where batches make rows depend on each
            other: blocks then hold whole ones. None: every row is independent.
        level: Confidence level in (0, 1).
        seed: Seed of the split into blocks, in [0, 2³²).

    Returns:
        `frechet_distance`'s value ± Student's quantile times the jackknife error, cut at 0.

    Raises:
        ContractError: As `frechet_distance`, or if the blocks don't fit N.

    Source: Busing et al. 1999, doi 10.1023/A:1008800423698 (delete-m jackknife);
        ``docs/metrics.md``, "Distances to real images".
    """
    generated, reference = check_features(x, "generated features"), _moments_of(y)
    check_count(blocks, "blocks", least=2)
    parts = split(len(generated), blocks, np.random.default_rng(check_seed(seed)), clusters)
    value = reference.distance(generated)
    left_out = np.array([reference.distance(rest) for rest in _without(generated, parts)])
    half = student(level, len(parts) - 1) * float(np.sqrt(jackknife_variance(left_out)))
    return FrechetInterval(value, max(0.0, value - half), value + half)


def frechet_infinity(
    x: ArrayLike,
    y: ArrayLike | FrechetMoments,
    *,
    clusters: NDArray[np.integer[Any]] | None = None,
    seed: int,
) -> FrechetInfinity:
    """Fréchet distance without the generated sample's size bias, by a line in 1 / N.

    Distances at 15 equally spaced sizes, from 5000 (below N = 10,000 from N / 2) up to all N, are
    fitted by a line whose intercept is the answer. Each size's images are drawn without
    replacement: repeated rows would lower the effective N, and so raise the very bias that is to
    be taken out. The lower half of the sizes is averaged over three draws. The reference is held
    fixed, and its own bias stays in: use the same one for all that is compared.

    Simulated coverage of the limit given the reference by value ± Student's quantile times the
    standard error, at 95 %, D = 48, N = 5000, 100 trials, of those that the rule on R² lets pass:
    97 % for means that agree, 98 % for means half a deviation apart.

    Args:
        x: Generated features, (N, D) floats, N >= 5000, in any order.
        y: Reference features, (M, D) floats, M >= 2, or their moments: make those once for many
            distances from one reference, or to give it weights.
        clusters: Batch of each row of `x`, (N,) integers, where batches make rows depend on each
            other: blocks then hold whole ones. None: every row is independent.
        seed: Seed of the draws, in [0, 2³²).

    Returns:
        Intercept, its standard error, R² and the points behind them; lower is better.

    Raises:
        ContractError: As `frechet_distance`; if N is below 5000; or if R² is below 0.9, when
            noise hides the bias and the intercept would be a guess.

    Source: Chong & Forsyth 2020, arXiv 1911.07023; ``docs/metrics.md``, "Distances to real
        images". Deviation: random subsets of given images, not a quasi-random generator's; seeded.
    """
    generated, reference = check_features(x, "generated features"), _moments_of(y)
    n = len(generated)
    if n < _INFINITY_MINIMUM:
        raise ContractError(
            f"extrapolation needs {_INFINITY_MINIMUM} generated images; seen {n}: use the kernel "
            "distance, which has no size bias"
        )
    rng = np.random.default_rng(check_seed(seed))
    smallest = _INFINITY_MINIMUM if n >= 2 * _INFINITY_MINIMUM else n // 2
    sizes = np.linspace(smallest, n, _INFINITY_SIZES).astype(int)
    distances = np.empty(len(sizes))
    for i, size in enumerate(sizes):
        draws = _INFINITY_DRAWS if i < len(sizes) // 2 else 1
        distances[i] = np.mean(
            [
                reference.distance(generated[rng.choice(n, size, replace=False)])
                if size < n
                else reference.distance(generated)
                for _ in range(draws)
            ]
        )
    found = _extrapolate(sizes, distances)
    parts = split(n, _INFINITY_BLOCKS, rng, clusters)
    left_out = np.array([reference.distance(rest) for rest in _without(generated, parts)])
    error = float(np.sqrt(found.standard_error**2 + jackknife_variance(left_out)))
    return replace(found, standard_error=error, degrees=len(parts) - 1)


def _extrapolate(sizes: NDArray[np.int64], distances: Array) -> FrechetInfinity:
    """Ordinary least squares of distances on 1 / sizes, refused where the line explains little."""
    inverse = 1 / sizes
    centred = inverse - inverse.mean()
    squares = float(centred @ centred)
    slope = float(centred @ distances) / squares
    value = float(distances.mean() - slope * inverse.mean())
    residual = distances - value - slope * inverse
    total = float(((distances - distances.mean()) ** 2).sum())
    left = float(residual @ residual)
    r_squared = 1 - left / total if total > 0 else 0.0
    if r_squared < _INFINITY_FIT:
        raise ContractError(
            f"the distance isn't linear in 1 / N: R² = {r_squared:.3f}, below {_INFINITY_FIT}; "
            "not measurable at this N, generate more images"
        )
    variance = left / (len(sizes) - 2)
    error = np.sqrt(variance * (1 / len(sizes) + inverse.mean() ** 2 / squares))
    return FrechetInfinity(
        value=value,
        standard_error=float(error),
        r_squared=r_squared,
        slope=slope,
        sizes=tuple(int(size) for size in sizes),
        distances=tuple(float(distance) for distance in distances),
    )


def _moments_of(reference: ArrayLike | FrechetMoments) -> FrechetMoments:
    if isinstance(reference, FrechetMoments):
        return reference
    return FrechetMoments.of(check_features(reference, "reference features"))


def _wide(x: NDArray[np.floating[Any]], rows: slice = slice(None)) -> Array:
    """Rows in float64, since a float32 sum over many images loses digits."""
    return x[rows].astype(np.float64, copy=False)


def _scatter(x: NDArray[np.floating[Any]], mean: Array, weights: Array) -> Array:
    """Weighted sum of (xᵢ − μ)(xᵢ − μ)ᵀ, (D, D), without a second copy of x."""
    total = np.zeros((len(mean), len(mean)))
    for part in chunks(*x.shape):
        centred = (_wide(x, part) - mean) * np.sqrt(weights[part, None])
        total += centred.T @ centred
    return total


def _without(
    x: NDArray[np.floating[Any]], parts: list[NDArray[np.int64]]
) -> Iterator[FrechetMoments]:
    """Moments of x with each part left out, from updated sums where they have full rank."""
    n, d = x.shape
    if n - max(len(part) for part in parts) <= d:
        for part in parts:
            yield FrechetMoments.of(np.delete(x, part, axis=0))
        return
    everything = FrechetMoments.of(x)
    scatter = everything.covariance * (n - 1)
    for part in parts:
        gone = x[part].astype(np.float64) - everything.mean
        left = n - len(part)
        shift = -gone.sum(axis=0) / left
        kept = scatter - gone.T @ gone - left * np.outer(shift, shift)
        mean = everything.mean + shift
        yield FrechetMoments(mean, left, float(left), None, kept / (left - 1))


def _nuclear_norm(a: FrechetMoments, b: FrechetMoments) -> float:
    """Sum of the singular values of F₁ᵀF₂: no square root of a rounding error is taken."""
    return float(np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum())


def _spectrum(covariance: Array, reference: FrechetMoments) -> Array:
    """Eigenvalues of FᵀΣF, rising, with rounding's tiny negative ones set to 0."""
    spectrum = np.linalg.eigvalsh(_congruent(covariance, reference.factor))
    scale = float(np.linalg.norm(covariance) * np.linalg.norm(reference.covariance))
    return _not_negative(spectrum, scale)


def _congruent(covariance: Array, factor: Array) -> Array:
    """FᵀΣF, of which only the lower triangle need be right."""
    d, rank = factor.shape
    # Where there is nothing to gain, importing SciPy's solvers takes longer than the product.
    if d < _TRIANGULAR_MINIMUM or rank != d or np.triu(factor, 1).any():
        return np.asarray(factor.T @ covariance @ factor)
    from scipy.linalg.lapack import dsygst

    # A quarter of the work: it makes use of a triangle and of a symmetric matrix.
    product, info = dsygst(covariance, factor, itype=2, lower=1)
    assert info == 0
    return np.asarray(product)


def _not_negative(spectrum: NDArray[np.floating[Any]], scale: float) -> Array:
    if spectrum[0] < -_NEGATIVE_TOLERANCE * scale:
        raise ContractError(
            f"a covariance has no negative eigenvalue; seen {spectrum[0]:g} at scale {scale:g}"
        )
    return np.asarray(np.maximum(spectrum, 0), dtype=np.float64)


def _check_moments(mu: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    mean = check_numbers(mu, "mean").astype(np.float64)
    cov = check_numbers(sigma, "covariance").astype(np.float64)
    if mean.ndim != 1 or mean.size == 0 or cov.shape != (mean.size, mean.size):
        raise ContractError(
            f"moments must have shapes (D,) and (D, D); seen {mean.shape} and {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ContractError("moments must be finite; seen NaN or infinity")
    if not np.allclose(cov, cov.T, rtol=0, atol=_NEGATIVE_TOLERANCE * np.abs(cov).max()):
        raise ContractError("a covariance must be symmetric")
    return mean, cov
