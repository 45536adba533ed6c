from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fairbench.core.errors import InputError
from fairbench.inputs import arrays as arrayfiles
from fairbench.inputs import images, sources
from fairbench.inputs.images import read_images
from fairbench.inputs.sources import natural
from fairbench.storage.readings import ImageList

RNG = np.random.default_rng(0)


def noise(height, width=None, channels=3):
    shape = (height, width or height, channels)
    return RNG.integers(0, 256, shape, dtype=np.uint8).squeeze()


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def only(folder, size=4, **options):
    """Pixels of the one image in a folder, and the notes."""
    read = read_images(folder, size=size, **options)
    assert read.images.shape == (1, size, size, 3)
    assert read.images.dtype == np.uint8
    return read.images[0], read.notes


def refused(folder, *texts, size=4, **options):
    """Check that a folder is refused with one line that has all the texts."""
    with pytest.raises(InputError) as caught:
        read_images(folder, size=size, **options)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message
    return message


# --- which files, in which order -----------------------------------------------------------


def test_files_come_in_natural_order_folder_by_folder(tmp_path):
    names = ["10.png", "2.png", "1.PNG", "b/2.png", "b/10.png", "b-c/1.png", "a10/x.png"]
    names += ["a9/x.png", "a9/02.png", "a9/2.png"]
    for value, name in enumerate(names):
        save(tmp_path / name, np.full((4, 4, 3), value, np.uint8))
    read = read_images(tmp_path, size=4)
    assert read.names == (
        *("1.PNG", "2.png", "10.png", "a9/02.png", "a9/2.png", "a9/x.png", "a10/x.png"),
        *("b/2.png", "b/10.png", "b-c/1.png"),
    )
    assert [names[value] for value in read.images[:, 0, 0, 0]] == list(read.names)
    assert read.source_size == (4, 4)
    assert read.notes == ()


def test_composed_and_decomposed_letters_sort_alike():
    names = ["f.png", "e\u0301a.png", "\u00e9b.png", "e\u0301c.png"]
    shuffled = [names[index] for index in (2, 3, 1, 0)]
    assert sorted(shuffled, key=natural) == names


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        (".png", {}, 0),
        (".bmp", {}, 0),
        (".tif", {}, 0),
        (".TIFF", {}, 0),
        (".webp", {"lossless": True}, 0),
        (".jpg", {"quality": 100, "subsampling": 0}, 3),
        (".jpeg", {"quality": 100, "subsampling": 0}, 3),
    ],
)
def test_every_format_is_read(tmp_path, suffix, options, tolerance):
    pixels = noise(4)
    save(tmp_path / f"a{suffix}", pixels, **options)
    read, notes = only(tmp_path)
    assert np.abs(read.astype(int) - pixels).max() <= tolerance
    assert notes == ()


def test_the_suffix_may_name_another_format(tmp_path):
    pixels = noise(4)
    save(tmp_path / "a.jpg", pixels, format="PNG")
    np.testing.assert_array_equal(only(tmp_path)[0], pixels)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    save(tmp_path / "a.png", noise(4))
    for name in (".hidden.png", "._a.png", "labels.csv", "x.txt", "y.TXT", "README"):
        (tmp_path / name).write_text("no image")
    save(tmp_path / ".cache" / "b.png", noise(5))
    read = read_images(tmp_path, size=4)
    assert read.names == ("a.png",)
    assert read.notes == (
        "passed over files that aren't images by their suffix: 1 .csv, 2 .txt, 1 no suffix",
    )


def test_limit_takes_the_first_in_order_and_looks_at_no_other(tmp_path):
    for index in (1, 2, 10):
        save(tmp_path / f"{index}.png", noise(4))
    (tmp_path / "11.png").write_bytes(b"broken")
    read = read_images(tmp_path, size=4, limit=2)
    assert read.names == ("1.png", "2.png")
    assert read.notes == ("read the first 2 of 4 images",)
    (tmp_path / "11.png").unlink()
    assert len(read_images(tmp_path, size=4, limit=9).images) == 3


