from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import expected_coverage, precision_recall_density_coverage


def normal(n, d, seed, shift=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * spread + shift


def scores(found):
    return found.precision, found.recall, found.density, found.coverage


def by_definition(fake, real, k):
    """The four written out over exact distances."""

    def distances(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def radii(z):
        return np.sort(distances(z, z), axis=1)[:, k]

    between, fake_radii, real_radii = distances(fake, real), radii(fake), radii(real)
    return (
        (between <= real_radii).any(axis=1).mean(),
        (between <= fake_radii[:, None]).any(axis=0).mean(),
        (between < real_radii).sum() / (k * len(fake)),
        (between < real_radii).any(axis=0).mean(),
    )


class TestValues:
    @pytest.mark.parametrize("k", [1, 3, 5])
    @pytest.mark.parametrize("d", [1, 7, 33, 128])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_identical_sets(self, k, d, dtype):
        x = normal(300, d, 0, 3.0).astype(dtype)
        for same in (x, x.copy(), x[::-1]):
            found = precision_recall_density_coverage(same, x, k=k)
            assert scores(found) == (1, 1, 1, 1)

    def test_an_inclusive_density_of_identical_sets_would_be_larger(self):
        x, k = normal(200, 5, 0), 4
        distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
        inclusive = (distances <= np.sort(distances, axis=1)[:, k]).sum() / (k * len(x))
        assert inclusive == pytest.approx((k + 1) / k)
        assert precision_recall_density_coverage(x, x, k=k).density == 1

    def test_far_sets_share_nothing(self):
        found = precision_recall_density_coverage(normal(90, 5, 0), normal(80, 5, 1, 1e3), k=3)
        assert scores(found) == (0, 0, 0, 0)

    @pytest.mark.parametrize(("k", "expected", "tolerance"), [(3, 0.876, 0.02), (5, 0.969, 0.012)])
    def test_one_distribution(self, k, expected, tolerance):
        found = [
            precision_recall_density_coverage(normal(500, 8, s), normal(500, 8, s + 99), k=k)
            for s in range(10)
        ]
        assert np.mean([f.coverage for f in found]) == pytest.approx(expected, abs=tolerance)
        assert found[0].expected_coverage == pytest.approx(expected, abs=5e-4)
        assert found[0].k == k

    def test_a_tight_cluster_is_precise_and_recalls_nothing(self):
        tight, wide = normal(500, 8, 0, spread=0.05), normal(500, 8, 1)
        found = precision_recall_density_coverage(tight, wide, k=5)
        assert found.precision > 0.99
        assert found.recall < 0.01
        swapped = precision_recall_density_coverage(wide, tight, k=5)
        assert swapped.recall > 0.99
        assert swapped.precision < 0.01

    @pytest.mark.parametrize(("n", "m", "d"), [(40, 60, 3), (60, 40, 20), (5, 50, 2), (60, 60, 1)])
    def test_definition(self, n, m, d):
        x, y = normal(n, d, 0, 0.3, 1.2), normal(m, d, 1)
        found = precision_recall_density_coverage(x, y, k=4)
        assert scores(found) == pytest.approx(by_definition(x, y, 4))

    @pytest.mark.parametrize("top", [2, 4, 6, 7])
    @pytest.mark.parametrize("seed", range(5))
    def test_ties_everywhere(self, seed, top):
        """On a grid most distances are ties, and a rounding error decides each the wrong way."""
        rng = np.random.default_rng(seed)
        x, y = (rng.integers(0, top, (80, 5)).astype(float) for _ in range(2))
        found = precision_recall_density_coverage(x, y, k=5)
        assert scores(found) == pytest.approx(by_definition(x, y, 5), abs=1e-12)
        moved = precision_recall_density_coverage(x * 64 + 1024, y * 64 + 1024, k=5)
        assert moved == found

    def test_copies_of_few_images(self):
        y = normal(200, 6, 0)
        x = np.repeat(y[:4], 50, axis=0)
        found = precision_recall_density_coverage(x, y, k=3)
        assert scores(found) == pytest.approx(by_definition(x, y, 3))
        assert found.precision == 1
        assert found.recall == 4 / 200

    @pytest.mark.parametrize("values", [60, 400, 4000])
    @pytest.mark.parametrize("top", [2, 9, 0])
    def test_in_chunks_of_any_size(self, monkeypatch, values, top):
        # Each pair is met in one chunk only, so what a chunk finds for later rows must wait.
        monkeypatch.setattr("fairbench.metrics._features._CHUNK_VALUES", values)
        if top:  # ties and copies
            rng = np.random.default_rng(top)
            x, y = (rng.integers(0, top, (n, 3)).astype(float) for n in (90, 70))
        else:
            x, y = normal(90, 3, 0), normal(70, 3, 1, 0.3)
        for k in (1, 4):
            found = precision_recall_density_coverage(x, y, k=k)
            np.testing.assert_allclose(scores(found), by_definition(x, y, k), rtol=1e-12)

    def test_rows_beyond_one_chunk(self):
        x, y = normal(5000, 2, 0), normal(2500, 2, 1, 0.2)
        found = precision_recall_density_coverage(x, y, k=3)
        again = precision_recall_density_coverage(x[::-1], y[::-1], k=3)
        names = ("density", "precision", "recall", "coverage")
        errors = dict.fromkeys([f"{name}_error" for name in names], 0.0)
        degrees = dict.fromkeys([f"{name}_degrees" for name in names], 0.0)
        assert replace(found, **errors, **degrees) == replace(again, **errors, **degrees)
        for name in errors:  # blocks follow the order, so these agree up to chance
            assert getattr(found, name) == pytest.approx(getattr(again, name), rel=0.25)
        assert found.precision > 0.9

    @pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
    def test_scale_and_offset_do_not_matter(self, scale):
        x, y = normal(90, 5, 0, 0.5), normal(80, 5, 1)
        found = precision_recall_density_coverage(x, y, k=3)
        assert precision_recall_density_coverage(x * scale, y * scale, k=3) == found
        assert precision_recall_density_coverage(x + 1e4, y + 1e4, k=3) == found

    def test_one_far_outlier(self):
        x, y = normal(90, 5, 0, 0.5), normal(80, 5, 1)
        y[0] = 1e9
        found = precision_recall_density_coverage(x, y, k=3)
        assert scores(found) == pytest.approx(by_definition(x, y, 3))

    def test_memory_grows_with_n_alone(self):
        x, y = (normal(6000, 4, s).astype(np.float32) for s in (0, 1))
        tracemalloc.start()
        precision_recall_density_coverage(x, y, k=3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6000 * 6000 * 4 * 2  # three such matrices are what the usual routine holds


class TestAgreement:
    @pytest.mark.parametrize(("n", "m", "d", "k"), [(300, 400, 16, 3), (250, 250, 64, 5)])
    def test_torch_fidelity(self, n, m, d, k):
        torch = pytest.importorskip("torch")
        reference = pytest.importorskip("torch_fidelity.metric_prc")
        x, y = normal(n, d, 0, 0.2), normal(m, d, 1)
        found = precision_recall_density_coverage(x, y, k=k)
        for thrifty in (True, False):
            theirs = reference.prc_features_to_metric(
                torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=k,
                save_cpu_ram=thrifty, verbose=False,
            )  # fmt: skip
            assert found.precision == pytest.approx(theirs["precision"], rel=1e-6)
            assert found.recall == pytest.approx(theirs["recall"], rel=1e-6)

    @pytest.mark.parametrize(("n", "m", "d", "k"), [(300, 400, 16, 3), (250, 250, 64, 5)])
    def test_prdc(self, n, m, d, k, capsys):
        reference = pytest.importorskip("prdc")
        x, y = normal(n, d, 0, 0.2), normal(m, d, 1)
        theirs = reference.compute_prdc(y, x, k)
        found = precision_recall_density_coverage(x, y, k=k)
        assert found.density == pytest.approx(theirs["density"], rel=1e-6)
        assert found.coverage == pytest.approx(theirs["coverage"], rel=1e-6)


class TestExpectedCoverage:
    @pytest.mark.parametrize(
        ("n", "m", "k", "expected"),
        [(500, 500, 3, 0.8759), (500, 500, 5, 0.9697), (10**6, 10**6, 3, 0.875), (1, 10, 1, 0.1)],
    )
    def test_values(self, n, m, k, expected):
        assert expected_coverage(n, m, k=k) == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize(("n", "m", "k"), [(0, 5, 1), (5, 3, 3), (5, 5, 0)])
    def test_bad_numbers(self, n, m, k):
        with pytest.raises(ContractError):
            expected_coverage(n, m, k=k)


class TestBadInput:
    @pytest.mark.parametrize(
        "bad",
        [
            np.empty((0, 3)),
            np.ones((1, 3)),
            np.ones((3, 3)),
            np.ones(3),
            np.ones((9, 2)),
            np.full((9, 3), np.nan),
            np.full((9, 3), np.inf),
        ],
    )
    def test_features(self, bad):
        good = normal(10, 3, 0)
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(ContractError):
                precision_recall_density_coverage(*pair, k=3)

    @pytest.mark.parametrize("k", [0, -1, 2.5, None])
    def test_k(self, k):
        with pytest.raises(ContractError, match="k must"):
            precision_recall_density_coverage(normal(9, 3, 0), normal(9, 3, 1), k=k)
