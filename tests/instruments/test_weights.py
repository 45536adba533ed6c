from __future__ import annotations

import hashlib
import io
import json
import urllib.error
from pathlib import Path

import pytest

from fairbench.app import doctor
from fairbench.core.errors import AssetError, InputError
from fairbench.instruments import weights
from fairbench.instruments.weights import WEIGHTS, find_weights, verify_weights, weight_states

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
FACENET = "20180402-114759-vggface2.pt"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Every cache that is looked in, empty and under the test's own folder."""
    monkeypatch.delenv("FAIRBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(weights, "CLEAN_FID_FOLDER", tmp_path / "temporary")
    return tmp_path


@pytest.fixture
def own(places, monkeypatch):
    folder = places / "own"
    folder.mkdir()
    monkeypatch.setenv("FAIRBENCH_WEIGHTS", str(folder))
    return folder


def put(path, content=b"weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_model(folder, name, weights="model.safetensors"):
    for file in (weights, *WEIGHTS[name].files):
        put(folder / file, file.encode())
    return folder


def snapshot(places, name, weights=b"large", file="model.safetensors"):
    """A model as the Hugging Face hub caches it: links to blobs named by their hashes."""
    root = places / "hf" / f"models--{WEIGHTS[name].address.replace('/', '--')}"
    put(root / "refs" / "main", b"a" * 40)
    folder = root / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    for small in WEIGHTS[name].files:
        blob = put(root / "blobs" / hashlib.sha1(small.encode()).hexdigest(), small.encode())
        (folder / small).symlink_to(blob)
    blob = put(root / "blobs" / hashlib.sha256(weights).hexdigest(), weights)
    (folder / file).symlink_to(blob)
    return folder


def refused(name, *texts, **options):
    with pytest.raises(AssetError) as caught:
        find_weights(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message, message
    return message


def test_addresses_are_those_of_upstreams_own_code():
    from cleanfid.downloads_helper import inception_url
    from facenet_pytorch.models import inception_resnet_v1
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert WEIGHTS["inception-torch-fidelity"].address == URL_INCEPTION_V3
    assert WEIGHTS["inception-clean-fid"].address == inception_url
    source = Path(inception_resnet_v1.__file__).read_text()
    for name in ("facenet-vggface2", "facenet-casia-webface"):
        assert WEIGHTS[name].address in source
    for spec in WEIGHTS.values():
        if spec.kind == "file":
            assert spec.address.endswith("/" + spec.files[0])
            assert spec.sha256_prefix in spec.files[0]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean inception-clean-fid"):
        find_weights("inception-cleanfid")


def test_each_file_is_found_where_upstream_keeps_it(places):
    from facenet_pytorch.models.inception_resnet_v1 import get_torch_home

    hub = places / "torch" / "hub" / "checkpoints"
    expected = {
        "inception-torch-fidelity": put(hub / INCEPTION),
        "inception-clean-fid": put(places / "temporary" / "inception-2015-12-05.pt"),
        # Without "hub": facenet-pytorch has a folder of its own.
        "facenet-vggface2": put(places / "torch" / "checkpoints" / FACENET),
        "dinov2-vit-l-14": snapshot(places, "dinov2-vit-l-14"),
        "clip-vit-b-32": snapshot(places, "clip-vit-b-32", file="pytorch_model.bin"),
    }
    assert Path(get_torch_home()) == places / "torch"
    for name, path in expected.items():
        assert find_weights(name) == path


def test_the_folder_of_the_user_comes_first(places, own):
    put(places / "torch" / "hub" / "checkpoints" / INCEPTION)
    snapshot(places, "clip-vit-b-32")
    path = put(own / INCEPTION)
    assert find_weights("inception-torch-fidelity") == path
    model = put_model(own / "clip-vit-base-patch32", "clip-vit-b-32")
    assert find_weights("clip-vit-b-32") == model
    model = put_model(own / "clip-vit-b-32", "clip-vit-b-32", "pytorch_model.bin")
    assert find_weights("clip-vit-b-32") == model


def test_a_folder_of_the_user_that_is_none(places, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_WEIGHTS", str(places / "none"))
    refused("inception-torch-fidelity", "FAIRBENCH_WEIGHTS names", "which is no folder")
    assert all(
        state.path is None or state.spec.kind == "wheel" for state in weight_states(verify=0)
    )


def test_a_missing_file_is_one_line_with_every_place_and_the_remedy(places, own):
    message = refused(
        "facenet-vggface2",
        f"{FACENET} not found",
        str(own / FACENET),
        str(places / "torch" / "checkpoints" / FACENET),
        str(places / "torch" / "hub" / "checkpoints" / FACENET),
        "download https://github.com/timesler/",
        f"into {places / 'torch' / 'checkpoints'}, or set FAIRBENCH_WEIGHTS",
    )
    assert "casia" not in message
    refused(
        "clip-vit-b-32",
        "openai/clip-vit-base-patch32 not found",
        str(own / "clip-vit-b-32"),
        str(places / "hf" / "models--openai--clip-vit-base-patch32"),
        "hf download openai/clip-vit-base-patch32",
        "FAIRBENCH_WEIGHTS",
    )


@pytest.mark.parametrize("lost", ["config.json", "vocab.json", "model.safetensors"])
def test_a_model_that_lacks_a_file_is_not_found(own, lost):
    folder = put_model(own / "clip-vit-b-32", "clip-vit-b-32")
    (folder / lost).unlink()
    refused("clip-vit-b-32", "not found", lost)


def test_mtcnn_lies_in_the_wheel():
    for net in ("pnet", "rnet", "onet"):
        path = find_weights(f"mtcnn-{net}")
        assert path.name == f"{net}.pt"
        assert (
            verify_weights(f"mtcnn-{net}", path) == hashlib.sha256(path.read_bytes()).hexdigest()
        )


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("mtcnn-pnet", "facenet_pytorch isn't installed", "pip install")


# --- hashes --------------------------------------------------------------------------------


def test_the_hash_in_a_file_name_is_checked(places):
    path = put(places / INCEPTION)
    with pytest.raises(
        AssetError, match=r"sha256 9a129038…, expected 6726825d…; .* delete it"
    ) as e:
        verify_weights("inception-torch-fidelity", path)
    assert str(path) in str(e.value)


def test_a_file_without_a_published_hash_is_only_hashed(places):
    path = put(places / FACENET)
    expected = hashlib.sha256(b"weights").hexdigest()
    assert verify_weights("facenet-vggface2", path) == expected


def test_a_file_that_is_gone(places):
    with pytest.raises(AssetError, match="can't be read"):
        verify_weights("facenet-vggface2", places / FACENET)


def test_the_name_of_a_blob_is_the_hash_of_a_cached_model(places):
    folder = snapshot(places, "dinov2-vit-b-14")
    verify_weights("dinov2-vit-b-14", folder)
    (folder / "model.safetensors").resolve().write_bytes(b"larg")
    with pytest.raises(AssetError, match=r"model.safetensors: sha256"):
        verify_weights("dinov2-vit-b-14", folder)


def test_the_hash_of_a_model_covers_every_file_that_matters(own):
    folder = put_model(own / "clip-vit-b-32", "clip-vit-b-32")
    seen = {verify_weights("clip-vit-b-32", folder)}
    for count, file in enumerate(("model.safetensors", *WEIGHTS["clip-vit-b-32"].files), 2):
        put(folder / file, b"other")
        seen.add(verify_weights("clip-vit-b-32", folder))
        assert len(seen) == count


def test_a_folder_without_weights_has_no_hash(own):
    with pytest.raises(AssetError, match=r"expected model.safetensors or pytorch_model.bin"):
        verify_weights("clip-vit-b-32", own)


# --- downloads -----------------------------------------------------------------------------


class Response(io.BytesIO):
    headers = {"Content-Length": "7"}  # noqa: RUF012

    def info(self):
        return self

    def get_all(self, name):
        return None


def test_nothing_is_downloaded_unless_it_is_allowed(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    for spec in WEIGHTS.values():
        if spec.kind != "wheel":
            refused(spec.name, "not found")


def test_a_download_lands_where_upstream_keeps_it(places, monkeypatch):
    monkeypatch.setattr("torch.hub.urlopen", lambda request, **kw: Response(b"weights"))
    path = find_weights("facenet-vggface2", allow_download=True)
    assert path == places / "torch" / "checkpoints" / FACENET
    assert path.read_bytes() == b"weights"
    assert find_weights("facenet-vggface2") == path


def test_a_download_with_another_hash_leaves_nothing(places, own, monkeypatch):
    monkeypatch.setattr("torch.hub.urlopen", lambda request, **kw: Response(b"weights"))
    refused("inception-torch-fidelity", "invalid hash", "6726825d", allow_download=True)
    assert list(own.iterdir()) == []


def test_a_download_without_a_network_is_one_line(monkeypatch):
    def fail(*args, **options):
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr("torch.hub.urlopen", fail)
    refused("facenet-vggface2", "can't download https://", "no route to host", allow_download=True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    refused("dinov2-vit-b-14", "can't download facebook/dinov2-base", allow_download=True)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_is_downloaded_through_its_hub(places, monkeypatch, file):
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    asked = []

    def download(repository, name):
        asked.append(name)
        if name.startswith(("model", "pytorch")) and name != file:
            raise RemoteEntryNotFoundError("404", response=Missing())
        return str(put(places / "fresh" / name))

    class Missing:
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_weights("clip-vit-b-32", allow_download=True) == places / "fresh"
    assert {"config.json", "vocab.json", "merges.txt", file} <= {*asked}

    def offline(repository, name):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    refused("dinov2-vit-b-14", "can't download", "offline", allow_download=True)


# --- what the doctor says ------------------------------------------------------------------


def test_missing_files_are_optional_and_damaged_ones_a_fault(places):
    rows = {row.what: row for row in doctor._weights(verify=False)}
    assert len(rows) == len(WEIGHTS)
    missing = rows["external inception-torch-fidelity"]
    assert (missing.ok, missing.optional) == (False, True)
    assert "fid_*" in missing.found
    assert "download https" in missing.remedy
    assert rows["external mtcnn-onet"].ok

    put(places / "torch" / "hub" / "checkpoints" / INCEPTION)
    put(places / "torch" / "checkpoints" / FACENET)
    snapshot(places, "dinov2-vit-b-14")
    found = {row.what: row for row in doctor._weights(verify=False)}
    assert found["external inception-torch-fidelity"].ok
    verified = {row.what: row for row in doctor._weights(verify=True)}
    damaged = verified["external inception-torch-fidelity"]
    assert (damaged.ok, damaged.optional) == (False, False)
    assert damaged.remedy.startswith("delete it and download")
    assert "states no hash" in verified["external facenet-vggface2"].found
    assert "over its files" in verified["external dinov2-vit-b-14"].found
    json.dumps([str(row) for row in verified.values()])


def test_the_table_is_keyed_by_name():
    assert all(name == spec.name for name, spec in WEIGHTS.items())
    assert weights.weight_file("mtcnn-pnet").title == "pnet.pt"