@pytest.mark.parametrize(("size", "limit"), [(0, None), (4, 0), (4, -1)])
def test_numbers_below_one_are_refused(tmp_path, size, limit):
    refused(tmp_path, "1 or more", size=size, limit=limit)


def test_progress_is_reported_for_both_passes(tmp_path):
    for index in range(3):
        save(tmp_path / f"{index}.png", noise(4))
    seen = []
    read_images(tmp_path, size=4, progress=lambda *args: seen.append(args))
    assert seen == [
        (what, done, 3) for what in ("checking images", "reading images") for done in (1, 2, 3)
    ]


def test_missing_folder(tmp_path):
    refused(tmp_path / "none", "no such folder or file", "none")


def test_a_file_in_place_of_a_folder(tmp_path):
    refused(save(tmp_path / "a.png", noise(4)), "seen a file that is none", "a.png", ".npz")


def test_empty_folder(tmp_path):
    refused(tmp_path, str(tmp_path), "no images", "it is empty", ".webp")


def test_folder_without_images(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "b.heic").write_bytes(b"")
    refused(tmp_path, "no images", "1 .heic, 1 .npz", ".png")


def test_unreadable_folder(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(4))
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def scan(path):
        # Permissions don't stop the superuser, who runs the tests in a container.
        if os.fspath(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    refused(tmp_path, str(locked), "Permission denied")


# --- links and special files ---------------------------------------------------------------


def test_links_to_folders_are_not_followed(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "out"
    save(folder / "a.png", noise(4))
    save(elsewhere / "b.png", noise(5))
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "away").symlink_to(elsewhere, target_is_directory=True)
    read = read_images(folder, size=4)
    assert read.names == ("a.png",)
    assert read.notes == ("did not follow links to folders: away, loop",)


def test_the_folder_itself_may_be_a_link(tmp_path):
    save(tmp_path / "real" / "a.png", noise(4))
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert read_images(tmp_path / "link", size=4).names == ("a.png",)


def test_links_to_files_are_read(tmp_path):
    pixels = noise(4)
    real = save(tmp_path / "store" / "0.png", pixels)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(real)
    read, notes = only(tmp_path / "in")
    np.testing.assert_array_equal(read, pixels)
    assert notes == ()


@pytest.mark.parametrize("target", ["gone.png", "a.png"])
def test_broken_and_circular_links_are_named(tmp_path, target):
    save(tmp_path / "b.png", noise(4))
    (tmp_path / "a.png").symlink_to(tmp_path / target)
    refused(tmp_path, "a.png: broken link", target)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.npz"])
def test_a_pipe_in_place_of_an_archive_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "seen a file that is none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path, "a.png", "plain file")


# --- damaged, animated and oversized files -------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "an empty file"),
        (b"hello, world", "no known image format"),
        (b"\x89PNG\r\n\x1a\n", "no known image format"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path, content, text):
    save(tmp_path / "a.png", noise(4))
    (tmp_path / "b.png").write_bytes(content)
    message = refused(tmp_path, "b.png: expected a complete image", text, "take it out")
    assert "a.png" not in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, share):
    path = save(tmp_path / f"a{suffix}", noise(64))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(tmp_path, f"a{suffix}: expected a complete image", size=64)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", noise(4))

    def deny(self, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", deny)
    refused(tmp_path, "a.png: expected", "Permission denied")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(noise(8)) for _ in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    refused(tmp_path, f"a{suffix}", "3 frames", "file of its own")


def test_the_previews_in_a_phone_picture_are_ignored(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    pixels, _ = only(tmp_path, size=16)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


def png(array, *, size=None, key=b""):
    """Bytes of a PNG of 8- or 16-bit grey (h, w) or RGB (h, w, 3) pixels.

    Pillow writes neither 16-bit RGB, nor transparent 16-bit colours, nor a header that lies.
    """
    height, width = size or array.shape[:2]
    depth, kind = 8 * array.itemsize, 2 if array.ndim == 3 else 0
    rows = array.astype(array.dtype.newbyteorder(">"))
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0),
        *([b"tRNS" + key] if key else []),
        b"IDAT" + zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND",
    ]
    framed = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("side", [8_001, 9_600, 40_000])
