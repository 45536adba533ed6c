"""Pictures for the eye: what a run's images look like, group by group."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fairbench.core.errors import ContractError, InputError
from fairbench.storage.files import atomic_write

__all__ = ["sample_grid"]

WIDTH = 1200  # pixels that the finished picture should about have
MARGIN = 16
GAP = 2  # between images; rows are 3 gaps apart
LABEL_WIDTH = 220  # pixels after which a label is wrapped
TEXT, TITLE = 15, 20  # font sizes in pixels

INK = (33, 37, 41)
FAINT = (134, 142, 150)
PAPER = (255, 255, 255)
BLANK = (241, 243, 245)

SPELLED = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "≤": "<=", "≥": ">=", "≈": "~"})

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in pixels.

    Attributes:
        left, top: Corner of the first image.
        tile: Width and height of one image as shown.
        row: Height of a row without the space below it.
        shrink: Factor that images are reduced by first.
        columns: Images a row.
        rows: Number of rows.
    """

    left: int
    top: int
    tile: tuple[int, int]
    row: int
    shrink: int
    columns: int
    rows: int

    @property
    def size(self) -> tuple[int, int]:
        width = self.left + self.columns * (self.tile[0] + GAP) - GAP + MARGIN
        return width, self.top + self.rows * (self.row + 3 * GAP) - 3 * GAP + MARGIN

    def corner(self, row: int, column: int) -> tuple[int, int]:
        y = self.top + row * (self.row + 3 * GAP) + (self.row - self.tile[1]) // 2
        return self.left + column * (self.tile[0] + GAP), y


def sample_grid(
    rows: Mapping[str, NDArray[np.uint8]],
    path: Path,
    *,
    columns: int = 16,
    scale: int | None = None,
    title: str = "",
) -> None:
    """Write a PNG with one row of sample images a group; an existing file is replaced whole.

    Args:
        rows: Label -> (n, H, W, 3) uint8; the first `columns` are shown, n may be 0. A label may
            have several lines.
        path: The file to write; its folder must exist.
        columns: Places a row; those without an image stay blank.
        scale: Each pixel becomes a square of `scale` pixels. None: as large as keeps the picture
            about 1,200 pixels wide; images too large for that are reduced by a whole factor.
        title: Shown above the rows.

    Raises:
        ContractError: If there is no row, the arrays aren't images of one size, or a number is
            below 1.
        InputError: If the file can't be written.
    """
    image_size = _image_size(rows)
    if columns < 1 or (scale is not None and scale < 1):
        raise ContractError(f"columns and scale must be 1 or more; seen {columns} and {scale}")
    text, heading = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    labels = [_wrap(_plain(label), text) for label in rows]
    title = _plain(title)
    title_size = _text_size(title, heading)
    top = MARGIN + (title_size[1] + MARGIN if title else 0)
    layout = _plan([_text_size(label, text) for label in labels], image_size, columns, scale, top)
    # A long title may be wider than all that stands under it.
    width = max(title_size[0] + 2 * MARGIN, layout.size[0])
    picture = Image.new("RGB", (width, layout.size[1]), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, INK, heading)
    for row, (label, images) in enumerate(zip(labels, rows.values(), strict=True)):
        left, middle = layout.corner(row, 0)[0], layout.corner(row, 0)[1] + layout.tile[1] / 2
        draw.text((MARGIN, middle), label, INK, text, anchor="lm")
        _draw_row(picture, layout, row, images[:columns])
        if not len(images):
            draw.text((left + MARGIN, middle), "no image", FAINT, text, anchor="lm")
    _write(picture, path)


def _image_size(rows: Mapping[str, NDArray[np.uint8]]) -> tuple[int, int]:
    """Height and width that all images share."""
    for label, images in rows.items():
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ContractError(
                f"row {label!r} must be (n, H, W, 3) uint8; seen {images.shape} {images.dtype}"
            )
    sizes = {images.shape[1:3] for images in rows.values()}
    if len(sizes) != 1 or 0 in min(sizes):
        raise ContractError(
            f"a sample grid needs rows of images of one size; seen {sorted(sizes) or 'no row'}"
        )
    height, width = sizes.pop()
    return height, width


def _plan(
    labels: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    columns: int,
    scale: int | None,
    top: int,
) -> _Layout:
    """Choose the scale and place the rows.

    Args:
        labels: Width and height of each row's label.
        image_size: Height and width of the images.
        columns: Images a row.
        scale: Factor to enlarge by; None: whatever makes the picture about `WIDTH` wide.
        top: Where the first row begins.
    """
    height, width = image_size
    left = MARGIN + max(w for w, _ in labels) + MARGIN
    room = max(1, (WIDTH - left - MARGIN + GAP) // columns - GAP)
    # Rounded, not cut: 1.8 is nearer to double size than to none. One of the two is 1.
    zoom = scale or max(1, round(room / width))
    shrink = 1 if scale else max(1, round(width / room))
    # Image.reduce keeps a last, partly filled block, hence the rounding up.
    tile = (-(-width // shrink) * zoom, -(-height // shrink) * zoom)
    row = max(tile[1], *(h for _, h in labels))
    return _Layout(left, top, tile, row, shrink, columns, len(labels))


def _plain(text: str) -> str:
    """Text without the accents, dashes and signs that Pillow's font draws as empty boxes."""
    text = unicodedata.normalize("NFD", text.translate(SPELLED))
    return "".join(letter for letter in text if not unicodedata.combining(letter))


def _wrap(label: str, font: Font) -> str:
    """Break lines longer than `LABEL_WIDTH` between words; a long word stays whole."""
    lines: list[str] = []
    for line in label.split("\n"):
        words = line.split(" ")
        lines.append(words[0])
        for word in words[1:]:
            longer = f"{lines[-1]} {word}"
            if font.getlength(longer) <= LABEL_WIDTH:
                lines[-1] = longer
            else:
                lines.append(word)
    return "\n".join(lines)


def _text_size(text: str, font: Font) -> tuple[int, int]:
    """Width and height in pixels of text of one or more lines."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font)
    return int(np.ceil(right)), int(np.ceil(bottom))


def _draw_row(picture: Image.Image, layout: _Layout, row: int, images: NDArray[np.uint8]) -> None:
    """Put images in a row from the left, on a light strip that shows where some are missing."""
    x, y = layout.corner(row, 0)
    right = layout.corner(row, layout.columns - 1)[0] + layout.tile[0]
    picture.paste(BLANK, (x, y, right, y + layout.tile[1]))
    for column, pixels in enumerate(images):
        # Block means where the image is too large, else repeated pixels; never both.
        image = Image.fromarray(pixels).reduce(layout.shrink)
        tile = image.resize(layout.tile, Image.Resampling.NEAREST)
        picture.paste(tile, layout.corner(row, column))


def _write(picture: Image.Image, path: Path) -> None:
    try:
        with atomic_write(path) as file:
            picture.save(file, format="PNG", optimize=True)
    except OSError as error:
        raise InputError(
            f"{path}: can't write this picture ({error.strerror}); check its folder"
        ) from error
