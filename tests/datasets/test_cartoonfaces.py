from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest

from fairbench.core.errors import AssetError, ContractError
from fairbench.datasets import cartoonfaces
from fairbench.datasets.cartoonfaces import (
    ATTRIBUTES,
    BALANCED,
    CELL_ATTRIBUTES,
    DEFAULT_BIAS,
    SPLITS,
    BiasProfile,
    cell_index,
    load_split,
    manifest,
    pack_split,
)

SIZES = {"pool": 16000, "method_reference": 800, "judge": 6000, "evaluation": 6000}


def cells(split):
    return np.bincount(cell_index(split.labels), minlength=40)


@pytest.mark.parametrize("name", SPLITS)
def test_splits_have_their_sizes_and_sane_labels(name):
    split = load_split(name)
    count = SIZES[name]
    assert len(split) == count == manifest()["splits"][name]["images"]
    assert split.images.shape == (count, 32, 32, 3)
    assert split.images.dtype == np.uint8
    assert set(split.labels) == set(ATTRIBUTES)
    for attribute, levels in ATTRIBUTES.items():
        values = split.labels[attribute]
        assert values.shape == (count,)
        assert values.dtype == np.uint8
        assert set(np.unique(values)) == set(range(len(levels)))  # every level occurs
    female = split.labels["gender"] == ATTRIBUTES["gender"].index("female")
    assert not split.labels["facial_hair"][female].any()
    assert 0 < split.labels["facial_hair"][~female].mean() < 1


def test_no_image_is_in_two_places():
    seen = [
        hashlib.sha256(image.tobytes()).digest()
        for name in SPLITS
        for image in load_split(name).images
    ]
    assert len(seen) == len(set(seen)) == 28800