def test_oversized_files_are_refused_by_their_header(tmp_path, side):
    # Below Pillow's own limit, where it warns, and where it raises.
    (tmp_path / "a.png").write_bytes(png(noise(1, 4), size=(side, side)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(tmp_path, "a.png: expected at most 64 megapixels", "smaller")


def test_the_limit_itself_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 16)
    save(tmp_path / "a.png", noise(4))
    only(tmp_path)
    save(tmp_path / "a.png", np.zeros((1, 17, 3), np.uint8))
    refused(tmp_path, "17x1")


# --- pixel layouts -------------------------------------------------------------------------


def test_rgb_is_left_alone(tmp_path):
    pixels = noise(4)
    save(tmp_path / "a.png", pixels)
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, pixels)
    assert notes == ()


def test_grey(tmp_path):
    grey = noise(4, channels=1)
    save(tmp_path / "a.png", grey)
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, np.stack([grey] * 3, -1))
    assert notes == ("converted 1 image from grey to RGB",)


def test_one_bit(tmp_path):
    bits = noise(4, channels=1) > 127
    save(tmp_path / "a.png", Image.fromarray(bits))
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, np.stack([bits * np.uint8(255)] * 3, -1))
    assert notes == ("converted 1 image from 1-bit to RGB",)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp"])
def test_palette(tmp_path, suffix):
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colours = noise(1, 16)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / f"a{suffix}")
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, colours.reshape(4, 4, 3))
    assert notes == ("converted 1 image from palette to RGB",)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_transparent_palette_entry_becomes_white(tmp_path, suffix):
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colours = noise(1, 16)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / f"a{suffix}", transparency=5)
    read, notes = only(tmp_path)
    colours[5] = 255
    np.testing.assert_array_equal(read, colours.reshape(4, 4, 3))
    assert "laid 1 image with transparent pixels on white" in notes


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_laid_on_white(tmp_path, channels):
    pixels = noise(4, channels=channels)
    pixels[0, :, -1] = (0, 255, 128, 1)
    save(tmp_path / "a.png", pixels)
    read, notes = only(tmp_path)
    share = pixels[..., -1:] / 255
    expected = np.broadcast_to(pixels[..., :-1] * share + 255 * (1 - share), (4, 4, 3))
    assert np.abs(read - expected).max() <= 1  # Pillow rounds in integers
    np.testing.assert_array_equal(read[0, 0], 255)
    np.testing.assert_array_equal(read[0, 1], np.broadcast_to(pixels[0, 1, :-1], 3))
    assert "laid 1 image with transparent pixels on white" in notes


def test_opaque_alpha_is_dropped(tmp_path):
    pixels = noise(4, channels=4)
    pixels[..., 3] = 255
    save(tmp_path / "a.png", pixels)
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, pixels[..., :3])
    assert notes == ()


def test_transparent_colour_of_an_rgb_file_becomes_white(tmp_path):
    pixels = noise(4)
    pixels[0, 0] = (1, 2, 3)
    save(tmp_path / "a.png", pixels, transparency=(1, 2, 3))
    read, _ = only(tmp_path)
    pixels[0, 0] = 255
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk(tmp_path, suffix):
    colours = {"cyan": (255, 0, 0, 0), "yellow": (0, 0, 255, 0), "black": (0, 0, 0, 255)}
    for name, ink in colours.items():
        options = {"quality": 100} if suffix == ".jpg" else {}
        save(tmp_path / f"{name}{suffix}", Image.new("CMYK", (4, 4), ink), **options)
    read = read_images(tmp_path, size=4)
    expected = np.array([(0, 0, 0), (0, 255, 255), (255, 255, 0)])[:, None, None]
    assert np.abs(read.images.astype(int) - expected).max() <= 3
    assert read.notes == ("converted 3 images from CMYK to RGB",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_rather_than_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32768, 65535, 65406, 1000]] * 2, np.uint16)
    save(tmp_path / f"a{suffix}", values)
    read, notes = only(tmp_path)
    expected = np.array([[0, 0, 1, 1], [128, 255, 254, 4]] * 2)
    np.testing.assert_array_equal(read, np.stack([expected] * 3, -1))
    assert notes == ("converted 1 image from 16-bit grey to RGB",)


