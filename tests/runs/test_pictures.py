from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairbench.core.errors import ContractError, InputError
from fairbench.runs import pictures
from fairbench.runs.pictures import sample_grid


def flat(n, value, size=8):
    return np.full((n, size, size, 3), value, np.uint8)


def load(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def covered(picture, value):
    """Number of pixels of one colour."""
    return int((picture == np.array(value, np.uint8)).all(-1).sum())


def test_images_are_enlarged_by_repeating_pixels(tmp_path):
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3) * 20
    sample_grid({"a": image}, tmp_path / "grid.png", columns=1, scale=30)
    picture = load(tmp_path / "grid.png")
    for pixel in image[0].reshape(4, 3):
        assert covered(picture, pixel) == 900


def test_missing_images_stay_blank_and_an_empty_group_says_so(tmp_path):
    path = tmp_path / "grid.png"
    red, blue = (200, 0, 0), (0, 0, 200)
    rows = {"female": flat(2, red), "male": flat(9, blue), "other": flat(0, 0)}
    sample_grid(rows, path, columns=4, scale=5)
    picture = load(path)
    tile = 40 * 40
    assert covered(picture, red) == 2 * tile
    assert covered(picture, blue) == 4 * tile  # the first four of nine
    gaps = 40 * pictures.GAP
    assert covered(picture, pictures.BLANK) >= 2 * tile + 3 * gaps
    last = picture[-pictures.MARGIN - 40 : -pictures.MARGIN, -pictures.MARGIN - 4 * 42 :]
    assert covered(last, pictures.FAINT) > 0, "no image"
    assert covered(picture[: -pictures.MARGIN - 40], pictures.FAINT) == 0


def test_labels_are_drawn_at_the_left(tmp_path):
    path = tmp_path / "grid.png"
    sample_grid({"female": flat(1, 0), "male": flat(1, 0)}, path, columns=2)
    left = load(path)[:, : pictures.MARGIN + 20]
    assert covered(left, pictures.PAPER) < left.shape[0] * left.shape[1]


@pytest.mark.parametrize("size", [32, 48, 64, 100, 256, 512])
@pytest.mark.parametrize("label", ["male", "female/asian\n12.5 % of 5,000, target 12.5 %"])
def test_the_picture_is_about_1200_pixels_wide(tmp_path, size, label):
    path = tmp_path / "grid.png"
    sample_grid({label: flat(1, 9, size), "b": flat(0, 0, size)}, path)
    with Image.open(path) as image:
        # A whole factor can't do better than this for images of 100 pixels.
        assert 800 <= image.width <= 1750


def test_large_images_are_reduced_by_block_means(tmp_path):
    image = np.zeros((1, 1200, 1200, 3), np.uint8)
    image[:, ::2] = 100
    sample_grid({"a": image}, tmp_path / "grid.png", columns=2)
    picture = load(tmp_path / "grid.png")
    assert covered(picture, (50, 50, 50)) >= 600 * 600


def test_long_labels_are_wrapped_between_words(tmp_path):
    long, word = "many words " * 20, "w" * 60
    sample_grid({long: flat(1, 0), word: flat(1, 0)}, tmp_path / "grid.png", columns=1)
    picture = load(tmp_path / "grid.png")
    # The long word fits and nothing reaches the edges.
    assert covered(picture[:, :10], pictures.PAPER) == picture.shape[0] * 10
    assert covered(picture[:, -10:], pictures.PAPER) == picture.shape[0] * 10
    assert covered(picture[:10], pictures.PAPER) == picture.shape[1] * 10
    assert covered(picture[-10:], pictures.PAPER) == picture.shape[1] * 10


def test_a_title_wider_than_the_rows_fits(tmp_path):
    rows = {"a": flat(1, 0)}
    sample_grid(rows, tmp_path / "plain.png", columns=1, scale=1)
    sample_grid(rows, tmp_path / "titled.png", columns=1, scale=1, title="a title " * 12)
    plain, titled = load(tmp_path / "plain.png"), load(tmp_path / "titled.png")
    assert titled.shape[0] > plain.shape[0]
    assert titled.shape[1] > 500 > plain.shape[1]
    assert covered(titled[:, -10:], pictures.PAPER) == titled.shape[0] * 10


def test_signs_that_the_font_lacks_are_spelled(tmp_path):
    sample_grid({"a": flat(1, 0)}, tmp_path / "a.png", title="Zoë — 2 × 3 ≥ 1")
    sample_grid({"a": flat(1, 0)}, tmp_path / "b.png", title="Zoe - 2 x 3 >= 1")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "rows",
    [
        {},
        {"a": np.zeros((2, 8, 8), np.uint8)},
        {"a": np.zeros((2, 8, 8, 4), np.uint8)},
        {"a": np.zeros((2, 8, 8, 3))},
        {"a": np.zeros((2, 0, 8, 3), np.uint8)},
        {"a": flat(1, 0, 8), "b": flat(1, 0, 9)},
    ],
)
def test_rows_that_are_no_images_of_one_size_are_refused(tmp_path, rows):
    with pytest.raises(ContractError):
        sample_grid(rows, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("numbers", [{"columns": 0}, {"scale": 0}])
def test_numbers_below_one_are_refused(tmp_path, numbers):
    with pytest.raises(ContractError, match="1 or more"):
        sample_grid({"a": flat(1, 0)}, tmp_path / "grid.png", **numbers)


def test_an_existing_picture_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    sample_grid({"a": flat(1, 0)}, path)
    assert load(path).ndim == 3
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match=r"grid\.png.*No space left"):
        sample_grid({"a": flat(1, 0)}, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_a_missing_folder_is_made(tmp_path):
    sample_grid({"a": flat(1, 0)}, tmp_path / "none" / "grid.png")

    assert (tmp_path / "none" / "grid.png").is_file()
