from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from fairbench.core.method import Request
from fairbench.core.task import Prompt
from fairbench.methods.parts.indicator import Indicator, systematic
from fairbench.methods.prompt_append import PromptAppend
from fairbench.metrics.fairness import fairness_discrepancy

TARGET = (0.7, 0.2, 0.1)
KINDS = ("iid", "stratified", "per_prompt")


def drawn(kind, target, n, seed=0, prompt=0):
    indicator = Indicator(kind, target, seed, (n,) * (prompt + 1))
    return np.array(
        [
            indicator(Request(Prompt("person", template="a photo of {}"), prompt, i, seed))
            for i in range(n)
        ]
    )


def test_iid_draws_follow_the_target():
    n = 10_000
    counts = np.bincount(drawn("iid", TARGET, n), minlength=3)
    assert chisquare(counts, np.array(TARGET) * n).pvalue > 0.001
    # The test would notice a wrong target.
    assert chisquare(counts, np.array((0.67, 0.22, 0.11)) * n).pvalue < 0.001


def test_iid_draws_are_independent_of_each_other():
    groups = drawn("iid", (0.5, 0.5), 10_000)
    pairs = np.bincount(groups[:-1] * 2 + groups[1:], minlength=4)
    assert chisquare(pairs).pvalue > 0.001


@pytest.mark.parametrize("n", [1, 7, 100, 999])
@pytest.mark.parametrize("seed", range(4))
def test_stratified_counts_lie_within_one_of_the_quotas(n, seed):
    groups = drawn("stratified", TARGET, n, seed)
    assert np.all(np.abs(np.bincount(groups, minlength=3) - n * np.array(TARGET)) < 1)
    counts = np.bincount(systematic(TARGET, n, np.random.default_rng(seed)), minlength=3)
    assert np.all(np.abs(counts - n * np.array(TARGET)) < 1)


def test_stratified_order_is_shuffled():
    groups = drawn("stratified", (0.5, 0.5), 200)
    changes = int(np.sum(groups[1:] != groups[:-1]))
    assert 70 <= changes <= 130  # sorted: 1; alternating: 199; shuffled: 100, deviation 7


@pytest.mark.parametrize("kind", ["iid", "stratified"])
def test_a_prompt_gets_more_than_one_category(kind):
    for prompt in range(5):
        assert set(drawn(kind, (0.5, 0.5), 32, prompt=prompt).tolist()) == {0, 1}


def test_per_prompt_reproduces_the_released_defect():
    of_prompt = []
    for prompt in range(40):
        groups = set(drawn("per_prompt", (0.5, 0.5), 16, prompt=prompt).tolist())
        assert len(groups) == 1
        of_prompt += groups
    assert 8 <= sum(of_prompt) <= 32  # fair over prompts, one-sided in each


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_request_alone_and_change_with_the_seed(kind):
    draws = Indicator(kind, (0.5, 0.5), 5, (64,) * 8)
    requests = [
        Request(Prompt("person", template="a photo of {}"), p, i, 5)
        for p in range(8)
        for i in range(64)
    ]
    forth = [draws(r) for r in requests]
    assert [draws(r) for r in reversed(requests)] == forth[::-1]
    other = Indicator(kind, (0.5, 0.5), 6, (64,) * 8)
    assert [other(Request(r.prompt, r.prompt_index, r.image_index, 6)) for r in requests] != forth


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "target",
    [
        (0.0, 0.5, 0.0, 0.5),
        (0.3, 0.0, 0.7, 0.0),
        (0.1, 0.2, 0.3, 0.4, 0.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
        (0.1,) * 10 + (0.0,),  # whose sum rounds below 1
    ],
)
def test_a_group_without_a_share_is_never_drawn(kind, target):
    for seed in range(4):
        groups = set(drawn(kind, target, 500, seed, prompt=seed).tolist())
        assert groups <= {k for k, share in enumerate(target) if share > 0}
        if kind != "per_prompt":
            assert groups == {k for k, share in enumerate(target) if share > 0}


class FixedPoint:
    """A generator whose uniform draw is the largest number below 1, or 0."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value

    def permutation(self, values):
        return values


def test_the_ends_of_the_unit_interval_belong_to_groups_with_a_share():
    highest = np.nextafter(1.0, 0.0)
    assert systematic((0.0, *(0.1,) * 10, 0.0), 1, FixedPoint(highest)).tolist() == [10]
    assert systematic((0.0, *(0.1,) * 10, 0.0), 1, FixedPoint(0.0)).tolist() == [1]


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_one_category_a_prompt_is_as_unfair_as_can_be(groups):
    target = np.full(groups, 1 / groups)
    chosen = drawn("per_prompt", target, 50)
    seen = fairness_discrepancy(np.eye(groups)[chosen], target)
    assert seen == pytest.approx(np.sqrt(1 - 1 / groups), abs=1e-12)


def test_initial_noise_is_the_same_for_every_target_and_indicator(
    make_mixture, make_task, make_requests, make_preparation, data
):
    starts = []
    for kind in KINDS:
        for target in ((0.5, 0.5), (1.0, 0.0)):
            mixture = make_mixture()
            network, seen = mixture._network, []
            mixture._network = lambda x, t, c, n=network, s=seen: (
                s.append(x.clone()),
                n(x, t, c),
            )[1]
            task = make_task(target=target)
            method = PromptAppend(indicator=kind)
            sampler = method.prepare(task, mixture, data, make_preparation())
            samples = sampler(make_requests(task, 8))
            assert samples.requested is not None
            starts.append(seen[0][:8])
    assert all(bool((start == starts[0]).all()) for start in starts)
    assert starts[0].std() > 0.5
