from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    cluster_counts,
    clustered_discrepancy,
    clustered_share_intervals,
    correct_shares,
    count_groups,
    design_effect,
    discrepancy_interval,
    family_intervals,
    group_design_effects,
    noise_floor,
    penalised_discrepancy,
    prompt_discrepancies,
    resampled_interval,
    soft_design_effect,
    soft_discrepancy_interval,
    wilson_interval,
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

    def test_a_collapse_shows_nothing_of_batches_so_they_are_the_observations(self):
        found = clustered_discrepancy([0] * 100, np.arange(100) // 10, uniform(2)).interval
        assert found.high == found.value == pytest.approx(np.sqrt(0.5))
        ten = discrepancy_interval([10, 0], uniform(2))
        assert 0 < found.low < ten.low < discrepancy_interval([100, 0], uniform(2)).low

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


class TestGroupEffects:
    def test_each_group_has_its_own(self):
        # Group 0 comes in whole batches, groups 1 and 2 are drawn image by image.
        rng = np.random.default_rng(0)
        rows = [np.zeros(20, int) if b % 4 == 0 else rng.integers(1, 3, 20) for b in range(400)]
        found = group_design_effects(np.concatenate(rows), np.repeat(np.arange(400), 20), 3)
        stretch = 1.0  # Student's quantile at 399 degrees is the normal one to half a percent
        assert found.by_group[0] == pytest.approx(20 * stretch, rel=0.03)
        assert found.by_group[1] < 10
        counts = cluster_counts(np.concatenate(rows), np.repeat(np.arange(400), 20), 3)
        assert found.overall == pytest.approx(design_effect(counts), rel=0.01)

    def test_what_differs_between_strata_is_no_batch_effect(self):
        rng = np.random.default_rng(1)
        strata = np.repeat([0, 1], 1000)
        labels = (rng.random(2000) < np.where(strata, 0.9, 0.1)).astype(int)
        where = np.arange(2000) // 20
        assert group_design_effects(labels, where, 2).overall > 5
        found = group_design_effects(labels, where, 2, strata=strata)
        assert found.overall == pytest.approx(1, abs=0.3)

    def test_what_batches_show_is_stretched_for_few_batches(self):
        labels = np.arange(40) % 2  # every batch alike
        found = group_design_effects(labels, np.arange(40) // 10, 2)
        stretch = (3.182446 / 1.959964) ** 2
        np.testing.assert_allclose(found.by_group, stretch, rtol=1e-6)
        # Exact balance counts as if z² of the 20 images of variance had gone astray.
        assert found.seen == pytest.approx(1.959964**2 / 20, rel=1e-6)
        assert found.overall == pytest.approx(found.seen * stretch, rel=1e-6)

    def test_a_batch_that_holds_all_misses_is_one_observation(self):
        labels = np.ones(640, dtype=int)
        labels[:16] = 0  # half of the first of 20 batches
        where = np.arange(640) // 32
        found = group_design_effects(labels, where, 2)
        _, high = clustered_share_intervals([16, 624], found)
        # As of about 20 observations, not of the 75 images that a ratio of variances suggests.
        assert found.by_group[0] == pytest.approx(32 * (2.093024 / 1.959964) ** 2, rel=1e-4)
        assert high[0] > 0.15 > wilson_interval(16 / found.seen, 640 / found.seen)[1]

    def test_misses_in_many_batches_keep_the_degrees_of_the_batches(self):
        rng = np.random.default_rng(0)
        labels, where = batches(rng, [0.5, 0.5], 40, 32, 0.1)
        found = group_design_effects(labels, where, 2)
        assert found.overall / found.seen == pytest.approx((2.022691 / 1.959964) ** 2, rel=0.02)

    def test_an_empty_group_has_the_overall_effect(self):
        labels = np.repeat(np.arange(10) % 2, 8)
        found = group_design_effects(labels, np.repeat(np.arange(10), 8), 3)
        assert found.by_group[2] == found.overall > 8
        low, high = clustered_share_intervals(np.bincount(labels, minlength=3), found)
        assert (low[2], low[0] > 0) == (0, True)
        assert high[2] == wilson_interval(0, 80 / found.overall)[1]

    def test_a_single_batch_shows_nothing(self):
        labels = np.arange(20) % 2
        assert group_design_effects(labels, np.zeros(20, int), 2) is None
        assert group_design_effects(labels, labels, 2, strata=labels) is None
        probs = np.eye(2)[labels]
        assert soft_design_effect(probs, np.zeros(20, int), np.zeros(20, int)) is None

    def test_probabilities_of_0_and_1_have_the_effect_of_labels(self):
        labels, where = batches(np.random.default_rng(3), [0.5, 0.3, 0.2], 12, 16, 0.2)
        strata = (where >= 6).astype(int)
        hard = group_design_effects(labels, where, 3, strata=strata).overall
        soft = soft_design_effect(np.eye(3)[labels], where, strata)
        assert soft == pytest.approx(hard, rel=1e-9)

    @pytest.mark.parametrize("strata", [np.zeros(3, int), np.zeros(4)])
    def test_bad_input(self, strata):
        with pytest.raises(ContractError):
            group_design_effects([0, 1, 0, 1], [0, 0, 1, 1], 2, strata=strata)
        with pytest.raises(ContractError):
            soft_design_effect(np.full((4, 2), 0.5), [0, 0, 1], [0, 0, 0, 0])
        found = group_design_effects([0, 1, 0, 1], [0, 0, 1, 1], 2)
        with pytest.raises(ContractError, match="counts"):
            clustered_share_intervals([1, 2, 3], found)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("probs", "num_batches", "size", "correlation"),
        [
            ([0.5, 0.5], 10, 64, 0.2),
            ([0.7, 0.3], 30, 32, 0.2),
            ([0.95, 0.05], 30, 32, 0.1),
            ([0.4, 0.3, 0.2, 0.1], 16, 64, 0.1),
            ([0.5, 0.5], 30, 32, 0),
        ],
    )
    def test_coverage_of_shares(self, probs, num_batches, size, correlation):
        rng, trials = np.random.default_rng(0), 400
        hits, plain_hits = np.zeros(len(probs)), np.zeros(len(probs))
        for _ in range(trials):
            labels, where = batches(rng, probs, num_batches, size, correlation)
            counts = count_groups(labels, len(probs))
            effects = group_design_effects(labels, where, len(probs))
            low, high = clustered_share_intervals(counts, effects)
            hits += (low <= probs) & (probs <= high)
            low, high = wilson_interval(counts, np.full(len(probs), len(labels)))
            plain_hits += (low <= probs) & (probs <= high)
        print(probs, num_batches, size, correlation, hits / trials, plain_hits / trials)
        assert (hits / trials).min() >= 0.9
        if correlation:
            assert (plain_hits / trials).max() < 0.75


class TestDesignEffectOfIntervals:
    """Images that come in fours are worth a quarter of them."""

    @pytest.mark.parametrize("counts", [[30, 20], [30, 20, 0, 5], [100, 2, 3]])
    def test_four_alike_are_one(self, counts):
        counts, target = np.array(counts), uniform(len(counts))
        assert discrepancy_interval(4 * counts, target, design_effect=4) == discrepancy_interval(
            counts, target
        )
        assert family_intervals(4 * counts, target, design_effect=4) == family_intervals(
            counts, target
        )
        assert penalised_discrepancy(
            4 * counts, 8, target, design_effect=4
        ) == penalised_discrepancy(counts, 2, target)

        def largest(table):
            return float(table.max() / table.sum())

        assert resampled_interval(4 * counts, largest, design_effect=4) == resampled_interval(
            counts, largest
        )

    def test_prompts(self):
        counts = np.array([[30, 20], [10, 40]])
        one, four = prompt_discrepancies(counts, uniform(2)), 4 * counts
        found = prompt_discrepancies(four, uniform(2), design_effect=4)
        assert found.per_prompt_worst == one.per_prompt_worst
        assert found.pooled == one.pooled
        assert (found.pooled_floor, found.mean_floor) == (one.pooled_floor, one.mean_floor)

    def test_soft(self):
        rows = np.random.default_rng(0).dirichlet([2, 1, 1], size=200)
        plain, floor = soft_discrepancy_interval(rows, uniform(3))
        found, wide_floor = soft_discrepancy_interval(rows, uniform(3), design_effect=9)
        assert found.value == plain.value
        assert wide_floor == pytest.approx(3 * floor)
        assert found.high > plain.high

    @pytest.mark.parametrize("counts", [[300, 200], [300, 200, 100]])
    def test_corrected_shares(self, counts):
        confusion = np.diag([10_000] * len(counts)) + 10
        plain = correct_shares(counts, confusion)
        found = correct_shares(counts, confusion, design_effect=9)
        np.testing.assert_array_equal(found.shares, plain.shares)
        np.testing.assert_allclose(found.high - found.low, 3 * (plain.high - plain.low), rtol=0.1)

    @pytest.mark.parametrize("effect", [0, -1, np.nan, np.inf])
    def test_bad_effect(self, effect):
        with pytest.raises(ContractError, match="design_effect"):
            discrepancy_interval([1, 2], uniform(2), design_effect=effect)
        with pytest.raises(ContractError, match="design_effect"):
            soft_discrepancy_interval(np.eye(2), uniform(2), design_effect=effect)
        if effect != 0:
            with pytest.raises(ContractError, match="design_effect"):
                correct_shares([1, 2], np.diag([50, 50]), design_effect=effect)