def test_splits_cannot_be_changed_by_accident():
    split = load_split("method_reference")
    for array in (split.images, *split.labels.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError):
        split.labels["gender"] = split.labels["race"]


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "pool"])
def test_balanced_splits_are_exactly_balanced(name):
    np.testing.assert_array_equal(cells(load_split(name)), SIZES[name] // 40)


def test_pool_holds_a_biased_and_a_balanced_training_set():
    pool = load_split("pool")
    held = cells(pool)
    assert held.min() >= 200
    for profile in (DEFAULT_BIAS, BALANCED):
        assert (held >= profile.counts(8000)).all()
        index = profile.draw(pool.labels, 8000, 0)
        assert len(np.unique(index)) == 8000
        np.testing.assert_array_equal(cells(pool.take(index)), profile.counts(8000))


def test_take_keeps_images_and_labels_together():
    split = load_split("method_reference")
    chosen = np.array([5, 3, 700])
    part = split.take(chosen)
    assert len(part) == 3
    for place, index in enumerate(chosen):
        np.testing.assert_array_equal(part.images[place], split.images[index])
        for attribute in ATTRIBUTES:
            assert part.labels[attribute][place] == split.labels[attribute][index]
    men = split.labels["gender"] == 1
    assert len(split.take(men)) == 400


# --- bias profiles ----------------------------------------------------------------------------


def test_default_bias_is_the_declared_one():
    roles = dict(zip(ATTRIBUTES["role"], DEFAULT_BIAS.shares, strict=True))
    male = {role: share[1].sum() / share.sum() for role, share in roles.items()}
    assert male == pytest.approx(
        {
            "person": 0.8,
            "baseball player": 0.9,
            "tennis player": 0.1,
            "football player": 0.9,
            "santa": 0.8,
        }
    )
    assert DEFAULT_BIAS.marginal("role") == pytest.approx(dict.fromkeys(ATTRIBUTES["role"], 0.2))
    assert DEFAULT_BIAS.marginal("gender") == pytest.approx({"female": 0.3, "male": 0.7})
    assert DEFAULT_BIAS.marginal("race") == pytest.approx(
        {"asian": 0.15, "black": 0.15, "brown": 0.15, "white": 0.55}
    )


def test_counts_are_the_shares_rounded_by_largest_remainder():
    for n in (1, 7, 40, 333, 8000):
        counts = DEFAULT_BIAS.counts(n)
        assert counts.shape == (40,)
        assert counts.sum() == n
        assert np.abs(counts - DEFAULT_BIAS.shares.ravel() * n).max() < 1
    shares = np.zeros((5, 2, 4))
    shares.flat[[3, 8, 20]] = 0.5, 0.3, 0.2
    profile = BiasProfile("three", shares)
    assert profile.counts(4)[[3, 8, 20]].tolist() == [2, 1, 1]  # 2.0, 1.2, 0.8
    assert profile.counts(3)[[3, 8, 20]].tolist() == [1, 1, 1]  # 1.5, 0.9, 0.6
    assert BALANCED.counts(3).tolist() == [1, 1, 1] + [0] * 37  # ties go to the first


def test_draws_repeat_by_seed_and_have_no_image_twice():
    labels = load_split("pool").labels
    first, again, other = (DEFAULT_BIAS.draw(labels, 1000, seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    assert len(set(first.tolist())) == len(first) == 1000
    drawn = np.bincount(cell_index({k: v[first] for k, v in labels.items()}), minlength=40)
    np.testing.assert_array_equal(drawn, DEFAULT_BIAS.counts(1000))
    # In random order: any first half is biased alike.
    male = labels["gender"][first]
    assert abs(male[:500].mean() - 0.7) < 4 * (0.7 * 0.3 / 500) ** 0.5


def test_more_images_than_there_are_is_an_error():
    labels = load_split("method_reference").labels
    assert len(BALANCED.draw(labels, 800, 0)) == 800
    with pytest.raises(ContractError, match=r"needs 21 images of cell 0 .* the split has 20"):
        BALANCED.draw(labels, 840, 0)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (np.full((5, 2, 3), 1 / 30), "shape"),
        (np.full((5, 2, 4), 1 / 20), "sum to 1"),
        (np.array([2.0, -1.0] + [0.0] * 38).reshape(5, 2, 4), "non-negative"),
        (np.full((5, 2, 4), np.nan), "sum to 1"),
    ],
)
def test_profiles_that_are_no_shares_are_refused(shares, message):
    with pytest.raises(ContractError, match=message):
        BiasProfile("bad", shares)


def test_cells_are_counted_in_declared_order():
    labels = {"role": np.array([0, 0, 4]), "gender": np.array([0, 1, 1]), "race": [3, 0, 3]}
    assert CELL_ATTRIBUTES == ("role", "gender", "race")
    assert cell_index(labels).tolist() == [3, 4, 39]


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The smallest split in a folder of its own; loading goes past the caches of the process."""
    folder = tmp_path / "cartoonfaces"
    folder.mkdir()
    for name in ("manifest.json", "method_reference.npz.xz"):
        shutil.copy(cartoonfaces.FOLDER / name, folder)
    monkeypatch.setattr(cartoonfaces, "manifest", cartoonfaces.manifest.__wrapped__)
    monkeypatch.setattr(cartoonfaces, "FOLDER", folder)
    return folder


def load_again():
    return load_split.__wrapped__("method_reference")


def test_pixels_are_those_of_the_manifest(copied):
    entry = manifest()["splits"]["method_reference"]
    pixels = hashlib.sha256(load_again().images.tobytes()).hexdigest()
    assert pixels == entry["pixels_sha256"]
    assert (copied / entry["file"]).stat().st_size == entry["bytes"]


def test_damaged_and_missing_files_are_asset_errors(copied):
    path = copied / "method_reference.npz.xz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    for damaged in (bytes(content), bytes(content[:500]), b""):
        path.write_bytes(damaged)
        with pytest.raises(AssetError, match=r"sha256 .* expected 9d6fe0e7.*damaged") as caught:
            load_again()
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(AssetError, match=r"method_reference.npz.xz: No such file"):
        load_again()
    for text in ("{", ""):
        (copied / "manifest.json").write_text(text)
        with pytest.raises(AssetError, match="not valid JSON"):
            load_again()
    (copied / "manifest.json").unlink()
    with pytest.raises(AssetError, match=r"manifest.json: No such file"):
        load_again()


def test_unknown_splits_are_named():
    with pytest.raises(ContractError, match="unknown split 'test'; known: pool, "):
        load_split("test")


def test_packing_is_undone_by_loading(copied, monkeypatch):
    split = load_split("method_reference").take(np.arange(20))
    packed = pack_split(split.images, split.labels)
    (copied / "method_reference.npz.xz").write_bytes(packed)
    entry = {"file": "method_reference.npz.xz", "sha256": hashlib.sha256(packed).hexdigest()}
    monkeypatch.setattr(cartoonfaces, "manifest", lambda: {"splits": {"method_reference": entry}})
    again = load_again()
    np.testing.assert_array_equal(again.images, split.images)
    for attribute, values in split.labels.items():
        np.testing.assert_array_equal(again.labels[attribute], values)
