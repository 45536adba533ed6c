from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFilter

from fairbench.core.errors import ContractError
from fairbench.datasets.base import get_dataset
from fairbench.inputs.resizing import to_square
from fairbench.instruments.catalogue import load_instrument
from fairbench.instruments.face_present import LEAST_AREA, FacePresent
from fairbench.instruments.faces import Faces, load_detector
from fairbench.instruments.measuring import load_instruments, measure


@pytest.fixture(scope="module")
def check():
    return load_instrument("face_present", "validity")


@pytest.fixture(scope="module")
def portrait():
    """A photograph that comes with matplotlib: Grace Hopper, the square around her head."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as image:
        return image.convert("RGB").crop((130, 30, 390, 290))


def pixels(image, side=128):
    return to_square(image, side)


def test_a_face_is_accepted_at_the_sizes_that_generators_have(check, portrait):
    for side in (64, 128, 256):
        (value,) = check(pixels(portrait, side)[None])["validity"]
        assert value >= check.threshold


def test_what_is_no_face_is_refused(check, portrait):
    rng = np.random.default_rng(0)
    blurred = pixels(portrait.filter(ImageFilter.GaussianBlur(40)))
    rows = np.concatenate(rng.permutation(np.array_split(pixels(portrait), 16)), axis=0)
    shuffled = np.concatenate(rng.permutation(np.array_split(rows, 16, axis=1)), axis=1)
    others = [
        blurred,
        shuffled,
        np.full((128, 128, 3), 200, np.uint8),
        *rng.integers(0, 256, (3, 128, 128, 3), dtype=np.uint8),
    ]
    assert (check(np.stack(others))["validity"] < check.threshold).all()


def test_a_face_that_is_too_small_is_refused(check, portrait):
    detector = load_detector()
    for side, large in ((30, False), (100, True)):
        scene = np.full((256, 256, 3), 150, np.uint8)
        scene[60 : 60 + side, 80 : 80 + side] = pixels(portrait, side)
        found = Faces(**detector(scene[None]))
        assert found.valid().all()  # the detector is sure of both
        assert (found.area[0] >= LEAST_AREA) == large
        (value,) = check(scene[None])["validity"]
        assert value == (found.confidence[0] if large else 0)


def test_two_faces_are_as_good_as_one(check, portrait):
    both = np.concatenate([pixels(portrait)] * 2, axis=1)
    assert check(both[None])["validity"][0] >= check.threshold


def test_other_arrays_are_refused(check):
    with pytest.raises(ContractError):
        check(np.zeros((2, 64, 64), np.uint8))


def test_celeba_names_it_and_its_reading_counts(check, portrait, own_cache):
    names = get_dataset("celeba").instruments()
    assert names.validity == "face_present"
    instruments = load_instruments("cpu", get_dataset("cartoonfaces").instruments(), judges=None)
    own = dataclasses.replace(instruments, validity=check)
    assert own.hashes()["validity"] == load_detector().weights_sha256
    assert own.readings()["validity"] != instruments.readings()["validity"]
    images = np.stack([pixels(portrait), np.full((128, 128, 3), 9, np.uint8)])
    seen = measure(images, own, own_cache, lambda *_: None)
    assert seen.valid.tolist() == [True, False]
    assert seen.validity_checked


def test_its_words_say_what_it_depends_on():
    found = FacePresent(load_detector())
    assert "MTCNN" in found.preprocessing
    assert str(LEAST_AREA) in found.preprocessing
