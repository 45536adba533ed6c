from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    correct_shares,
    corrected_discrepancy,
    corrected_noise_floor,
    discrepancy_of_shares,
    noise_floor,
    worse_of_judges,
)

BINARY = np.array([[0.95, 0.05], [0.10, 0.90]])


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


def symmetric(num_groups, right):
    others = (1 - right) / (num_groups - 1)
    return np.full((num_groups, num_groups), others) + np.eye(num_groups) * (right - others)


class TestPoint:
    def test_published_binary_values(self):
        found = correct_shares([610, 390], [[947, 53], [17, 983]])
        assert found.shares[0] == pytest.approx(0.637634, abs=1e-6)
        assert found.method == "fieller"
        assert found.low[0] < 0.637634 < found.high[0]

    def test_asymmetric_errors_make_a_fair_generator_look_unfair(self):
        counts, confusion = [590, 410], [[980, 20], [200, 800]]
        found = corrected_discrepancy(counts, confusion, uniform(2))
        naive = discrepancy_of_shares(np.array(counts) / 1000, uniform(2))
        assert naive == pytest.approx(0.127279, abs=1e-6)
        assert found.value == pytest.approx(0, abs=1e-12)
        assert found.low == 0

    def test_perfect_classifier_changes_nothing(self):
        for counts in ([7, 3], [4, 3, 2, 1]):
            found = correct_shares(counts, 100 * np.eye(len(counts), dtype=int))
            np.testing.assert_allclose(found.shares, np.array(counts) / 10, atol=1e-12)

    def test_three_groups(self):
        confusion = [[90, 5, 5], [10, 80, 10], [0, 20, 80]]
        found = correct_shares([480, 305, 215], confusion)
        np.testing.assert_allclose(found.shares, [0.5, 0.3, 0.2], atol=1e-9)
        assert found.condition == pytest.approx(1.547316, abs=1e-6)
        assert found.method == "bootstrap"

    def test_symmetric_errors_attenuate(self):
        confusion = symmetric(4, 0.85)
        truth = np.array([0.7, 0.1, 0.1, 0.1])
        counts = np.round(truth @ confusion * 100_000).astype(int)
        naive = discrepancy_of_shares(counts / counts.sum(), uniform(4))
        found = corrected_discrepancy(counts, np.round(confusion * 10_000), uniform(4))
        assert naive < found.value
        assert found.value == pytest.approx(discrepancy_of_shares(truth, uniform(4)), abs=1e-3)

    def test_closed_form_is_the_limit_of_the_binary_case(self):
        (a, _), (_, d) = BINARY
        found = correct_shares([300, 700], np.round(BINARY * 1000))
        assert found.shares[0] == pytest.approx((0.3 + d - 1) / (a + d - 1))

    def test_point_stays_in_the_simplex_where_the_inverse_leaves_it(self):
        found = correct_shares([995, 5], np.round(BINARY * 1000))
        assert found.raw[0] > 1
        assert found.shares.tolist() == [1, 0]

    @pytest.mark.parametrize("num_groups", [3, 8])
    def test_maximum_likelihood_agrees_with_plain_expectation_maximisation(self, num_groups):
        confusion = symmetric(num_groups, 0.8)
        rng = np.random.default_rng(0)
        for _ in range(5):
            counts = rng.multinomial(200, confusion[0])
            found = correct_shares(counts, np.round(confusion * 70_000))
            measured, rates = counts / 200, np.round(confusion * 70_000)
            rates = rates / rates.sum(axis=1, keepdims=True)
            slow = uniform(num_groups)
            for _ in range(20_000):
                slow = slow * (rates @ (measured / (slow @ rates)))
            np.testing.assert_allclose(found.shares, slow, atol=1e-6)
            assert found.shares.min() >= 0
            assert found.shares.sum() == pytest.approx(1)

    def test_confusion_reads_as_sklearns(self):
        truth = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
        said = [0, 0, 1, 1, 1, 1, 0, 2, 2, 2]
        table = confusion_matrix(truth, said, labels=[0, 1, 2])
        counts = np.bincount(said, minlength=3)
        np.testing.assert_allclose(correct_shares(counts, table).shares, [0.3, 0.4, 0.3])


class TestTwoGroups:
    def test_ends_are_where_chance_explains_the_counts_no_more(self):
        counts, table, z = np.array([620, 380]), np.array([[45, 5], [8, 42]]), 1.959964
        found = correct_shares(counts, table)

        def shrunk(hits, n):
            rate = (hits + z**2 / 2) / (n + z**2)
            return rate, rate * (1 - rate) / (n + z**2)

        (q, of_q), (a, of_a), (b, of_b) = shrunk(620, 1000), shrunk(45, 50), shrunk(42, 50)
        for p in (found.low[0], found.high[0]):
            off = q - p * a - (1 - p) * (1 - b)
            variance = of_q + p**2 * of_a + (1 - p) ** 2 * of_b
            assert off**2 == pytest.approx(z**2 * variance, rel=1e-4)
        np.testing.assert_allclose(found.low + found.high[::-1], 1)

    def test_a_judge_that_may_be_no_better_than_chance_says_nothing(self):
        found = correct_shares([60, 40], [[8, 4], [4, 8]])
        assert (found.low[0], found.high[0]) == (0, 1)
        # Of the discrepancy that is all there is between fair and collapsed.
        whole = corrected_discrepancy([60, 40], [[8, 4], [4, 8]], uniform(2))
        assert (whole.low, whole.high) == (0, pytest.approx(np.sqrt(0.5)))


