from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TRIALS = 400
SPARE = 0.027  # two standard errors of a coverage of .93 over so many trials


def load():
    path = Path(__file__).with_name("seeds.py")
    spec = importlib.util.spec_from_file_location("simulated_seeds", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulated_seeds"] = module
    spec.loader.exec_module(module)
    return module


SEEDS = load()
Cell = SEEDS.Cell

INSIDE = [
    *(Cell(k, s, place) for k in (2, 8) for s in (3, 10) for place in ("fair", "near", "far")),
    *(Cell(k, s, place, 0.03) for k in (2, 4) for s in (3, 10) for place in ("fair", "far")),
    Cell(8, 3, "fair", 0.03),
    Cell(8, 3, "fair", 0.03, along=True),
    Cell(4, 5, "middle", 0.03, along=True),
    Cell(2, 3, "fair", coupled=True),
    Cell(4, 5, "near", 0.03, coupled=True),
    Cell(2, 3, "fair", judges=2),
    Cell(4, 5, "near", judges=2),
    Cell(4, 3, "far", 0.03, judges=2),
]
BOUNDARY = [Cell(2, s, place, 0.03) for s in (3, 5, 10) for place in ("0.98", "0.995")]


@pytest.mark.slow
@pytest.mark.parametrize("cell", INSIDE, ids=str)
def test_intervals_over_seeds_hold_as_told(cell):
    found = SEEDS.simulate(cell, TRIALS)
    assert found.inside
    assert found.coverage >= 0.93 - SPARE
    if cell.place == "fair":
        assert found.excluded <= 0.06 + SPARE


@pytest.mark.slow
@pytest.mark.parametrize("cell", BOUNDARY, ids=str)
def test_near_a_collapse_they_hold_somewhat_less(cell):
    found = SEEDS.simulate(cell, TRIALS)
    assert found.inside
    assert found.coverage >= 0.90 - SPARE


@pytest.mark.parametrize("cell", [Cell(4, 3, "near", 0.03, judges=2), Cell(2, 1, "far")], ids=str)
def test_the_simulation_runs(cell):
    found = SEEDS.simulate(cell, 5)
    assert found.inside
    assert 0 < found.width < 1
