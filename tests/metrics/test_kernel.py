from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import gaussian_kernel_distance, kernel_distance

BAD_FEATURES = [
    np.empty((0, 3)),
    np.ones((1, 3)),
    np.ones(3),
    np.ones((5, 2)),
    np.full((5, 3), np.nan),
    np.full((5, 3), np.inf),
    np.full((5, 3), 1j),
    np.full((5, 3), "1"),
    [[1.0, 2.0, 3.0], [1.0, 2.0]],
    None,
]


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
        ("repetitions", "tolerance"), [(60, 0.05), pytest.param(300, 0.02, marks=pytest.mark.slow)]
    )
    @pytest.mark.parametrize(
        ("d", "shift", "expected"), [(1, 1, 22), (1, 0.5, 3.578125), (8, 0.5, 1.1171875)]
    )
    def test_expectation(self, d, shift, expected, repetitions, tolerance):
        found = [
            kernel_distance(normal(500, d, seed), normal(500, d, seed + 1000, shift), seed=0).value
            for seed in range(repetitions)
        ]
        assert np.mean(found) == pytest.approx(expected, rel=tolerance)

    def test_same_distribution_is_unbiased_and_sometimes_negative(self):
        found = np.array(
            [
                kernel_distance(
                    normal(200, 8, s), normal(200, 8, s + 999), subsets=2, subset_size=200, seed=0
                ).value
                for s in range(60)
            ]
        )
        assert abs(found.mean()) < 3 * found.std() / np.sqrt(60)
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


class TestAllPairs:
    def test_is_the_definition_for_unequal_sets(self):
        x, y = normal(11, 3, 0), normal(17, 3, 1, 0.5)
        found = kernel_distance(x, y, seed=0)
        assert found.value == pytest.approx(mmd(x, y), rel=1e-10)
        assert found.spread is None
        assert found.low < found.value < found.high

    def test_seed_moves_only_the_interval(self):
        x, y = normal(60, 4, 0), normal(80, 4, 1, 0.3)
        first, other = kernel_distance(x, y, seed=1), kernel_distance(x, y, seed=2)
        assert first.value == pytest.approx(other.value, rel=1e-12)
        assert first.high != other.high

    def test_row_order_changes_nothing_but_blocks(self):
        x, y = normal(60, 4, 0), normal(80, 4, 1, 0.3)
        found = kernel_distance(x[::-1], y[::-1], seed=1).value
        assert found == pytest.approx(kernel_distance(x, y, seed=1).value, rel=1e-12)

    def test_float32_features_are_summed_in_float64(self):
        x, y = (normal(200, 8, s).astype(np.float32) for s in (0, 1))
        assert kernel_distance(x, y, seed=0) == kernel_distance(
            x.astype(np.float64), y.astype(np.float64), seed=0
        )

    def test_spread_over_subsets_is_no_standard_error(self):
        """Published 'KID ± std' treats overlapping subsets as if they were independent samples."""
        x, y = normal(400, 8, 0), normal(400, 8, 1, 0.5)
        wide, narrow = (
            kernel_distance(x, y, subsets=50, subset_size=size, seed=0) for size in (50, 400)
        )
        assert narrow.spread == pytest.approx(0, abs=1e-12)  # the wrong error: no doubt at all
        half = [(found.high - found.low) / 2 for found in (wide, narrow)]
        assert half[1] > 0.1 * narrow.value
        assert half[0] == pytest.approx(half[1], rel=0.25)  # the jackknife's: much the same


class TestSubsetsOfTorchFidelity:
    @pytest.mark.parametrize("seed", [0, 2020])
    def test_same_seed_same_subsets(self, seed):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_kid")
        x, y = normal(300, 8, 2), normal(400, 8, 3, 0.3)
        theirs = reference.kid_features_to_metric(
            torch.from_numpy(x), torch.from_numpy(y), kid_subsets=7, kid_subset_size=100,
            rng_seed=seed, verbose=False,
        )  # fmt: skip
        found = kernel_distance(x, y, subsets=7, subset_size=100, seed=seed)
        expected = theirs["kernel_inception_distance_mean"]
        assert found.value == pytest.approx(expected, rel=1e-6)
        assert found.spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)

    def test_gaussian_kernel_on_normalised_embeddings(self):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_kid")
        x, y = normal(150, 16, 2), normal(150, 16, 3, 0.5)
        unit = [torch.from_numpy(z / np.linalg.norm(z, axis=1, keepdims=True)) for z in (x, y)]
        theirs = reference.kid_features_to_metric(
            *unit, kid_subsets=2, kid_subset_size=150, kid_kernel="rbf", kid_kernel_rbf_sigma=10,
            verbose=False,
        )  # fmt: skip
        found = gaussian_kernel_distance(x, y, seed=0)
        expected = theirs["kernel_inception_distance_mean"]
        assert found.value == pytest.approx(expected, rel=1e-6)

    def test_agrees_with_clean_fid_on_all_rows(self):
        reference = pytest.importorskip("cleanfid.fid")
        x, y = normal(120, 8, 2), normal(120, 8, 3, 0.3)
        expected = reference.kernel_distance(x, y, num_subsets=1, max_subset_size=120)
        assert kernel_distance(x, y, seed=0).value == pytest.approx(expected, rel=1e-6)


