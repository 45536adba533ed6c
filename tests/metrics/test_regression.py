from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics.regression import change, detectable, images_needed, pairing


def test_a_change_has_the_error_of_both_ends():
    found = change([(0.5, 0.4, 0.6)], [(0.7, 0.6, 0.8)], [1.0])
    half = np.hypot(0.1, 0.1)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half))
    assert found.p_value == pytest.approx(0.0055, abs=5e-4)  # z = 0.2 / (0.1414 / 1.96) = 2.77


def test_each_end_counts_to_the_side_of_no_change():
    # A score at its lower bound has no room below; what matters is how high it may be.
    narrow = change([(0.0, 0.0, 0.05)], [(0.2, 0.15, 0.3)], [1.0])
    assert narrow.low == pytest.approx(0.2 - np.hypot(0.05, 0.05))
    assert narrow.high == pytest.approx(0.2 + 0.1)


def test_pairs_that_share_everything_leave_no_doubt():
    found = change([(0.5, 0.4, 0.6)], [(0.51, 0.41, 0.61)], [0.0])
    assert (found.low, found.high, found.p_value) == pytest.approx((0.01, 0.01, 0.0))
    assert change([(0.5, 0.4, 0.6)], [(0.5, 0.4, 0.6)], [0.0]).p_value == 1.0


def test_seeds_that_disagree_are_less_sure():
    before = [(0.5, 0.49, 0.51)] * 3
    agree = change(before, [(0.6, 0.59, 0.61)] * 3, [1.0] * 3)
    scattered = change(before, [(v, v - 0.01, v + 0.01) for v in (0.4, 0.6, 0.8)], [1.0] * 3)
    assert agree.value == pytest.approx(scattered.value) == pytest.approx(0.1)
    assert agree.p_value < 1e-6
    assert scattered.p_value > 0.4
    assert scattered.high - scattered.low > 5 * (agree.high - agree.low)


def test_a_change_needs_both_sides():
    with pytest.raises(ContractError, match="for each seed"):
        change([], [], [])
    with pytest.raises(ContractError, match="for each seed"):
        change([(0, 0, 0)], [], [1.0])


def test_pairing_is_one_for_independent_images_and_small_for_few_changes():
    rng = np.random.default_rng(0)
    left = rng.integers(3, size=5000)
    assert pairing(left, rng.integers(3, size=5000)) == pytest.approx(1, abs=0.05)
    changed = left.copy()
    changed[:250] = rng.integers(3, size=250)
    assert pairing(left, changed) == pytest.approx(0.05, abs=0.01)
    assert 0 < pairing(left, left) < 0.001
    assert pairing(left, (left + 1) % 3) > 1  # the opposite of what was there
    with pytest.raises(ContractError, match="pairs of groups"):
        pairing([1, 2], [1])


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_intervals_of_paired_shares_hold(share):
    """A part of the images is made anew; the difference of the shares is 0."""
    rng, n, held = np.random.default_rng(1), 500, 0
    for _ in range(600):
        left = (rng.random(n) < 0.3).astype(int)
        right = np.where(rng.random(n) < share, rng.random(n) < 0.3, left).astype(int)
        ends = []
        for side in (left, right):
            mean = side.mean()
            half = 1.96 * np.sqrt(mean * (1 - mean) / n)
            ends.append([(mean, mean - half, mean + half)])
        found = change(*ends, [pairing(left, right)])
        held += found.low <= 0 <= found.high
    assert 0.93 <= held / 600 <= 0.995


def test_coupled_images_count_as_one():
    """A whole batch changes its group at once."""
    left = np.repeat(np.arange(20) % 2, 25)
    right = left.copy()
    right[:25] = 1 - right[:25]
    right[25:50] = 1 - right[25:50]
    batches = np.repeat(np.arange(20), 25)
    assert pairing(left, right) == pytest.approx(0.2, abs=0.03)
    assert pairing(left, right, batches) == pytest.approx(0.2, abs=0.03)
    alternating = np.tile([0, 1], 250)
    # Within batches of alternating groups nothing moves the share but whole images.
    assert pairing(alternating, 1 - alternating, np.arange(500) // 2) == pytest.approx(1)


def test_what_would_be_found():
    assert detectable(0.01, 1) == pytest.approx(0.028, abs=1e-3)  # 1.96 + 0.84
    assert detectable(0.01, 100) > detectable(0.01, 1)
    assert images_needed(500, 0.01, detectable(0.01, 7), 7) == 500
    assert images_needed(500, 0.01, detectable(0.01, 7) / 2, 7) == 2000
    assert images_needed(500, 0.01, 0.0, 7) is None
