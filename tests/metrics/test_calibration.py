from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    corrected_discrepancy,
    corrected_noise_floor,
    discrepancy_interval,
    family_intervals,
    mean_family_intervals,
    mean_penalised_discrepancy,
    mean_soft_interval,
    resampled_interval,
    worse_interval,
    worse_noise_floor,
    worse_of_judges,
)
from fairbench.metrics.calibration import calibrated_interval, edges_of, table_edges
from fairbench.metrics.fairness import table_interval
from fairbench.scores.intersections import _excesses, effective_groups, joint_excess


def ratio(counts):
    return float(counts.min() / counts.max())


class TestEdges:
    def test_groups_that_may_be_equal_are_levelled(self):
        target, levelled, zeroed, collapsed = edges_of(
            np.array([[305.0, 98, 101, 99, 97, 103, 96, 101]]), np.full((1, 8), 1 / 8)
        )
        np.testing.assert_allclose(target, 1 / 8)
        np.testing.assert_allclose(levelled, [[0.305, *[695 / 7000] * 7]], atol=1e-9)
        np.testing.assert_allclose(zeroed.sum(), 1)
        assert collapsed.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]

    def test_tables_have_independent_and_fair_attributes_among_their_edges(self):
        counts = np.array([[30.0, 20], [10, 40]])
        independent, first, second, both = (
            edge.reshape(2, 2) for edge in table_edges(counts, np.full((2, 2), 0.25))[4:]
        )
        np.testing.assert_allclose(independent, np.outer([0.5, 0.5], [0.4, 0.6]))
        np.testing.assert_allclose(first.sum(axis=1), 0.5)
        np.testing.assert_allclose(second.sum(axis=0), 0.5)
        for axis in (0, 1):
            np.testing.assert_allclose(both.sum(axis=axis), 0.5, atol=1e-6)

    def test_counts_need_not_be_whole(self):
        found = calibrated_interval(
            np.array([[10.4, 9.6, 12.0]]),
            edges_of(np.array([[10.4, 9.6, 12.0]]), np.full((1, 3), 1 / 3)),
            lambda x: np.linalg.norm(x - 1 / 3, axis=2),
        )
        assert found[0][0] == 0
        assert found[1][0] > 0


class TestResampledInterval:
    def test_the_smallest_over_the_largest_of_equal_shares(self):
        rng, held = np.random.default_rng(0), 0
        for i in range(6):
            counts = rng.multinomial(2000, np.full(8, 1 / 8))
            low, high = resampled_interval(counts, ratio, seed=i)
            assert 0 <= low <= ratio(counts) <= high <= 1
            held += high == 1
        assert held >= 5

    def test_a_crossing_that_only_the_joint_cells_show(self):
        target = np.full((2, 4), 1 / 8)
        shares = target + 0.06 * np.array([[1, 1, -1, -1], [-1, -1, 1, 1]])
        truth = joint_excess(shares * 1e12, target.ravel())
        rng, held = np.random.default_rng(0), 0
        measure = partial(_excesses, target=target)
        for i in range(25):
            counts = rng.multinomial(2000, shares.ravel()).reshape(2, 4)
            low, high = table_interval(
                counts.astype(float), lambda x: measure(x.reshape(-1, 2, 4))[:, None], seed=i
            )
            held += low <= truth <= high
        assert held >= 23

    @pytest.mark.parametrize(
        "counts", [np.full((2, 4), 20), np.array([[300, 0, 0, 0], [0, 0, 0, 0]])]
    )
    def test_ends_stay_within_what_is_possible(self, counts):
        low, high = resampled_interval(counts, effective_groups)
        assert 1 <= low <= effective_groups(counts) <= high <= 8 + 1e-12
        assert high > low

    def test_one_seed_one_answer(self):
        counts = np.array([[5, 9], [7, 3]])
        assert resampled_interval(counts, ratio) == resampled_interval(counts, ratio)

    def test_nothing_to_count(self):
        with pytest.raises(ContractError):
            resampled_interval([0, 0], ratio)


