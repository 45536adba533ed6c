"""Images made elsewhere: a folder of files -> one uint8 array of the size that is measured.

Two passes: the first reads headers only, so that a mixture of sizes or an oversized file is
refused before anything is decoded; the second decodes one file at a time.
"""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fairbench.errors import InputError

__all__ = ["MAX_PIXELS", "SUFFIXES", "ImageFolder", "read_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings, in any case, of the files that are read; every other file is passed over."""

MAX_PIXELS = 64_000_000
"""Pixels of the largest file that is decoded; Pillow itself begins to warn at 89 million."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

# Pillow's name of a pixel layout -> what a reader calls it; layouts left out need no note.
LAYOUTS = {
    "1": "1-bit",
    "L": "grey",
    "LA": "grey",
    "La": "grey",
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "Lab",
    "HSV": "HSV",
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImageFolder:
    """What `read_folder` found.

    Attributes:
        images: (N, size, size, 3) uint8, in the order of `names`.
        names: Paths relative to the folder, with ``/`` on every platform.
        source_size: Width and height in pixels of the files, after their EXIF orientation.
        notes: What was passed over, converted, cropped or resized; one line each.
    """

    images: NDArray[np.uint8]
    names: tuple[str, ...]
    source_size: tuple[int, int]
    notes: tuple[str, ...]


def read_folder(
    path: Path, *, size: int, limit: int | None = None, progress: Progress | None = None
) -> ImageFolder:
    """Read the images in a folder and in the folders below it.

    The order is natural (``2.png`` before ``10.png``) and the same on every platform. Hidden
    files are skipped, links to folders aren't followed. Transparent pixels are laid on white.
    Files of another size are cropped to their central square and resized as clean-fid does it.

    Args:
        path: The folder.
        size: Pixels a side of the images returned.
        limit: Read only the first so many; fewer are returned where the folder has fewer.
        progress: ``progress(what, done, total)``; called once a file in each pass.

    Raises:
        InputError: If the folder is missing or has no images, or if a file that is to be read
            is a broken link, damaged, animated, too large or of another size than the rest.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise InputError(f"image size and limit must be 1 or more; seen {size} and {limit}")
    report = progress or _silent
    found, notes = _find_images(path)
    names = sorted(found, key=_natural)[:limit]
    if len(names) < len(found):
        notes.append(f"read the first {len(names)} of {_count(len(found))}")
    files = {name: found[name] for name in names}
    _check_headers(files, report)
    images, source_size, changes = _decode_all(files, size, report)
    notes += _change_notes(changes) + _resize_notes(source_size, size, len(names))
    return ImageFolder(images, tuple(names), source_size, tuple(notes))


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def _count(n: int) -> str:
    return f"{n} image" if n == 1 else f"{n} images"


# --- which files ---------------------------------------------------------------------------


def _find_images(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Relative name -> file of every image below `root`, and notes on what was passed over."""
    if not root.exists():
        raise InputError(f"{root}: no such folder; give the folder that holds the images")
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of images, seen a file; give its folder")
    found: dict[str, Path] = {}
    others: Counter[str] = Counter()
    links: list[str] = []
    for file in _walk(root, links):
        if file.suffix.lower() in SUFFIXES:
            found[file.relative_to(root).as_posix()] = file
        else:
            others[file.suffix.lower() or "no suffix"] += 1
    notes = []
    if others:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
        notes.append(f"passed over files that aren't images by their suffix: {kinds}")
    if links:
        notes.append(f"did not follow links to folders: {', '.join(sorted(links))}")
    if not found:
        seen = "; ".join(notes) or "it is empty"
        raise InputError(
            f"{root}: no images in this folder ({seen}); expected files that end in "
            f"{' '.join(SUFFIXES)}"
        )
    return found, notes


def _walk(root: Path, links: list[str]) -> Iterator[Path]:
    """Yield every visible file below `root`; names of links to folders are added to `links`."""
    for folder, subfolders, files in os.walk(root, onerror=_refuse_folder):
        for name in subfolders:
            if not name.startswith(".") and (link := Path(folder, name)).is_symlink():
                links.append(link.relative_to(root).as_posix())
        # os.walk goes down whatever is left in this list, except links.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            file = Path(folder, name)
            if file.is_symlink() and not file.exists():
                raise InputError(
                    f"{file}: broken link to {file.readlink()}; mend it or take it out"
                )
            # Opening a pipe would wait forever.
            if not file.is_file():
                raise InputError(f"{file}: expected a plain file; take it out of the folder")
            yield file


def _refuse_folder(error: OSError) -> NoReturn:
    raise InputError(
        f"{error.filename}: can't list this folder ({error.strerror}); make it readable or take "
        "it out"
    ) from error


def _natural(name: str) -> tuple[list[list[str | int]], str]:
    """Sort key of a relative path: folder by folder, runs of digits by their value."""
    # macOS hands out decomposed letters; without NFC its order would be another.
    parts = unicodedata.normalize("NFC", name).split("/")
    # Splitting at a captured group alternates text and digits, so like is compared with like.
    key = [
        [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
        for pieces in (re.split("([0-9]+)", part) for part in parts)
    ]
    return key, name


# --- one file ------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image lazily; whatever goes wrong with its bytes becomes an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
                yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(file, "more") from error
    # Damaged bytes make decoders raise nearly anything: SyntaxError, struct.error, IndexError.
    except Exception as error:
        raise InputError(
            f"{file}: expected a complete image, seen {_reason(file, error)}; make this file "
            "anew or take it out of the folder"
        ) from error


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own text repeats the path, or the address of a stream, and says no more.
        return "bytes of no known image format" if file.stat().st_size else "an empty file"
    return f"one that can't be read ({' '.join(str(error).split()) or type(error).__name__})"


def _too_large(file: Path, seen: str) -> InputError:
    return InputError(
        f"{file}: expected at most {MAX_PIXELS / 1e6:g} megapixels, seen {seen}; make this file "
        "smaller or take it out of the folder"
    )


def _check_headers(files: Mapping[str, Path], progress: Progress) -> None:
    """Refuse, without decoding, files that can't be measured or that differ in size."""
    sizes: dict[str, tuple[int, int]] = {}
    for done, (name, file) in enumerate(files.items(), 1):
        with _opened(file) as image:
            _check_header(file, image)
            # Which side is the width is known only once the EXIF orientation has been read,
            # and that may stand behind the pixels; so the sides are compared unordered here.
            width, height = sorted(image.size, reverse=True)
        sizes[name] = (width, height)
        progress("checking images", done, len(files))
    if len(set(sizes.values())) > 1:
        raise _mixed_sizes(sizes)


def _check_header(file: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(file, f"{width * height / 1e6:.1f} ({width}x{height})")
    frames = getattr(image, "n_frames", 1)
    # A phone's MPO is a JPEG whose later frames are previews or depth maps of the first.
    if frames > 1 and image.format != "MPO":
        raise InputError(
            f"{file}: expected one image a file, seen {frames} frames (animated, or several "
            "pages); save the frame that you mean as a file of its own"
        )
    if image.mode == "F":
        raise InputError(
            f"{file}: expected 8-bit or 16-bit pixels, seen floats, whose range isn't known; "
            "save it as an 8-bit PNG"
        )
    key = image.info.get("transparency")
    # Pillow reduces 16-bit colours to 8 bits, yet not the colour that stands for "transparent".
    if key is not None and (image.mode[0] == "I" or (isinstance(key, tuple) and max(key) > 255)):
        raise InputError(
            f"{file}: expected transparency as an alpha channel, seen a transparent 16-bit "
            "colour; save it as an 8-bit PNG"
        )


def _mixed_sizes(sizes: Mapping[str, tuple[int, int]]) -> InputError:
    """The error for files of several sizes, given as name -> width and height."""
    counts = Counter(sizes.values())
    examples: dict[tuple[int, int], str] = {}
    for name, size in sizes.items():
        examples.setdefault(size, name)
    shown = " and ".join(
        f"{width}x{height} ({_count(n)}, such as {examples[width, height]})"
        for (width, height), n in counts.most_common(2)
    )
    rest = f" and {len(counts) - 2} more" if len(counts) > 2 else ""
    return InputError(
        f"images must all have the same size, seen {shown}{rest}; resize them to one size, or "
        "put each size in a folder of its own"
    )


def _decode_all(
    files: Mapping[str, Path], size: int, progress: Progress
) -> tuple[NDArray[np.uint8], tuple[int, int], Counter[str]]:
    """Decode, crop and resize every file.

    Returns:
        (N, size, size, 3) uint8; width and height of the files; what was done -> how often.
    """
    images = np.empty((len(files), size, size, 3), np.uint8)
    sizes: dict[str, tuple[int, int]] = {}
    changes: Counter[str] = Counter()
    for index, (name, file) in enumerate(files.items()):
        with _opened(file) as opened:
            opened.load()
            image = _to_rgb(file, _upright(opened, changes), changes)
        sizes[name] = image.size
        images[index] = _to_square(image, size)
        progress("reading images", index + 1, len(files))
    if len(set(sizes.values())) > 1:
        raise _mixed_sizes(sizes)
    return images, sizes[next(iter(sizes))], changes


def _upright(image: Image.Image, changes: Counter[str]) -> Image.Image:
    """Turn a decoded image as its EXIF orientation asks, and count that in `changes`."""
    if image.getexif().get(0x0112, 1) not in range(2, 9):
        return image
    changes["orientation"] += 1
    return ImageOps.exif_transpose(image)


def _to_rgb(file: Path, image: Image.Image, changes: Counter[str]) -> Image.Image:
    """Convert any pixel layout to RGB, on white, and count in `changes` what was done."""
    if image.mode.startswith("I"):
        changes["16-bit grey"] += 1
        return _grey_16_to_rgb(file, image)
    if image.mode in LAYOUTS:
        changes[LAYOUTS[image.mode]] += 1
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    if lowest == 255:
        return image.convert("RGB")
    changes["alpha"] += 1
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey_16_to_rgb(file: Path, image: Image.Image) -> Image.Image:
    """Scale 0…65535 to 0…255; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"{file}: expected pixels of 0…65535, seen {values.min()}…{values.max()}; save it as "
            "an 8-bit PNG"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")


def _to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Cut out the central square of an RGB image and resize it to (size, size, 3) uint8.

    The filter is clean-fid's: Pillow's antialiased bicubic on float channels, clipped; only the
    result is rounded. Source: Parmar et al. 2022, arXiv 2104.11222, ``make_resizer("PIL", False,
    "bicubic", …)`` of clean-fid 0.1.35.
    """
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side))
    if side == size:
        return np.asarray(image)
    square = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        # An 8-bit resize would round between its two passes.
        floats = image.getchannel(channel).convert("F")
        resized = floats.resize((size, size), Image.Resampling.BICUBIC)
        square[..., channel] = np.rint(np.clip(np.asarray(resized), 0, 255))
    return square


# --- what to tell --------------------------------------------------------------------------


def _change_notes(changes: Counter[str]) -> list[str]:
    sentences = {
        "orientation": "turned {} by the EXIF orientation",
        "alpha": "laid {} with transparent pixels on white",
    }
    return [
        sentences.get(change, f"converted {{}} from {change} to RGB").format(_count(n))
        for change, n in sorted(changes.items())
    ]


def _resize_notes(source: Sequence[int], size: int, n: int) -> list[str]:
    notes = []
    side = min(source)
    if max(source) != side:
        notes.append(
            f"cut {_count(n)} of {source[0]}x{source[1]} to the central {side}x{side} square"
        )
    if side != size:
        verb = "reduced" if side > size else "enlarged"
        notes.append(
            f"{verb} {_count(n)} from {side}x{side} to {size}x{size} (antialiased bicubic, as in "
            "clean-fid)"
        )
    return notes
