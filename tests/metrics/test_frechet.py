from __future__ import annotations

import warnings

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    FrechetMoments,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    frechet_interval,
)
from fairbench.metrics.frechet import _congruent


def normal(n, d, seed, shift=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.linspace(1, spread, d) + shift


class TestFrechetFromMoments:
    @pytest.mark.parametrize(
        ("mu1", "sigma1", "mu2", "sigma2", "expected"),
        [
            ([0, 0], np.eye(2), [3, 4], np.eye(2), 25.0),
            ([0, 0, 0], np.diag([1, 4, 9]), [1, 2, 2], np.diag([4, 4, 1]), 14.0),
            ([0, 0], [[2, 1], [1, 2]], [0, 0], np.diag([1, 4]), 0.771220448),
            ([0], [[2.0]], [0], [[0.0]], 2.0),
            ([0, 0], np.diag([1, 0]), [0, 0], np.diag([0, 1]), 2.0),
        ],
    )
    def test_closed_forms(self, mu1, sigma1, mu2, sigma2, expected):
        assert frechet_from_moments(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, abs=1e-8)
        assert frechet_from_moments(mu2, sigma2, mu1, sigma1) == pytest.approx(expected, abs=1e-8)

    @pytest.mark.parametrize(
        ("generated", "reference", "expected"),
        [(0.5, 0.9, 3.014300), (0.9, 0.9, 0), (0.9, 0.5, 3.014300)],
    )
    def test_proportions_alone_move_it(self, generated, reference, expected):
        moments = [([2 * (2 * w - 1)], [[1 + 16 * w * (1 - w)]]) for w in (generated, reference)]
        assert frechet_from_moments(*moments[0], *moments[1]) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("mu", "sigma"),
        [
            ([0, 0], np.eye(3)),
            ([[0, 0]], np.eye(2)),
            ([], np.empty((0, 0))),
            ([0, np.nan], np.eye(2)),
            ([0, 0], np.diag([1, np.inf])),
            ([0, 0], [[1, 0.5], [0, 1]]),
            ([0, 0], np.diag([1.0, -0.5])),
            ([0, 0, 0], np.eye(3)),
            (["a", "b"], np.eye(2)),
            ([0, 0], [[1, 0], [0]]),
            ([0, 0], np.eye(2) * 1j),
        ],
    )
    def test_bad_moments(self, mu, sigma):
        with pytest.raises(ContractError):
            frechet_from_moments(mu, sigma, [0, 0], np.eye(2))
        with pytest.raises(ContractError):
            frechet_from_moments([0, 0], np.eye(2), mu, sigma)


class TestFrechetDistance:
    @pytest.mark.parametrize(("n", "m"), [(20, 200), (200, 20), (20, 25), (150, 200), (32, 200)])
    def test_four_routes_agree(self, n, m):
        from scipy.linalg import sqrtm

        x, y = normal(n, 32, 1, 0.3, 2.0), normal(m, 32, 2)
        s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        shift = x.mean(axis=0) - y.mean(axis=0)
        base = shift @ shift + np.trace(s) + np.trace(r)
        values, vectors = np.linalg.eigh(r)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        symmetric = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s @ root), 0)).sum()
        general = np.sqrt(np.linalg.eigvals(s @ r).astype(complex)).real.sum()
        found = frechet_distance(x, y)
        assert found == pytest.approx(base - 2 * symmetric, rel=1e-6)
        assert found == pytest.approx(base - 2 * general, rel=1e-6)
        if min(n, m) > 32:  # the matrix root of a singular product isn't defined
            assert found == pytest.approx(base - 2 * np.trace(sqrtm(s @ r)).real, rel=1e-6)

    @pytest.mark.parametrize("n", [20, 200])
    def test_agrees_with_torch_fidelity(self, n):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_fid")
        x, y = normal(n, 32, 3, 0.2, 1.5), normal(300, 32, 4)
        stats = [reference.fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
        theirs = reference.fid_statistics_to_metric(*stats, False)
        expected = theirs["frechet_inception_distance"]
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("n", [10, 100])
    def test_invariances(self, n):
        x, y = normal(n, 16, 5, 0.5), normal(120, 16, 6)
        found = frechet_distance(x, y)
        rotation = np.linalg.qr(normal(16, 16, 7))[0]
        assert frechet_distance(x, x) <= 1e-6 * np.trace(np.cov(x, rowvar=False))
        assert frechet_distance(y, x) == pytest.approx(found, rel=1e-8)
        assert frechet_distance(x @ rotation + 3, y @ rotation + 3) == pytest.approx(found)
        assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * found)
        assert frechet_distance(x[::-1], y) == pytest.approx(found)

    def test_float32_features_are_summed_in_float64(self):
        x = normal(500, 4, 8).astype(np.float32) + np.float32(1000)
        y = normal(500, 4, 9).astype(np.float32) + np.float32(1000)
        wide = frechet_distance(x.astype(np.float64), y.astype(np.float64))
        assert frechet_distance(x, y) == wide

    def test_small_sample_bias(self):
        found = [
            frechet_distance(normal(500, 16, seed), normal(500, 16, seed + 1000))
            for seed in range(60)
        ]
        assert np.mean(found) == pytest.approx(2 * 0.170, rel=0.06)

    @pytest.mark.parametrize(
        "x",
        [
            np.empty((0, 3)),
            np.ones((1, 3)),
            np.ones(3),
            np.ones((5, 2)),
            np.full((5, 3), np.nan),
            np.full((5, 3), np.inf),
        ],
    )
    def test_bad_features(self, x):
        good = normal(10, 3, 0)
        for pair in ((x, good), (good, x)):
            with pytest.raises(ContractError):
                frechet_distance(*pair)


