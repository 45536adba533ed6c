"""Intervals that hold at the edge of what a number can be, by asking what chance does near by.

Sampling noise only ever pushes a distance up, a smallest ratio or an entropy down, the more so the
closer the truth is to an edge such as a fair generator. Resamples of what was measured can't show
that, since they are never closer to the edge than the measurement is. So plausible truths are laid
between the measurement, the edges and beyond, and each says by how much a measurement errs there;
the interval allows for the worst of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from fairbench.metrics.counting import Array, normal_quantile

__all__ = [
    "Measure",
    "calibrated_ends",
    "calibrated_interval",
    "edges_of",
    "shrunk_shares",
    "table_edges",
]

Measure = Callable[[Array], Array]
"""Shares, (R, P, K) of R samples and P prompts, to M numbers of each, (R, M)."""

_DRAWS = 1000
_PLAUSIBLE = 0.99
_ZEROED = 2.0  # standard errors
_TOWARDS = (0.0, 0.34, 0.67, 1.0)  # of the way from the farthest plausible point to the measured
_BEYOND = (0.5, 1.0)  # of the way from there to the farthest plausible one on the other side
_FARTHEST = 64.0
_HALVINGS = 16
_RAKINGS = 20
_MANY = 24  # groups; with more, three runs are too many to try


def shrunk_shares(counts: Array, level: float) -> Array:
    """Shares, (…, K), with half z² images more in the K - 1 other groups of a collapsed sample.

    Wilson's centre at K = 2. Counts need not be whole: those of coupled images are worth fewer.
    """
    added = normal_quantile(level) ** 2 / (2 * (counts.shape[-1] - 1))
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray((counts + added) / (total + added * counts.shape[-1]), dtype=np.float64)


def edges_of(counts: Array, target: Array) -> list[Array]:
    """Shares near measured ones at which distances from a target have a kink.

    Args:
        counts: Independent images that the measured ones are worth, (P, K).
        target: Wanted shares, (P, K).

    Returns:
        The target; gaps to it levelled over as few sets of groups as are plausible, prompt by
        prompt; gaps that may be 0 set to 0; the likeliest collapse.
    """
    found = counts / counts.sum(axis=1, keepdims=True)
    levelled = [
        _levelled(row, aim, size)
        for row, aim, size in zip(found, target, counts.sum(axis=1), strict=True)
    ]
    gaps = found - target
    error = np.sqrt(target * (1 - target) / counts.sum(axis=1, keepdims=True))
    zeroed = np.where(np.abs(gaps) <= _ZEROED * error, 0.0, gaps)
    zeroed = np.maximum(target + zeroed, 0)
    collapsed = np.eye(target.shape[1])[gaps.argmax(axis=1)]
    return [target, np.stack(levelled), zeroed / zeroed.sum(axis=1, keepdims=True), collapsed]


def table_edges(counts: Array, target: Array) -> list[Array]:
    """Shares of the cells of a table at which what is said of them has a kink or an end.

    Args:
        counts: Independent images of each cell, one axis an attribute; not all 0.
        target: Wanted shares, of the same shape.

    Returns:
        Rows, (1, cells) each: those of `edges_of`; with two axes or more also the nearest shares
        whose attributes are independent, and those where an attribute, or all of them, has the
        target's shares.
    """
    edges = edges_of(counts.reshape(1, -1), target.reshape(1, -1))
    axes = range(counts.ndim)
    if counts.ndim < 2:
        return edges
    found = counts / counts.sum()
    margins = [found.sum(axis=tuple(set(axes) - {axis}), keepdims=True) for axis in axes]
    wanted = [target.sum(axis=tuple(set(axes) - {axis}), keepdims=True) for axis in axes]
    raked = [{axis} for axis in axes] + [set(axes)]
    base = shrunk_shares(counts.reshape(1, -1), 0.95).reshape(counts.shape)
    fitted = [_raked(base, wanted, among) for among in raked]
    independent = np.prod(np.broadcast_arrays(*margins), axis=0)
    return [*edges, *(shares.reshape(1, -1) for shares in (independent, *fitted))]


def _raked(shares: Array, margins: Sequence[Array], axes: set[int]) -> Array:
    """The nearest shares with some given margins, by iterative proportional fitting."""
    for _ in range(_RAKINGS if len(axes) > 1 else 1):
        for axis in axes:
            others = tuple(set(range(shares.ndim)) - {axis})
            held = shares.sum(axis=others, keepdims=True)
            shares = shares * margins[axis] / np.where(held > 0, held, 1)
    return np.asarray(shares / shares.sum())


def _levelled(found: Array, target: Array, size: float) -> Array:
    """Shares whose gaps are equal within each of as few runs of groups as are plausible, (K,)."""
    from scipy.special import chdtri

    gaps = found - target
    order = np.argsort(gaps)
    limit = float(chdtri(found.size - 1, 0.05))
    for pieces in (1, 2, 3) if found.size <= _MANY else (1, 2):
        best, least = None, np.inf
        for cuts in combinations(range(1, found.size), pieces - 1):
            made = np.empty_like(gaps)
            for run in np.split(order, cuts):
                made[run] = gaps[run].mean()
            truth = np.maximum(target + made, 0)
            truth = truth / truth.sum()
            far = _deviance(found, truth, size)
            if far < least:
                best, least = truth, far
        if best is not None and least <= limit:
            return np.asarray(best)
    return found


def _deviance(found: Array, truth: Array, sizes: Array | float) -> float:
    """Likelihood ratio statistic of shares, (…, K), against a truth; infinite if it lacks some."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(found > 0, found * np.log(found / truth), 0.0)
    return float(2 * (sizes * terms.sum(axis=-1)).sum())


