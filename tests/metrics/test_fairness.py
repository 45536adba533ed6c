from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    count_groups,
    discrepancy_interval,
    discrepancy_of_shares,
    fairness_discrepancy,
    mean_discrepancy_interval,
    mean_noise_floor,
    noise_floor,
    noise_floor_for,
    shares,
    wilson_interval,
)


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


def covers(interval, truth):
    # An end that meets the truth exactly may miss it by rounding.
    return interval.low - 1e-9 <= truth <= interval.high + 1e-9


def coverage(probs, target, n, trials, seed=0):
    rng = np.random.default_rng(seed)
    truth = discrepancy_of_shares(probs, target)
    hits = [
        covers(discrepancy_interval(rng.multinomial(n, probs), target, seed=trial), truth)
        for trial in range(trials)
    ]
    return np.mean(hits)


def mean_coverage(probs, target, n, trials, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.mean([discrepancy_of_shares(row, target) for row in probs])
    hits = []
    for trial in range(trials):
        counts = [rng.multinomial(n, row) for row in probs]
        hits.append(covers(mean_discrepancy_interval(counts, target, seed=trial), truth))
    return np.mean(hits)


class TestCounting:
    def test_a_declared_group_without_images_keeps_its_zero(self):
        counts = count_groups([0, 0, 0, 1, 1], 3)
        assert counts.tolist() == [3, 2, 0]
        assert counts.dtype == np.int64
        np.testing.assert_allclose(shares(counts), [0.6, 0.4, 0.0])

    @pytest.mark.parametrize(
        "labels", [[], [[0, 1]], [0, 2], [-1, 0], [0.0, 1.0], [True, False], ["female"]]
    )
    def test_labels_that_are_not_declared_groups_are_errors(self, labels):
        with pytest.raises(ContractError):
            count_groups(labels, 2)

    @pytest.mark.parametrize(
        "counts", [[], [0, 0], [-1, 2], [np.nan, 1], [np.inf, 1], [[1, 2]], 3]
    )
    def test_counts_that_give_no_shares_are_errors(self, counts):
        with pytest.raises(ContractError):
            shares(counts)


class TestWilson:
    @pytest.mark.parametrize(
        ("k", "n", "low", "high"),
        [(50, 100, 0.403832, 0.596168), (0, 10, 0, 0.277533), (10, 10, 0.722467, 1)],
    )
    def test_known_values(self, k, n, low, high):
        assert wilson_interval(k, n) == pytest.approx((low, high), abs=1e-6)

    def test_ends_at_the_boundary_are_exact(self):
        sizes = np.arange(1, 2000)
        assert (wilson_interval(0, sizes)[0] == 0).all()
        assert (wilson_interval(sizes, sizes)[1] == 1).all()

    def test_arrays_broadcast(self):
        low, high = wilson_interval([3, 7], 10)
        assert (low[0], high[0]) == wilson_interval(3, 10)
        np.testing.assert_allclose(low, 1 - high[::-1])

    @pytest.mark.parametrize(
        ("k", "n", "level"),
        [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (np.nan, 2, 0.95), (1, 2, 1.0)],
    )
    def test_bad_input(self, k, n, level):
        with pytest.raises(ContractError):
            wilson_interval(k, n, level=level)

    def test_shapes_that_do_not_broadcast(self):
        with pytest.raises(ContractError, match="broadcast"):
            wilson_interval([1, 2], [3, 4, 5])


class TestDiscrepancy:
    @pytest.mark.parametrize(
        ("probs", "expected"),
        [
            ((0.5, 0.5), 0.0),
            ((0.9, 0.1), 0.565685),
            ((1, 0), 0.707107),
            ((0.7, 0.3), 0.282843),
            ((1, 0, 0, 0), 0.866025),
            ((0.4, 0.3, 0.2, 0.1), 0.223607),
            ((0.7, 0.1, 0.1, 0.1), 0.519615),
        ],
    )
    def test_known_values_against_uniform(self, probs, expected):
        found = discrepancy_of_shares(probs, uniform(len(probs)))
        assert found == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("counts", "ours", "over_observed"),
        [((9, 0), 0.707107, 0.5), ((9, 0, 0, 0), 0.866025, 0.75), ((5, 5, 0, 0), 0.5, 0.353553)],
    )
    def test_dropped_classes_do_not_improve_it(self, counts, ours, over_observed):
        # The second number is what Choi et al.'s released code prints: only seen classes count.
        labels = np.repeat(np.arange(len(counts)), counts)
        target = uniform(len(counts))
        seen = np.unique(labels)
        wrong = np.linalg.norm(np.bincount(labels)[seen] / len(labels) - target[seen])
        assert fairness_discrepancy(labels, target) == pytest.approx(ours, abs=1e-6)
        assert wrong == pytest.approx(over_observed, abs=1e-6)

    def test_a_fair_coin_s_mean_is_its_sampling_noise(self):
        flips = np.random.default_rng(0).random((4000, 1000)) < 0.5
        found = [fairness_discrepancy(row.astype(int), [0.5, 0.5]) for row in flips]
        assert np.mean(found) == pytest.approx(0.0178, abs=0.001)

    def test_emptying_a_group_never_helps(self):
        labels = np.repeat(np.arange(4), 25)
        full = fairness_discrepancy(labels, uniform(4))
        for group in range(4):
            assert fairness_discrepancy(labels[labels != group], uniform(4)) > full

    def test_labels_and_one_hot_probabilities_agree(self):
        labels = np.array([0, 2, 2, 1, 2])
        target = [0.5, 0.25, 0.25]
        expected = fairness_discrepancy(labels, target)
        assert fairness_discrepancy(np.eye(3)[labels], target) == pytest.approx(expected)
        assert fairness_discrepancy(labels[::-1], target) == expected

    def test_probabilities_are_averaged(self):
        probs = np.tile(np.float32([0.8, 0.2]), (7, 1))
        assert fairness_discrepancy(probs, [0.5, 0.5]) == pytest.approx(0.424264, abs=1e-6)

    def test_renaming_groups_changes_nothing(self):
        rng = np.random.default_rng(0)
        found, target, order = rng.dirichlet([1] * 5), rng.dirichlet([1] * 5), rng.permutation(5)
        assert discrepancy_of_shares(found[order], target[order]) == pytest.approx(
            discrepancy_of_shares(found, target)
        )

    def test_square_plus_one_over_k_is_the_sum_of_squares(self):
        found = np.random.default_rng(1).dirichlet([1] * 6)
        square = discrepancy_of_shares(found, uniform(6)) ** 2
        assert square + 1 / 6 == pytest.approx((found**2).sum())

    @pytest.mark.parametrize(
        "values",
        [
            np.empty((0, 2)),
            np.empty(0, dtype=int),
            np.array([0.2, 0.8]),
            np.array([[0, 1]]),
            np.array([[0.2, 0.7]]),
            np.array([[3.0, -2.0]]),
            np.array([[np.nan, 1.0]]),
            np.array([[0.2, 0.3, 0.5]]),
            np.array([0, 1, 2]),
            np.zeros((2, 2, 2)),
        ],
    )
    def test_bad_measurements(self, values):
        with pytest.raises(ContractError):
            fairness_discrepancy(values, [0.5, 0.5])

    @pytest.mark.parametrize(
        "target", [[], [1.0], [0.5, 0.6], [1.5, -0.5], [np.nan, 0.5], [[0.5, 0.5]]]
    )
    def test_bad_targets(self, target):
        with pytest.raises(ContractError, match="target"):
            fairness_discrepancy([0, 1], target)


