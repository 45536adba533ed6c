from __future__ import annotations

import numpy as np
import pytest

from fairbench.errors import ContractError
from fairbench.metrics import (
    cluster_counts,
    clustered_discrepancy,
    count_groups,
    design_effect,
    discrepancy_interval,
    noise_floor,
)


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


def batches(rng, probs, num_batches, size, correlation):
    """Labels and batches whose images agree with the given correlation."""
    probs = np.array(probs)
    rows = np.tile(probs, (num_batches, 1))
    if correlation:
        rows = rng.dirichlet(probs * (1 / correlation - 1), size=num_batches)
    labels = np.concatenate([rng.choice(len(probs), size=size, p=row) for row in rows])
    return labels, np.repeat(np.arange(num_batches), size)


class TestDesignEffect:
    def test_batches_of_one_kind_count_once(self):
        labels, where = np.repeat([0, 1] * 10, 32), np.repeat(np.arange(20), 32)
        # 32 images say what one does; the rest is the correction for 20 batches.
        assert design_effect(cluster_counts(labels, where, 2)) == pytest.approx(32 * 20 / 19)

    def test_independent_images_near_one(self):
        rng = np.random.default_rng(0)
        found = [
            design_effect(cluster_counts(*batches(rng, [0.7, 0.3], 30, 20, 0), 2))
            for _ in range(100)
        ]
        assert np.mean(found) == pytest.approx(1, abs=0.05)

    def test_known_correlation(self):
        rng = np.random.default_rng(0)
        found = [
            design_effect(cluster_counts(*batches(rng, [0.5, 0.5], 40, 32, 0.2), 2))
            for _ in range(100)
        ]
        assert np.mean(found) == pytest.approx(1 + 31 * 0.2, rel=0.06)

    def test_quotas_within_batches_remove_the_variance(self):
        assert design_effect(np.full((10, 2), 16)) == 0

    def test_one_group_only(self):
        assert design_effect([[5, 0], [7, 0]]) == 1

    @pytest.mark.parametrize("counts", [[[1, 2]], [[1, 2], [0, 0]], [[1, -2], [1, 1]], [1, 2]])
    def test_bad_input(self, counts):
        with pytest.raises(ContractError):
            design_effect(counts)


class TestInterval:
    def test_coupled_batches_widen_it_and_the_floor(self):
        labels, where = batches(np.random.default_rng(1), [0.5, 0.5], 30, 32, 0.2)
        found = clustered_discrepancy(labels, where, uniform(2))
        plain = discrepancy_interval(count_groups(labels, 2), uniform(2))
        assert found.interval.value == pytest.approx(plain.value)
        assert found.interval.high - found.interval.low > 1.5 * (plain.high - plain.low)
        assert found.floor == pytest.approx(noise_floor(960, 2) * np.sqrt(found.design_effect))
        assert found.num_clusters == 30

    def test_a_collapse_keeps_the_width_of_independent_images(self):
        found = clustered_discrepancy([0] * 100, np.arange(100) // 10, uniform(2))
        assert found.interval == discrepancy_interval([100, 0], uniform(2))

    def test_names_and_order_of_batches_do_not_matter(self):
        labels, where = batches(np.random.default_rng(2), [0.6, 0.4], 10, 16, 0.1)
        first = clustered_discrepancy(labels, where, uniform(2))
        assert clustered_discrepancy(labels[::-1], where[::-1] * 7 + 3, uniform(2)) == first

    @pytest.mark.parametrize(
        ("labels", "clusters"),
        [([0, 1], [0, 0]), ([0, 1], [0]), ([0, 2], [0, 1]), ([0, 1], [0.0, 1.0]), ([], [])],
    )
    def test_bad_input(self, labels, clusters):
        with pytest.raises(ContractError):
            clustered_discrepancy(labels, clusters, uniform(2))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("probs", "num_batches", "size", "correlation"),
        [
            ([0.5, 0.5], 30, 32, 0.2),
            ([0.5, 0.5], 10, 64, 0.2),
            ([0.7, 0.3], 30, 32, 0.2),
            ([0.25] * 4, 30, 32, 0.1),
            ([0.4, 0.3, 0.2, 0.1], 16, 64, 0.1),
            ([0.5, 0.5], 30, 32, 0),
        ],
    )
    def test_coverage_where_the_independent_interval_fails(
        self, probs, num_batches, size, correlation
    ):
        rng, trials = np.random.default_rng(0), 300
        target = uniform(len(probs))
        truth = np.linalg.norm(np.array(probs) - target)
        hits = plain_hits = 0.0
        for trial in range(trials):
            labels, where = batches(rng, probs, num_batches, size, correlation)
            found = clustered_discrepancy(labels, where, target, seed=trial).interval
            plain = discrepancy_interval(count_groups(labels, len(probs)), target, seed=trial)
            hits += found.low - 1e-9 <= truth <= found.high + 1e-9
            plain_hits += plain.low - 1e-9 <= truth <= plain.high + 1e-9
        print(probs, num_batches, size, correlation, hits / trials, plain_hits / trials)
        assert hits / trials >= 0.9
        if correlation:
            assert plain_hits / trials < 0.75
