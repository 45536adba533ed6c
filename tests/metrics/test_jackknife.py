from __future__ import annotations

import numpy as np
import pytest

from fairbench.metrics.jackknife import degrees_of_freedom, skewed_ends, student


def contributions(numbers, batches):
    sums = np.bincount(batches, weights=numbers - numbers.mean())
    return sums * np.sqrt(len(sums) / (len(sums) - 1)) / len(numbers)


def test_without_skewness_ends_are_symmetric():
    assert skewed_ends(np.array([-1.0, 1.0, -1.0, 1.0]), 2.0) == (4.0, 4.0)
    assert skewed_ends(np.zeros(6), 2.0) == (0.0, 0.0)
    assert skewed_ends(np.array([1.0, -1.0]), 2.0) == pytest.approx((2 * np.sqrt(2),) * 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_reaches_further_to_the_side_of_the_odd_batch(sign):
    parts = sign * np.array([-3.0, *([0.3] * 10)])
    below, above = skewed_ends(parts, 2.2)
    half = 2.2 * np.sqrt((parts**2).sum())
    far, near = (below, above) if sign > 0 else (above, below)
    assert near == pytest.approx(half)
    assert far > 1.2 * half


def test_the_ends_undo_the_cubic_transformation():
    parts = np.array([-2.0, 0.5, 0.2, 0.4, 0.6, 0.3])
    error = np.sqrt((parts**2).sum())
    m = len(parts)
    # M times the third central moment of the mean, unbiased, from the unscaled contributions.
    raw = parts * np.sqrt((m - 1) / m)
    skewness = m**2 / ((m - 1) * (m - 2)) * (raw**3).sum() / error**3
    t = skewed_ends(parts, 2.0)[0] / error
    assert t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6 == pytest.approx(2.0)


def test_a_mean_that_few_batches_pull_down_is_held():
    """One number an image; .95 of the images have nearly the same, the others lie in few batches.

    Symmetric intervals hold the truth less often than that.
    """
    rng = np.random.default_rng(5)
    batches, share, trials = np.repeat(np.arange(20), 50), 0.95, 800
    held = symmetric = 0
    for _ in range(trials):
        odd = rng.beta(share * 17 / 3, (1 - share) * 17 / 3, size=20)  # images correlate by .15
        numbers = (rng.random(1000) < odd[batches]).astype(float)
        parts = contributions(numbers, batches)
        quantile = student(0.95, degrees_of_freedom(parts**2, 19))
        below, above = skewed_ends(parts, quantile)
        off = share - numbers.mean()
        held += -below <= off <= above
        symmetric += abs(off) <= quantile * np.sqrt((parts**2).sum())
    assert held / trials >= 0.95
    assert symmetric < held
