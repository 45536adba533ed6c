"""Images made elsewhere -> one uint8 array, of their own size or of one that is asked for.

They come as files in a folder, a ``.zip`` or a ``.tar``, or as one array in an ``.npz``. Files are
read in two passes: the first reads headers only, so that a mixture of sizes or an oversized file
is refused before anything is decoded; the second decodes one file at a time.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fairbench.core.errors import InputError
from fairbench.core.progress import Progress, silent
from fairbench.inputs.arrays import open_arrays
from fairbench.inputs.resizing import to_square
from fairbench.inputs.sources import Entry, list_images
from fairbench.storage.readings import ImageList, image_sha256

__all__ = ["MAX_PIXELS", "FileImages", "ImageSet", "decode", "read_images"]

MAX_PIXELS = 64_000_000
"""Pixels of the largest image that is read; Pillow itself begins to warn at 89 million."""

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


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images that are decoded again whenever they are asked for; a few hundred are held at once.

    Attributes:
        path: Folder, archive or ``.npz`` that they lie in.
        names: Of each, as `ImageSet` has them.
        listing: Which images they were when they were looked through.
        labels: None are known.
    """

    path: Path
    names: tuple[str, ...]
    listing: ImageList
    labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[Any]) -> FileImages:
        """The images at `rows`, (n,) integers or (N,) booleans, in that order."""
        index = np.arange(len(self))[rows]
        names = tuple(self.names[row] for row in index)
        return FileImages(self.path, names, self.listing.take(index))

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """(n, H, W, 3) uint8 arrays of at most `size` images, in order.

        The next ones are decoded while the last ones are used.

        Raises:
            InputError: If an image isn't the one that it was.
        """
        pictures = self._pictures()
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(lambda: list(islice(pictures, size)))
            while batch := following.result():
                following = ahead.submit(lambda: list(islice(pictures, size)))
                yield np.stack(batch)

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        for name, expected, pixels in zip(
            self.names, self.listing.sha256, self._decoded(), strict=True
        ):
            if image_sha256(pixels[None]) != [expected]:
                raise InputError(
                    f"{self.path}: {name} has changed since it was looked at; leave the images "
                    "alone while they are measured, and run again"
                )
            yield pixels

    def _decoded(self) -> Iterator[NDArray[np.uint8]]:
        if self.path.suffix.lower() == ".npz":
            yield from self._frames()
            return
        with list_images(self.path) as listing:
            for name in self.names:
                yield np.asarray(decode(listing.entries[name]))

    def _frames(self) -> Iterator[NDArray[np.uint8]]:
        """Images of an array, which is read from its begin on."""
        rows = [int(name) for name in self.names]
        wanted, waiting = set(rows), iter(rows)
        seen: dict[int, NDArray[np.uint8]] = {}
        following = next(waiting, None)
        with open_arrays(self.path) as stored:
            for row, pixels in enumerate(stored.frames):
                if row in wanted:
                    seen[row] = pixels.copy()
                while following in seen:
                    yield seen.pop(following)
                    following = next(waiting, None)
                if following is None:
                    return


@dataclass(frozen=True)
class ImageSet:
    """What `read_images` found.

    Attributes:
        images: (N, H, W, 3) uint8, in the order of `names`; where they are too many to be held,
            what reads them again.
        names: Paths within the folder or archive, with ``/`` on every platform; for an array the
            number of each image, from 0.
        source_size: Width and height in pixels of the images, after their EXIF orientation.
        notes: What was passed over, converted, cropped or resized; one line each.
        unread: Names of the images beyond the limit.
    """

    images: NDArray[np.uint8] | FileImages
    names: tuple[str, ...]
    source_size: tuple[int, int]
    notes: tuple[str, ...]
    unread: tuple[str, ...] = ()


