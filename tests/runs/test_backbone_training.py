"""Backbones trained on a data set's own images: resumed to the byte, loaded, found again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fairbench.backbones.base import find_family, folder_spec, load_backbone, weights_sha256
from fairbench.backbones.parts.captions import caption
from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.core.prompts import Phrase
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.datasets.parts.profiles import parse_profile
from fairbench.diffusion import training
from fairbench.runs.backbone_training import BackboneRecipe, train_backbone
from fairbench.runs.supply import biased_source

LEVELS = {"gender": ("female", "male"), "age": ("young", "old")}
FEW = {"steps": 3, "vae_steps": 2, "batch": 4, "num_images": 40}


def made(recipe, folder, cache, progress=None):
    report = Reporter() if progress is None else Reporter(progress=progress)
    return train_backbone(DATASET, recipe, folder, cache, report, device="cpu")


def loaded(folder):
    return load_backbone(
        "mine", folder, device=torch.device("cpu"), dtype=torch.float32, network_batch=4
    )


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A pixel model of three steps, and the cache around it."""
    cache = tmp_path_factory.mktemp("cache")
    state = torch.get_rng_state()
    trained = made(BackboneRecipe("ddpm", **FEW), cache / "pixels", cache)
    assert not trained.found
    assert torch.equal(torch.get_rng_state(), state)  # no global generator was touched
    return trained, cache


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    recipe = BackboneRecipe("stable_diffusion", bias="gender:female=0.9,male=0.1", **FEW)
    return made(recipe, cache / "text", cache), cache, recipe


def test_a_profile_is_typed():
    profile = parse_profile("gender/age: female/young=0.6, male/old=0.4", LEVELS)
    np.testing.assert_allclose(profile.shares, [[0.6, 0], [0, 0.4]])
    assert tuple(profile.attributes) == ("gender", "age")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("gender=0.9", "such as gender:"),
        ("sex:female=1", "'sex'"),
        ("gender:girl=1", "'girl'"),
        ("gender/gender:female/male=1", "twice"),
        ("gender:female=a", "a number"),
        ("gender:female=0.9", "sum to 1"),
        ("gender:female=1.5,male=-0.5", "0 or more"),
        ("gender:female=nan,male=1", "sum to 1"),
    ],
)
def test_a_wrong_profile_is_one_line(typed, said):
    with pytest.raises(InputError, match=said) as caught:
        parse_profile(typed, LEVELS)
    assert "\n" not in str(caught.value)


def test_a_bias_is_drawn_from_the_pool():
    source = biased_source(DATASET, "gender:female=0.9,male=0.1", 1000)
    assert len(source) == 1000
    assert np.bincount(source.labels["gender"]).tolist() == [900, 100]
    whole = biased_source(DATASET, "none", 50_000)
    assert len(whole) == 16_000
    # Those that the shipped backbones saw, in their order.
    shipped = DATASET.training_set("biased")
    default = biased_source(DATASET, "default", 50_000)
    np.testing.assert_array_equal(default.images, shipped.images)
    with pytest.raises(InputError, match="defualt"):
        biased_source(DATASET, "defualt", 100)


def test_captions_name_some_attributes_all_or_none():
    rng = np.random.default_rng(0)
    person = DATASET.subjects[0]
    phrases = (Phrase("female"), Phrase("wearing glasses", after=True))
    said = [caption(rng, person, phrases) for _ in range(2000)]
    shares = {one: said.count(one) / len(said) for one in set(said)}
    assert set(shares) == {
        "",
        "female",
        "wearing glasses",
        "female wearing glasses",
        "a photo of a person",
        "a photo of a female person",
        "a photo of a person wearing glasses",
        "a photo of a female person wearing glasses",
    }
    assert shares[""] == pytest.approx(0.1, abs=0.03)
    assert shares["a photo of a person"] == pytest.approx(0.8 * 0.36, abs=0.04)


def test_a_pixel_model_is_a_folder_that_a_run_takes(pixels):
    trained, _ = pixels
    spec = folder_spec(trained.folder)
    assert (spec.conditional, find_family(trained.folder).name) == (False, "ddpm")
    assert spec.expected_sha256() is None  # it didn't come with fairbench
    backbone = loaded(trained.folder)
    assert (backbone.image_size, backbone.latent_shape) == (32, (3, 32, 32))
    assert trained.card["training"]["steps"] == 3
    assert trained.card["images"] == 40
    shares = trained.card["shares"]["gender"]
    labels = biased_source(DATASET, "default", 40).labels["gender"]
    assert shares["female"] == np.mean(labels == 0)