class TestRefusals:
    def test_no_better_than_chance(self):
        for confusion in ([[50, 50], [50, 50]], [[40, 60], [55, 45]]):
            assert correct_shares([5, 5], confusion).reason == "ill_conditioned"
            found = corrected_discrepancy([5, 5], confusion, [0.5, 0.5])
            assert found.reason == "ill_conditioned"
            assert np.isnan([found.value, found.low, found.high, found.floor]).all()
            with pytest.raises(ContractError, match="can't be undone"):
                corrected_noise_floor(10, confusion, [0.5, 0.5])

    @pytest.mark.parametrize(
        "confusion",
        [
            [[40, 30, 30], [5, 90, 5], [5, 5, 90]],  # a diagonal below a half
            [[52, 48], [48, 52]],  # condition number 25
        ],
    )
    def test_ill_conditioned_is_a_reason_not_a_number(self, confusion):
        counts = np.ones(len(confusion), dtype=int) * 10
        found = correct_shares(counts, confusion)
        assert found.reason == "ill_conditioned"
        assert np.isnan(found.shares).all()
        assert np.isfinite(found.condition)
        score = corrected_discrepancy(counts, confusion, uniform(len(confusion)))
        assert score.reason == "ill_conditioned"
        assert np.isnan([score.value, score.low, score.high, score.floor]).all()
        with pytest.raises(ContractError, match="ill_conditioned"):
            corrected_noise_floor(100, confusion, uniform(len(confusion)))

    @pytest.mark.parametrize(
        ("counts", "confusion"),
        [
            ([1, 2], [[1, 2, 3], [1, 2, 3]]),
            ([1, 2, 3], [[9, 1], [1, 9]]),
            ([0, 0], [[9, 1], [1, 9]]),
            ([1, 2], [[0, 0], [1, 9]]),
            ([1, 2], [[9.5, 0.5], [1, 9]]),
            ([1, 2], [[-1, 9], [1, 9]]),
            ([1], [[5]]),
        ],
    )
    def test_bad_input(self, counts, confusion):
        with pytest.raises(ContractError):
            correct_shares(counts, confusion)

    def test_targets_must_fit(self):
        with pytest.raises(ContractError):
            corrected_discrepancy([5, 5], [[9, 1], [1, 9]], uniform(3))
        with pytest.raises(ContractError):
            corrected_discrepancy([[5, 5], [5, 5]], [[9, 1], [1, 9]], np.full((3, 2), 0.5))


class TestWorseJudge:
    def test_larger_value_counts(self):
        good, poor = [[95, 5], [5, 95]], [[80, 20], [20, 80]]
        scores = [corrected_discrepancy([60, 40], table, uniform(2)) for table in (good, poor)]
        assert worse_of_judges(scores) == scores[1]
        assert worse_of_judges(scores[::-1]) == scores[1]

    def test_a_refused_judge_does_not_vanish(self):
        sound = corrected_discrepancy([60, 40], [[95, 5], [5, 95]], uniform(2))
        refused = corrected_discrepancy([60, 40], [[52, 48], [48, 52]], uniform(2))
        for scores in ([sound, refused], [refused, sound]):
            assert worse_of_judges(scores).reason == "ill_conditioned"

    def test_nobody_judged(self):
        with pytest.raises(ContractError):
            worse_of_judges([])


class TestFloor:
    def test_exact_classifier_has_the_plain_floor(self):
        exact = 10_000_000 * np.eye(4, dtype=int)
        found = corrected_noise_floor(1000, exact, uniform(4))
        assert found == pytest.approx(noise_floor(1000, 4), rel=0.01)

    def test_errors_inflate_it(self):
        good = corrected_noise_floor(1000, np.round(symmetric(4, 0.95) * 300), uniform(4))
        poor = corrected_noise_floor(1000, np.round(symmetric(4, 0.75) * 300), uniform(4))
        few = corrected_noise_floor(1000, np.round(symmetric(4, 0.75) * 100), uniform(4))
        assert noise_floor(1000, 4) < good < poor < few

    @pytest.mark.parametrize("num_prompts", [1, 3])
    def test_fair_generators_stay_below_it(self, num_prompts):
        trials = 60
        rng = np.random.default_rng(0)
        below = 0
        for trial in range(trials):
            table = np.stack([rng.multinomial(300, row) for row in symmetric(4, 0.9)])
            measured = uniform(4) @ symmetric(4, 0.9)
            counts = rng.multinomial(500, measured, size=num_prompts)
            found = corrected_discrepancy(counts, table, uniform(4), seed=trial)
            below += found.value <= found.floor
        assert 0.85 <= below / trials <= 1

    @pytest.mark.parametrize("sizes", [[], 0, [[5]], 2.5])
    def test_bad_sizes(self, sizes):
        with pytest.raises(ContractError):
            corrected_noise_floor(sizes, [[9, 1], [1, 9]], uniform(2))