class TestFrechetInterval:
    @pytest.mark.parametrize(("n", "m"), [(203, 150), (203, 8), (14, 150)])
    def test_is_the_jackknife_written_out(self, n, m):
        from scipy.stats import t

        x, y = normal(n, 12, 1, 0.4), normal(m, 12, 2)
        found = frechet_interval(x, y, blocks=7, level=0.9, seed=5)
        order = np.random.default_rng(5).permutation(n)
        left_out = [
            frechet_distance(np.delete(x, part, axis=0), y) for part in np.array_split(order, 7)
        ]
        half = t.ppf(0.95, 6) * np.sqrt(6 * np.var(left_out))
        assert found.value == frechet_distance(x, y)
        assert found.high == pytest.approx(found.value + half, rel=1e-6)
        assert found.low == pytest.approx(max(0, found.value - half), rel=1e-6)

    def test_width_falls_with_n(self):
        y = normal(1000, 8, 0)
        widths = []
        for n in (200, 3200):
            found = frechet_interval(normal(n, 8, 1, 0.5), y, seed=0)
            widths.append(found.high - found.low)
        assert widths[1] < widths[0] / 2

    @pytest.mark.slow
    @pytest.mark.parametrize("shift", [0.0, 0.5])
    def test_coverage(self, shift):
        y = normal(1000, 8, 10**6)
        truth = np.mean([frechet_distance(normal(200, 8, s, shift), y) for s in range(1000)])
        found = [frechet_interval(normal(200, 8, s, shift), y, seed=s) for s in range(5000, 5300)]
        assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.91

    @pytest.mark.parametrize("blocks", [0, 1, 51, 2.5])
    def test_bad_blocks(self, blocks):
        with pytest.raises(ContractError, match="blocks"):
            frechet_interval(normal(50, 3, 0), normal(50, 3, 1), blocks=blocks, seed=0)


class TestTriangularFactor:
    def test_it_gives_the_distance_of_the_plain_product(self, monkeypatch):
        x, y = normal(700, 300, 0), normal(800, 300, 1) * 1.2
        moments = FrechetMoments.of(y)
        found = moments.distance(x)
        covariance = FrechetMoments.of(x).covariance
        product = _congruent(covariance, moments.factor)
        expected = moments.factor.T @ covariance @ moments.factor
        np.testing.assert_allclose(np.tril(product), np.tril(expected), atol=1e-12)
        monkeypatch.setattr("fairbench.metrics.frechet._TRIANGULAR_MINIMUM", 10_000)
        assert FrechetMoments.of(y).distance(x) == pytest.approx(found, rel=1e-12)

    def test_the_covariances_are_left_as_they_were(self):
        x, y = FrechetMoments.of(normal(400, 300, 0)), FrechetMoments.of(normal(400, 300, 1))
        before = x.covariance.copy(), y.factor.copy()
        y.distance(x)
        np.testing.assert_array_equal(x.covariance, before[0])
        np.testing.assert_array_equal(y.factor, before[1])

    def test_a_factor_that_is_no_triangle_is_multiplied_out(self):
        rng = np.random.default_rng(0)
        covariance, factor = np.cov(rng.standard_normal((300, 400))), rng.random((300, 300))
        expected = factor.T @ covariance @ factor
        np.testing.assert_array_equal(_congruent(covariance, factor), expected)


