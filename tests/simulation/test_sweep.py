"""A short form of sweep.py, which is run by hand for 10,000 runs on 512 workers."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest


def load():
    path = Path(__file__).with_name("sweep.py")
    spec = importlib.util.spec_from_file_location("simulated_sweep", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulated_sweep"] = module
    spec.loader.exec_module(module)
    return module


SWEEP = load()
SMALL = SWEEP.Case(runs=600, workers=50)


def test_fifty_workers_that_are_killed_at_random_finish_a_plan():
    found = SWEEP.simulate(replace(SMALL, kills=0.3, failing=0.0))
    assert found.tallies[0].lost > 20
    assert found.records == found.runs
    assert found.twice == 0
    assert found.makespan < 1.2 * found.bound
    assert found.wasted < 0.05 * found.worked


def test_failures_are_those_that_had_to_be():
    found = SWEEP.simulate(replace(SMALL, failing=0.05))
    assert found.runs - found.records == len(found.tallies[0].failed)
    assert 10 < len(found.tallies[0].failed) < 60


def test_two_sweeps_at_once_do_nothing_twice_in_spite_of_their_clocks():
    found = SWEEP.simulate(replace(SMALL, sweeps=2, failing=0.0))
    assert found.records == found.runs
    assert found.twice == 0
    assert found.makespan < 1.2 * found.bound


def test_what_a_sweep_that_died_was_at_is_taken_over():
    found = SWEEP.simulate(replace(SMALL, sweeps=2, failing=0.0, dies=1.5 * SWEEP.HOUR))
    assert found.tallies[0] is None
    assert found.records == found.runs
    assert found.makespan < 1.3 * found.bound


def test_what_a_run_costs_the_coordinator_does_not_grow_with_the_runs():
    some, many = (
        SWEEP.simulate(replace(SMALL, runs=runs, workers=20, failing=0.2)) for runs in (500, 2000)
    )
    assert many.listed < 1.1 * some.listed
    assert many.operations["coordinator"] < 1.1 * some.operations["coordinator"]
    assert many.operations["worker"] < 1.1 * some.operations["worker"] < 20


@pytest.mark.slow
def test_its_own_cost_is_small_and_grows_with_the_runs_alone():
    some, many = (SWEEP.simulate(replace(SMALL, runs=runs, workers=128)) for runs in (2000, 8000))
    assert many.own_seconds < 0.01 * many.makespan
    assert many.own_seconds / many.runs < 2 * some.own_seconds / some.runs
    assert many.operations["coordinator"] < 3