def test_big_endian_16_bit_grey(tmp_path):
    values = np.full((4, 4), 0x8000, ">u2")
    save(tmp_path / "a.tif", Image.frombytes("I;16B", (4, 4), values.tobytes()))
    np.testing.assert_array_equal(only(tmp_path)[0], 128)


def test_32_bit_grey_in_the_16_bit_range(tmp_path):
    save(tmp_path / "a.tif", np.full((4, 4), 257 * 7, np.int32))
    np.testing.assert_array_equal(only(tmp_path)[0], 7)


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_grey_beyond_the_16_bit_range_is_refused(tmp_path, value):
    save(tmp_path / "a.tif", np.full((4, 4), value, np.int32))
    refused(tmp_path, "a.tif", "0…65535", str(value))


def test_16_bit_rgb(tmp_path):
    values = RNG.integers(0, 65536, (4, 4, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(values))
    # Pillow keeps the upper byte of each value.
    np.testing.assert_array_equal(only(tmp_path)[0], values >> 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_16_bit_colour_is_refused(tmp_path, channels):
    values = np.zeros((4, 4, channels), np.uint16).squeeze()
    (tmp_path / "a.png").write_bytes(png(values, key=b"\x10\x00" * channels))
    refused(tmp_path, "a.png", "transparent 16-bit colour", "8-bit PNG")


def test_float_pixels_are_refused(tmp_path):
    save(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    refused(tmp_path, "a.tif", "floats", "8-bit PNG")


def test_conversions_are_counted(tmp_path):
    for index in range(3):
        save(tmp_path / f"{index}.png", noise(4, channels=1))
    save(tmp_path / "3.png", noise(4))
    assert read_images(tmp_path, size=4).notes == ("converted 3 images from grey to RGB",)


# --- orientation ---------------------------------------------------------------------------


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    pixels = noise(4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    save(tmp_path / f"a{suffix}", pixels, exif=exif, **options)
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, TURNS[orientation](pixels))
    if suffix != ".tif":
        turned = ("turned 1 image by the EXIF orientation",)
        assert notes == (turned if orientation > 1 else ())


@pytest.mark.parametrize("orientation", [0, 9])
def test_a_meaningless_orientation_is_ignored(tmp_path, orientation):
    pixels = noise(4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", pixels, exif=exif)
    read, notes = only(tmp_path)
    np.testing.assert_array_equal(read, pixels)
    assert notes == ()


def test_size_is_that_after_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", noise(8, 16))
    save(tmp_path / "b.jpg", noise(16, 8), exif=exif)
    read = read_images(tmp_path, size=8)
    assert read.source_size == (16, 8)
    assert read.notes == (
        "turned 1 image by the EXIF orientation",
        "cut 2 images of 16x8 to the central 8x8 square",
    )


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "size"), [(64, 32), (100, 32), (33, 32), (20, 32), (512, 64)])
def test_resizing_agrees_with_clean_fid_pixel_for_pixel(tmp_path, source, size):
    resize = pytest.importorskip("cleanfid.resize")
    pixels = noise(source)
    save(tmp_path / "a.png", pixels)
    read, notes = only(tmp_path, size)
    with warnings.catch_warnings():
        # Some versions of Pillow deprecate the mode argument that clean-fid passes.
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = resize.make_resizer("PIL", False, "bicubic", (size, size))(pixels)
    np.testing.assert_array_equal(read, np.rint(theirs).astype(np.uint8))
    verb = "reduced" if source > size else "enlarged"
    assert notes == (
        f"{verb} 1 image from {source}x{source} to {size}x{size} (antialiased bicubic, as in "
        "clean-fid)",
    )


def test_resizing_keeps_flat_colours_and_the_mean(tmp_path):
    save(tmp_path / "a.png", np.full((64, 64, 3), (10, 200, 255), np.uint8))
    np.testing.assert_array_equal(only(tmp_path)[0], np.full((4, 4, 3), (10, 200, 255)))
    # Without antialiasing a fine stripe would come out as one of its two colours.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    save(tmp_path / "a.png", stripes)
    assert np.abs(only(tmp_path)[0].astype(int) - 100).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (4, 5)])
