from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics.ties import (
    Contender,
    ImageLabels,
    difference_p,
    least_p,
    may_differ,
    standings,
)

EVEN = np.full((1, 2), 0.5)


def table(size, **pairs):
    found = np.ones((size, size))
    for name, value in pairs.items():
        i, j = (ord(letter) - ord("a") for letter in name)
        found[i, j] = found[j, i] = value
    return found


def test_the_best_row_is_an_anchor_and_the_next_opens_a_class():
    # a and b alike, b and c alike, a and c not.
    found = standings([0.1, 0.2, 0.3], table(3, ac=0.001))
    assert [one.tie_class for one in found] == [0, 0, 1]
    assert [one.ranks for one in found] == [(1, 2), (1, 3), (2, 3)]


def test_all_apart_and_all_alike():
    apart = standings([0.3, 0.1, 0.2], table(3, ab=0.001, ac=0.001, bc=0.001))
    assert [(one.tie_class, one.ranks) for one in apart] == [(2, (3, 3)), (0, (1, 1)), (1, (2, 2))]
    alike = standings([0.3, 0.1, 0.2], table(3))
    assert {(one.tie_class, one.ranks) for one in alike} == {(0, (1, 3))}
    assert standings([], np.ones((0, 0))) == []
    assert standings([0.5], [[1.0]])[0].ranks == (1, 1)


def test_p_values_are_adjusted_for_all_pairs():
    # One of six pairs at .02: Holm asks for .05 / 6.
    found = standings([0.1, 0.2, 0.3, 0.4], table(4, ad=0.02))
    assert {one.tie_class for one in found} == {0}
    found = standings([0.1, 0.2, 0.3, 0.4], table(4, ad=0.008))
    assert [one.tie_class for one in found] == [0, 0, 0, 1]


def test_pairs_that_cannot_differ_may_keep_their_least_p_values():
    rng = np.random.default_rng(0)
    left = 0
    for count in (2, 3, 5, 9):
        for _ in range(50):
            least = np.triu(rng.random((count, count)) ** 4, 1)
            least[rng.random(least.shape) < 0.2] = 0
            own = np.triu(np.maximum(least, rng.random(least.shape) ** 6), 1)
            least, own = least + least.T, own + own.T
            asked = may_differ(least)
            assert not asked.diagonal().any()
            assert (asked == asked.T).all()
            values = rng.random(count)
            assert standings(values, np.where(asked, own, least)) == standings(values, own)
            left += int(asked.sum() < count * (count - 1))
    assert left > 50


def test_the_least_p_value_is_that_of_the_runs():
    move = [-0.04, 0.0, 0.04]
    first, second = contender(0.70, 3, move=move), contender(0.76, 3, move=move[::-1])
    assert 0 < least_p(first, second) <= difference_p(first, second)
    assert least_p(contender(0.70, 2), second) == 0


def test_rows_at_the_floor_do_not_differ():
    found = standings([0.01, 0.02, 0.3], table(3, ab=1e-9, ac=1e-9, bc=1e-9))
    assert [one.tie_class for one in found] == [0, 1, 2]
    found = standings(
        [0.01, 0.02, 0.3], table(3, ab=1e-9, ac=1e-9, bc=1e-9), at_floor=[True, True, False]
    )
    assert [(one.tie_class, one.ranks) for one in found] == [(0, (1, 2)), (0, (1, 2)), (1, (3, 3))]


def contender(shares, seeds=1, n=1000, noise=None, move=None, labels=True, batch=None):
    """A row of two groups, from given noise; `move` shifts the share of each seed."""
    counts, told = [], {}
    for seed in range(seeds):
        drawn = np.random.default_rng([7, seed]).random(n) if noise is None else noise[seed]
        share = shares + (0 if move is None else move[seed])
        group = (drawn >= share).astype(np.int64)
        counts.append([np.bincount(group, minlength=2)])
        told[seed] = ImageLabels(
            group,
            np.zeros(n, dtype=np.int64),
            np.arange(n),
            np.arange(n) if batch is None else batch,
        )
    return Contender(np.array(counts), tuple(range(seeds)), EVEN, labels=told if labels else {})


def test_the_same_noise_makes_a_small_difference_sure():
    paired = difference_p(contender(0.70), contender(0.72))
    unpaired = difference_p(contender(0.70, labels=False), contender(0.72))
    assert paired < 0.001
    assert unpaired > 0.1
    assert difference_p(contender(0.72), contender(0.70)) == pytest.approx(paired, rel=0.3)


def test_a_row_does_not_differ_from_itself():
    for seeds in (1, 3):
        assert difference_p(contender(0.7, seeds), contender(0.7, seeds)) == 1.0


def test_rows_on_either_side_of_the_target_may_be_equally_far():
    assert difference_p(contender(0.6), contender(0.4)) > 0.3


def test_images_of_a_batch_are_resampled_together():
    rng = np.random.default_rng(0)
    noise = [np.repeat(rng.random(20), 50)]  # all images of a batch agree
    batch = np.repeat(np.arange(20), 50)
    other = [rng.random(1000)]
    alone = difference_p(contender(0.7, noise=noise), contender(0.5, noise=other, labels=False))
    left = contender(0.7, noise=noise, batch=batch)
    wide = Contender(left.counts, left.seeds, EVEN, effects=(50.0,), labels=left.labels)
    right = contender(0.5, noise=noise, batch=batch)
    apart = Contender(right.counts, right.seeds, EVEN, effects=(50.0,))
    assert difference_p(wide, apart) > 10 * alone


def test_seeds_count_where_both_have_three():
    move = (-0.06, 0.0, 0.06)
    steady = difference_p(contender(0.70, 3), contender(0.76, 3))
    moved = difference_p(contender(0.70, 3, move=move), contender(0.76, 3, move=move[::-1]))
    assert steady < 0.05 < moved
    # Moved alike: pairs of seeds see it.
    assert difference_p(contender(0.70, 3, move=move), contender(0.76, 3, move=move)) < 0.05
    # Two seeds can't tell what differs between them.
    assert difference_p(contender(0.70, 2, move=move), contender(0.76, 3, move=move[::-1])) < 0.01


def test_other_seeds_are_compared_by_welch():
    first = contender(0.70, 3, move=(-0.01, 0, 0.01))
    second = contender(0.80, 3, move=(-0.01, 0, 0.01))
    renamed = Contender(second.counts, (5, 6, 7), EVEN)
    assert 0.0001 < difference_p(first, renamed) < 0.05


def test_one_judge_errs_alike_in_both_rows():
    def row(shares, judge):
        made = contender(shares, 3, n=20_000)
        table = np.array([[45, 5], [5, 45]])
        return Contender(made.counts, made.seeds, EVEN, judge, table)

    same = difference_p(row(0.70, "a"), row(0.74, "a"))
    other = difference_p(row(0.70, "a"), row(0.74, "b"))
    assert same < 0.01 < other


def test_fair_rows_are_rarely_told_apart():
    rng, differ = np.random.default_rng(0), 0
    for _ in range(100):
        rows = [
            Contender(
                rng.multinomial(1000, np.full(4, 0.25), size=(1, 1)), (0,), np.full((1, 4), 0.25)
            )
            for _ in range(2)
        ]
        differ += difference_p(*rows) < 0.05
    assert differ <= 5


def test_rows_of_other_tasks_are_refused():
    other = Contender(np.ones((1, 1, 3), dtype=np.int64), (0,), np.full((1, 3), 1 / 3))
    with pytest.raises(ContractError, match="same prompts and groups"):
        difference_p(contender(0.5), other)
