"""The graph: what several runs share comes before them, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fairbench.core.errors import ContractError
from fairbench.sweep.steps import Step, steps_of, urgency
from fairbench.sweep.sweeping import Sweep


def test_images_of_two_tasks_are_a_step_of_their_own(sweep_of: Callable[..., Sweep]) -> None:
    steps = sweep_of(methods=["vanilla"], seeds=[0, 1]).steps(retry_failed=False)
    shared = [step for step in steps if step.kind == "images"]
    runs = [step for step in steps if step.kind == "run"]
    assert len(shared) == 2
    assert len(runs) == 4
    assert {step.after for step in runs} == {(step.key,) for step in shared}
    assert {step.config.seed for step in runs if step.after == (shared[0].key,)} == {0}


def test_a_training_of_two_tasks_is_a_step_of_its_own(sweep_of: Callable[..., Sweep]) -> None:
    steps = sweep_of(methods=["distribution_guidance"], seeds=[0]).steps(retry_failed=False)
    assert [step.kind for step in steps] == ["train", "run", "run"]
    assert {step.after for step in steps[1:]} == {(steps[0].key,)}


def test_what_one_run_alone_needs_is_part_of_it(sweep_of: Callable[..., Sweep]) -> None:
    whole = sweep_of(methods=["distribution_guidance"], tasks=["tone"], seeds=[0, 1])
    assert [step.kind for step in whole.steps(retry_failed=False)] == ["run", "run"]


def test_a_step_comes_back_from_its_text(sweep_of: Callable[..., Sweep]) -> None:
    for step in sweep_of(methods=["vanilla"], controls=["side"]).steps(retry_failed=False):
        assert Step.of(step.text()) == step
    with pytest.raises(ContractError, match="expected a step of a sweep"):
        Step.of("[]")


def test_the_longest_chain_is_the_most_urgent(sweep_of: Callable[..., Sweep]) -> None:
    steps = sweep_of(seeds=[0]).steps(retry_failed=False)
    told = urgency(steps)
    first = next(step for step in steps if step.kind == "images")
    assert max(told, key=lambda key: told[key]) == first.key
    assert steps_of(()) == []