def read_images(
    path: Path,
    size: int | None = None,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    most_held: int | None = None,
) -> ImageSet:
    """Read the images of a folder and the folders below it, of an archive, or of an array.

    The order is natural (``2.png`` before ``10.png``) and the same on every platform. Hidden
    files are skipped, links to folders aren't followed, links in archives are refused.
    Transparent pixels are laid on white. Images keep their size unless another is asked for; then
    they are cropped to their central square and resized as clean-fid does it. Beside the result
    no more than one image is held.

    Args:
        path: A folder, a ``.zip``, an uncompressed ``.tar`` such as webdataset's, or an ``.npz``
            with one (N, H, W, 3) uint8 array named ``arr_0`` or ``images``.
        size: Pixels a side of the images returned; None for as many as they have.
        limit: Read only the first so many; fewer are returned where there are fewer.
        progress: ``progress(what, done, total)``; called once an image in each pass.
        most_held: Bytes of images that may be held; more are looked through, and decoded again
            whenever they are asked for. None: as many as the machine's memory.

    Raises:
        InputError: If there is nothing to read, if an image that is to be read is a broken link,
            damaged, animated, too large or of another size than the rest, or if an archive holds
            names that lead out of it.
    """
    if (size is not None and size < 1) or (limit is not None and limit < 1):
        raise InputError(f"image size and limit must be 1 or more; seen {size} and {limit}")
    report = progress or silent
    if path.suffix.lower() == ".npz" and path.is_file():
        return _read_arrays(path, size, limit, report, most_held)
    with list_images(path) as listing:
        names = list(listing.entries)
        files = dict(islice(listing.entries.items(), limit))
        _check_headers(files, report)
        kept, source_size, changes = _decode_all(files, size, report, most_held)
    images = kept.images(path, tuple(files))
    notes = (
        *listing.notes,
        *_limit_notes(len(files), len(names)),
        *_change_notes(changes),
        *_resize_notes(source_size, size, len(files)),
    )
    return ImageSet(images, tuple(files), source_size, notes, tuple(names[len(files) :]))


def _read_arrays(
    path: Path, size: int | None, limit: int | None, progress: Progress, most_held: int | None
) -> ImageSet:
    with open_arrays(path) as stored:
        source_size = stored.width, stored.height
        if stored.width * stored.height > MAX_PIXELS:
            raise InputError(
                f"{path}: expected images of at most {MAX_PIXELS / 1e6:g} megapixels, seen "
                f"{stored.width}x{stored.height}; save smaller ones"
            )
        n = min(stored.count, limit or stored.count)
        kept = _Kept(n, source_size, size, most_held)
        for index, pixels in enumerate(islice(stored.frames, n)):
            kept.add(index, _fitted(Image.fromarray(pixels), size))
            progress("reading images", index + 1, n)
    notes = (
        *stored.notes,
        *_limit_notes(n, stored.count),
        *_resize_notes(source_size, size, n),
    )
    names = tuple(map(str, range(stored.count)))
    images = kept.images(path, names[:n])
    return ImageSet(images, names[:n], source_size, notes, names[n:])


def _count(n: int) -> str:
    return f"{n} image" if n == 1 else f"{n} images"


# --- one file ------------------------------------------------------------------------------