def test_oblong_images_are_cut_to_the_central_square(tmp_path, height, width):
    pixels = noise(height, width)
    save(tmp_path / "a.png", pixels)
    read = read_images(tmp_path, size=4)
    top, left = (height - 4) // 2, (width - 4) // 2
    np.testing.assert_array_equal(read.images[0], pixels[top : top + 4, left : left + 4])
    assert read.source_size == (width, height)
    assert read.notes == (f"cut 1 image of {width}x{height} to the central 4x4 square",)


def test_oblong_images_are_cut_before_they_are_resized(tmp_path):
    pixels = noise(16, 30)
    save(tmp_path / "a" / "a.png", pixels)
    save(tmp_path / "b" / "b.png", np.ascontiguousarray(pixels[:, 7:23]))
    read, notes = only(tmp_path / "a")
    np.testing.assert_array_equal(read, only(tmp_path / "b")[0])
    assert [note.split()[0] for note in notes] == ["cut", "reduced"]


def test_mixed_sizes_are_refused_with_the_two_most_common(tmp_path):
    for index, side in enumerate([8, 4, 4, 4, 6, 6]):
        save(tmp_path / f"{index}.png", noise(side))
    refused(
        tmp_path,
        "4x4 (3 images, such as 1.png) and 6x6 (2 images, such as 4.png) and 1 more",
        "resize them",
    )


def test_mixed_sizes_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(4))
    save(tmp_path / "b.png", noise(8))
    monkeypatch.setattr(images, "_decode_all", None)
    refused(tmp_path, "4x4 (1 image, such as a.png) and 8x8 (1 image, such as b.png)")


def test_portrait_and_landscape_are_two_sizes(tmp_path):
    save(tmp_path / "a.png", noise(4, 8))
    save(tmp_path / "b.png", noise(8, 4))
    refused(tmp_path, "8x4 (1 image, such as a.png) and 4x8 (1 image, such as b.png)")