def calibrated_interval(
    counts: Array,
    edges: Sequence[Array],
    measure: Measure,
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = _DRAWS,
) -> tuple[Array, Array]:
    """Ends for numbers that shares of counted images decide.

    Args:
        counts: Independent images of each group by prompt that the measured ones are worth,
            (P, K), every prompt above 0; fractions are fine.
        edges: Shares, (P, K) each, at which the numbers reach an end of their range or have a
            kink, such as the target.
        measure: Turns shares into M numbers.
        level: Confidence level in (0, 1).
        seed: Of the draws.
        draws: Samples drawn from each plausible truth.

    Returns:
        Lower and upper ends, (M,) each. They contain the measured numbers and lie within the range
        of what plausible samples show, and so of what is possible.

    Source: Berger and Boos 1994, doi 10.1080/01621459.1994.10476836, for the supremum over a
        plausible set of nuisance parameters; ``docs/metrics.md``, "Intervals".
    """
    sizes = np.maximum(1, np.round(counts.sum(axis=1))).astype(np.int64)
    found = counts / counts.sum(axis=1, keepdims=True)
    weights = counts.sum(axis=1)

    def draw(truth: Array, rng: np.random.Generator) -> Array:
        drawn = [rng.multinomial(n, p, size=draws) / n for n, p in zip(sizes, truth, strict=True)]
        return np.stack(drawn, axis=1)

    def deviance(truth: Array) -> float:
        return _deviance(found, truth, weights)

    return calibrated_ends(
        found,
        shrunk_shares(counts, level),
        edges,
        measure,
        draw=draw,
        deviance=deviance,
        degrees=counts.shape[0] * (counts.shape[1] - 1),
        level=level,
        seed=seed,
    )


def calibrated_ends(
    found: Array,
    centre: Array,
    edges: Sequence[Array],
    measure: Measure,
    *,
    draw: Callable[[Array, np.random.Generator], Array],
    deviance: Callable[[Array], float],
    degrees: int,
    level: float,
    seed: int,
) -> tuple[Array, Array]:
    """As `calibrated_interval`, for any way of drawing samples.

    Args:
        found: Measured shares, (P, K).
        centre: The same shrunk, so that none is exactly 0.
        edges: As there.
        measure: As there.
        draw: Samples of a truth, (P, K) -> (R, P, K).
        deviance: How far the measurement is from a truth, about χ² distributed at the right one.
        degrees: Its degrees of freedom.
        level: Confidence level in (0, 1).
        seed: Of the draws.
    """
    from scipy.special import chdtri  # importing metrics should stay cheap

    limit = float(chdtri(degrees, 1 - _PLAUSIBLE))
    value = measure(found[None])[0]
    tail = (1 - level) / 2
    above, below = np.zeros_like(value), np.zeros_like(value)
    least, most = value.copy(), value.copy()
    rng = np.random.default_rng(seed)
    for truth in _plausible(centre, edges, deviance, limit):
        right = measure(truth[None])[0]
        sample = measure(draw(truth, rng))
        with np.errstate(invalid="ignore"):
            # Whole counts make steps: "lower" and "higher" never cut one in half.
            above = np.fmax(above, np.quantile(sample, 1 - tail, axis=0, method="higher") - right)
            below = np.fmin(below, np.quantile(sample, tail, axis=0, method="lower") - right)
        # What samples show is possible, and reaches past every truth that is plausible.
        least = np.fmin(least, np.fmin(sample.min(axis=0), right))
        most = np.fmax(most, np.fmax(sample.max(axis=0), right))
    with np.errstate(invalid="ignore"):
        return np.fmax(value - above, least), np.fmin(value - below, most)


def _distinct(edges: Sequence[Array]) -> list[Array]:
    kept: list[Array] = []
    for edge in edges:
        if not any(np.allclose(edge, other, rtol=0, atol=1e-9) for other in kept):
            kept.append(edge)
    return kept


def _plausible(
    centre: Array, edges: Sequence[Array], deviance: Callable[[Array], float], limit: float
) -> list[Array]:
    """Truths on the lines from each edge through the measurement, the latter among them."""
    # Few images shrink so much that the centre itself may be far from what was measured.
    limit = max(limit, deviance(centre))
    found = [centre]
    for edge in _distinct(edges):

        def at(far: float, edge: Array = edge) -> Array:
            moved = np.maximum(edge + far * (centre - edge), 0)
            return np.asarray(moved / moved.sum(axis=1, keepdims=True))

        def last(good: float, bad: float, at: Callable[[float], Array] = at) -> float:
            if deviance(at(bad)) <= limit:
                return bad
            for _ in range(_HALVINGS):
                middle = (good + bad) / 2
                good, bad = (middle, bad) if deviance(at(middle)) <= limit else (good, middle)
            return good

        near, far = last(1.0, 0.0), last(1.0, _FARTHEST)
        found += [at(near + part * (1 - near)) for part in _TOWARDS[:-1]]
        found += [at(1 + part * (far - 1)) for part in _BEYOND]
    return found
