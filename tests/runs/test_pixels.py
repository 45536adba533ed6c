from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.method import ImageSet
from fairbench.core.progress import Reporter
from fairbench.datasets.base import ArrayImages
from fairbench.datasets.cartoonfaces import load_split
from fairbench.datasets.celeba import CelebA
from fairbench.methods.parts import finetuning
from fairbench.methods.parts.finetuning import images_sha256
from fairbench.runs import pixels
from fairbench.runs.pixels import LazyImages, pixels_of


@pytest.fixture
def source():
    return load_split("method_reference").take(np.arange(50))


@pytest.mark.parametrize("side", [16, 32])
def test_lazy_images_are_the_same_array(source, side):
    whole = pixels_of(source, side)
    assert isinstance(whole, np.ndarray)
    lazy = LazyImages(source, side)
    assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (
        (50, side, side, 3),
        whole.dtype,
        4,
        50,
    )
    rng = np.random.default_rng(2)
    for rows in (3, -1, slice(5, 20, 3), rng.permutation(50), rng.random(50) < 0.4):
        np.testing.assert_array_equal(lazy[rows], whole[rows])
    np.testing.assert_array_equal(np.array(lazy), whole)
    np.testing.assert_array_equal(np.stack(list(lazy)), whole)


def test_large_sets_are_lazy_and_mean_the_same(source, monkeypatch):
    whole = ImageSet(pixels_of(source, 16), np.zeros(50, np.int64))
    monkeypatch.setattr(pixels, "MOST_HELD", 1000)
    monkeypatch.setattr(finetuning, "chunk_of", lambda images: 7)
    lazy = ImageSet(pixels_of(source, 16), np.zeros(50, np.int64))
    assert isinstance(lazy.images, LazyImages)
    assert images_sha256(lazy) == images_sha256(whole)


def test_oblong_images_stay_as_they_are_without_a_side():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(pixels_of(ArrayImages(images, {})), images)


def test_images_of_a_disk_are_brought_to_a_backbone_s_size(own_cache, tmp_path, stand_ins):
    stand_ins.make(tmp_path, "torchvision", 24)
    dataset = CelebA(tmp_path, 64)
    dataset.prepare(Reporter())
    pool = dataset.split("pool")
    whole = pixels_of(pool, 32)
    assert whole.shape == (len(pool), 32, 32, 3)
    np.testing.assert_array_equal(LazyImages(pool, 32)[[2, 0]], whole[[2, 0]])