def mixture(n, share, seed):
    """n rows of N(±2, 1) with this share of +2 exactly, and which rows they are."""
    side = np.arange(n) < round(share * n)
    return np.where(side, 2.0, -2.0)[:, None] + normal(n, 1, seed), side


class TestFrechetMoments:
    @pytest.mark.parametrize("n", [10, 16, 17, 200])
    def test_moments_are_numpys(self, n):
        x = normal(n, 16, 0, 2.0, 3.0)
        found = FrechetMoments.of(x)
        np.testing.assert_allclose(found.mean, x.mean(axis=0))
        np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), atol=1e-12)
        assert found.trace == pytest.approx(np.trace(found.covariance))
        np.testing.assert_allclose(found.factor @ found.factor.T, found.covariance, atol=1e-12)
        assert found.n == found.effective_n == n
        assert found.low_n == (n <= 16)

    @pytest.mark.parametrize("n", [10, 16, 60])
    @pytest.mark.parametrize("m", [12, 16, 80])
    def test_reuse_and_given_moments_agree_with_two_arrays(self, n, m):
        x, y = normal(n, 16, 1, 0.3, 2.0), normal(m, 16, 2)
        reference = FrechetMoments.of(y)
        expected = frechet_distance(x, y)
        for _ in range(2):
            assert reference.distance(x) == pytest.approx(expected, rel=1e-9)
        given = FrechetMoments.of_moments(y.mean(axis=0), np.cov(y, rowvar=False))
        # A singular covariance is known to 1e-16 of its largest eigenvalue, its root to 1e-8.
        assert given.distance(x) == pytest.approx(expected, rel=1e-6)
        cov = np.cov(x, rowvar=False)
        found = reference.distance(FrechetMoments.of_moments(x.mean(axis=0), cov))
        assert found == pytest.approx(expected, rel=1e-6)

    def test_rows_beyond_one_chunk(self):
        x = normal(5000, 3, 0, 1.0, 2.0)
        np.testing.assert_allclose(FrechetMoments.of(x).covariance, np.cov(x, rowvar=False))

    def test_factor_is_found_once(self, monkeypatch):
        reference = FrechetMoments.of(normal(100, 8, 0))
        x = normal(50, 8, 1)
        first = reference.distance(x)
        monkeypatch.setattr(np.linalg, "cholesky", None)
        assert reference.distance(x) == first

    def test_weights(self):
        x, w = normal(200, 3, 0), np.random.default_rng(1).uniform(0.5, 2, 200)
        found = FrechetMoments.of(x, w)
        p = w / w.sum()
        mean = p @ x
        expected = (x - mean).T @ ((x - mean) * p[:, None]) / (1 - (p**2).sum())
        np.testing.assert_allclose(found.mean, mean)
        np.testing.assert_allclose(found.covariance, expected)
        assert found.effective_n == pytest.approx(w.sum() ** 2 / (w**2).sum())
        equal = FrechetMoments.of(x, np.full(200, 7.0))
        np.testing.assert_allclose(equal.covariance, np.cov(x, rowvar=False))

    def test_a_weight_of_zero_is_a_row_less(self):
        x = normal(100, 3, 0)
        found = FrechetMoments.of(x, np.arange(100) < 60)
        np.testing.assert_allclose(found.covariance, np.cov(x[:60], rowvar=False))

    def test_too_few_effective_images_are_refused(self):
        x = normal(100, 3, 0)
        with pytest.raises(ContractError, match="kernel distance"):
            FrechetMoments.of(x, np.arange(100) < 5)

    @pytest.mark.parametrize(
        "weights",
        [np.ones(9), np.zeros(10), np.full(10, -1), np.full(10, np.nan), np.ones((10, 1))],
    )
    def test_bad_weights(self, weights):
        with pytest.raises(ContractError, match="weights"):
            FrechetMoments.of(normal(10, 3, 0), weights)

    @pytest.mark.parametrize("n", [10, 60])
    def test_moments_stand_in_for_the_reference(self, n):
        x, y = normal(n, 16, 1, 0.3, 2.0), normal(80, 16, 2)
        reference = FrechetMoments.of(y)
        assert frechet_distance(x, reference) == frechet_distance(x, y)
        found = frechet_interval(x, reference, blocks=5, seed=0)
        assert found == frechet_interval(x, y, blocks=5, seed=0)

    def test_extrapolation_from_moments(self):
        x, y = normal(5000, 64, 1), normal(5000, 64, 2)
        found = frechet_infinity(x, FrechetMoments.of(y), seed=0)
        assert found == frechet_infinity(x, y, seed=0)

    def test_another_length(self):
        with pytest.raises(ContractError, match="same D"):
            FrechetMoments.of(normal(10, 3, 0)).distance(normal(10, 4, 0))


