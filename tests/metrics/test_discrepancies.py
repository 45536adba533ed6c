from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    ROSETTA,
    discrepancy_family,
    discrepancy_interval,
    family_intervals,
    family_noise_floors,
    noise_floor,
    soft_discrepancy_interval,
    soft_shares,
    unbiased_squared_discrepancy,
    worst_distance,
)

COLUMNS = {
    "fairness_discrepancy",
    "fairness_discrepancy_normalised",
    "fairness_discrepancy_squared",
    "fairness_discrepancy_l1",
    "fairness_discrepancy_tv",
    "fairness_discrepancy_kl",
    "fairness_discrepancy_pairwise",
    "fairness_discrepancy_delta",
    "fairness_discrepancy_mad",
    "fairness_discrepancy_entropy_gap",
}


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


class TestFamily:
    @pytest.mark.parametrize(
        ("probs", "expected"),
        [
            (
                (0.9, 0.1),
                {
                    "l2": 0.565685,
                    "squared": 0.32,
                    "l1": 0.8,
                    "tv": 0.4,
                    "kl": 0.368064,
                    "pairwise": 0.8,
                    "delta": 0.8,
                    "mad": 0.4,
                },
            ),
            ((1, 0), {"l2": 0.707107, "kl": 0.693147, "pairwise": 1, "normalised": 1}),
            ((0.7, 0.3), {"l2": 0.282843, "squared": 0.08, "l1": 0.4, "tv": 0.2}),
            (
                (1, 0, 0, 0),
                {
                    "l2": 0.866025,
                    "l1": 1.5,
                    "kl": 1.386294,
                    "pairwise": 0.5,
                    "delta": 1,
                    "mad": 0.375,
                    "entropy_gap": 1,
                    "normalised": 1,
                },
            ),
            (
                (0.4, 0.3, 0.2, 0.1),
                {
                    "l2": 0.223607,
                    "l1": 0.4,
                    "kl": 0.106440,
                    "pairwise": 0.166667,
                    "delta": 0.2,
                    "mad": 0.1,
                    "entropy_gap": 1 - 0.923220,
                },
            ),
        ],
    )
    def test_known_values_against_uniform(self, probs, expected):
        found = discrepancy_family(probs, uniform(len(probs)))
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-6), name

    def test_columns_are_the_contracts(self):
        assert set(discrepancy_family([0.7, 0.3], uniform(2)).columns()) == COLUMNS

    @pytest.mark.parametrize("num_groups", [2, 3, 8])
    def test_collapse_reaches_the_maxima(self, num_groups):
        found = discrepancy_family(np.eye(num_groups)[0], uniform(num_groups))
        assert found.l2 == pytest.approx(np.sqrt(1 - 1 / num_groups))
        assert found.l1 == pytest.approx(2 * (1 - 1 / num_groups))
        assert found.pairwise == pytest.approx(2 / num_groups)
        assert found.kl == pytest.approx(np.log(num_groups))
        assert found.normalised == found.delta == pytest.approx(1)
        assert found.entropy_gap == pytest.approx(1)

    def test_two_groups_are_one_number_in_ten_disguises(self):
        found, gap = discrepancy_family([0.8, 0.2], uniform(2)), 0.3
        assert found.l2 == pytest.approx(np.sqrt(2) * gap)
        assert found.squared == pytest.approx(2 * gap**2)
        assert found.l1 == found.pairwise == found.delta == pytest.approx(2 * gap)
        assert found.tv == found.mad == pytest.approx(gap)

    @pytest.mark.parametrize(
        "target", [[0.5, 0.5], [0.75, 0.25], [0.5, 0.3, 0.2], [0.6, 0.4, 0.0], [1.0, 0.0]]
    )
    def test_any_target_zero_only_where_met(self, target):
        exact = discrepancy_family(target, target).columns()
        assert max(exact.values()) == pytest.approx(0, abs=1e-12)
        moved = np.roll(target, 1) * 0.5 + np.array(target) * 0.5
        if not np.allclose(moved, target):
            assert min(discrepancy_family(moved, target).columns().values()) > 0

    @pytest.mark.parametrize("target", [[0.75, 0.25], [0.5, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]])
    def test_bounded_members_reach_one_at_the_least_wanted_group(self, target):
        vertices = [discrepancy_family(row, target) for row in np.eye(len(target))]
        for name in ("normalised", "delta", "entropy_gap"):
            values = [getattr(found, name) for found in vertices]
            assert max(values) == pytest.approx(1)
            assert int(np.argmax(np.round(values, 12))) == int(np.argmin(target))

    def test_images_where_none_are_wanted(self):
        found = discrepancy_family([0.5, 0.4, 0.1], [0.5, 0.5, 0.0])
        assert found.kl == np.inf
        assert found.entropy_gap == 1
        assert np.isfinite(found.l2)

    def test_relabelling_changes_nothing(self):
        rng = np.random.default_rng(0)
        found, target, order = rng.dirichlet([1] * 5), rng.dirichlet([1] * 5), rng.permutation(5)
        first = discrepancy_family(found, target).columns()
        assert discrepancy_family(found[order], target[order]).columns() == pytest.approx(first)

    def test_identities(self):
        rng = np.random.default_rng(1)
        for num_groups in (2, 4, 7):
            probs = rng.dirichlet(np.ones(num_groups))
            found = discrepancy_family(probs, uniform(num_groups))
            assert found.squared + 1 / num_groups == pytest.approx((probs**2).sum())
            assert found.tv <= np.sqrt(found.kl / 2)
            assert found.l2 == pytest.approx(
                found.normalised * worst_distance(uniform(num_groups))
            )

    def test_soft_shares_enter_as_hard_ones_do(self):
        probs = np.tile(np.float32([0.8, 0.2]), (7, 1))
        found = discrepancy_family(soft_shares(probs, 2), uniform(2))
        assert found.l2 == pytest.approx(0.424264, abs=1e-6)

    def test_agrees_with_scipy(self):
        probs, target = [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]
        assert discrepancy_family(probs, target).kl == pytest.approx(stats.entropy(probs, target))

    @pytest.mark.parametrize(
        ("probs", "target"),
        [
            ([0.5, 0.6], [0.5, 0.5]),
            ([0.5, 0.5], [0.3, 0.3, 0.4]),
            ([0.5, 0.5], [0.5, 0.6]),
            ([1.0], [1.0]),
            ([np.nan, 1], [0.5, 0.5]),
        ],
    )
    def test_bad_input(self, probs, target):
        with pytest.raises(ContractError):
            discrepancy_family(probs, target)


