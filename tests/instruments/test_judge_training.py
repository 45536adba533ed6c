"""Judges trained on a data set's own images: resumed to the byte, measured, found again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fairbench.core.errors import AssetError, ContractError, InputError
from fairbench.diffusion import training
from fairbench.diffusion.training import TrainingPlan
from fairbench.instruments import judge_training, trained
from fairbench.instruments.calibration import calibrated, halves
from fairbench.instruments.judge_training import JudgeRecipe, train_judge
from fairbench.instruments.judges import load_judge
from fairbench.instruments.trained import judge_network, load_trained_judge, trained_judges

_spec = importlib.util.spec_from_file_location("labelled", Path(__file__).with_name("labelled.py"))
labelled = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(labelled)
Labelled = labelled.Labelled


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A network with batch norms, as ResNets have, that takes milliseconds to train."""

    def network(depth, outputs):
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32, outputs),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_training, "judge_network", network)
        patch.setattr(trained, "judge_network", network)
        yield


RECIPE = JudgeRecipe(steps=6, batch=8, side=32)


def line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A judge of six steps, its folder and the cache around it."""
    cache = tmp_path_factory.mktemp("cache")
    state = torch.get_rng_state()
    judge, folder, found = train_judge(Labelled(), RECIPE, cache, device="cpu")
    assert not found
    assert torch.equal(torch.get_rng_state(), state)  # no global generator was touched
    return judge, folder, cache


def test_a_judge_lies_in_a_folder_with_its_card(made):
    judge, folder, cache = made
    assert folder == cache / "judges" / "labelled" / "resnet18-seed0"
    assert trained_judges("labelled", cache) == {"resnet18-seed0": folder}
    card = json.loads((folder / "card.json").read_text())
    assert card["attributes"] == {name: list(levels) for name, levels in labelled.LEVELS.items()}
    assert (card["fitted_to"], card["held_out_images"]) == (60, 60)
    assert {*card["held_out"]} == {*labelled.LEVELS, "gender/age", "gender/hat", "age/hat"}
    assert card["training"]["steps"] == 6
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 50, 3), dtype=np.uint8)
    loaded = load_judge("resnet18-seed0", Labelled(), cache)
    assert loaded.weights_sha256 == card["weights"]["sha256"]
    for name, rows in judge(images).items():
        assert rows.shape == (3, 2)
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
        np.testing.assert_array_equal(loaded(images)[name], rows)


def test_errors_are_those_of_the_held_out_half(made):
    judge, _, _ = made
    split = Labelled().judge
    part = split.take(halves(split)[1])
    read_as = judge(part.images)
    for name in labelled.LEVELS:
        counts = judge.confusion[name]
        assert counts.sum() == 60
        assert np.trace(counts) == (read_as[name].argmax(1) == part.labels[name]).sum()


def test_the_same_recipe_is_found_and_another_isn_t(made, monkeypatch):
    _, folder, cache = made
    monkeypatch.setattr(judge_training, "train_or_load", None)  # would fail if it were called
    _, again, found = train_judge(Labelled(), RECIPE, cache, device="cpu")
    assert (again, found) == (folder, True)
    with pytest.raises(TypeError):
        train_judge(Labelled(), JudgeRecipe(steps=7, batch=8, side=32), cache, device="cpu")
    with pytest.raises(TypeError):
        train_judge(Labelled(100), RECIPE, cache, device="cpu")


def test_a_stopped_training_ends_in_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
    steps = []

    def stop(what, done, total):
        if what.startswith("training"):
            steps.append(done)
            if done == 3 and steps.count(3) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_judge(Labelled(), RECIPE, tmp_path, device="cpu", progress=stop)
    assert not trained_judges("labelled", tmp_path)
    _, folder, _ = train_judge(Labelled(), RECIPE, tmp_path, device="cpu", progress=stop)
    # A checkpoint is written once the next step's loss is known to be finite: after step 2 here.
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5, 6]
    kept = made[1] / "judge.safetensors"
    assert (folder / "judge.safetensors").read_bytes() == kept.read_bytes()


def test_networks_are_torchvisions():
    with torch.device("meta"):
        small, large = judge_network(18, 9), judge_network(34, 9)
    assert small.state_dict()["fc.weight"].shape == (9, 512)
    assert len(large.state_dict()) > len(small.state_dict())
    with pytest.raises(InputError, match="--depth must be 18 or 34"):
        judge_network(50, 9)


def test_another_seed_or_depth_is_another_judge():
    names = [JudgeRecipe(seed=s, depth=d).judge_name for s, d in ((0, 18), (1, 18), (0, 34))]
    assert names == ["resnet18-seed0", "resnet18-seed1", "resnet34-seed0"]
    assert JudgeRecipe(crop="face").judge_name == "resnet18-seed0-face"


def test_a_few_more_steps_learn_what_is_to_be_seen(tmp_path):
    recipe = JudgeRecipe(steps=80, batch=16, side=32, learning_rate=1e-2, name="longer")
    judge, _, _ = train_judge(Labelled(), recipe, tmp_path, device="cpu")
    right = np.trace(judge.confusion["hat"]) / judge.confusion["hat"].sum()
    assert right > 0.8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 50}, "--depth must be 18 or 34"),
        ({"crop": "nose"}, "--crop must be centre or face"),
        ({"side": 8}, "--side must lie in 32…512"),
        ({"steps": 0}, "--steps"),
        ({"batch": 1}, "--batch"),
        ({"batch": 10**9}, "--batch must be at most 4096"),
        ({"seed": -1}, "--seed"),
        ({"name": "../up"}, "--name"),
    ],
)
def test_a_wrong_recipe_is_refused(changes, said):
    with pytest.raises(InputError) as caught:
        JudgeRecipe(**changes)
    assert said in line(caught)


def test_data_that_nothing_can_be_learned_from_is_told(tmp_path):
    with pytest.raises(InputError, match="no judge split"):
        train_judge(Labelled(None), RECIPE, tmp_path, device="cpu")
    dataset = Labelled()
    dataset.judge.labels["hat"][:] = 0
    with pytest.raises(InputError) as caught:
        train_judge(dataset, RECIPE, tmp_path, device="cpu")
    assert "no image of hat no" in line(caught)


def test_a_judge_of_other_data_or_a_damaged_one_is_told(made, tmp_path):
    _, folder, _ = made
    with pytest.raises(InputError) as caught:
        load_trained_judge(folder, Labelled(100))
    assert "other data" in line(caught)
    assert "fairbench train-judge --dataset labelled" in line(caught)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert load_judge(str(copied), Labelled(), tmp_path).name == "resnet18-seed0"
    whole = (copied / "judge.safetensors").read_bytes()
    (copied / "judge.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(AssetError, match="it is damaged"):
        load_trained_judge(copied, Labelled())
    (copied / "judge.safetensors").unlink()
    with pytest.raises(AssetError, match=r"judge\.safetensors"):
        load_trained_judge(copied, Labelled())
    (copied / "card.json").write_text("[]")
    with pytest.raises(AssetError, match="no card"):
        load_trained_judge(copied, Labelled())


class Smaller(Labelled):
    """The same images with the same labels at another size."""

    def __init__(self):
        super().__init__()
        images = np.ascontiguousarray(self.judge.images[:, ::2, ::2])
        self.judge = type(self.judge)(images, self.judge.labels)

    def data_sha256(self):
        return "5" * 64


def test_at_another_size_errors_are_counted_anew(made, tmp_path):
    judge, folder, _ = made
    dataset = Smaller()
    loaded = load_trained_judge(folder, dataset)
    assert not loaded.confusion
    counted = calibrated(loaded, dataset, tmp_path)
    part = dataset.judge.take(halves(dataset.judge)[1])
    read_as = judge(part.images)["hat"].argmax(1)
    assert np.trace(counted.confusion["hat"]) == (read_as == part.labels["hat"]).sum()
    assert counted.weights_sha256 == judge.weights_sha256
    assert len(list((tmp_path / "judges" / "labelled" / "calibrations").iterdir())) == 1


def test_averaged_weights_with_statistics_of_others_are_refused(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    surroundings = judge_training._Surroundings(0, tmp_path, lambda *ignored: None)
    plan = TrainingPlan(steps=1, batch=2, learning_rate=1e-3, ema_decay=0.9)
    with pytest.raises(ContractError, match="batch norms"):
        training.train_or_load(
            module,
            "x",
            {},
            plan,
            lambda d: module(d.gaussian(d.rows, 2)).sum(),
            surroundings,
            device=torch.device("cpu"),
            what="x",
        )
