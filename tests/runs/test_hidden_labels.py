from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet, MethodBase, MethodCard
from fairbench.core.progress import Reporter
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.runs.config import RunConfig
from fairbench.runs.generation import generate
from fairbench.runs.hidden_labels import (
    area_under_curve,
    group_facts,
    hidden_label_facts,
    rare_for_subject,
)
from fairbench.runs.plan import plan_run


def test_area_under_curve_counts_pairs():
    rng = np.random.default_rng(0)
    values = rng.integers(5, size=60).astype(float)
    positive = rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert area_under_curve(values, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert area_under_curve(positive.astype(float), positive) == 1
    assert area_under_curve(np.zeros(60), positive) == 0.5
    assert area_under_curve(values, np.ones(60, dtype=bool)) is None


def test_rare_is_what_a_subject_has_less_of_than_its_fair_share():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 1])
    subjects = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    expected = [False] * 3 + [True] + [False] * 3 + [True] + [False] * 2  # 2: an even split
    assert rare_for_subject(labels, subjects, 2).tolist() == expected


@pytest.fixture
def images():
    labels = {"gender": np.array([0, 1, 1, 1], dtype=np.uint8)}
    return ImageSet(np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, dtype=np.int64), labels)


def test_purity_is_the_share_of_a_group_s_weight(images):
    scores = {"group": np.array([0.6, 0.2, 0.0, 0.0]), "risk": np.array([-1.0, 0, 1, 2])}
    facts = hidden_label_facts(scores, images, {"gender": ("female", "male")})
    group, risk = facts["group"]["gender"], facts["risk"]["gender"]
    assert group["female"] == group["rare"]
    assert group["rare"] == {"share": 0.25, "auc": 1.0, "weighted_share": pytest.approx(0.75)}
    assert group["male"]["weighted_share"] == pytest.approx(0.25)
    assert risk["rare"] == {"share": 0.25, "auc": 0.0, "weighted_share": None}
    assert json.loads(json.dumps(facts)) == facts


def test_the_optimum_of_groups_is_an_equal_mixture_of_them():
    """A rare quarter; one group has all of it and as much else, the other the rest."""
    rare = np.array([1, 0, 0, 0, 1, 0, 0, 0], dtype=bool)
    group = np.array([1, 1, 0, 0, 1, 1, 0, 0])
    weights = np.eye(3)[group]  # and a group without anybody, which doesn't count
    subjects = np.repeat([3, 5], 4)
    facts = group_facts(weights, rare, subjects)
    assert facts == {
        "share": 0.25,
        "purity": pytest.approx(0.5),
        "optimum": pytest.approx(0.25),
        "optimum_by_subject": pytest.approx([0.25, 0.25]),
    }
    # Alone in its group, however few its images, it is to be half of what is made.
    alone = group_facts(np.eye(2)[rare.astype(int)], rare, subjects)
    assert alone["purity"] == 1
    assert alone["optimum"] == pytest.approx(0.5)
    # One group is the training set as it is; groups of subjects alone change nothing within.
    assert group_facts(np.ones((8, 1)), rare, subjects)["optimum"] == pytest.approx(0.25)
    by_subject = group_facts(np.eye(2)[(subjects == 5).astype(int)], rare, subjects)
    assert by_subject["optimum_by_subject"] == pytest.approx([0.25, 0.25])
    # Nine to one within a subject that has a tenth of the other's weight in the rarer group.
    uneven = np.stack([1 - rare, rare * np.where(subjects == 3, 1.0, 0.1)], 1)
    first, second = group_facts(uneven, rare, subjects)["optimum_by_subject"]
    assert first > 0.5 > second


@pytest.mark.parametrize("values", [np.zeros(3), np.array([0, 1, np.nan, 0])])
def test_one_finite_score_an_image(images, values):
    with pytest.raises(ContractError, match="one an image"):
        hidden_label_facts({"risk": values}, images, {"gender": ("female", "male")})


SEEN = {}


@dataclasses.dataclass(frozen=True)
class Curious(MethodBase):
    """Hands in the brightness of its training images, and keeps all that it can reach."""

    card = MethodCard("curious", "looks", "", "none", training_set="biased", ranked=False)
    presets = MappingProxyType({})

    def prepare(self, task, backbone, data, preparation):
        brightness = data.training.images.mean((1, 2, 3))
        SEEN.update(
            data=data,
            answer=preparation.audit("brightness", brightness),
            audit=preparation.audit,
            keys=set(preparation.audit.__self__),
            asked=preparation.examine("counted", self.counted),
        )
        return Watched(backbone, preparation.sampling)

    @staticmethod
    def counted(data):
        SEEN["images_before"] = SEEN.get("images", 0)
        women = int((data.training.labels["gender"] == 0).sum())
        return {"women": women, "attributes": sorted(data.attributes), "none": data.reference}


class Watched(DDIMSampler):
    """Counts the images that were made."""

    def __call__(self, requests):
        SEEN["images"] = SEEN.get("images", 0) + len(requests)
        return super().__call__(requests)


def test_a_method_is_audited_by_labels_that_it_never_sees(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path))
    config = RunConfig("vanilla", num_images=100, steps=1, guidance=1.0, results=tmp_path)
    plan = dataclasses.replace(plan_run(config), method=Curious())
    facts = generate(plan, "key", tmp_path, Reporter()).facts

    # What comes back is nothing, and what takes the scores holds nothing but them.
    assert SEEN["answer"] is None
    assert SEEN["keys"] == {"brightness"}
    assert SEEN["data"].training.labels is None
    assert SEEN["data"].attributes == {}
    found = facts["audit"]["brightness"]
    assert found.keys() == {"gender", "race"}
    # What a method wants checked is checked once no image can be changed any more.
    assert SEEN["asked"] is None
    assert SEEN["images_before"] == 100
    counted = facts["examined"]["counted"]
    assert counted == {"women": counted["women"], "attributes": ["gender", "race"], "none": None}
    assert 0.2 < counted["women"] / len(SEEN["data"].training) < 0.5
    # Skin is what brightness tells.
    assert found["race"]["white"]["auc"] > 0.7
    assert found["race"]["rare"]["share"] == pytest.approx(0.45, abs=0.01)
    assert 0.35 < found["gender"]["female"]["auc"] < 0.65