class TestMeans:
    @pytest.mark.parametrize("prompts", [5, 20])
    def test_fair_prompts_reach_zero(self, prompts):
        rng, held = np.random.default_rng(0), 0
        for i in range(15):
            counts = rng.multinomial(100, [0.5, 0.5], size=prompts)
            found = mean_family_intervals(counts, [0.5, 0.5], seed=i)
            held += found["fairness_discrepancy_l1"].low <= 0
        assert held >= 13

    def test_a_single_prompt_is_the_plain_family(self):
        counts = [30, 20, 26, 24]
        assert mean_family_intervals([counts], [0.25] * 4) == family_intervals(counts, [0.25] * 4)

    def test_one_sided_target_has_a_value_and_no_upper_end(self):
        found = family_intervals([300, 0], [1, 0])["fairness_discrepancy_kl"]
        assert (found.value, found.low, found.high) == (0, 0, np.inf)
        three = family_intervals([150, 150, 0], [0.5, 0.5, 0])["fairness_discrepancy_kl"]
        assert (three.value, three.low, three.high) == (0, 0, np.inf)
        assert family_intervals([299, 1], [1, 0])["fairness_discrepancy_kl"].value == np.inf

    def test_soft_shares_of_sure_answers_keep_some_width(self):
        table = np.tile([0.98, 0.02], (100, 1))
        found, _ = mean_soft_interval([table] * 3, [0.5, 0.5])
        assert found.low < found.value - 0.01
        assert found.value <= found.high

    def test_soft_means_of_fair_prompts_reach_zero(self):
        rng, held = np.random.default_rng(0), 0
        for i in range(40):
            tables = [rng.dirichlet([1, 1], size=100) for _ in range(10)]
            held += mean_soft_interval(tables, [0.5, 0.5], seed=i)[0].low == 0
        assert held >= 37

    def test_penalised_prompts_share_one_interval(self):
        found = mean_penalised_discrepancy([[50, 50], [50, 50]], [0, 0], [0.5, 0.5])
        assert (found.value, found.low) == (0, 0)
        worse = mean_penalised_discrepancy([[50, 50], [50, 50]], [0, 40], [0.5, 0.5])
        assert worse.low > 0
        with pytest.raises(ContractError, match=r"counts \(P, K\)"):
            mean_penalised_discrepancy([[50, 50]], [0, 1], [0.5, 0.5])


class TestJudges:
    @staticmethod
    def fair(rng, right=0.9, n=1000):
        rates = np.array([[right, 1 - right], [1 - right, right]])
        truth, found = rng.multinomial(n, [0.5, 0.5]), []
        for seed in range(2):
            table = np.stack([rng.multinomial(500, row) for row in rates])
            counts = sum(rng.multinomial(m, row) for m, row in zip(truth, rates, strict=True))
            found.append(corrected_discrepancy(counts, table, [0.5, 0.5], seed=seed))
        return found

    def test_the_worse_of_two_poorer_judges_holds_the_truth(self):
        rng = np.random.default_rng(0)
        floor = worse_noise_floor(1000, [[[450, 50], [50, 450]]] * 2, [0.5, 0.5])
        trials = [self.fair(rng) for _ in range(150)]
        held = np.mean([worse_interval(scores)[0] == 0 for scores in trials])
        above = np.mean([worse_of_judges(scores).value > floor for scores in trials])
        assert held >= 0.94
        assert above <= 0.1

    def test_judges_that_disagree_are_not_united(self):
        table = [[500, 0], [0, 500]]
        near = corrected_discrepancy([500, 500], table, [0.5, 0.5])
        far = corrected_discrepancy([900, 100], table, [0.5, 0.5])
        assert worse_interval([near, far]) == (far.low, far.high)
        assert worse_interval([near]) == (near.low, near.high)

    def test_the_floor_of_two_lies_above_that_of_one(self):
        table = [[450, 50], [50, 450]]
        one = corrected_noise_floor([500, 500], table, [0.5, 0.5])
        assert worse_noise_floor([500, 500], [table], [0.5, 0.5]) == one
        assert one < worse_noise_floor([500, 500], [table, table], [0.5, 0.5]) < 1.5 * one

    def test_refused_judges_and_none_are_errors(self):
        poor = corrected_discrepancy([5, 5, 5], np.full((3, 3), 10), [1 / 3] * 3)
        with pytest.raises(ContractError, match="refused"):
            worse_interval([poor])
        with pytest.raises(ContractError, match="one judge"):
            worse_noise_floor(10, [], [0.5, 0.5])


def test_more_groups_cover_as_two_do():
    rng, held = np.random.default_rng(1), 0
    shares = np.array([0.3, *[0.1] * 7])  # just beyond where percentiles were used: 92 %
    truth = np.linalg.norm(shares - 1 / 8)
    for i in range(60):
        found = discrepancy_interval(rng.multinomial(100, shares), [1 / 8] * 8, seed=i)
        held += found.low <= truth <= found.high
    assert held >= 54
