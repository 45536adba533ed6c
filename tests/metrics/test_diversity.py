from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    duplicate_rate,
    mean_pairwise_cosine,
    memorisation,
    vendi_score,
)

BAD = [
    np.empty((0, 3)),
    np.ones(3),
    np.full((9, 3), np.nan),
    np.full((9, 3), np.inf),
    np.vstack([np.ones((8, 3)), np.zeros((1, 3))]),
]


def normal(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def cosines(a, b):
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
    return a @ b.T


class TestVendi:
    @pytest.mark.parametrize("d", [6, 40])
    def test_orthogonal_images_count_each(self, d):
        rows = np.linalg.qr(normal(d, d, 0))[0][:6]
        assert vendi_score(rows) == pytest.approx(6, rel=1e-6)

    @pytest.mark.parametrize("d", [3, 40])
    def test_copies_count_once(self, d):
        assert vendi_score(np.tile(normal(1, d, 0), (9, 1))) == pytest.approx(1, rel=1e-6)
        assert vendi_score(normal(1, d, 0)) == pytest.approx(1, rel=1e-6)

    def test_two_pairs_of_duplicates(self):
        rows = np.repeat(np.eye(5)[:2], 2, axis=0)
        assert vendi_score(rows) == pytest.approx(2, rel=1e-6)
        assert mean_pairwise_cosine(rows) == pytest.approx(1 / 3, rel=1e-6)

    @pytest.mark.parametrize(("n", "d"), [(20, 50), (50, 20), (30, 30)])
    def test_either_product_gives_the_definition(self, n, d):
        x = normal(n, d, 0, 0.3)
        shares = np.linalg.eigvalsh(cosines(x, x) / n)
        shares = shares[shares > 1e-12]
        assert vendi_score(x) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)

    def test_length_and_rotation_do_not_matter(self):
        x = normal(30, 8, 0, 0.5)
        turned = (x @ np.linalg.qr(normal(8, 8, 1))[0]) * np.geomspace(1e-3, 1e3, 30)[:, None]
        for measure in (vendi_score, mean_pairwise_cosine):
            assert measure(turned) == pytest.approx(measure(x), rel=1e-6)

    @pytest.mark.parametrize("bad", BAD)
    def test_bad_embeddings(self, bad):
        with pytest.raises(ContractError):
            vendi_score(bad)