class TestFloor:
    @pytest.mark.parametrize(
        ("n", "num_groups", "expected"),
        [(50, 2, 0.196), (100, 4, 0.140), (500, 8, 0.059), (1000, 2, 0.044), (100, 2, 0.139)],
    )
    def test_table(self, n, num_groups, expected):
        assert noise_floor(n, num_groups) == pytest.approx(expected, abs=6e-4)

    @pytest.mark.parametrize(("n", "num_groups", "mean"), [(100, 2, 0.0564), (1000, 4, 0.0251)])
    def test_against_simulated_fair_samples(self, n, num_groups, mean):
        rng = np.random.default_rng(0)
        draws = rng.multinomial(n, uniform(num_groups), size=20_000) / n
        found = np.linalg.norm(draws - uniform(num_groups), axis=1)
        assert found.mean() == pytest.approx(mean, abs=1e-3)
        # K = 2 moves in steps of sqrt(2) / n; two of them is the tolerance.
        assert np.quantile(found, 0.95) == pytest.approx(noise_floor(n, num_groups), abs=3e-3)

    def test_uniform_target_is_the_closed_form(self):
        assert noise_floor_for(uniform(4), 300) == noise_floor(300, 4)
        assert noise_floor_for([0.5, 0.0, 0.5], 300) == noise_floor(300, 2)

    @pytest.mark.parametrize("target", [[0.75, 0.25], [0.6, 0.3, 0.1, 0.0], [0.8, 0.1, 0.1]])
    def test_other_targets(self, target):
        draws = np.random.default_rng(0).multinomial(2000, target, size=50_000) / 2000
        found = np.quantile(np.linalg.norm(draws - target, axis=1), 0.95)
        assert noise_floor_for(target, 2000) == pytest.approx(found, rel=0.02)
        assert noise_floor_for(target, 2000) == noise_floor_for(target, 2000)

    def test_single_wanted_group_has_no_noise(self):
        assert noise_floor_for([1.0, 0.0], 10) == 0

    def test_mean_over_prompts(self):
        draws = np.random.default_rng(0).multinomial(200, uniform(2), size=(20_000, 5)) / 200
        found = np.quantile(np.linalg.norm(draws - 0.5, axis=2).mean(axis=1), 0.95)
        assert mean_noise_floor([200] * 5, uniform(2)) == pytest.approx(found, rel=0.02)
        assert mean_noise_floor([200] * 5, uniform(2)) < noise_floor(200, 2)
        assert mean_noise_floor([200], uniform(2)) == noise_floor(200, 2)

    @pytest.mark.parametrize(("n", "num_groups"), [(0, 2), (-5, 2), (2.5, 2), (10, 1)])
    def test_bad_sizes(self, n, num_groups):
        with pytest.raises(ContractError):
            noise_floor(n, num_groups)

    @pytest.mark.parametrize("sizes", [[], [10, 0], [[10]]])
    def test_bad_prompt_sizes(self, sizes):
        with pytest.raises(ContractError):
            mean_noise_floor(sizes, [0.5, 0.5])


