from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    detect_quota,
    goodness_of_fit,
    holm,
    mcnemar,
    paired_difference,
)


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


class TestGoodnessOfFit:
    @pytest.mark.parametrize("k", [0, 3, 12, 25, 40])
    def test_two_groups_are_the_binomial_test(self, k):
        for share in (0.5, 0.3):
            found = goodness_of_fit([k, 50 - k], [share, 1 - share])
            assert found.method == "exact"
            assert found.p_value == pytest.approx(stats.binomtest(k, 50, share).pvalue)

    def test_many_images_are_the_g_test(self):
        counts, target = [300, 320, 380], [0.3, 0.3, 0.4]
        found = goodness_of_fit(counts, target)
        expected = stats.power_divergence(
            counts, 1000 * np.array(target), lambda_="log-likelihood"
        )
        assert found.method == "g-test"
        assert found.statistic == pytest.approx(expected.statistic)
        assert found.p_value == pytest.approx(expected.pvalue)
        assert found.degrees == 2

    def test_exact_adds_up_all_outcomes_no_likelier(self):
        # By hand: 4 images in 3 groups; (4, 0, 0) and its mirrors are the least likely.
        assert goodness_of_fit([4, 0, 0], uniform(3)).p_value == pytest.approx(3 / 81)
        assert goodness_of_fit([2, 1, 1], uniform(3)).p_value == pytest.approx(1)

    def test_simulated_where_outcomes_are_too_many(self):
        counts = [20, 10, 10, 10, 10, 10, 10, 10]
        found = goodness_of_fit(counts, uniform(8))
        assert found.method == "monte-carlo"
        fair = stats.multinomial(90, uniform(8))
        drawn = fair.logpmf(fair.rvs(20_000, random_state=1))
        expected = (drawn <= fair.logpmf(counts) + 1e-9).mean()
        assert found.p_value == pytest.approx(expected, abs=0.015)
        assert found == goodness_of_fit(counts, uniform(8))

    def test_unwanted_groups(self):
        assert goodness_of_fit([50, 49, 1], [0.5, 0.5, 0.0]).p_value == 0
        with_zero = goodness_of_fit([30, 20, 0], [0.5, 0.5, 0.0])
        assert with_zero.p_value == goodness_of_fit([30, 20], [0.5, 0.5]).p_value
        assert goodness_of_fit([5, 0], [1.0, 0.0]).p_value == 1

    @pytest.mark.parametrize(("num_groups", "n"), [(2, 60), (3, 60), (4, 1000)])
    def test_fair_generators_are_rejected_as_often_as_promised(self, num_groups, n):
        drawn = np.random.default_rng(0).multinomial(n, uniform(num_groups), size=400)
        rate = np.mean([goodness_of_fit(row, uniform(num_groups)).p_value < 0.05 for row in drawn])
        assert rate <= 0.085

    @pytest.mark.parametrize("counts", [[0, 0], [1, 2, 3], [1.5, 2], [-1, 3]])
    def test_bad_input(self, counts):
        with pytest.raises(ContractError):
            goodness_of_fit(counts, uniform(2))


class TestHolm:
    def test_by_hand(self):
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])

    def test_never_above_one_nor_below_the_input(self):
        values = np.random.default_rng(0).random(20)
        found = holm(values)
        assert ((found >= values) & (found <= 1)).all()
        assert (np.argsort(found, kind="stable")[0]) == values.argmin()

    @pytest.mark.parametrize("values", [[], [1.2], [-0.1], [np.nan], [[0.1]]])
    def test_bad_input(self, values):
        with pytest.raises(ContractError):
            holm(values)


class TestQuota:
    def test_alternation_over_prompts_is_found(self):
        found = detect_quota(np.full((5, 2), 200), uniform(2))
        assert found.statistic == 0
        assert found.quota

    def test_one_exact_hit_is_no_proof(self):
        # Chi-square would call it impossible; one fair sample in 40 is exact.
        found = detect_quota([500, 500], uniform(2))
        assert stats.chi2.cdf(found.statistic, found.degrees) == 0
        assert found.p_value == pytest.approx(stats.binom.pmf(500, 1000, 0.5), abs=2e-3)
        assert not found.quota

    def test_fair_sampling_is_rarely_flagged(self):
        rng = np.random.default_rng(0)
        flags = [
            detect_quota(rng.multinomial(200, uniform(4), size=5), uniform(4)).quota
            for _ in range(100)
        ]
        assert np.mean(flags) <= 0.02

    def test_statistic_is_the_scaled_square_of_the_discrepancy(self):
        counts = np.array([[60, 40], [55, 45]])
        found = detect_quota(counts, uniform(2))
        squares = ((counts / 100 - 0.5) ** 2).sum(axis=1)
        assert found.statistic == pytest.approx((100 * 2 * squares).sum())
        assert found.degrees == 2
        assert found.p_value == pytest.approx(stats.chi2.cdf(found.statistic, 2))

    def test_other_targets(self):
        assert detect_quota(np.tile([150, 50], (6, 1)), [0.75, 0.25]).quota
        assert not detect_quota([[50, 49, 1]] * 6, [0.5, 0.5, 0.0]).quota

    @pytest.mark.parametrize("threshold", [0, 1, -0.5])
    def test_bad_threshold(self, threshold):
        with pytest.raises(ContractError):
            detect_quota([5, 5], uniform(2), threshold=threshold)