class TestRosetta:
    def test_members_exist_and_one_source_is_unverified(self):
        members = set(discrepancy_family([0.5, 0.5], uniform(2)).__dataclass_fields__)
        assert {row.member for row in ROSETTA} - {None} <= members
        unverified = [row.source for row in ROSETTA if row.evidence == "unverified"]
        assert unverified == ["TIW-DSM, arXiv 2403.01189"]

    def test_every_published_number_of_one_model(self):
        found = discrepancy_family([0.7, 0.3], uniform(2))
        printed = {row.source: getattr(found, row.member) for row in ROSETTA if row.member}
        assert printed["DebiasDiffusion"] == pytest.approx(0.08)
        assert printed["HEIM"] == pytest.approx(0.2)
        assert printed["FairGen, arXiv 2412.18810"] == pytest.approx(0.282843, abs=1e-6)
        assert printed["InvDiff, arXiv 2412.08480"] == pytest.approx(0.4)


class TestFamilyIntervals:
    @pytest.mark.parametrize("counts", [[70, 30], [26, 24, 25, 25], [70, 10, 10, 10], [90, 0, 10]])
    def test_hold_their_values(self, counts):
        found = family_intervals(counts, uniform(len(counts)))
        plain = discrepancy_interval(counts, uniform(len(counts)))
        assert set(found) == COLUMNS
        assert found["fairness_discrepancy"] == plain
        for interval in found.values():
            assert interval.low <= interval.value <= interval.high
            assert interval.value == pytest.approx(0) or interval.high > interval.low

    def test_reach_zero_where_the_target_is_covered(self):
        found = family_intervals([26, 24, 25, 25], uniform(4))
        assert all(interval.low == 0 for interval in found.values())
        found = family_intervals([53, 47], uniform(2))
        assert all(interval.low == 0 for interval in found.values())

    def test_two_groups_agree_across_members(self):
        found = family_intervals([70, 30], uniform(2))
        l2, l1 = found["fairness_discrepancy"], found["fairness_discrepancy_l1"]
        assert (l1.low, l1.high) == pytest.approx((np.sqrt(2) * l2.low, np.sqrt(2) * l2.high))

    def test_an_infinite_divergence_keeps_the_others(self):
        found = family_intervals([50, 45, 5], [0.5, 0.5, 0.0])
        assert found["fairness_discrepancy_kl"].value == np.inf
        assert np.isfinite(found["fairness_discrepancy_l1"].high)

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [100, 1000])
    @pytest.mark.parametrize(
        "probs",
        [
            (0.5, 0.5),
            (0.7, 0.3),
            (0.98, 0.02),
            (0.25,) * 4,
            (0.3, 0.25, 0.25, 0.2),
            (0.4, 0.3, 0.2, 0.1),
            (0.125,) * 8,
            (0.3,) + (0.1,) * 7,
        ],
    )
    def test_coverage(self, probs, n):
        rng, trials = np.random.default_rng(0), 300
        target = uniform(len(probs))
        truth = discrepancy_family(probs, target).columns()
        hits = dict.fromkeys(truth, 0.0)
        for trial in range(trials):
            found = family_intervals(rng.multinomial(n, probs), target, seed=trial)
            for name, interval in found.items():
                covered = interval.low - 1e-9 <= truth[name] <= interval.high + 1e-9
                hits[name] += covered / trials
        print(probs, n, {name[21:] or "l2": round(rate, 3) for name, rate in hits.items()})
        assert min(hits.values()) >= 0.9


