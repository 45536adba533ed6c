from __future__ import annotations

import numpy as np
import pytest

from fairbench.errors import ContractError
from fairbench.metrics import (
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
    kernel_distance,
)


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
            with pytest.raises(ContractError):
                kernel_distance(*pair, subset_size=5, seed=0)


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

    @pytest.mark.parametrize("blocks", [0, 1, 51])
    def test_bad_blocks(self, blocks):
        with pytest.raises(ContractError, match="blocks"):
            frechet_interval(normal(50, 3, 0), normal(50, 3, 1), blocks=blocks, seed=0)
