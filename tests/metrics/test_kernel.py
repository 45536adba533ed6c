from __future__ import annotations

import numpy as np
import pytest

from fairbench.errors import ContractError
from fairbench.metrics import (
    kernel_distance,
)


def normal(n, d, seed, shift=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.linspace(1, spread, d) + shift


def mmd(x, y):
    """Unbiased squared MMD, written out pair by pair as the paper has it."""

    def mean(a, b, same):
        terms = (
            (u @ v / len(u) + 1) ** 3
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not same or i != j
        )
        return np.mean(list(terms))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


class TestKernelDistance:
    def test_full_subsets_are_the_definition(self):
        x, y = normal(12, 3, 0), normal(12, 3, 1, 0.5)
        found = kernel_distance(x, y, subsets=3, subset_size=12, seed=0)
        assert found.value == pytest.approx(mmd(x, y), rel=1e-10)
        assert found.spread == pytest.approx(0, abs=1e-12)

    def test_agrees_with_torch_fidelity_on_full_subsets(self):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_kid")
        x, y = normal(200, 16, 2), normal(200, 16, 3, 0.3, 1.4)
        theirs = reference.kid_features_to_metric(
            torch.from_numpy(x), torch.from_numpy(y), kid_subsets=2, kid_subset_size=200
        )
        found = kernel_distance(x, y, subsets=2, subset_size=200, seed=0)
        expected = theirs["kernel_inception_distance_mean"]
        assert found.value == pytest.approx(expected, rel=1e-9)

    def test_agrees_with_torch_fidelity_on_its_kind_of_subsets(self):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_kid")
        x, y = normal(300, 8, 2), normal(400, 8, 3, 0.3)
        theirs = reference.kid_features_to_metric(
            torch.from_numpy(x), torch.from_numpy(y), kid_subsets=200, kid_subset_size=100
        )
        found = kernel_distance(x, y, subsets=200, subset_size=100, seed=0)
        # Each mean is over 200 random subsets: four standard errors of their difference.
        tolerance = 4 * found.spread * np.sqrt(2 / 200)
        assert abs(found.value - theirs["kernel_inception_distance_mean"]) < tolerance
        spread = theirs["kernel_inception_distance_std"]
        assert found.spread == pytest.approx(spread, rel=0.25)

    @pytest.mark.parametrize(
        ("d", "shift", "expected"), [(1, 1, 22), (1, 0.5, 3.578125), (8, 0.5, 1.1171875)]
    )
    def test_expectation(self, d, shift, expected):
        found = [
            kernel_distance(
                normal(500, d, seed), normal(500, d, seed + 1000, shift), subsets=2,
                subset_size=500, seed=0,
            ).value
            for seed in range(100)
        ]  # fmt: skip
        # 2 % is the card's, at 300 repetitions; three standard errors is more at 100.
        error = 3 * np.std(found) / 10
        assert np.mean(found) == pytest.approx(expected, abs=max(0.02 * expected, error))

    def test_same_distribution_is_unbiased_and_sometimes_negative(self):
        found = np.array(
            [
                kernel_distance(
                    normal(200, 8, s), normal(200, 8, s + 999), subsets=2, subset_size=200, seed=0
                ).value
                for s in range(60)
            ]
        )
        assert abs(found.mean()) < 3 * found.spread() / np.sqrt(60)
        assert found.min() < 0

    def test_interval_is_the_jackknife_of_the_full_estimate(self):
        from scipy.stats import t

        x, y = normal(6, 3, 0), normal(6, 3, 1, 0.5)
        found = kernel_distance(x, y, subsets=2, subset_size=6, seed=0)
        spread = 0.0
        for left_out in (
            [mmd(np.delete(x, i, axis=0), y) for i in range(6)],
            [mmd(x, np.delete(y, i, axis=0)) for i in range(6)],
        ):
            spread += 5 * np.var(left_out)
        assert found.high - found.value == pytest.approx(t.ppf(0.975, 5) * np.sqrt(spread))

    def test_rows_beyond_one_chunk(self):
        x, y = normal(1500, 4, 0), normal(1500, 4, 1, 0.2)
        found = kernel_distance(x, y, subsets=2, subset_size=1500, seed=0)
        kernels = [(a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
        within = sum(k.sum() - np.trace(k) for k in kernels[:2]) / (1500 * 1499)
        assert found.value == pytest.approx(within - 2 * kernels[2].mean(), rel=1e-8)

    def test_same_seed_same_answer(self):
        x, y = normal(60, 4, 0), normal(80, 4, 1)
        first, again, other = (
            kernel_distance(x, y, subsets=5, subset_size=30, seed=seed) for seed in (1, 1, 2)
        )
        assert first == again != other

    @pytest.mark.slow
    @pytest.mark.parametrize("shift", [0.0, 0.5])
    def test_coverage(self, shift):
        # The card's closed form for D = 8 and a squared shift of 8 · ½² = 2.
        truth = 1.1171875 if shift else 0.0
        found = [
            kernel_distance(
                normal(300, 8, s), normal(300, 8, s + 999, shift),
                subsets=20, subset_size=150, seed=s,
            )
            for s in range(300)
        ]  # fmt: skip
        assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.91

    @pytest.mark.parametrize("size", [1, 41, 1000])
    def test_a_subset_size_that_does_not_fit_is_an_error(self, size):
        with pytest.raises(ContractError, match="subset_size"):
            kernel_distance(normal(40, 3, 0), normal(90, 3, 1), subset_size=size, seed=0)

    def test_too_few_subsets(self):
        with pytest.raises(ContractError, match="subsets"):
            kernel_distance(normal(9, 3, 0), normal(9, 3, 1), subsets=1, subset_size=9, seed=0)
