"""Reading images with an instrument, and the store of what it said."""

from __future__ import annotations

import numpy as np
import pytest

from fairbench.core.errors import ContractError
from fairbench.datasets.base import ArrayImages
from fairbench.instruments import base
from fairbench.instruments.base import read, read_part, read_source
from fairbench.storage.readings import ImageList, load_reading, reading_key, save_reading

RNG = np.random.default_rng(0)


def noise(n, height, width=None):
    return RNG.integers(0, 256, (n, height, width or height, 3), dtype=np.uint8)


class Counting:
    """An encoder whose features are the first pixel; counts how often it is asked."""

    def __init__(self, **changes):
        self.name, self.weights_sha256 = "counting", "d" * 64
        self.preprocessing, self.dtype, self.kind = "none", "float32", "encoder"
        self.outputs = {"features": np.float32}
        self.calls = 0
        for name, value in changes.items():
            setattr(self, name, value)

    def __call__(self, images):
        self.calls += 1
        pixels = images[:, 0, 0].astype(np.float32)
        return {name: (index + 1) * pixels for index, name in enumerate(self.outputs)}


def test_images_are_read_once_and_hashed_once(tmp_path, monkeypatch):
    images = noise(4, 2)
    encoder = Counting(outputs={"features": np.float32, "logits": np.float32})
    first = read(images, encoder, tmp_path)
    second = read(images.copy(), encoder, tmp_path)
    assert encoder.calls == 1
    for name, factor in (("features", 1), ("logits", 2)):
        np.testing.assert_array_equal(first[name], factor * images[:, 0, 0].astype("f4"))
        np.testing.assert_array_equal(first[name], second[name])
    listed = ImageList.of(images)
    # The images needn't be at hand.
    assert {*load_reading(listed, encoder, tmp_path, encoder.outputs)} == {"features", "logits"}
    monkeypatch.setattr(ImageList, "of", None)
    read(images, encoder, tmp_path, listed=listed)
    with pytest.raises(ContractError, match="expected the list of"):
        read(images[:3], encoder, tmp_path, listed=listed)


def test_the_list_of_some_images_is_that_of_those_images():
    images, rows = noise(4, 2, 8), np.array([3, 0, 3])
    assert ImageList.of(images).take(rows) == ImageList.of(images[rows])


def test_many_images_are_read_in_whole_batches(tmp_path):
    sizes, told = [], []

    class Batches(Counting):
        batch_size = 48

        def __call__(self, images):
            sizes.append(len(images))
            return super().__call__(images)

    read(noise(200, 2), Batches(), tmp_path, lambda *args: told.append(args))
    assert sizes == [96, 96, 8]
    assert told == [("measuring: counting", done, 200) for done in (96, 192, 200)]


@pytest.mark.parametrize(
    "returned",
    [
        {},
        {"features": np.zeros((4, 3))},
        {"features": np.zeros((3, 3), "f4")},
        {"features": np.zeros((4, 3), "f4"), "more": np.zeros(4, "f4")},
    ],
)
def test_an_instrument_must_return_what_it_declares(tmp_path, returned, monkeypatch):
    monkeypatch.setattr(Counting, "__call__", lambda self, images: returned)
    with pytest.raises(
        ContractError, match=r"counting: expected features float32 of 4 rows, seen"
    ):
        read(noise(4, 2), Counting(), tmp_path)
    assert not (tmp_path / "features").exists()


def test_nothing_that_matters_can_change_without_the_key():
    images = noise(4, 2, 8)
    one_pixel = images.copy()
    one_pixel[2, 1, 1, 1] ^= 1
    lists = [
        images,
        one_pixel,
        images[::-1],
        images[:3],
        images.reshape(4, 8, 2, 3),
        np.concatenate([images, images[:1]]),
    ]
    keys = {reading_key(ImageList.of(one), Counting()) for one in lists}
    listed = ImageList.of(images)
    for change in (
        {"name": "other"},
        {"weights_sha256": "e" * 64},
        {"preprocessing": "other"},
        {"dtype": "float16"},
    ):
        keys.add(reading_key(listed, Counting(**change)))
    assert len(keys) == len(lists) + 4