class TestFloors:
    def test_l2_is_the_closed_form(self):
        found = family_noise_floors(uniform(4), 1000)
        assert set(found) == COLUMNS
        assert found["fairness_discrepancy"] == pytest.approx(noise_floor(1000, 4), rel=0.03)
        assert found["fairness_discrepancy_squared"] == pytest.approx(
            found["fairness_discrepancy"] ** 2
        )

    def test_card_values(self):
        rng = np.random.default_rng(0)
        for num_groups, n, mean, low, high in [
            (2, 100, 0.0564, 0.139, 0.142),
            (4, 1000, 0.0251, 0.0437, 0.0447),
        ]:
            drawn = rng.multinomial(n, uniform(num_groups), size=20_000) / n
            found = np.linalg.norm(drawn - uniform(num_groups), axis=1)
            assert found.mean() == pytest.approx(mean, abs=1e-3)
            assert low <= np.quantile(found, 0.95) <= high

    def test_targets_with_an_unwanted_group_are_finite(self):
        found = family_noise_floors([0.5, 0.5, 0.0], 200)
        assert np.isfinite(list(found.values())).all()

    def test_bad_size(self):
        with pytest.raises(ContractError):
            family_noise_floors(uniform(2), 0)


class TestUnbiasedSquare:
    def test_mean_is_the_truth(self):
        # The exact expectation over all outcomes, not a simulation.
        hits = np.arange(101)
        chances = stats.binom.pmf(hits, 100, 0.7)
        naive = 2 * (hits / 100 - 0.5) ** 2
        unbiased = [unbiased_squared_discrepancy([k, 100 - k], uniform(2)) for k in hits]
        assert chances @ naive == pytest.approx(0.0842)
        assert chances @ unbiased == pytest.approx(0.08)

    def test_fair_sample_is_negative(self):
        assert unbiased_squared_discrepancy([50, 50], uniform(2)) < 0

    def test_needs_two_images(self):
        with pytest.raises(ContractError):
            unbiased_squared_discrepancy([1, 0], uniform(2))


class TestSoftInterval:
    def draw(self, probs, n, seed):
        rng = np.random.default_rng(seed)
        truth = rng.choice(len(probs), size=n, p=probs)
        logits = rng.normal(size=(n, len(probs)))
        logits[np.arange(n), truth] += 4
        odds = np.exp(logits)
        return odds / odds.sum(axis=1, keepdims=True)

    def test_fair_probabilities_stay_near_the_floor_and_reach_zero(self):
        found, floor = soft_discrepancy_interval(self.draw(uniform(4), 400, 0), uniform(4))
        assert found.value <= 1.5 * floor
        assert found.low == 0

    def test_one_hot_rows_have_the_hard_floor(self):
        rows = np.eye(4)[np.repeat(np.arange(4), 250)]
        found, floor = soft_discrepancy_interval(rows, uniform(4))
        assert found.value == 0
        assert floor == pytest.approx(noise_floor(1000, 4), rel=0.01)

    @pytest.mark.parametrize("probs", [(0.25,) * 4, (0.4, 0.3, 0.2, 0.1)])
    def test_coverage(self, probs):
        truth = np.linalg.norm(self.draw(probs, 200_000, 1).mean(axis=0) - uniform(4))
        hits = 0
        for trial in range(100):
            rows = self.draw(probs, 300, 10 + trial)
            found, _ = soft_discrepancy_interval(rows, uniform(4), seed=trial)
            hits += found.low <= truth <= found.high
        assert hits >= 88

    @pytest.mark.parametrize("rows", [[[0.5, 0.5]], [[0.2, 0.3], [0.5, 0.5]], [0.5, 0.5]])
    def test_bad_input(self, rows):
        with pytest.raises(ContractError):
            soft_discrepancy_interval(np.array(rows), uniform(2))
