from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.metrics import discrepancy_family
from fairbench.metrics import seeds as seeds_module
from fairbench.metrics.counting import quantile, wilson_interval, wilson_size
from fairbench.metrics.floors import noise_floor
from fairbench.metrics.seeds import (
    SIZES,
    SeedsEstimate,
    estimates,
    mean_number,
    mean_rate,
    mean_shares,
    united_judges,
)

EVEN = [0.5, 0.5]


def runs(*counts):
    """(S, 1, K) of one prompt."""
    return np.array(counts)[:, None]


def test_the_value_is_the_distance_of_the_mean_shares_each_run_equally():
    # 60 % of 1,000 and 40 % of 100: even in the mean of shares, though not in the pooled counts.
    found = mean_shares(runs((600, 400), (40, 60)), EVEN).estimate()
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low == 0


def test_two_groups_have_the_students_t_interval_of_the_share():
    counts = runs((1300, 700), (1500, 500), (1400, 600))
    found = mean_shares(counts, EVEN).estimate()
    assert found.wider == "seeds"
    half = np.sqrt(2) * 4.302653 * 0.05 / np.sqrt(3)
    assert found.value == pytest.approx(np.sqrt(2) * 0.2)
    assert found.high == pytest.approx(found.value + half)
    assert found.low == pytest.approx(found.value - half)


def test_runs_that_agree_have_the_interval_of_their_pooled_images():
    found = mean_shares(runs(*[(1400, 600)] * 5), EVEN).estimate()
    assert found.wider == "images"
    half = 1.96 * np.sqrt(2 * 0.7 * 0.3 / 10_000)
    assert found.high - found.value == pytest.approx(half, rel=0.08)
    assert found.value - found.low == pytest.approx(half, rel=0.08)


def test_the_error_of_a_judge_does_not_average_out():
    confusion = [[90, 10], [10, 90]]
    few = mean_shares(runs(*[(1400, 600)] * 2), EVEN, confusion=confusion)
    many = mean_shares(runs(*[(1400, 600)] * 50), EVEN, confusion=confusion)
    assert many.estimate().value == pytest.approx(np.sqrt(2) * 0.25)
    # Two rates of 100 images each, at a share of .75: the delta method.
    sd = np.sqrt((0.75**2 + 0.25**2) * 0.09 / 100) / 0.8
    narrow = many.estimate().high - many.estimate().low
    assert narrow == pytest.approx(2 * 1.96 * np.sqrt(2) * sd, rel=0.1)
    assert few.floor > many.floor > 0.5 * few.floor


def test_the_floor_is_that_of_all_images_together():
    made = mean_shares(runs(*[(500, 500)] * 4), EVEN)
    assert made.floor == pytest.approx(noise_floor(4000, 2), rel=0.01)
    halved = mean_shares(runs(*[(500, 500)] * 4), EVEN, effects=2.0)
    assert halved.floor == pytest.approx(noise_floor(2000, 2), rel=0.01)


def test_prompts_are_averaged_after_their_distances():
    # Two prompts that are off to opposite sides, in all runs.
    counts = np.array([[(700, 300), (300, 700)]] * 3)
    found = mean_shares(counts, EVEN).estimate()
    assert found.value == pytest.approx(np.sqrt(2) * 0.2)
    # A seed that moves both prompts alike moves their distances apart: the mean stays.
    counts = np.array([[(700 + d, 300 - d), (300 + d, 700 - d)] for d in (-20, 0, 20)])
    steady = mean_shares(counts, EVEN).estimate()
    assert steady.wider == "images"
    counts = np.array([[(700 + d, 300 - d), (300 - d, 700 + d)] for d in (-20, 0, 20)])
    moved = mean_shares(counts, EVEN).estimate()
    assert moved.wider == "seeds"
    assert moved.high - moved.low > 2 * (steady.high - steady.low)


def test_no_end_leaves_what_is_possible_and_a_collapse_may_hide_a_spread():
    collapsed = mean_shares(runs(*[(2000, 0)] * 3), EVEN).estimate()
    assert collapsed.high == pytest.approx(np.sqrt(0.5))
    assert collapsed.high - collapsed.low == pytest.approx(0.08 / 3, rel=0.05)
    # A single run speaks for itself alone, and so does its interval.
    alone = mean_shares(runs((2000, 0)), EVEN).estimate()
    assert alone.high - alone.low < 0.004
    spread = mean_shares(runs((2000, 0), (1900, 100), (1990, 10)), EVEN).estimate()
    assert 0 <= spread.low < spread.value < spread.high <= np.sqrt(0.5)
    # A target that is itself a collapse: what is hidden lies above.
    wanted = mean_shares(runs(*[(2000, 0)] * 3), [1.0, 0.0]).estimate()
    assert (wanted.value, wanted.low) == (0, 0)
    assert wanted.high > 0.02


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("l2", "fairness_discrepancy"),
        ("l1", "fairness_discrepancy_l1"),
        ("tv", "fairness_discrepancy_tv"),
        ("mad", "fairness_discrepancy_mad"),
        ("pairwise", "fairness_discrepancy_pairwise"),
    ],
)
def test_sizes_are_the_norms_of_the_family(size, name):
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    target = np.full(4, 0.25)
    found = discrepancy_family(shares, target)
    known = {f"fairness_discrepancy_{key}": value for key, value in vars(found).items()}
    known["fairness_discrepancy"] = np.linalg.norm(shares - target)
    assert float(SIZES[size](shares - target)) == pytest.approx(known[name])