# --- archives ------------------------------------------------------------------------------


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format=kind)
    return stream.getvalue()


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    """A .zip of name -> bytes, or of prepared members."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # zipfile warns of a name that comes twice
        for name, content in files:
            archive.writestr(name, content)
    return path


def tarred(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PACKERS = {".zip": zipped, ".tar": tarred}


@pytest.fixture(params=PACKERS)
def pack(request, tmp_path):
    """Pack (name, bytes) pairs into an archive of either kind."""
    return lambda files, name="set": PACKERS[request.param](
        tmp_path / f"{name}{request.param}", files
    )


def test_an_archive_is_read_as_its_folder_would_be(tmp_path, pack):
    pixels = {name: noise(6, 4) for name in ("10.png", "2.png", "b/1.jpg", "./c/3.bmp", "A.PNG")}
    files = [
        (name, encoded(array, {"jpg": "JPEG", "bmp": "BMP"}.get(name[-3:], "PNG")))
        for name, array in pixels.items()
    ]
    others = ["a.json", "b.json", "README", ".hidden.png", "__MACOSX/._2.png", ".git/x.png"]
    for name, content in files:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    for name in others[:3]:
        (tmp_path / "folder" / name).write_bytes(b"no image")
    archive = pack([*files, *((name, b"no image") for name in others)])
    read, expected = (read_images(path, size=4) for path in (archive, tmp_path / "folder"))
    assert read.names == expected.names == ("2.png", "10.png", "A.PNG", "b/1.jpg", "c/3.bmp")
    np.testing.assert_array_equal(read.images, expected.images)
    assert read.source_size == expected.source_size == (4, 6)
    assert read.notes == expected.notes
    assert len(read.notes) == 2


def test_the_order_in_an_archive_does_not_matter(pack):
    files = [(f"{index}.png", encoded(noise(4))) for index in (3, 1, 2, 10)]
    first, second = (
        read_images(pack(some, name), size=4) for name, some in (("a", files), ("b", files[::-1]))
    )
    assert first.names == second.names == ("1.png", "2.png", "3.png", "10.png")
    np.testing.assert_array_equal(first.images, second.images)


def test_the_limit_of_an_archive(pack):
    files = [(f"{index}.png", encoded(noise(4))) for index in range(3)]
    read = read_images(pack([*files, ("9.png", b"broken")]), size=4, limit=2)
    assert read.names == ("0.png", "1.png")
    assert read.unread == ("2.png", "9.png")
    assert read.notes == ("read the first 2 of 4 images",)


@pytest.mark.parametrize(
    "name", ["../a.png", "/a.png", "x/../../a.png", "x\\..\\a.png", "C:a.png"]
)
def test_names_that_lead_out_of_an_archive_are_refused(pack, name):
    archive = pack([("ok.png", encoded(noise(4))), (name, encoded(noise(4)))])
    refused(archive, str(archive), "leads out of the archive", "make the archive anew")


def test_a_name_with_a_line_end_makes_no_second_line(pack):
    refused(pack([("../a\nb.png", b"")]), "leads out")
    refused(pack([("a\nb.png", b"")]), "an empty file")


def test_a_name_that_comes_twice_is_refused(pack):
    content = encoded(noise(4))
    refused(pack([("a.png", content), ("./a.png", content)]), "'./a.png'", "that name twice")


def test_a_damaged_image_in_an_archive_is_named(pack):
    content = encoded(noise(64))
    for broken, text in ((b"", "an empty file"), (b"x", "no known"), (content[:999], "")):
        archive = pack([("a.png", content), ("b/c.png", broken)])
        refused(
            archive,
            f"{archive}: b/c.png: expected a complete",
            text,
            "out of the archive",
            size=64,
        )


def test_mixed_sizes_in_an_archive(pack):
    archive = pack([("a.png", encoded(noise(4))), ("b.png", encoded(noise(8)))])
    refused(archive, "4x4 (1 image, such as a.png) and 8x8 (1 image, such as b.png)")


def test_an_archive_without_images(pack):
    refused(pack([("a.txt", b"")]), "no images in this archive", "1 .txt")
    refused(pack([]), "it is empty")


def test_large_files_in_an_archive_are_refused_unread(pack, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 2**20)
    refused(pack([("a.png", bytes(3 * 2**20))]), "'a.png'", "seen 3 MiB, expected at most 1")


def test_oversized_pictures_in_an_archive_are_refused_by_their_header(pack):
    bomb = png(noise(1, 4), size=(40_000, 40_000))
    refused(pack([("a.png", bomb)]), "a.png: expected at most 64 megapixels")


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.95])
def test_truncated_archives_are_refused(tmp_path, suffix, share):
    files = [(f"{index}.png", encoded(noise(64))) for index in range(3)]
    path = PACKERS[suffix](tmp_path / f"a{suffix}", files)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, f"a{suffix}: expected a complete", "make it anew", size=64)


def test_a_tar_cut_between_two_files_is_refused(tmp_path):
    files = [(f"{index}.png", encoded(noise(8))) for index in range(3)]
    path = tarred(tmp_path / "a.tar", files)
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[2].offset
    content = path.read_bytes()
    path.write_bytes(content[:offset])
    refused(path, "it ends early")


def test_a_compressed_tar_is_refused(tmp_path):
    path = tarred(tmp_path / "a.tar", [("a.png", encoded(noise(4)))])
    path.write_bytes(gzip.compress(path.read_bytes()))
    refused(path, "expected a complete tar (uncompressed) archive")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "a device or pipe"),
        (tarfile.CHRTYPE, "a device or pipe"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind, text):
    member = tarfile.TarInfo("b.png")
    member.type, member.linkname = kind, "a.png"
    refused(tarred(tmp_path / "a.tar", [("a.png", encoded(noise(4))), (member, b"")]), text)


def test_links_in_a_zip_are_refused(tmp_path):
    member = zipfile.ZipInfo("b.png")
    member.external_attr = 0o120777 << 16
    refused(zipped(tmp_path / "a.zip", [(member, b"/etc/passwd")]), "'b.png'", "a link")


def test_encrypted_files_in_a_zip_are_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", [("a.png", encoded(noise(4)))])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    refused(path, "'a.png'", "encrypted")


def test_a_zip_whose_file_is_larger_than_it_states_is_refused_at_the_stated_size(tmp_path):
    path = tmp_path / "lies.zip"
    size = 64 * 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(size))
    whole = path.read_bytes()
    assert whole.count(struct.pack("<I", size)) == 2  # in the file's header and in the list
    path.write_bytes(whole.replace(struct.pack("<I", size), struct.pack("<I", 100)))
    tracemalloc.start()
    refused(path, "a.png", "can't be read")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * 2**20


def test_more_images_than_memory_holds_are_refused_before_it_is_taken(tmp_path, monkeypatch):
    import psutil

    for name in "abc":
        save(tmp_path / f"{name}.png", noise(8))
    total = type("Memory", (), {"total": 400})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: total)
    with pytest.raises(InputError, match=r"3 images of 8x8 .* at most 2"):
        read_images(tmp_path)


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path):
    pixels = encoded(noise(64), "BMP")
    path = zipped(tmp_path / "a.zip", [("a.bmp", pixels)], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path, "a.bmp: expected a complete image", "CRC", size=64)


@pytest.mark.parametrize("name", ["a.rar", "a.tar.gz", "a.csv"])
def test_other_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "expected a folder, .zip, .tar or .npz")


def test_a_missing_archive(tmp_path):
    refused(tmp_path / "a.zip", "no such folder or file")
    refused(tmp_path / "a.npz", "no such folder or file")


# --- arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arr_0", "images"])
@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_an_array_is_read_image_by_image(tmp_path, name, save_arrays):
    pixels = RNG.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    save_arrays(tmp_path / "a.npz", **{name: pixels, "arr_1": np.arange(12)})
    read = read_images(tmp_path / "a.npz", size=4)
    np.testing.assert_array_equal(read.images, pixels)
    assert read.names == tuple(map(str, range(12)))
    assert read.source_size == (4, 4)
    assert read.notes == ("passed over other arrays: arr_1",)
    read = read_images(tmp_path / "a.npz", size=4, limit=5)
    np.testing.assert_array_equal(read.images, pixels[:5])
    assert read.unread == ("5", "6", "7", "8", "9", "10", "11")
    assert read.notes[1] == "read the first 5 of 12 images"


def test_an_array_is_resized_as_files_are(tmp_path):
    pixels = RNG.integers(0, 256, (2, 20, 31, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", pixels)
    for index, image in enumerate(pixels):
        save(tmp_path / "folder" / f"{index}.png", image)
    array, folder = (read_images(tmp_path / name, size=8) for name in ("a.npz", "folder"))
    np.testing.assert_array_equal(array.images, folder.images)
    assert array.source_size == folder.source_size == (31, 20)
    assert array.notes == folder.notes


UINT8 = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"pixels": UINT8}, "expected one array named arr_0 or images, seen 'pixels'"),
        ({}, "seen none"),
        ({"arr_0": UINT8, "images": UINT8}, "seen 'arr_0', 'images'"),
        ({"images": UINT8 / 255}, "seen (2, 4, 4, 3) float64; save pixels of 0…255 as uint8"),
        ({"images": UINT8.transpose(0, 3, 1, 2).copy()}, "put the channels last"),
        ({"images": UINT8[0]}, "seen (4, 4, 3) uint8"),
        ({"images": UINT8[..., 0]}, "save RGB images"),
        ({"images": UINT8[..., :2]}, "save RGB images"),
        ({"images": np.asfortranarray(UINT8)}, "Fortran's order"),
        ({"images": UINT8[:0]}, "there is no image in it"),
        ({"images": np.array([UINT8, None], object)}, "pickled objects are never loaded"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", str(tmp_path / "a.npz"), text)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_truncated_arrays_are_refused(tmp_path, share):
    np.savez(tmp_path / "a.npz", RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "a.npz", "expected a complete .npz", "make it anew")


def test_a_flipped_byte_in_an_array_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    refused(tmp_path / "a.npz", "expected a complete .npz", "CRC", size=8)


@pytest.mark.parametrize("shape", [(3, 4, 4, 3), (10**9, 64, 64, 3), (1, 4, 4, 3)])
def test_a_header_that_lies_about_the_shape_asks_for_no_memory(tmp_path, shape):
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    zipped(tmp_path / "a.npz", [("arr_0.npy", header.getvalue() + UINT8.tobytes())])
    refused(tmp_path / "a.npz", "at most 1,000,000" if shape[0] > 9 else "can't be read")


def test_large_pictures_in_an_array_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", UINT8)
    monkeypatch.setattr(images, "MAX_PIXELS", 15)
    refused(tmp_path / "a.npz", "seen 4x4")
    monkeypatch.setattr(images, "MAX_PIXELS", 16)
    monkeypatch.setattr(arrayfiles, "MAX_IMAGES", 1)
    refused(tmp_path / "a.npz", "at most 1 images")


def test_one_image_is_held_at_a_time(tmp_path):
    pixels = np.zeros((60, 256, 256, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", pixels)
    tarred(tmp_path / "a.tar", [(f"{i}.bmp", encoded(pixels[0], "BMP")) for i in range(60)])
    for name in ("a.npz", "a.tar"):
        read_images(tmp_path / name, size=8, limit=1)
        tracemalloc.start()
        read_images(tmp_path / name, size=8)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 * pixels[0].nbytes, name


# --- native size ---------------------------------------------------------------------------


def test_images_keep_their_size_unless_another_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 5, 9, 3), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "folder" / f"{index}.png")
    np.savez(tmp_path / "a.npz", pixels)
    for path in (tmp_path / "folder", tmp_path / "a.npz"):
        read = read_images(path)
        np.testing.assert_array_equal(read.images, pixels)
        assert read.source_size == (9, 5)
        assert read.notes == ()
    (tmp_path / "folder" / "more.png").write_bytes((tmp_path / "folder" / "0.png").read_bytes())
    turned = Image.fromarray(pixels[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "folder" / "turned.jpg", exif=exif)
    with pytest.raises(InputError, match=r"same size, seen 9x5 \(4 images.* and 5x9 \(1 image"):
        read_images(tmp_path / "folder")


# --- more than can be held -----------------------------------------------------------------


@pytest.fixture(params=["folder", "zip", "tar", "npz"])
def many(request, tmp_path):
    """Twelve images of 6 x 4 pixels."""
    pixels = [noise(4, 6) for _ in range(12)]
    folder = tmp_path / "many"
    for i, one in enumerate(pixels):
        save(folder / f"{i}.png", one)
    if request.param == "folder":
        return folder
    path = tmp_path / f"many.{request.param}"
    if request.param == "npz":
        np.savez(path, images=np.stack(pixels))
    elif request.param == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
    else:
        with tarfile.open(path, "w") as archive:
            for file in folder.iterdir():
                archive.add(file, file.name)
    return path


def test_what_can_t_be_held_is_read_again(many):
    held = read_images(many).images
    read = read_images(many, most_held=100)
    assert isinstance(read.images, images.FileImages)
    assert read.names == read_images(many).names
    assert read.source_size == (6, 4)
    assert read.images.listing == ImageList.of(held)
    batches = list(read.images.batches(5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(batches), held)
    some = np.array([7, 0, 11])
    (few,) = read.images.take(some).batches(5)
    np.testing.assert_array_equal(few, held[some])
    assert isinstance(read_images(many, most_held=12 * 72).images, np.ndarray)


def test_an_image_that_changes_meanwhile_is_refused(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", noise(4))
    read = read_images(tmp_path, most_held=1)
    save(tmp_path / "1.png", noise(4))
    with pytest.raises(InputError, match=r"1\.png has changed"):
        list(read.images.batches(2))