class TestMeanPairwiseCosine:
    def test_is_the_mean_off_the_diagonal(self):
        x = normal(30, 8, 0, 0.5)
        expected = cosines(x, x)[~np.eye(30, dtype=bool)].mean()
        assert mean_pairwise_cosine(x) == pytest.approx(expected, rel=1e-9)

    def test_bounds(self):
        assert mean_pairwise_cosine(np.ones((5, 3))) == pytest.approx(1)
        triangle = np.array([[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
        assert mean_pairwise_cosine(triangle) == pytest.approx(-1 / 2)

    @pytest.mark.parametrize("bad", [*BAD, np.ones((1, 3))])
    def test_bad_embeddings(self, bad):
        with pytest.raises(ContractError):
            mean_pairwise_cosine(bad)


class TestDuplicateRate:
    def test_counts_images_and_not_pairs(self):
        x = np.vstack([np.eye(6), np.eye(6)[:1], np.eye(6)[:1] * 3])
        assert duplicate_rate(x, 0.99) == 3 / 8
        assert duplicate_rate(x, -1) == 1
        assert duplicate_rate(np.eye(6), 0.0) == 0

    def test_more_than_a_chunk(self):
        x = normal(5000, 64, 0)
        x[4999] = x[3] * 2
        assert duplicate_rate(x, 0.95) == 2 / 5000

    @pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
    def test_definition(self, threshold):
        x = normal(40, 6, 0)
        c = cosines(x, x) - 2 * np.eye(40)
        assert duplicate_rate(x, threshold) == (c > threshold).any(axis=1).mean()

    @pytest.mark.parametrize("bad", [*BAD, np.ones((1, 3))])
    def test_bad_embeddings(self, bad):
        with pytest.raises(ContractError):
            duplicate_rate(bad, 0.5)

    @pytest.mark.parametrize("threshold", [1, 1.5, -2, np.nan])
    def test_bad_threshold(self, threshold):
        with pytest.raises(ContractError, match="threshold"):
            duplicate_rate(np.eye(3), threshold)


class TestMemorisation:
    def test_fresh_images_are_as_near_as_held_out_ones(self):
        found = memorisation(normal(2000, 8, 0), normal(500, 8, 1), normal(2000, 8, 2))
        assert found.ratio == pytest.approx(1, abs=0.01)
        assert found.auc == pytest.approx(0.5, abs=0.03)

    def test_copies_are_seen(self):
        training = normal(500, 8, 1)
        copied = training[:300] + 0.01 * normal(300, 8, 3)
        found = memorisation(copied, training, normal(300, 8, 2))
        assert found.generated > 0.999
        assert found.auc > 0.99
        assert found.ratio > 1.05

    def test_definition(self):
        x, t, h = normal(20, 4, 0), normal(15, 4, 1), normal(30, 4, 2)
        mine, theirs = cosines(x, t).max(axis=1), cosines(h, t).max(axis=1)
        found = memorisation(x, t, h)
        above = mine[:, None] > theirs[None]
        assert found.auc == pytest.approx(above.mean(), rel=1e-9)
        assert found.generated == pytest.approx(mine.mean())
        assert found.held_out == pytest.approx(theirs.mean())
        assert found.ratio == pytest.approx(mine.mean() / theirs.mean())

    def test_ties_count_half(self):
        rows = np.eye(3)
        assert memorisation(rows, rows, rows).auc == 0.5

    def test_no_ratio_to_a_cosine_that_is_not_positive(self):
        found = memorisation(np.eye(2)[:1], np.eye(2)[:1], np.eye(2)[1:])
        assert found.ratio is None
        assert found.auc == 1

    def test_copies_are_counted_beyond_what_one_held_out_image_in_a_thousand_reaches(self):
        training, held_out = normal(500, 8, 1), normal(4000, 8, 2)
        mixed = np.vstack([normal(900, 8, 3), training[:100] * 2])
        found = memorisation(mixed, training, held_out)
        nearest = cosines(held_out, training).max(axis=1)
        assert found.threshold == pytest.approx(np.quantile(nearest, 0.999))
        assert found.copies == pytest.approx(0.1, abs=0.003)
        fresh = memorisation(normal(1000, 8, 4), training, held_out)
        assert fresh.copies <= 0.004

    def test_shares_of_groups_alone_are_no_memorisation(self):
        # Group 1 has few training images, so its neighbours are far, and few generated ones.
        centre = 3 * np.eye(8)[:2]

        def images(counts, seed):
            which = np.repeat([0, 1], counts)
            return normal(len(which), 8, seed) + centre[which], which

        training, _ = images([900, 100], 0)
        held_out, theirs = images([1000, 1000], 1)
        generated, mine = images([1900, 100], 2)
        pooled = memorisation(generated, training, held_out)
        found = memorisation(generated, training, held_out, groups=(mine, theirs, 2))
        assert pooled.auc > 0.6
        assert found.auc == pytest.approx(0.5, abs=0.04)
        assert abs(found.ratio - 1) < abs(pooled.ratio - 1) / 5
        assert [one.num_generated for one in found.by_group] == [1900, 100]
        shares = [0.95, 0.05]
        assert found.auc == pytest.approx(np.dot(shares, [one.auc for one in found.by_group]))
        errors = [share * one.auc_error for share, one in zip(shares, found.by_group, strict=True)]
        assert found.auc_error == pytest.approx(np.linalg.norm(errors))
        # One group copied and the other not.
        generated[mine == 1] = training[900:] * 2
        found = memorisation(generated, training, held_out, groups=(mine, theirs, 2))
        assert found.by_group[1].auc > 0.99
        assert found.by_group[1].copies == 1
        assert found.by_group[0].copies < 0.01

    def test_errors_are_what_repetitions_scatter_by(self):
        found = [
            memorisation(normal(80, 4, 3 * s), normal(50, 4, 3 * s + 1), normal(120, 4, 3 * s + 2))
            for s in range(300)
        ]
        # Given the training set, which all share; here it varies too, and adds a little.
        for value, error in (("auc", "auc_error"), ("ratio", "ratio_error")):
            spread = np.std([getattr(one, value) for one in found])
            stated = np.mean([getattr(one, error) for one in found])
            assert spread == pytest.approx(stated, rel=0.15)

    def test_a_few_copies_are_not_certain(self):
        training = normal(50, 8, 1)
        found = memorisation(training[:5], training, normal(20, 8, 2))
        assert found.auc == 1
        assert found.auc_error > 0.05

    def test_groups_that_do_not_fit(self):
        x, t, h = normal(4, 3, 0), normal(5, 3, 1), normal(6, 3, 2)
        ones = np.ones(6, dtype=int)
        for groups in [
            (ones[:4], ones[:5], 2),
            (ones[:4], ones, 1),
            (0 * ones[:4], ones, 2),  # nothing to compare group 0 with
        ]:
            with pytest.raises(ContractError, match="group"):
                memorisation(x, t, h, groups=groups)
        empty = memorisation(x, t, h, groups=(ones[:4], ones, 2)).by_group[0]
        assert np.isnan([empty.auc, empty.auc_error, empty.copies]).all()
        with pytest.raises(ContractError, match="false_matches"):
            memorisation(x, t, h, false_matches=0)

    @pytest.mark.parametrize("bad", [*BAD, np.ones((4, 2))])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_bad_embeddings(self, bad, place):
        sets = [normal(9, 3, s) for s in range(3)]
        sets[place] = bad
        with pytest.raises(ContractError):
            memorisation(*sets)