def test_a_stale_entry_is_never_served(tmp_path):
    images, encoder = noise(4, 2), Counting()
    read(images, encoder, tmp_path)
    images[3, 0, 0, 0] ^= 1
    np.testing.assert_array_equal(read(images, encoder, tmp_path)["features"], images[:, 0, 0])
    assert encoder.calls == 2
    # Another entry copied to the place of this one is known by the key inside.
    old, new = sorted((tmp_path / "features" / "counting").iterdir())
    new.write_bytes(old.read_bytes())
    for pixels in (images, images ^ np.array([[[[0]]]] * 3 + [[[[1]]]], np.uint8)):
        seen = read(pixels, encoder, tmp_path)["features"]
        np.testing.assert_array_equal(seen, pixels[:, 0, 0])


def test_every_damaged_entry_is_computed_anew(tmp_path):
    images, encoder = noise(2, 2), Counting()
    expected = read(images, encoder, tmp_path)["features"]
    (path,) = (tmp_path / "features" / "counting").iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        np.testing.assert_array_equal(read(images, encoder, tmp_path)["features"], expected)
        path.write_bytes(whole[:place])
        np.testing.assert_array_equal(read(images, encoder, tmp_path)["features"], expected)
    assert encoder.calls > 2


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros((3, 3), "f4")},
        {"features": np.zeros((2, 3), "f8")},
        {"features": np.array(0, "f4")},
        {"more": np.zeros((2, 3), "f4")},
    ],
)
def test_an_entry_of_another_form_is_not_used(tmp_path, change, monkeypatch):
    images, encoder = noise(2, 2), Counting()
    listed = ImageList.of(images)
    arrays = {"features": np.zeros((2, 3), "f4")}
    save_reading(listed, encoder, tmp_path, arrays)
    assert load_reading(listed, encoder, tmp_path, encoder.outputs) is not None
    save_reading(listed, encoder, tmp_path, arrays | change)
    # Its headers say so: nothing is unpacked.
    monkeypatch.setattr("fairbench.storage.readings.load_arrays", None)
    assert load_reading(listed, encoder, tmp_path, encoder.outputs) is None


def test_parts_that_processes_read_make_the_same_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "HELD", 96)
    images, sizes = noise(500, 2), []

    class Batches(Counting):
        batch_size = 48

        def __call__(self, images):
            sizes.append(len(images))
            return super().__call__(images)

    one, other = Batches(name="one"), Batches(name="other", dtype="float16")
    source = ArrayImages(images, {})
    expected = read_source(source, [one, other], tmp_path / "alone")
    usual = sorted(sizes)
    sizes.clear()
    for index in (2, 0, 1):
        read_part(source, [one, other], tmp_path / "shared", index=index, count=3)
    assert sorted(sizes) == usual  # whole batches of its own, each once
    sizes.clear()
    found = read_source(source, [one, other], tmp_path / "shared")
    assert sizes == []
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine["features"], theirs["features"])
    assert not list(tmp_path.rglob("*.part-*"))
    # A part that is missing is no reason to stop.
    read_part(source, [one], tmp_path / "half", index=0, count=2)
    (half,) = read_source(source, [one], tmp_path / "half")
    np.testing.assert_array_equal(half["features"], expected[0]["features"])
    assert not list(tmp_path.rglob("*.part-*"))


def test_large_images_are_held_by_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "HELD_BYTES", 5 * 12)  # five images of 2 x 2
    held = []

    class Source(ArrayImages):
        def batches(self, size):
            held.append(size)
            return super().batches(size)

    sizes = []

    class Batches(Counting):
        batch_size = 2

        def __call__(self, images):
            sizes.append(len(images))
            return super().__call__(images)

    read_source(Source(noise(9, 2), {}), [Batches()], tmp_path)
    assert (held, sizes) == ([4], [4, 4, 1])