class TestRounding:
    @pytest.mark.parametrize(("n", "d", "rank"), [(20, 32, 32), (400, 64, 64), (400, 64, 5)])
    def test_a_set_has_no_distance_from_itself(self, n, d, rank):
        x = normal(n, rank, 0) @ normal(rank, d, 1)
        traces = 2 * np.trace(np.cov(x, rowvar=False))
        assert frechet_distance(x, x) <= 1e-6 * traces / 2
        assert frechet_distance(x, x[::-1]) <= 1e-6 * traces / 2

    def test_one_large_direction_of_many_empty_ones(self):
        """Roots of rounding errors would sum to far below −1e-6 of the trace, an error."""
        x = np.zeros((900, 400))
        x[:, :3] = normal(900, 3, 0) * [1e3, 1, 1e-3]
        x = x @ np.linalg.qr(normal(400, 400, 1))[0]
        assert frechet_distance(x, x[::-1]) <= 1e-9 * np.trace(np.cov(x, rowvar=False))

    def test_copies_of_few_images(self):
        x, y = np.repeat(normal(5, 32, 0), 60, axis=0), normal(500, 32, 1)
        general = np.linalg.eigvals(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
        shift = x.mean(axis=0) - y.mean(axis=0)
        traces = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False))
        top = np.sort(general.real)[-4:]  # five points span four directions; the rest is 0
        expected = shift @ shift + traces - 2 * np.sqrt(top).sum()
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)

    def test_results_below_rounding_are_errors(self):
        # Not positive semidefinite, in a direction that the other side doesn't see.
        with pytest.raises(ContractError, match="negative eigenvalue"):
            frechet_from_moments([0, 0], np.diag([1.0, -1e-3]), [0, 0], np.eye(2))