def test_every_size_gives_ends_around_its_value():
    counts = runs((420, 300, 180, 100), (380, 320, 200, 100), (410, 290, 210, 90))
    made = mean_shares(counts, np.full(4, 0.25))
    for size in SIZES:
        found = made.estimate(size)
        assert 0 <= found.low < found.value < found.high


@pytest.mark.parametrize(("prompts", "groups"), [(1, 2), (1, 8), (3, 4)])
def test_many_estimates_at_once_are_those_of_each(prompts, groups):
    """Far from the target, near it and both; with a judge's errors and without."""
    rng = np.random.default_rng(0)
    confusion = np.diag(np.full(groups, 95)) + 1
    even = np.full(groups, 1 / groups)
    asked = []
    for size in (300, 9000):
        for each in (even, np.r_[0.6, np.full(groups - 1, 0.4 / (groups - 1))]):
            for errors in (None, confusion):
                counts = rng.multinomial(size, each, size=(3, prompts))
                counts[:, 0] = rng.multinomial(size, even, size=3)
                made = mean_shares(counts, even, confusion=errors)
                asked.append((made, ["l2"] if errors is not None else list(SIZES)))
    found = estimates(asked * 9)
    assert len(found) == 9 * len(asked)
    for (made, sizes), one in zip(asked * 9, found, strict=True):
        assert list(one) == list(sizes)
        for size in sizes:
            assert made.estimate(size) == one[size]


def test_normal_errors_are_those_of_counts(monkeypatch):
    """From 100 expected images of every group on, where counts would take ten times as long."""
    rng, ends = np.random.default_rng(0), []
    for each in ([0.5, 0.5], [0.1, 0.9], [0.2, 0.3, 0.1, 0.4]):
        counts = rng.multinomial(2000, each, size=(1, 1))
        made = mean_shares(counts, np.full(len(each), 1 / len(each)))
        found = []
        for many in (100, np.inf):
            monkeypatch.setattr(seeds_module, "_MANY", many)
            one = made.estimate()
            found.append((one.low, one.high))
        ends.append(found)
    for normal, counted in ends:
        assert normal == pytest.approx(counted, abs=0.002)


def test_a_judge_that_is_no_better_than_the_limit_is_refused():
    poor = [[52, 48, 0], [48, 52, 0], [0, 0, 100]]
    made = mean_shares(runs((5, 5, 5), (4, 5, 6)), np.full(3, 1 / 3), confusion=poor)
    assert made.reason == "ill_conditioned"


def test_bad_counts_are_refused():
    with pytest.raises(ContractError, match=r"\(S, P, K\)"):
        mean_shares([[5, 5]], EVEN)
    with pytest.raises(ContractError, match="a prompt without"):
        mean_shares(np.array([[[5, 5]], [[0, 0]]]), EVEN)


def test_judges_are_united_where_they_overlap():
    def one(value, low, high):
        return SeedsEstimate(value, low, high, "images")

    found = united_judges([one(0.2, 0.1, 0.3), one(0.25, 0.22, 0.28), one(0.02, 0.0, 0.04)])
    assert (found.value, found.low, found.high) == (0.25, 0.1, 0.3)


def test_rates_of_runs_that_differ_are_worth_fewer_images():
    mean, (low, high) = mean_rate([0.9, 0.9, 0.9], [1000, 1000, 1000])
    assert (mean, round(low, 4), round(high, 4)) == (0.9, 0.8887, 0.9102)
    mean, (low, high) = mean_rate([0.8, 0.9, 1.0], [1000, 1000, 1000])
    # At least Student's t of 2 degrees, near the middle of the range.
    assert mean == pytest.approx(0.9)
    assert high - low > 0.3
    assert 0 < low < high < 1


def test_numbers_without_any_spread_have_no_interval():
    assert mean_number([1.0, 1.0], None, None, errors="apart") == (1.0, None)
    mean, ends = mean_number([1.0, 2.0, 3.0], None, None, errors="apart")
    assert mean == 2
    assert ends == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))
    mean, ends = mean_number([0.5, 0.6], [0.4, 0.5], [0.9, 1.0], bounds=(0, 1), errors="one way")
    assert ends == (0.0, 1.0)


def test_errors_of_runs_add_up_as_told():
    def ends(errors):
        _, found = mean_number([2.0, 2.0, 2.0], [1.0, 1.4, 1.6], [3.0, 3.2, 3.4], errors=errors)
        return found

    assert ends("one way") == (1.0, 3.4)
    assert ends("shared") == pytest.approx((4 / 3, 3.2))
    assert ends("apart")[0] == pytest.approx(2 - np.sqrt(1 + 0.36 + 0.16) / 3)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_fair_generator_is_excluded_as_rarely_as_told(seeds):
    """Case: the mean of the runs' ends excluded it in 12, 21 and 38 % of trials."""
    rng, out = np.random.default_rng(0), 0
    for trial in range(300):
        counts = rng.multinomial(2000, np.full(8, 1 / 8), size=(seeds, 1))
        out += mean_shares(counts, np.full(8, 1 / 8), seed=trial).estimate().low > 0
    assert out / 300 <= 0.06


@pytest.mark.parametrize(("hits", "n"), [(1995, 2000), (2000, 2000), (30, 60.5), (0, 10)])
def test_an_interval_tells_how_many_images_it_is_of(hits, n):
    low, high = map(float, wilson_interval(hits, n))
    assert wilson_size(hits / n, low, high) == pytest.approx(n)


@pytest.mark.parametrize("level", [0.0, 0.025, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 200), (2, 3, 2000)])
def test_quantiles_are_those_of_numpy(level, shape):
    values = np.random.default_rng(0).standard_normal(shape)
    assert (quantile(values, level) == np.quantile(values, level, axis=-1)).all()
