from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import (
    check_calibration,
    discrepancy_interval,
    discrepancy_of_shares,
    penalised_discrepancy,
    validity_rate,
    wilson_interval,
    worst_case_bounds,
)


def uniform(num_groups):
    return np.full(num_groups, 1 / num_groups)


class TestPenalised:
    def test_no_invalid_images_is_the_plain_value(self):
        assert penalised_discrepancy([60, 40], 0, uniform(2)) == discrepancy_interval(
            [60, 40], uniform(2)
        )

    def test_invalid_images_are_a_group_nobody_wants(self):
        found = penalised_discrepancy([40, 40], 20, uniform(2))
        assert found.value == pytest.approx(np.linalg.norm([-0.1, -0.1, 0.2]))
        assert found.low <= found.value <= found.high

    def test_hiding_the_surplus_group_does_not_help(self):
        # 80 images of the surplus group made unreadable: fair among the readable, not here.
        honest = penalised_discrepancy([140, 60], 0, uniform(2)).value
        hidden = penalised_discrepancy([60, 60], 80, uniform(2)).value
        assert discrepancy_of_shares([0.5, 0.5], uniform(2)) == 0
        assert hidden > honest

    def test_nothing_readable_is_worst_not_fair(self):
        found = penalised_discrepancy([0, 0], 10, uniform(2))
        assert found.value == pytest.approx(np.sqrt(1.5))

    @pytest.mark.parametrize(
        ("counts", "num_invalid"),
        [([0, 0], 0), ([1, 2, 3], 1), ([1, 2], -1), ([1, 2], 0.5), ([1.5, 2], 1), ([[1, 2]], 1)],
    )
    def test_bad_input(self, counts, num_invalid):
        with pytest.raises(ContractError):
            penalised_discrepancy(counts, num_invalid, uniform(2))


class TestWorstCase:
    def test_all_readable(self):
        found = worst_case_bounds([70, 30], 0, uniform(2))
        assert (found.low, found.high) == pytest.approx((0.282843, 0.282843), abs=1e-6)

    def test_by_hand(self):
        found = worst_case_bounds([50, 30], 20, uniform(2))
        assert found.low == pytest.approx(0)
        assert found.high == pytest.approx(np.sqrt(2) * 0.2)
        assert found.worst_group == 0

    def test_against_every_assignment(self):
        counts, target, extra = np.array([5, 3, 1]), np.array([0.5, 0.3, 0.2]), 4
        distances = [
            np.linalg.norm((counts + np.array([a, b, extra - a - b])) / 13 - target)
            for a in range(extra + 1)
            for b in range(extra + 1 - a)
        ]
        found = worst_case_bounds(counts, extra, target)
        assert found.high == pytest.approx(max(distances))
        assert found.low <= min(distances) <= found.low + 0.05  # whole images only

    def test_one_group_for_all_is_no_lower_bound(self):
        found = worst_case_bounds([40, 0, 0], 60, uniform(3))
        single = min(
            np.linalg.norm((np.array([40, 0, 0]) + 60 * row) / 100 - 1 / 3) for row in np.eye(3)
        )
        assert found.low < 0.1 < single

    def test_random_tables_bracket_the_truth(self):
        rng = np.random.default_rng(0)
        for _ in range(100):
            counts, hidden = rng.integers(0, 20, 4), rng.integers(0, 10, 4)
            if (counts + hidden).sum() == 0:
                continue
            target = rng.dirichlet(np.ones(4))
            truth = discrepancy_of_shares((counts + hidden) / (counts + hidden).sum(), target)
            found = worst_case_bounds(counts, int(hidden.sum()), target)
            assert found.low - 1e-9 <= truth <= found.high + 1e-9


class TestRate:
    def test_wilson(self):
        found = validity_rate(50, 100)
        assert found.value == 0.5
        assert (found.low, found.high) == wilson_interval(50, 100)

    def test_nothing_valid_is_zero_not_missing(self):
        assert validity_rate(0, 10).value == 0

    def test_bad_input(self):
        with pytest.raises(ContractError):
            validity_rate(11, 10)


class TestCalibration:
    def softmax(self, scale):
        odds = np.exp(scale * np.array([0.30, 0.20]))
        return np.tile(odds / odds.sum(), (50, 1))

    def test_unscaled_zero_shot_reader_fails(self):
        with pytest.raises(ContractError, match="logit scale"):
            check_calibration(self.softmax(1), np.zeros(50, dtype=int))
        with pytest.raises(ContractError, match="logit scale"):
            check_calibration(self.softmax(1 / 0.07), np.zeros(50, dtype=int))
        assert abs(check_calibration(self.softmax(100), np.zeros(50, dtype=int))) < 1e-3

    def test_overconfident_reader_fails_too(self):
        labels = np.repeat([0, 1], 25)
        with pytest.raises(ContractError):
            check_calibration(self.softmax(100), labels)

    @pytest.mark.parametrize(
        ("probs", "labels"),
        [([[0.5, 0.5]], [0, 1]), ([[0.5, 0.5]], [2]), ([0.5, 0.5], [0, 1]), ([[0.5, 0.6]], [0])],
    )
    def test_bad_input(self, probs, labels):
        with pytest.raises(ContractError):
            check_calibration(np.array(probs), np.array(labels))

    def test_bad_tolerance(self):
        with pytest.raises(ContractError):
            check_calibration(self.softmax(100), np.zeros(50, dtype=int), tolerance=0)
