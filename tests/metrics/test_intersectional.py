from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    discrepancy_of_shares,
    fairness_discrepancy,
    joint_counts,
    mutual_information,
    noise_floor,
    representation_ratios,
    share_intervals,
    subgroup_coverage,
    subgroup_lattice,
    wilson_interval,
)

LEVELS = {"gender": ("female", "male"), "race": ("asian", "black", "indian", "white")}
PAIR = {"first": ("a", "b"), "second": ("c", "d")}


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


def opposite(n=50):
    """P(00) = P(11) = 1/2: fair on either attribute, half of the cells empty."""
    return np.repeat([[0, 0], [1, 1]], n, axis=0)


class TestJointCounts:
    def test_full_product_with_zeros(self):
        found = joint_counts([[0, 0], [1, 3], [1, 3]], LEVELS)
        assert found.shape == (2, 4)
        assert found.sum() == 3
        assert found[1, 3] == 2
        assert (found == 0).sum() == 6

    @pytest.mark.parametrize(
        "labels", [[[0, 4]], [[-1, 0]], [[0.0, 1.0]], [[0]], [0, 1], np.zeros((0, 2), dtype=int)]
    )
    def test_bad_labels(self, labels):
        with pytest.raises(ContractError):
            joint_counts(labels, LEVELS)

    @pytest.mark.parametrize("levels", [{}, {"a": ("x",)}, {"a": ("x", "x")}, {"a": "xy"}])
    def test_bad_levels(self, levels):
        with pytest.raises(ContractError):
            joint_counts(np.zeros((3, max(len(levels), 1)), dtype=int), levels)


