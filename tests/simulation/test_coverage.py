"""A short run of `coverage.py`, whose own table anyone can print."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "interval_coverage", Path(__file__).with_name("coverage.py")
)
coverage = importlib.util.module_from_spec(spec)
sys.modules["interval_coverage"] = coverage  # dataclasses look their module up
spec.loader.exec_module(coverage)

TRIALS, SECONDS = 60, 2.0


@pytest.mark.slow
@pytest.mark.parametrize("setting", coverage.SETTINGS)
@pytest.mark.parametrize("name", coverage.CASES)
def test_intervals_hold_the_truth(name, setting):
    found = [
        one
        for situation in coverage.CASES[name](coverage.SETTINGS[setting])
        for one in coverage.measure(situation, TRIALS, SECONDS)
    ]
    assert found
    assert not [one for one in found if one.below]


def test_a_wrong_interval_is_below_its_bar():
    wrong = coverage.Situation("x", {"x": 0.0}, lambda rng: {"x": (0.1, 0.2)}, fair=True)
    (found,) = coverage.measure(wrong, 20)
    assert (found.trials, found.held, found.above) == (20, 0, 1)
    assert found.below


def test_time_that_is_up_leaves_ten_trials():
    one = coverage.Situation("x", {"x": 0.0}, lambda rng: {"x": (-1.0, 1.0)})
    (found,) = coverage.measure(one, 1000, seconds=0)
    assert (found.trials, found.below) == (10, False)


def test_the_table_hides_no_line(capsys):
    rows = [coverage.table.Row(("a", "b"), False), coverage.table.Row(("c", "d"), True)]
    assert coverage.table.show(("x", "y"), rows, markdown=True) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["| x | y |", "|---|---|", "| a | b |", "| c | d |"]
    assert "2 lines, 1 below" in printed.err