@contextmanager
def _opened(file: Entry) -> Iterator[Image.Image]:
    """Open an image lazily; whatever goes wrong with its bytes becomes an `InputError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _lazily(file) as image:
            yield image


def decode(file: Entry) -> Image.Image:
    """One file's image in RGB, upright, on white; may be called in several threads at once.

    Raises:
        InputError: If it is damaged, animated or too large.
    """
    # Filters of warnings belong to the whole process; the size is checked before any decoding.
    with _lazily(file) as opened:
        _check_header(file, opened)
        opened.load()
        return _to_rgb(file, _upright(opened, Counter()), Counter())


@contextmanager
def _lazily(file: Entry) -> Iterator[Image.Image]:
    try:
        with file.open() as stream, Image.open(stream, formats=FORMATS) as image:
            yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(file, "more") from error
    # Damaged bytes make decoders raise nearly anything: SyntaxError, struct.error, IndexError.
    except Exception as error:
        raise InputError(
            f"{file.where}: expected a complete image, seen {_reason(file, error)}; make this "
            f"file anew or take it out of the {file.home}"
        ) from error


def _reason(file: Entry, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own text repeats the path, or the address of a stream, and says no more.
        with file.open() as stream:
            return "bytes of no known image format" if stream.read(1) else "an empty file"
    return f"one that can't be read ({' '.join(str(error).split()) or type(error).__name__})"


def _too_large(file: Entry, seen: str) -> InputError:
    return InputError(
        f"{file.where}: expected at most {MAX_PIXELS / 1e6:g} megapixels, seen {seen}; make this "
        f"file smaller or take it out of the {file.home}"
    )


def _check_headers(files: Mapping[str, Entry], progress: Progress) -> None:
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


def _check_header(file: Entry, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(file, f"{width * height / 1e6:.1f} ({width}x{height})")
    frames = getattr(image, "n_frames", 1)
    # A phone's MPO is a JPEG whose later frames are previews or depth maps of the first.
    if frames > 1 and image.format != "MPO":
        raise InputError(
            f"{file.where}: expected one image a file, seen {frames} frames (animated, or several "
            "pages); save the frame that you mean as a file of its own"
        )
    if image.mode == "F":
        raise InputError(
            f"{file.where}: expected 8-bit or 16-bit pixels, seen floats, whose range isn't "
            "known; save it as an 8-bit PNG"
        )
    key = image.info.get("transparency")
    # Pillow reduces 16-bit colours to 8 bits, yet not the colour that stands for "transparent".
    if key is not None and (image.mode[0] == "I" or (isinstance(key, tuple) and max(key) > 255)):
        raise InputError(
            f"{file.where}: expected transparency as an alpha channel, seen a transparent 16-bit "
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
    files: Mapping[str, Entry], size: int | None, progress: Progress, most_held: int | None
) -> tuple[_Kept, tuple[int, int], Counter[str]]:
    """Decode, crop and resize every file.

    Returns:
        The images; width and height of the files; what was done -> how often.
    """
    kept: _Kept | None = None
    sizes: dict[str, tuple[int, int]] = {}
    changes: Counter[str] = Counter()
    for index, (name, file) in enumerate(files.items()):
        with _opened(file) as opened:
            opened.load()
            image = _to_rgb(file, _upright(opened, changes), changes)
        if kept is None:
            kept = _Kept(len(files), image.size, size, most_held)
        sizes[name] = image.size
        # Once two sizes are known the images are refused below, when all have been counted.
        if image.size == sizes[next(iter(sizes))]:
            kept.add(index, _fitted(image, size))
        progress("reading images", index + 1, len(files))
    if kept is None or len(set(sizes.values())) > 1:
        raise _mixed_sizes(sizes)
    return kept, sizes[next(iter(sizes))], changes


class _Kept:
    """What is kept of images as they are decoded: all pixels, or their hashes alone.

    Args:
        n: How many there are.
        source: Width and height of each.
        size: Pixels a side that they are brought to; None: as they are.
        most_held: Bytes of pixels that may be held; None: those of the machine's memory.
    """

    def __init__(
        self, n: int, source: tuple[int, int], size: int | None, most_held: int | None
    ) -> None:
        width, height = source if size is None else (size, size)
        self._height, self._width = height, width
        self._pixels: NDArray[np.uint8] | None = None
        self._hashes = [""] * n
        if most_held is not None and size is None and n * height * width * 3 > most_held:
            return
        import psutil

        memory = int(psutil.virtual_memory().total)
        if n * height * width * 3 > memory:
            raise InputError(
                f"{n} images of {width}x{height} take {n * height * width * 3 / 2**30:,.0f} GiB "
                f"of memory, this machine has {memory / 2**30:,.0f}; take at most "
                f"{memory // (height * width * 3)}, or smaller ones"
            )
        self._pixels = np.empty((n, height, width, 3), np.uint8)

    def add(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Keep one image."""
        if self._pixels is None:
            self._hashes[index] = image_sha256(pixels[None])[0]
        else:
            self._pixels[index] = pixels

    def images(self, path: Path, names: tuple[str, ...]) -> NDArray[np.uint8] | FileImages:
        """All of them, or what reads them again."""
        if self._pixels is not None:
            return self._pixels
        return FileImages(path, names, ImageList(tuple(self._hashes), self._height, self._width))


def _fitted(image: Image.Image, size: int | None) -> NDArray[np.uint8]:
    """The pixels of an RGB image, as they are or as a square of `size`."""
    return np.asarray(image) if size is None else to_square(image, size)


def _upright(image: Image.Image, changes: Counter[str]) -> Image.Image:
    """Turn a decoded image as its EXIF orientation asks, and count that in `changes`."""
    if image.getexif().get(0x0112, 1) not in range(2, 9):
        return image
    changes["orientation"] += 1
    return ImageOps.exif_transpose(image)


def _to_rgb(file: Entry, image: Image.Image, changes: Counter[str]) -> Image.Image:
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


def _grey_16_to_rgb(file: Entry, image: Image.Image) -> Image.Image:
    """Scale 0…65535 to 0…255; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"{file.where}: expected pixels of 0…65535, seen {values.min()}…{values.max()}; save "
            "it as an 8-bit PNG"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")


# --- what to tell --------------------------------------------------------------------------


def _limit_notes(n: int, total: int) -> list[str]:
    return [f"read the first {n} of {_count(total)}"] if n < total else []


def _change_notes(changes: Counter[str]) -> list[str]:
    sentences = {
        "orientation": "turned {} by the EXIF orientation",
        "alpha": "laid {} with transparent pixels on white",
    }
    return [
        sentences.get(change, f"converted {{}} from {change} to RGB").format(_count(n))
        for change, n in sorted(changes.items())
    ]


def _resize_notes(source: Sequence[int], size: int | None, n: int) -> list[str]:
    notes: list[str] = []
    if size is None:
        return notes
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
