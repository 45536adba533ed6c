import dataclasses

import numpy as np
import pytest

from fairbench.core.errors import ContractError, InputError
from fairbench.core.task import Prompt
from fairbench.datasets import cartoonfaces
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.instruments import base
from fairbench.instruments.measuring import load_instruments, measure, measure_features
from fairbench.runs.reference import confusions_of, encoder_columns, make_reference, real_images
from fairbench.scores.parts.evidence import Columns

SENSITIVE = ("gender", "race")


@pytest.fixture(scope="module")
def instruments():
    return load_instruments("cpu", DATASET.instruments())


@pytest.fixture(scope="module")
def faces():
    return cartoonfaces.load_split("evaluation").images[:70]


class Calls(list):
    def __call__(self, what, done, total):
        self.append((what, done, total))


def test_an_image_is_read_once_by_each_instrument(instruments, faces, tmp_path):
    first, again = Calls(), Calls()
    one = measure(faces, instruments, tmp_path, first)
    two = measure(faces, instruments, tmp_path, again)
    read = {what.removeprefix("measuring: ") for what, _, _ in first}
    assert read == {"primary", "second", "cartoonfaces", "validity"}
    assert again == []
    np.testing.assert_array_equal(one.features["cartoonfaces"], two.features["cartoonfaces"])
    np.testing.assert_array_equal(one.valid, two.valid)
    assert one.probabilities.keys() == {"primary", "second"}


def test_of_real_images_only_encoders_are_asked(instruments, tmp_path):
    part = cartoonfaces.load_split("evaluation").take(np.arange(70))
    calls = Calls()
    features = measure_features(part, instruments, tmp_path, calls)
    assert {what for what, _, _ in calls} == {"measuring: cartoonfaces"}
    whole = measure(part.images, instruments, tmp_path, Calls())
    np.testing.assert_array_equal(features["cartoonfaces"], whole.features["cartoonfaces"])
    without = dataclasses.replace(instruments, encoders=())
    assert measure_features(part, without, tmp_path, calls) == {}


def test_one_pixel_makes_everything_new(instruments, faces, tmp_path):
    measure(faces, instruments, tmp_path, Calls())
    changed = faces.copy()
    changed[3, 5, 5, 0] ^= 1
    calls = Calls()
    measure(changed, instruments, tmp_path, calls)
    assert len({what for what, _, _ in calls}) == 4


def test_other_weights_or_preparation_make_a_reading_new(instruments, faces, tmp_path):
    measure(faces, instruments, tmp_path, Calls())
    for name in ("weights_sha256", "preprocessing", "dtype"):
        other = load_instruments("cpu", DATASET.instruments()).encoder
        setattr(other, name, "other")
        calls = Calls()
        measure(faces, dataclasses.replace(instruments, encoders=(other,)), tmp_path, calls)
        assert {what for what, _, _ in calls} == {"measuring: cartoonfaces"}


def test_a_damaged_entry_is_made_again(instruments, faces, tmp_path):
    whole = measure(faces, instruments, tmp_path, Calls())
    (path,) = (tmp_path / "features" / "validity").iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    calls = Calls()
    again = measure(faces, instruments, tmp_path, calls)
    assert {what for what, _, _ in calls} == {"measuring: validity"}
    np.testing.assert_array_equal(again.valid, whole.valid)


def test_batches_change_nothing(instruments, faces, tmp_path, monkeypatch):
    whole = measure(faces, instruments, tmp_path / "a", Calls())
    monkeypatch.setattr(base, "CHUNK", 200)
    parts = measure(faces, instruments, tmp_path / "b", Calls())
    np.testing.assert_array_equal(whole.features["cartoonfaces"], parts.features["cartoonfaces"])


def test_no_image_is_no_measurement(instruments, faces, tmp_path):
    with pytest.raises(ContractError, match="at least one image"):
        measure(faces[:0], instruments, tmp_path, Calls())


def test_an_unknown_encoder_is_named_with_a_near_one():
    with pytest.raises(InputError, match="inception@clean"):
        load_instruments("cpu", DATASET.instruments(), ["inception@claen"])


def test_columns_and_confusions_of_the_instruments(instruments):
    assert encoder_columns(instruments) == {
        "cartoonfaces": Columns("cartoonfaces", "frechet_cartoonfaces", "kernel_cartoonfaces")
    }
    confusions = confusions_of(instruments)
    assert list(confusions) == ["primary", "second"]
    assert confusions["primary"]["gender/race"].shape == (8, 8)


def test_references_answer_the_prompts(instruments, tmp_path):
    task = CARTOONFACES.task("gender_by_role", conditional=True)
    reference = make_reference(
        CARTOONFACES, task, CARTOONFACES.backbones[0], instruments, tmp_path, Calls()
    )
    roles = cartoonfaces.ATTRIBUTES["role"]
    for p, prompt in enumerate(task.prompts):
        mine = reference.prompt_index == p
        assert set(reference.labels["role"][mine]) == {roles.index(prompt.subject)}
        assert np.bincount(reference.labels["gender"][mine]).tolist() == [mine.sum() // 2] * 2
    # Trained: 10 % of tennis players male, .55 of all white.
    tennis = [prompt.subject for prompt in task.prompts].index("tennis player")
    natural = reference.natural[tennis].reshape(2, 4)
    np.testing.assert_allclose(natural.sum(axis=1), [0.9, 0.1])
    np.testing.assert_allclose(natural.sum(axis=0), [0.15, 0.15, 0.15, 0.55])


def test_without_a_prompt_every_real_image_is_a_reference():
    task = CARTOONFACES.task("gender", conditional=False)
    assert task.prompts == (Prompt(""),)
    part, answers = real_images(CARTOONFACES, task)
    assert len(part) == 6000
    assert not answers.any()


def test_whatever_moves_a_score_is_part_of_the_question():
    before = load_instruments("cpu", DATASET.instruments()).readings()
    changed = load_instruments("cpu", DATASET.instruments())
    changed.validity.threshold = 0.4
    changed.judges[0].confusion = {"gender": np.eye(2, dtype=int)}
    changed.encoder.preprocessing = "other"
    after = changed.readings()
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"validity", "judge_primary", "encoder_cartoonfaces"}