class TestLattice:
    def test_fair_marginals_hide_empty_cells(self):
        found = subgroup_lattice(opposite(), PAIR)
        assert [marginal.discrepancy for marginal in found.at_order(1)] == [0, 0]
        assert found.joint.discrepancy == pytest.approx(0.5)
        assert found.joint_excess == pytest.approx(0.5 / np.sqrt(0.75))
        assert found.mean_at(1) == 0
        assert found.worst_at(2) == pytest.approx(0.5)
        assert np.isnan(found.worst_at(3))
        assert np.isnan(found.mean_at(3))

    def test_every_subset_in_order(self):
        levels = {"a": ("0", "1"), "b": ("0", "1"), "c": ("0", "1", "2")}
        labels = np.stack([np.arange(12) % 2, np.arange(12) // 6, np.arange(12) % 3], axis=1)
        found = subgroup_lattice(labels, levels)
        assert [marginal.attributes for marginal in found.marginals] == [
            ("a",),
            ("b",),
            ("c",),
            ("a", "b"),
            ("a", "c"),
            ("b", "c"),
            ("a", "b", "c"),
        ]
        assert [marginal.order for marginal in found.marginals] == [1, 1, 1, 2, 2, 2, 3]
        assert found.joint.groups[1] == ("0", "0", "1")
        assert all(marginal.counts.sum() == 12 for marginal in found.marginals)

    def test_marginals_agree_with_the_plain_discrepancy(self):
        rng = np.random.default_rng(0)
        labels = np.stack([rng.integers(0, 2, 300), rng.integers(0, 4, 300)], axis=1)
        found = subgroup_lattice(labels, LEVELS)
        gender, race = found.at_order(1)
        assert gender.discrepancy == pytest.approx(fairness_discrepancy(labels[:, 0], uniform(2)))
        assert race.discrepancy == pytest.approx(fairness_discrepancy(labels[:, 1], uniform(4)))
        joint = labels[:, 0] * 4 + labels[:, 1]
        assert found.joint.discrepancy == pytest.approx(fairness_discrepancy(joint, uniform(8)))
        assert found.joint.floor == noise_floor(300, 8)

    def test_targets_of_marginals_are_sums(self):
        target = np.array([[0.1, 0.2, 0.1, 0.1], [0.2, 0.1, 0.1, 0.1]])
        labels = np.argwhere(np.ones((2, 4)))
        labels = np.repeat(labels, (target.ravel() * 100).round().astype(int), axis=0)
        for given in (target, target.ravel()):
            found = subgroup_lattice(labels, LEVELS, given)
            np.testing.assert_allclose(found.at_order(1)[1].target, [0.3, 0.3, 0.2, 0.2])
            assert max(marginal.discrepancy for marginal in found.marginals) < 1e-12

    @pytest.mark.parametrize("target", [uniform(4), np.ones((2, 4)), np.full((4, 2), 0.125)])
    def test_bad_targets(self, target):
        with pytest.raises(ContractError):
            subgroup_lattice([[0, 0]], LEVELS, target)


class TestRatios:
    def test_empty_cell(self):
        found = representation_ratios([50, 0, 0, 50], uniform(4))
        assert found.smallest == found.min_over_max == 0
        assert found.largest == pytest.approx(2)
        assert found.gap == pytest.approx(0.5)
        assert found.below_four_fifths
        assert found.worst_group == 1
        assert found.smoothed_min_over_max == pytest.approx(0.5 / 50.5)
        assert found.p_value < 0.001
        assert found.few.tolist() == [False, True, True, False]

    def test_by_hand(self):
        found = representation_ratios([40, 30, 20, 10], [0.4, 0.4, 0.1, 0.1])
        np.testing.assert_allclose(found.ratios, [1, 0.75, 2, 1])
        assert found.min_over_max == pytest.approx(0.375)
        assert found.worst_group == 1

    def test_the_worst_of_many_groups_is_extreme_by_chance(self):
        # Exactly fair, yet 10 images a group: the four-fifths rule fails nearly every sample.
        found = representation_ratios([10] * 8, uniform(8))
        assert found.p_value == 1
        assert found.expected_smallest < 0.65
        assert found.p_below_four_fifths > 0.95

    def test_null_p_value_is_uniform_enough(self):
        rng = np.random.default_rng(0)
        values = [
            representation_ratios(rng.multinomial(400, uniform(8)), uniform(8)).p_value
            for _ in range(100)
        ]
        assert np.mean(np.array(values) < 0.05) <= 0.12

    @pytest.mark.parametrize(
        ("counts", "target", "alpha"),
        [
            ([5, 5], [1.0, 0.0], 0.5),
            ([0, 0], [0.5, 0.5], 0.5),
            ([1, 2, 3], [0.5, 0.5], 0.5),
            ([5, 5], [0.5, 0.5], 0),
            ([5, 5], [0.5, 0.5], np.nan),
        ],
    )
    def test_bad_input(self, counts, target, alpha):
        with pytest.raises(ContractError):
            representation_ratios(counts, target, alpha=alpha)


class TestCoverage:
    def test_card_values(self):
        found = subgroup_coverage(joint_counts(opposite(), PAIR))
        assert found.coverage == {1: 0.5, 10: 0.5}
        assert found.effective_groups == pytest.approx(2)
        assert found.normalised_entropy == pytest.approx(0.5)
        assert found.empty == (1, 2)
        assert found.empty_upper_bound == pytest.approx(0.03)
        assert mutual_information(joint_counts(opposite(), PAIR)).plug_in == pytest.approx(
            0.693147, abs=1e-6
        )

    def test_thresholds(self):
        found = subgroup_coverage([100, 9, 1, 0], at=(1, 5, 10))
        assert found.coverage == {1: 0.75, 5: 0.5, 10: 0.25}

    def test_bound_never_exceeds_one(self):
        assert subgroup_coverage([1, 0]).empty_upper_bound == 1

    @pytest.mark.parametrize(("counts", "at"), [([0, 0], (1,)), ([1, 2], (0,)), ([1, 2], (1.5,))])
    def test_bad_input(self, counts, at):
        with pytest.raises(ContractError):
            subgroup_coverage(counts, at=at)


class TestShareIntervals:
    def test_wider_than_single_ones_and_hold_together(self):
        low, high = share_intervals([40, 30, 20, 10])
        alone = wilson_interval([40, 30, 20, 10], 100)
        assert (low < alone[0]).all()
        assert (high > alone[1]).all()
        rng, probs = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
        hits = []
        for _ in range(500):
            ends = share_intervals(rng.multinomial(200, probs))
            hits.append(((ends[0] <= probs) & (probs <= ends[1])).all())
        assert np.mean(hits) >= 0.93

    def test_bad_input(self):
        with pytest.raises(ContractError):
            share_intervals([0, 0])


class TestVanishedCell:
    def test_from_fair_everything_gets_worse(self):
        labels = np.repeat(np.argwhere(np.ones((2, 4))), 40, axis=0)
        before = subgroup_lattice(labels, LEVELS)
        for cell in range(8):
            left = labels[np.arange(len(labels)) // 40 != cell]
            after = subgroup_lattice(left, LEVELS)
            for old, new in zip(before.marginals, after.marginals, strict=True):
                assert new.discrepancy > old.discrepancy
                assert new.normalised > old.normalised
            ratios = representation_ratios(after.joint.counts, uniform(8))
            assert ratios.smallest == ratios.min_over_max == 0
            assert ratios.worst_group == cell
            assert subgroup_coverage(after.joint.counts).coverage[1] == 7 / 8
            assert subgroup_coverage(after.joint.counts).effective_groups < 8

    def test_a_surplus_cell_is_the_exception_to_the_rule(self):
        # Emptying a group that was far too frequent can bring the rest nearer to the target.
        before = discrepancy_of_shares([0.1, 0.8, 0.1], uniform(3))
        after = discrepancy_of_shares([0.5, 0.0, 0.5], uniform(3))
        assert after < before
        assert representation_ratios([50, 0, 50], uniform(3)).smallest == 0
