from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fairbench.backbones.base import load_backbone, weights_sha256
from fairbench.build.analytic import write
from fairbench.datasets.analytic import ATTRIBUTES, BIAS, DATASET, draw, means, words
from fairbench.instruments.analytic import Encoder, Judge, ValidityCheck

ROLES = ("pool", "method_reference", "judge", "evaluation")


def test_shipped_folders_are_what_the_formula_says(tmp_path):
    for spec, named in zip(DATASET.backbones, (words(), None), strict=True):
        write(tmp_path / spec.name, named)
        for path in sorted((tmp_path / spec.name).rglob("*.*")):
            shipped = spec.folder / path.relative_to(tmp_path / spec.name)
            assert shipped.read_bytes() == path.read_bytes(), shipped
        assert weights_sha256(spec.folder) == spec.expected_sha256()


def test_no_image_is_in_two_roles():
    digests = {role: set(DATASET.split(role).listing.sha256) for role in ROLES}
    for one, other in itertools.combinations(ROLES, 2):
        assert not digests[one] & digests[other]
    assert all(len(DATASET.split(role)) == len(digests[role]) for role in ROLES)


def test_splits_are_balanced_and_the_training_set_is_not():
    labels = DATASET.split("evaluation").labels
    cells = np.ravel_multi_index([labels[name] for name in ATTRIBUTES], (2, 2, 3))
    assert set(np.bincount(cells)) == {100}
    biased = DATASET.training_set("biased").labels
    cells = np.ravel_multi_index([biased[name] for name in ATTRIBUTES], (2, 2, 3))
    assert np.bincount(cells) / len(cells) == pytest.approx(BIAS.ravel(), abs=1e-3)


@pytest.mark.parametrize("name", ["first", "second"])
def test_judges_err_as_real_ones_do(name):
    judge = Judge(name)
    right = {key: np.trace(table) / table.sum() for key, table in judge.confusion.items()}
    assert min(right.values()) > 0.85
    assert max(right["tone"], right["hue"], right["tone/hue"]) < 1
    # What they say is calibrated: they know the mixture.
    split = DATASET.split("evaluation")
    said = judge(split.images)["tone"]
    assert said.max(axis=1).mean() == pytest.approx(
        (said.argmax(1) == split.labels["tone"]).mean(), abs=0.01
    )


def test_validity_tells_patches_from_other_images():
    check, rng = ValidityCheck(), np.random.default_rng(0)
    real = DATASET.split("evaluation").images[:200]
    assert (check(real)["validity"] >= check.threshold).mean() >= 0.99
    noise = rng.integers(256, size=real.shape, dtype=np.uint8)
    for wrong in (noise, real // 2, np.zeros_like(real)):
        assert (check(wrong)["validity"] < check.threshold).mean() >= 0.99


def test_instruments_read_images_of_another_size():
    images = draw(np.arange(12), np.random.default_rng(0)).images
    large = images.repeat(4, axis=1).repeat(4, axis=2)
    assert Encoder()(large)["features"].shape == (12, Encoder.dimension)
    assert Encoder()(large)["features"] == pytest.approx(Encoder()(images)["features"], abs=0.5)


def test_prompts_allow_the_components_that_their_words_name():
    spec = DATASET.backbone("analytic-text")
    device, dtype = torch.device("cpu"), torch.float32
    mixture = load_backbone(spec.name, spec.folder, device=device, dtype=dtype)
    assert mixture.conditional
    assert torch.allclose(mixture.means, torch.from_numpy(means()))
    task = DATASET.task("tone", conditional=True)
    shares = mixture.embed([task.prompts[0].text])[0, 0].exp().numpy()
    assert shares.reshape(2, 6)[1].sum() == 0
    assert shares.reshape(2, 2, 3)[0].sum(axis=1) == pytest.approx([0.2, 0.8])
    plain = DATASET.backbone("analytic-plain")
    assert not load_backbone("p", plain.folder, device=device, dtype=dtype).conditional


def test_a_damaged_folder_is_one_line(tmp_path):
    from fairbench.core.errors import AssetError

    write(tmp_path / "x", None)
    (tmp_path / "x" / "unet" / "config.json").write_text('{"std": 1}')
    with pytest.raises(AssetError, match="not a Gaussian mixture"):
        load_backbone("x", tmp_path / "x", device=torch.device("cpu"), dtype=torch.float32)
