from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def load():
    path = Path(__file__).with_name("gate.py")
    spec = importlib.util.spec_from_file_location("simulated_gate", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulated_gate"] = module
    spec.loader.exec_module(module)
    return module


GATE = load()
WORLDS = (GATE.PARTLY, GATE.replace(GATE.W, shares=GATE.BIASED))


@pytest.mark.slow
def test_nothing_changed_is_seldom_an_alarm():
    assert GATE.alarms(400, 0, WORLDS) <= 28


@pytest.mark.slow
@pytest.mark.parametrize("plant", GATE.PLANTS, ids=lambda plant: plant.name)
def test_planted_faults_are_caught(plant):
    found, own = GATE.caught(plant, 4)
    assert found == 4
    assert own >= 3


def test_faults_lie_in_every_kind_of_method_and_score():
    from fairbench.methods import get_method, method_names
    from fairbench.scores.catalogue import families

    told = {one.name for one in families() if any(s.margin is not None for s in one.specs)}
    # The extrapolated distance needs more images and features than these to be measurable at all.
    assert {plant.family for plant in GATE.PLANTS} == told - {"extrapolation"}
    kinds = {get_method(name).card.family for name in method_names()}
    assert {plant.method for plant in GATE.PLANTS} == kinds
    assert len({plant.name for plant in GATE.PLANTS}) >= 15


def test_the_simulation_runs():
    plant = next(one for one in GATE.PLANTS if one.family == "duplicates")
    assert GATE.caught(plant, 1)[0] == 1