@pytest.mark.parametrize("images", [2, 4])
def test_fewer_images_than_a_batch_are_told(tmp_path, images):
    lines = []
    recipe = BackboneRecipe("ddpm", steps=1, batch=4, num_images=images)
    train_backbone(DATASET, recipe, tmp_path / "made", tmp_path, Reporter(warn=lines.append))
    assert len(lines) == (images < 4)
    assert all(line.startswith("2 images to train on, fewer than a batch of 4") for line in lines)


def test_the_same_recipe_is_found_and_another_needs_its_own_folder(pixels):
    trained, cache = pixels
    assert made(BackboneRecipe("ddpm", **FEW), trained.folder, cache).found
    with pytest.raises(InputError, match="another folder"):
        made(BackboneRecipe("ddpm", seed=1, **FEW), trained.folder, cache)


def test_a_text_model_knows_its_words_and_makes_images(text):
    trained, _, _ = text
    backbone = loaded(trained.folder)
    assert backbone.conditional
    assert backbone.latent_shape == (16, 8, 8)
    for prompt in DATASET.subjects:
        assert [word.removesuffix("</w>") for word in backbone.tokens(prompt.text)] == (
            prompt.text.split()
        )
    contexts = backbone.embed(["a photo of a person", "a photo of a female person"])
    assert not torch.equal(contexts[0], contexts[1])
    images = backbone.decode(torch.zeros(2, 16, 8, 8))
    assert images.shape == (2, 32, 32, 3)
    # Latents are centred and have unit deviation.
    latents = backbone.encode(biased_source(DATASET, trained.card["recipe"]["bias"], 40).images)
    assert latents.std().item() == pytest.approx(1, abs=0.02)
    assert latents.mean((0, 2, 3)).abs().max().item() < 0.02
    assert trained.card["shares"]["gender"] == {"female": 0.9, "male": 0.1}


def test_a_stopped_training_ends_in_the_same_bytes(text, tmp_path, monkeypatch):
    trained, _, recipe = text
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)  # after every step
    for stage, at in (("autoencoder", 1), ("stable_diffusion", 2)):

        def stop(what, done, total, stage=stage, at=at):
            if stage in what and done == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made(recipe, tmp_path / "text", tmp_path, stop)
        assert not (tmp_path / "text").exists()
    seen = []
    made(recipe, tmp_path / "text", tmp_path, lambda what, done, total: seen.append((what, done)))
    assert ("training stable_diffusion", 0) not in seen  # it went on from a checkpoint
    assert weights_sha256(tmp_path / "text") == weights_sha256(trained.folder)


def test_further_training_changes_the_network_alone(text, tmp_path):
    trained, cache, _ = text
    recipe = BackboneRecipe("stable_diffusion", start=str(trained.folder), **FEW)
    further = made(recipe, tmp_path / "further", cache)
    for part, same in (("vae", True), ("text_encoder", True), ("unet", False)):
        files = [
            next((folder / part).glob("*.safetensors")).read_bytes()
            for folder in (trained.folder, further.folder)
        ]
        assert (files[0] == files[1]) == same, part
    assert further.card["start"] == weights_sha256(trained.folder)
    assert json.loads((further.folder / "training.json").read_text()) == further.card
    with pytest.raises(InputError, match="family stable_diffusion"):
        made(BackboneRecipe("ddpm", start=str(trained.folder), **FEW), tmp_path / "no", cache)
    with pytest.raises(InputError, match="makes 32 pixels"):
        made(BackboneRecipe(start=str(trained.folder), side=64, **FEW), tmp_path / "no", cache)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kind": "sdxl"}, "--kind"),
        ({"size": "tinny"}, "'tinny'"),
        ({"side": 48}, "--side"),
        ({"steps": 0}, "--steps"),
        ({"batch": 10_000}, "--batch"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_a_wrong_recipe_is_one_line(asked, said):
    with pytest.raises(InputError, match=said):
        BackboneRecipe(**asked)