class TestGaussianKernelDistance:
    def test_is_the_definition(self):
        x, y = normal(9, 3, 0), normal(14, 3, 1, 0.5)

        def mean(a, b, same):
            a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
            kernel = np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 0.7**2))
            return kernel[~np.eye(len(a), dtype=bool)].mean() if same else kernel.mean()

        expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
        found = gaussian_kernel_distance(x, y, sigma=0.7, seed=0)
        assert found.value == pytest.approx(expected, rel=1e-10)

    def test_length_of_embeddings_does_not_matter(self):
        x, y = normal(30, 6, 0), normal(30, 6, 1, 0.5)
        stretched = x * np.geomspace(1e-200, 1e200, 30)[:, None]
        found = gaussian_kernel_distance(stretched, y, seed=0).value
        assert found == pytest.approx(gaussian_kernel_distance(x, y, seed=0).value, rel=1e-9)

    def test_same_distribution_is_unbiased_and_sometimes_negative(self):
        found = np.array(
            [
                gaussian_kernel_distance(normal(100, 8, s), normal(100, 8, s + 999), seed=0).value
                for s in range(60)
            ]
        )
        assert abs(found.mean()) < 3 * found.std() / np.sqrt(60)
        assert found.min() < 0

    @pytest.mark.parametrize("sigma", [0, -1, np.nan, np.inf])
    def test_bad_sigma(self, sigma):
        with pytest.raises(ContractError, match="sigma"):
            gaussian_kernel_distance(normal(9, 3, 0), normal(9, 3, 1), sigma=sigma, seed=0)

    def test_a_row_of_zeros_has_no_direction(self):
        x = normal(9, 3, 0)
        x[4] = 0
        with pytest.raises(ContractError, match="row 4"):
            gaussian_kernel_distance(x, normal(9, 3, 1), seed=0)


class TestWeights:
    def test_equal_weights_change_nothing(self):
        x, y = normal(60, 4, 0), normal(80, 4, 1, 0.3)
        found = kernel_distance(x, y, weights=np.full(80, 3.0), seed=0)
        expected = kernel_distance(x, y, seed=0)
        assert found.value == pytest.approx(expected.value, rel=1e-9)
        assert found.high == pytest.approx(expected.high, rel=1e-9)

    def test_a_weight_of_zero_is_a_row_less(self):
        x, y = normal(60, 4, 0), normal(80, 4, 1, 0.3)
        found = kernel_distance(x, y, weights=np.arange(80) < 50, seed=0).value
        assert found == pytest.approx(kernel_distance(x, y[:50], seed=0).value, rel=1e-9)

    def test_is_the_definition(self):
        x, y = normal(9, 3, 0), normal(12, 3, 1, 0.5)
        w = np.random.default_rng(2).uniform(0.5, 2, 12)
        xx, yy, xy = ((a @ b.T / 3 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        pairs = np.outer(w, w) * ~np.eye(12, dtype=bool)
        expected = (
            (xx.sum() - np.trace(xx)) / (9 * 8)
            + (pairs * yy).sum() / pairs.sum()
            - 2 * (xy @ w).sum() / (9 * w.sum())
        )
        assert kernel_distance(x, y, weights=w, seed=0).value == pytest.approx(expected, rel=1e-9)

    def test_reweighting_takes_the_composition_out(self):
        cells = np.repeat([-2.0, 2.0], [100, 900])
        y = cells[:, None] + normal(1000, 1, 0)
        x = np.repeat([-2.0, 2.0], 500)[:, None] + normal(1000, 1, 1)
        weights = np.where(cells < 0, 0.5 / 100, 0.5 / 900)
        found = kernel_distance(x, y, weights=weights, seed=0)
        assert found.low < 0 < found.high
        assert kernel_distance(x, y, seed=0).low > found.high

    def test_weights_and_subsets(self):
        with pytest.raises(ContractError, match="all pairs"):
            kernel_distance(
                normal(9, 3, 0), normal(9, 3, 1), weights=np.ones(9), subset_size=5, seed=0
            )

    @pytest.mark.parametrize(
        "weights", [np.ones(8), np.zeros(9), np.full(9, -1.0), np.full(9, np.nan), np.eye(9)[0]]
    )
    def test_bad_weights(self, weights):
        for measure in (kernel_distance, gaussian_kernel_distance):
            with pytest.raises(ContractError, match="weights"):
                measure(normal(9, 3, 0), normal(9, 3, 1), weights=weights, seed=0)


class TestBadInput:
    @pytest.mark.parametrize("measure", [kernel_distance, gaussian_kernel_distance])
    @pytest.mark.parametrize("bad", BAD_FEATURES)
    def test_features(self, measure, bad):
        good = normal(10, 3, 0)
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(ContractError):
                measure(*pair, seed=0)
            with pytest.raises(ContractError):
                measure(*pair, subset_size=5, seed=0)

    def test_subsets_without_a_size(self):
        with pytest.raises(ContractError, match="subset_size"):
            kernel_distance(normal(9, 3, 0), normal(9, 3, 1), subsets=5, seed=0)

    def test_three_rows_have_no_interval(self):
        with pytest.raises(ContractError, match="4 rows"):
            kernel_distance(normal(3, 3, 0), normal(9, 3, 1), seed=0)

    @pytest.mark.parametrize("option", [{"subsets": 2.5}, {"subset_size": 4.5}, {"subsets": "2"}])
    def test_numbers_that_are_no_integers(self, option):
        options = {"subsets": 2, "subset_size": 4, **option}
        with pytest.raises(ContractError, match="integer"):
            kernel_distance(normal(9, 3, 0), normal(9, 3, 1), seed=0, **options)

    @pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
    def test_seed(self, seed):
        with pytest.raises(ContractError, match="seed"):
            kernel_distance(normal(9, 3, 0), normal(9, 3, 1), seed=seed)

    @pytest.mark.parametrize("level", [0, 1, 2])
    def test_level(self, level):
        with pytest.raises(ContractError, match="level"):
            kernel_distance(normal(9, 3, 0), normal(9, 3, 1), level=level, seed=0)