class TestInterval:
    def test_two_groups_map_wilsons_interval(self):
        found = discrepancy_interval([70, 30], [0.5, 0.5])
        low, high = wilson_interval(70, 100)
        assert found.method == "wilson"
        assert found.low == pytest.approx(np.sqrt(2) * (low - 0.5))
        assert found.high == pytest.approx(np.sqrt(2) * (high - 0.5))

    def test_two_groups_that_may_be_fair_reach_zero(self):
        assert discrepancy_interval([53, 47], [0.5, 0.5]).low == 0
        assert discrepancy_interval([70, 30], [0.75, 0.25]).low == 0

    def test_more_than_two_groups_are_calibrated(self):
        assert discrepancy_interval([26, 25, 25, 24], uniform(4)).method == "calibrated"
        assert discrepancy_interval([53, 47], uniform(2)).method == "wilson"

    @pytest.mark.parametrize("num_groups", [2, 4, 8])
    def test_total_collapse_still_has_width(self, num_groups):
        counts = [100] + [0] * (num_groups - 1)
        found = discrepancy_interval(counts, uniform(num_groups))
        assert found.low < found.value - 0.01
        assert found.high == pytest.approx(found.value)

    def test_same_seed_same_interval_and_global_state_untouched(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        counts = [40, 30, 20, 10]
        assert discrepancy_interval(counts, uniform(4), seed=3) == discrepancy_interval(
            counts, uniform(4), seed=3
        )
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002

    @pytest.mark.parametrize("probs", [uniform(4), np.array([0.4, 0.3, 0.2, 0.1])])
    def test_coverage(self, probs):
        assert coverage(probs, uniform(4), n=1000, trials=100) >= 0.88

    def test_percentile_bootstrap_would_fail_where_fair(self):
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(100):
            found = rng.multinomial(1000, uniform(4)) / 1000
            drawn = rng.multinomial(1000, found, size=500) / 1000
            hits += np.quantile(np.linalg.norm(drawn - uniform(4), axis=1), 0.025) <= 0
        assert hits < 20

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [100, 1000])
    @pytest.mark.parametrize(
        "probs",
        [
            (0.5, 0.5),
            (0.55, 0.45),
            (0.7, 0.3),
            (0.98, 0.02),
            (0.25,) * 4,
            (0.4, 0.3, 0.2, 0.1),
            (0.98, 0.01, 0.005, 0.005),
            (0.125,) * 8,
        ],
    )
    def test_coverage_at_length(self, probs, n):
        assert 0.91 <= coverage(np.array(probs), uniform(len(probs)), n, trials=800) <= 1

    @pytest.mark.parametrize(
        "counts", [[0, 0, 0], [1, 2], [1.5, 1, 1], [-1, 2, 2], [np.nan, 1, 1]]
    )
    def test_bad_counts(self, counts):
        with pytest.raises(ContractError):
            discrepancy_interval(counts, uniform(3))


