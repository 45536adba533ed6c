"""Which reference images a method sees when it asks for fewer than usual."""

from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import InputError
from fairbench.datasets.base import get_dataset
from fairbench.methods.dsm_reference import ReferenceOnly
from fairbench.methods.iw import ImportanceReweighting
from fairbench.methods.tiw import TimeDependentReweighting
from fairbench.runs.supply import reference_source


def references(count, method=ReferenceOnly):
    card = method(reference_images=count).configured_card()
    return reference_source(get_dataset(None), card)


@pytest.mark.parametrize("count", [80, 200, 400, 800])
def test_fewer_references_are_as_balanced_as_all(count):
    labels = references(count).labels
    for attribute, levels in (("gender", 2), ("race", 4), ("role", 5)):
        assert np.bincount(labels[attribute]).tolist() == [count // levels] * levels


def test_what_does_not_divide_favours_no_level():
    labels = references(100).labels
    assert len(labels["gender"]) == 100
    assert abs(np.bincount(labels["gender"]) - 50).max() <= 3
    assert abs(np.bincount(labels["race"]) - 25).max() <= 3


def test_fewer_are_among_more():
    def rows(count):
        source = references(count)
        return {image.tobytes() for part in source.batches(500) for image in part}

    few, more, most = rows(80), rows(200), rows(800)
    assert len(few) == 80
    assert few < more < most


def test_all_are_those_that_there_were_before():
    split = get_dataset(None).split("method_reference")
    assert split is not None
    same = references(800).labels
    assert all(np.array_equal(values, split.labels[name]) for name, values in same.items())


@pytest.mark.parametrize("count", [1, 801])
def test_a_number_that_there_is_not_is_refused(count):
    with pytest.raises(InputError, match=r"reference_images must be at (least|most)"):
        ReferenceOnly(reference_images=count)


@pytest.mark.parametrize("preset", ["oracle_ratio", "weight_only", "correction_only"])
def test_every_card_says_how_many_there_are(preset):
    parameters = {**TimeDependentReweighting.presets[preset], "reference_images": 80}
    assert TimeDependentReweighting(**parameters).configured_card().reference_images == 80
    assert ImportanceReweighting(reference_images=200).configured_card().reference_images == 200