def coverage(probs, confusion, n, labelled, trials, target=None):
    """Rates at which the intervals of the discrepancy and of each share hold the truth."""
    rows = np.atleast_2d(probs)
    rng = np.random.default_rng(0)
    wanted = uniform(rows.shape[1]) if target is None else target
    truth = np.linalg.norm(rows - wanted, axis=1).mean()
    hits, shares = 0.0, np.zeros(rows.shape[1])
    for trial in range(trials):
        table = np.stack([rng.multinomial(labelled, row) for row in confusion])
        counts = np.stack([rng.multinomial(n, row @ confusion) for row in rows])
        found = corrected_discrepancy(counts, table, wanted, seed=trial)
        hits += found.low - 1e-9 <= truth <= found.high + 1e-9
        each = correct_shares(counts[0], table, seed=trial)
        shares += (each.low - 1e-9 <= rows[0]) & (rows[0] <= each.high + 1e-9)
    print(np.round(rows, 3).tolist(), n, labelled, hits / trials, np.round(shares / trials, 3))
    return hits / trials, shares / trials


class TestInterval:
    @pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
    def test_two_groups_are_covered(self, share):
        hits, shares = coverage([share, 1 - share], BINARY, 1000, 300, trials=200)
        assert hits >= 0.91
        assert shares.min() >= 0.91

    def test_naive_interval_misses(self):
        # The classifier's bias alone moves the share by more than sampling does.
        rng, hits = np.random.default_rng(0), 0
        for _ in range(300):
            found = rng.binomial(2000, np.array([0.5, 0.5]) @ BINARY[:, 0]) / 2000
            hits += abs(found - 0.5) <= 1.96 * np.sqrt(found * (1 - found) / 2000)
        assert hits / 300 < 0.5

    @pytest.mark.parametrize("probs", [(0.25,) * 4, (0.4, 0.3, 0.2, 0.1), (1.0, 0.0, 0.0, 0.0)])
    def test_four_groups_are_covered(self, probs):
        hits, shares = coverage(np.array(probs), symmetric(4, 0.93), 1000, 300, trials=60)
        assert hits >= 0.88
        assert shares.min() >= 0.85

    def test_mean_over_prompts_shares_one_confusion(self):
        rows = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.5, 0.5]])
        hits, _ = coverage(rows, BINARY, 300, 300, trials=30)
        assert hits >= 0.85

    def test_perfect_small_sample_of_labels_is_not_certainty(self):
        found = corrected_discrepancy([500, 500], 50 * np.eye(2, dtype=int), uniform(2))
        sure = corrected_discrepancy([500, 500], 50_000 * np.eye(2, dtype=int), uniform(2))
        assert found.high > 1.1 * sure.high

    def test_same_seed_same_answer(self):
        counts, table = [40, 30, 20, 10], np.round(symmetric(4, 0.9) * 100)
        first = corrected_discrepancy(counts, table, uniform(4), seed=3)
        assert first == corrected_discrepancy(counts, table, uniform(4), seed=3)
        assert first != corrected_discrepancy(counts, table, uniform(4), seed=4)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("probs", "confusion", "n", "labelled"),
        [
            ([0.5, 0.5], BINARY, 2000, 500),
            ([0.5, 0.5], BINARY, 100, 50),
            ([0.98, 0.02], BINARY, 1000, 300),
            ([0.25] * 4, symmetric(4, 0.7), 1000, 200),
            ([0.5, 0.5, 0.0, 0.0], symmetric(4, 0.93), 1000, 300),
            ([0.98, 0.01, 0.005, 0.005], symmetric(4, 0.93), 1000, 300),
            ([0.125] * 8, symmetric(8, 0.9), 1000, 250),
            ([0.3] + [0.1] * 7, symmetric(8, 0.9), 1000, 250),
            ([1.0] + [0.0] * 7, symmetric(8, 0.9), 1000, 250),
            ([[0.5, 0.5]] * 5, BINARY, 400, 500),
        ],
    )
    def test_coverage_at_length(self, probs, confusion, n, labelled):
        hits, shares = coverage(np.array(probs), confusion, n, labelled, trials=300)
        assert hits >= 0.9
        assert shares.min() >= 0.88