class TestMeanInterval:
    def test_opposite_prompts_do_not_cancel(self):
        found = mean_discrepancy_interval([[100, 0], [0, 100]], uniform(2))
        assert found.value == pytest.approx(0.707107, abs=1e-6)
        assert found.low > 0.6
        assert discrepancy_interval([100, 100], uniform(2)).value == 0

    def test_coupled_images_keep_their_value_and_widen_the_interval(self):
        # 512 of 1,000 at an effective size of 200, as 102.4 of 200: nothing is rounded.
        found = mean_discrepancy_interval([[512, 488]], uniform(2), design_effect=5)
        assert found.value == discrepancy_interval([512, 488], uniform(2)).value
        assert found.low == 0
        ends = np.array(wilson_interval(102.4, 200))
        assert found.high == pytest.approx(np.sqrt(2) * np.abs(ends - 0.5).max())
        near_collapse = mean_discrepancy_interval([[999, 1]], uniform(2), design_effect=20)
        assert near_collapse.high > near_collapse.value

    def test_single_prompt_is_the_plain_interval(self):
        plain = discrepancy_interval([60, 40], uniform(2))
        assert mean_discrepancy_interval([[60, 40]], uniform(2)) == plain

    def test_targets_by_prompt(self):
        counts = [[75, 25], [50, 50]]
        found = mean_discrepancy_interval(counts, [[0.75, 0.25], [0.5, 0.5]])
        assert found.value == 0
        assert found.low == 0

    @pytest.mark.parametrize("share", [0.5, 0.6, 0.9])
    def test_coverage(self, share):
        probs = np.tile([share, 1 - share], (5, 1))
        assert mean_coverage(probs, uniform(2), n=200, trials=60) >= 0.86

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [50, 200])
    @pytest.mark.parametrize(
        "first", [(0.5,) * 5, (0.55,) * 5, (0.7, 0.9, 0.2, 0.75, 0.85), (0.5, 0.5, 0.95, 0.9, 0.6)]
    )
    def test_coverage_at_length(self, first, n):
        probs = np.stack([first, 1 - np.array(first)], axis=1)
        assert mean_coverage(probs, uniform(2), n, trials=500) >= 0.91

    @pytest.mark.parametrize(
        ("counts", "targets"),
        [
            ([], [0.5, 0.5]),
            ([1, 2], [0.5, 0.5]),
            ([[1, 2], [0, 0]], [0.5, 0.5]),
            ([[1, 2, 3]], [0.5, 0.5]),
            ([[1, 2], [1, 2]], [[0.5, 0.5]]),
        ],
    )
    def test_bad_input(self, counts, targets):
        with pytest.raises(ContractError):
            mean_discrepancy_interval(counts, targets)


def test_importing_the_metrics_leaves_heavy_packages_out():
    heavy = "{'torch', 'scipy', 'pandas', 'sklearn'}"
    code = f"import sys, fairbench.metrics; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