class TestMcNemar:
    def test_is_the_binomial_test_of_the_changed_images(self):
        first = np.repeat([0, 0, 1, 1], [30, 5, 15, 50])
        second = np.repeat([0, 1, 0, 1], [30, 5, 15, 50])
        found = mcnemar(first, second)
        assert (found.only_first, found.only_second) == (15, 5)
        assert found.difference == pytest.approx(0.1)
        assert found.p_value == pytest.approx(stats.binomtest(5, 20).pvalue)

    def test_the_same_images_do_not_differ(self):
        assert mcnemar([0, 1, 1], [0, 1, 1]).p_value == 1

    @pytest.mark.parametrize(
        ("first", "second"), [([0, 1], [0, 1, 1]), ([0, 2], [0, 1]), ([], []), ([0.0], [1.0])]
    )
    def test_bad_input(self, first, second):
        with pytest.raises(ContractError):
            mcnemar(first, second)


def correlated(rng, n, first, second, same):
    """Labels of two methods that share the noise of a fraction `same` of the images."""
    noise = rng.random(n)
    other = np.where(rng.random(n) < same, noise, rng.random(n))
    return np.searchsorted(np.cumsum(first)[:-1], noise), np.searchsorted(
        np.cumsum(second)[:-1], other
    )


class TestPairedDifference:
    def test_a_method_against_itself(self):
        labels = np.repeat([0, 1], [80, 20])
        found = paired_difference(labels, labels, uniform(2))
        assert found.value == found.low == found.high == 0
        assert found.tied

    def test_sign(self):
        labels = np.repeat([0, 1], [800, 200]), np.repeat([0, 1], [950, 50])
        found = paired_difference(*labels, uniform(2))
        assert found.value == pytest.approx(found.first - found.second)
        assert found.high < 0
        assert not found.tied

    def test_pairing_narrows_the_interval(self):
        rng = np.random.default_rng(0)
        first, second = correlated(rng, 2000, [0.8, 0.2], [0.75, 0.25], 0.9)
        paired = paired_difference(first, second, uniform(2))
        apart = paired_difference(first, rng.permutation(second), uniform(2))
        assert paired.value == pytest.approx(apart.value)
        assert paired.high - paired.low < 0.6 * (apart.high - apart.low)

    def test_means_over_prompts(self):
        prompts = np.repeat([0, 1], 100)
        first = np.repeat([0, 1], 100)  # one prompt all of one group, the other of the other
        second = np.tile([0, 1], 100)
        found = paired_difference(first, second, uniform(2), prompts=prompts)
        assert found.first == pytest.approx(0.707107, abs=1e-6)
        assert found.second == pytest.approx(0)
        assert paired_difference(first, second, uniform(2)).first == pytest.approx(0)

    @pytest.mark.parametrize("probs", [([0.8, 0.2], [0.7, 0.3]), ([0.5, 0.5], [0.5, 0.5])])
    def test_coverage(self, probs):
        rng, hits = np.random.default_rng(0), 0
        truth = np.linalg.norm(np.array(probs) - 0.5, axis=1) @ [1, -1]
        for trial in range(100):
            found = paired_difference(*correlated(rng, 1000, *probs, 0.8), uniform(2), seed=trial)
            hits += found.low <= truth <= found.high
        assert hits >= 88

    @pytest.mark.parametrize(
        ("first", "second", "prompts"),
        [
            ([0, 1], [0, 1, 1], None),
            ([0, 2], [0, 1], None),
            ([0, 1], [0, 1], [0, 2]),
            ([0, 1], [0, 1], [0]),
            ([0, 1], [0, 1], [-1, 0]),
            ([], [], None),
        ],
    )
    def test_bad_input(self, first, second, prompts):
        with pytest.raises(ContractError):
            paired_difference(
                np.array(first, dtype=int),
                np.array(second, dtype=int),
                uniform(2),
                prompts=prompts,
            )