class TestAgreement:
    @pytest.mark.parametrize("n", [40, 300])
    def test_clean_fid(self, n):
        reference = pytest.importorskip("cleanfid.fid")
        x, y = normal(n, 16, 3, 0.2, 1.5), normal(300, 16, 4)
        moments = [moment for z in (x, y) for moment in (z.mean(axis=0), np.cov(z, rowvar=False))]
        with warnings.catch_warnings():
            # SciPy 1.16 and 1.17 warn of an argument of sqrtm that clean-fid passes.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                expected = reference.frechet_distance(*moments)
            except TypeError:
                pytest.skip("SciPy 1.18 and later took that argument away")
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("n", [30, 200])
    def test_float32_features_agree_with_torch_fidelity(self, n):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_fid")
        x, y = (normal(k, 48, s, s / 5).astype(np.float32) for s, k in enumerate((n, 200)))
        stats = [reference.fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
        theirs = reference.fid_statistics_to_metric(*stats, False)
        expected = theirs["frechet_inception_distance"]
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


class TestSampleSize:
    @pytest.mark.slow
    def test_bias_and_its_line(self):
        truth = FrechetMoments.of_moments(np.zeros(16), np.eye(16))
        sizes = [500, 1000, 2000, 4000]
        one = [
            np.mean([truth.distance(normal(n, 16, 10_000 * i + s)) for s in range(200)])
            for i, n in enumerate(sizes)
        ]
        np.testing.assert_allclose(one, [0.170, 0.084, 0.042, 0.021], rtol=0.06)
        two = [
            np.mean(
                [
                    frechet_distance(normal(n, 16, 77_000 + s), normal(n, 16, 99_000 + s))
                    for s in range(200)
                ]
            )
            for n in sizes
        ]
        np.testing.assert_allclose(two, 2 * np.array(one), rtol=0.06)
        for means in (one, two):
            assert abs(np.polyfit(1 / np.array(sizes), means, 1)[1]) < 0.005

    def test_drawing_with_replacement_raises_it(self):
        """A published reference picker and plain bootstraps repeat rows, which feigns distance."""
        x = normal(500, 16, 0)
        reference = FrechetMoments.of(x)
        rng = np.random.default_rng(1)
        wrong = np.mean([reference.distance(x[rng.choice(500, 500)]) for _ in range(20)])
        ours = reference.distance(x[rng.choice(500, 500, replace=False)])
        assert ours == pytest.approx(0, abs=1e-9)
        assert wrong == pytest.approx(0.170, rel=0.1)  # as if a fresh sample, from nothing

    def test_the_reference_trap(self):
        """Against its own bias's reference a biased generator beats the fair one."""
        biased, _ = mixture(40_000, 0.9, 0)
        fair, _ = mixture(40_000, 0.5, 1)
        natural = FrechetMoments.of(mixture(40_000, 0.9, 2)[0])
        balanced = FrechetMoments.of(mixture(40_000, 0.5, 3)[0])
        assert natural.distance(fair) == pytest.approx(3.0143, rel=0.02)  # the wrong winner:
        assert natural.distance(biased) < 0.01
        assert balanced.distance(biased) == pytest.approx(3.0143, rel=0.02)
        assert balanced.distance(fair) < 0.01


class TestFrechetInfinity:
    def test_takes_out_the_bias(self):
        x, y = normal(10_000, 64, 0, 0.1), normal(40_000, 64, 1)
        found = frechet_infinity(x, y, seed=0)
        assert found.sizes[0] == 5000
        assert found.sizes[-1] == 10_000
        assert len(found.sizes) == len(found.distances) == 15
        assert found.distances[-1] == pytest.approx(frechet_distance(x, y))
        # ‖m‖² = 64 · 0.1² = 0.64, and the reference's own bias stays in.
        own = 64 / 40_000 + 64 * 65 / (4 * 40_000)
        assert found.value == pytest.approx(0.64 + own, abs=0.04)
        bias = found.distances[-1] - found.value
        # The mean's part of the bias, D / N, is a matter of subsets alone; so is the covariance's.
        assert bias == pytest.approx((64 + 64 * 65 / 4) / 10_000, rel=0.15)
        assert found.r_squared > 0.9
        assert 0 < found.standard_error < 0.025

    def test_same_seed_same_answer(self):
        x, y = normal(5000, 64, 0), normal(5000, 64, 1)
        first, again, other = (frechet_infinity(x, y, seed=s) for s in (1, 1, 2))
        assert first == again != other
        assert first.sizes[0] == 2500

    def test_is_least_squares(self):
        x, y = normal(5000, 64, 0), normal(5000, 64, 1)
        found = frechet_infinity(x, y, seed=0)
        inverse = 1 / np.array(found.sizes)
        (slope, value), covariance = np.polyfit(inverse, found.distances, 1, cov=True)
        assert found.value == pytest.approx(value, rel=1e-6)
        assert found.slope == pytest.approx(slope, rel=1e-6)
        # The line's own error leaves out that all sizes are drawn from the same images.
        assert found.standard_error > 1.2 * np.sqrt(covariance[1, 1])
        assert found.degrees == 19
        correlation = np.corrcoef(inverse, found.distances)[0, 1]
        assert found.r_squared == pytest.approx(correlation**2, rel=1e-6)

    def test_too_few_images(self):
        with pytest.raises(ContractError, match="5000 generated images; seen 4999"):
            frechet_infinity(normal(4999, 2, 0), normal(100, 2, 1), seed=0)

    def test_noise_that_hides_the_line(self):
        with pytest.raises(ContractError, match="R²"):
            frechet_infinity(normal(5000, 1, 0, 1.0), normal(5000, 1, 1), seed=0)

    def test_images_without_any_bias(self):
        with pytest.raises(ContractError, match="R²"):
            frechet_infinity(np.ones((5000, 1)), normal(100, 1, 1), seed=0)
