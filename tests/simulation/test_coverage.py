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

TRIALS = 60


@pytest.mark.slow
@pytest.mark.parametrize("name", coverage.CASES)
def test_intervals_hold_the_truth(name):
    missed = []
    for row in coverage.CASES[name]():
        held, above, _ = coverage.measure(row, TRIALS)
        if coverage.is_below(row, held, above, TRIALS):
            missed.append((row.name, row.where, held, above))
    assert not missed


def test_a_wrong_interval_is_below_its_bar():
    row = coverage.Row("x", "x", 0.0, lambda rng: (0.1, 0.2), fair=True)
    assert coverage.is_below(row, *coverage.measure(row, 20)[:2], 20)
