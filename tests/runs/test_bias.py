"""The bias of what a method trains on: who sees it, and what is keyed by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.core.record import Record
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.datasets.celeba import PROFILES, CelebA
from fairbench.datasets.parts.profiles import Profile, parse_profile
from fairbench.instruments.measuring import Instruments, load_instruments
from fairbench.methods import get_method
from fairbench.runs.config import RunConfig
from fairbench.runs.generation import training_data
from fairbench.runs.plan import Keys, Plan, plan_keys, plan_run
from fairbench.runs.question import command_of, question_of
from fairbench.runs.running import foreign_training_set
from fairbench.runs.supply import plain_bias, training_source

HALF = "gender:female=0.5,male=0.5"
IW = get_method("iw").card


@pytest.fixture(scope="module")
def instruments() -> Instruments:
    return load_instruments("cpu", DATASET.instruments())


@pytest.fixture
def keys(tmp_path: Any, own_cache: Any, instruments: Instruments) -> Any:
    def of(method: str, bias: str) -> tuple[Plan, Keys]:
        plan = plan_run(RunConfig(method, bias=bias, device="cpu", results=tmp_path))
        return plan, plan_keys(plan, instruments)

    return of


def test_another_bias_is_another_key_and_the_default_by_any_name_is_none(keys: Any) -> None:
    default = keys("invdiff", "default")[1]
    assert "bias" not in default.config
    same = DATASET.profiles()["default"].text
    assert keys("invdiff", same)[1] == default
    other = keys("invdiff", HALF)[1]
    assert other.config["bias"] == HALF
    assert len({default.generation, other.generation, default.run, other.run}) == 4
    # The same shares typed otherwise.
    assert keys("invdiff", " gender: male=.5, female=0.50")[1] == other


def test_a_method_that_trains_on_no_biased_images_has_no_bias(keys: Any) -> None:
    for method in ("vanilla", "fairgen", "balanced_data"):
        assert keys(method, HALF)[1] == keys(method, "default")[1]
    for method in ("vanilla", "invdiff"):
        with pytest.raises(InputError, match="unknown bias 'defualt'; did you mean default"):
            keys(method, "defualt")


def test_a_record_asks_its_question_with_its_bias(keys: Any, make_record: Any) -> None:
    plan, made = keys("invdiff", HALF)
    record: Record = make_record("invdiff", config={**made.config}, dataset="cartoonfaces")
    record = replace(record, config={**made.config}, task="gender")
    assert question_of(record).bias == HALF
    assert f"--bias {HALF} " in command_of(record)
    told = foreign_training_set(plan)
    assert told is not None
    assert HALF in told
    assert foreign_training_set(keys("invdiff", "default")[0]) is None


def test_the_method_gets_the_images_of_the_bias() -> None:
    usual = training_data(DATASET, IW).training
    other = training_data(DATASET, IW, bias=HALF).training
    assert usual is not None
    assert other is not None
    source = training_source(DATASET, IW, HALF)
    female = np.mean(source.labels["gender"] == 0)
    assert abs(female - 0.5) <= 1 / len(source)
    assert len(other.images) == len(source) <= len(usual.images)
    assert usual.images.shape != other.images.shape or (usual.images != other.images).any()


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: Any, stand_ins: Any) -> CelebA:
    root = tmp_path_factory.mktemp("photographs")
    stand_ins.make(root, "torchvision")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIRBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        dataset = CelebA(root)
        dataset.prepare(Reporter())
    return dataset


def test_celeba_s_profiles_are_biases(celeba: CelebA) -> None:
    assert plain_bias(celeba, "gender_90") == "default"
    assert plain_bias(celeba, HALF) == HALF
    assert plain_bias(celeba, "none") == "none"
    text = plain_bias(celeba, "gender_black_hair")
    assert text == (
        "gender/black_hair:female/yes=0.115,female/no=0.465,male/yes=0.124,male/no=0.296"
    )
    named = training_source(celeba, IW, "gender_black_hair")
    typed = training_source(celeba, IW, text)
    assert named.listing.sha256 == typed.listing.sha256
    assert named.listing.sha256 == celeba.profile("gender_black_hair").listing.sha256  # type: ignore[union-attr]
    assert len(named) <= len(training_source(celeba, IW))
    assert len(training_source(celeba, IW, "none")) == len(training_source(celeba, IW))
    with pytest.raises(InputError, match="unknown group 'woman'"):
        training_source(celeba, IW, "gender:woman=1")


@pytest.mark.parametrize("name", PROFILES)
def test_the_text_of_a_profile_means_the_profile(name: str) -> None:
    profile = PROFILES[name]
    attributes = {key: tuple(levels) for key, levels in CelebA.card.attributes.items()}
    again = parse_profile(profile.text, attributes)
    np.testing.assert_array_equal(again.shares, profile.shares)
    assert again.attributes == profile.attributes
    assert again.text == profile.text


def test_groups_without_a_share_are_left_out() -> None:
    profile = Profile("x", np.array([1.0, 0.0]), {"gender": ("female", "male")})
    assert profile.text == "gender:female=1.0"
