from __future__ import annotations

import shutil

import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import constants

from fairbench.core.errors import AssetError, InputError
from fairbench.datasets.base import get_dataset
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.runs.plan import find_backbone, image_side
from fairbench.runs.requisites import find_requisites, missing_backbone
from fairbench.storage.hub import hub_folder, hub_place, is_repository

NAME = "google/ddpm-celebahq-256"
SHIPPED = CARTOONFACES.backbone("cartoonfaces-ddpm").folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(name=NAME, revision="abc", chosen=True):
    place = hub_place(name)
    folder = place / "snapshots" / revision
    shutil.copytree(SHIPPED, folder)
    if chosen:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(revision)
    return folder


def test_names_of_repositories():
    assert is_repository("google/ddpm-celebahq-256")
    for name in ("google", "a/b/c", "./a", "/a", "a/", "~/a", "../a"):
        assert not is_repository(name), name


def test_a_repository_is_found_in_the_cache(hub):
    celeba = get_dataset("celeba")
    assert hub_folder(NAME) is None
    assert f"looked in {hub / 'models--google--ddpm-celebahq-256'}" in missing_backbone(
        celeba, NAME
    )
    with pytest.raises(AssetError, match="run 'hf download google/ddpm-celebahq-256'"):
        find_backbone(celeba, NAME)
    older = snapshot(revision="aaa", chosen=False)
    assert hub_folder(NAME) == older
    folder = snapshot(revision="abc")
    assert hub_folder(NAME) == folder
    found = find_backbone(celeba, NAME)
    assert (found.name, found.folder, found.conditional) == (NAME, folder, False)
    assert found.sampling.steps == 50
    assert missing_backbone(celeba, NAME) == ""
    assert "stable-diffusion-v1-5 not found" in missing_backbone(celeba, None)
    # Any other repository, by its family's settings.
    other = snapshot("someone/faces")
    found = find_backbone(celeba, "someone/faces")
    assert (found.name, found.folder, found.sampling.steps) == ("someone/faces", other, 25)


def test_a_snapshot_without_weights_is_said_to_be_a_part(hub):
    folder = snapshot()
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    assert hub_folder(NAME) == folder
    with pytest.raises(AssetError, match="only a part of it is in the hub's cache"):
        find_backbone(get_dataset("celeba"), NAME)


def test_only_a_download_that_was_allowed_is_made(hub, monkeypatch, tmp_path):
    asked = []

    def download(repository):
        asked.append(repository)
        return str(snapshot(repository))

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    celeba = get_dataset("celeba", tmp_path)
    with pytest.raises(AssetError):
        find_backbone(celeba, NAME)
    assert not asked
    assert find_backbone(celeba, NAME, allow_download=True).folder == hub_folder(NAME)
    assert asked == [NAME]

    def offline(repository):
        raise OSError("no route to host")

    monkeypatch.setattr(DiffusionPipeline, "download", offline)
    with pytest.raises(AssetError, match="can't be downloaded: OSError: no route to host"):
        find_backbone(celeba, None, allow_download=True)


def test_data_and_backbone_are_named_together(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRBENCH_DATA", raising=False)
    with pytest.raises(InputError, match=r"no list_attr_celeba.*backbone stable-diffusion-v1-5"):
        find_requisites("celeba", tmp_path, generating=True)
    with pytest.raises(InputError) as caught:
        find_requisites("celeba", tmp_path, generating=True, allow_download=True)
    assert "not found" not in str(caught.value)
    with pytest.raises(InputError, match="neither --data-root nor FAIRBENCH_DATA"):
        find_requisites("celeba", None, generating=False)
    assert find_requisites(None, None, generating=True).name == "cartoonfaces"


def test_the_size_of_a_pipeline_s_images():
    assert image_side(SHIPPED) == 32
    assert image_side(CARTOONFACES.backbone("cartoonfaces-sd").folder) == 32
    assert image_side(SHIPPED / "nothing") is None
