from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TRIALS = 400
SECONDS = 6.0


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
@pytest.mark.parametrize("cell", [*INSIDE, *BOUNDARY], ids=str)
def test_intervals_over_seeds_hold_as_told(cell):
    found = SEEDS.simulate(cell, TRIALS, SECONDS)
    assert found.inside
    assert not SEEDS.is_below(cell, found)


def test_the_bar_is_lower_where_seeds_would_leave_the_range():
    assert [SEEDS.bar_of(cell) for cell in BOUNDARY] == [SEEDS.EDGE_BAR] * len(BOUNDARY)
    assert [SEEDS.bar_of(cell) for cell in INSIDE] == [SEEDS.BAR] * len(INSIDE)


def test_a_row_that_misses_its_bar_is_below_it():
    found = SEEDS.Result(400, 0.8, 0.2, 0.1, 0.0, True)
    assert SEEDS.is_below(Cell(2, 3, "fair"), found)
    assert SEEDS.is_below(Cell(2, 3, "far"), found)
    assert not SEEDS.is_below(Cell(2, 3, "far"), SEEDS.Result(400, 0.92, 0.9, 0.1, 0.4, True))


@pytest.mark.parametrize("cell", [Cell(4, 3, "near", 0.03, judges=2), Cell(2, 1, "far")], ids=str)
def test_the_simulation_runs(cell):
    found = SEEDS.simulate(cell, 5)
    assert found.inside
    assert 0 < found.width < 1
