"""CelebA's layouts with drawn faces of 178 x 218 pixels in place of photographs."""

from __future__ import annotations

import csv
import functools
import io
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image, ImageDraw
from pyarrow import parquet

from fairbench.datasets.parts.celeba_files import ATTRIBUTE_NAMES

LAYOUTS = ("torchvision", "drive", "kaggle", "parquet", "png")
COUNT = 160
SHARES = (0.6, 0.2, 0.2)  # of the partitions

SIZE = (178, 218)
FINER = 2
"""Drawn larger by this factor and averaged, so that edges are soft."""

SKINS = ("#f2d6cb", "#e3b89c", "#c68f6f", "#a67358", "#74453d")
BLACK = ("#0f0c0b", "#1a1614", "#221c1a")
OTHER = ("#6b4226", "#8f5a2b", "#c9a35c", "#e3c67f", "#a3401f", "#9c8f86")
PLACES = ("#dfe6ee", "#bcd3c4", "#e9dcc3", "#8fa7bf", "#c8b4cc", "#6f8a78")
SHIRTS = ("#27496d", "#8c2f39", "#3f6b4f", "#d8d2c8", "#5b4a72")


def drawn_face(rng, *, male, black_hair, eyeglasses, young):
    """One face; what the attributes leave open, `rng` chooses."""
    picture = Image.new("RGB", [FINER * side for side in SIZE], str(rng.choice(PLACES)))
    pen = ImageDraw.Draw(picture)
    skin, hair = str(rng.choice(SKINS)), str(rng.choice(BLACK if black_hair else OTHER))
    x, y = 89 + rng.uniform(-3, 3), 122 + rng.uniform(-3, 3)
    wide, high = rng.uniform(39, 45) + 2 * male, rng.uniform(53, 58)
    dark = tuple(int(part * 0.62) for part in Image.new("RGB", (1, 1), skin).getpixel((0, 0)))

    def box(left, top, right, bottom):
        return [FINER * (x + left), FINER * (y + top), FINER * (x + right), FINER * (y + bottom)]

    def line(points, fill, width):
        scaled = [(FINER * (x + a), FINER * (y + b)) for a, b in points]
        pen.line(scaled, fill=fill, width=round(FINER * width), joint="curve")

    if not male:  # hair that falls behind the face, to the shoulders
        reach = rng.uniform(55, 80)
        pen.rounded_rectangle(box(-wide - 13, -45, wide + 13, reach), FINER * 26, fill=hair)
    pen.ellipse(box(-75 - 8 * male, 70, 75 + 8 * male, 180), fill=str(rng.choice(SHIRTS)))
    pen.rectangle(box(-17 - 4 * male, 40, 17 + 4 * male, 78), fill=dark)
    for side in (-1, 1):
        pen.ellipse(box(side * wide - 7, -14, side * wide + 7, 12), fill=skin)
    pen.ellipse(box(-wide - 5, -high - 11, wide + 5, high - 24), fill=hair)  # the back of the head
    pen.ellipse(box(-wide, -high + 6, wide, high), fill=skin)
    if male and rng.random() < 0.4:
        pen.chord(box(-wide + 2, -high + 14, wide - 2, high + 1), 25, 155, fill=hair)
    fringe = rng.uniform(-36, -28)
    start, end = rng.uniform(184, 200), rng.uniform(340, 356)
    pen.chord(box(-wide - 4, -high - 10, wide + 4, -2 * fringe - high), start, end, fill=hair)

    iris = str(rng.choice(("#4a3222", "#3d5a80", "#55703f")))
    for side in (-1, 1):
        at = side * 19
        pen.ellipse(box(at - 9, -14, at + 9, -3), fill="#f7f5f0")
        pen.ellipse(box(at - 5, -14, at + 5, -4), fill=iris)
        pen.ellipse(box(at - 2, -11, at + 2, -6), fill="#101010")
        if not male:
            pen.arc(box(at - 10, -16, at + 10, -2), 190, 350, fill="#1a1210", width=2 * FINER)
        lift = rng.uniform(-3, 1)
        line([(at - 10, -20), (at, -23 + lift), (at + 10, -20)], hair, 4.5 if male else 2)
        if not young:  # lines beside nose and mouth
            line([(side * 13, 14), (side * 21, 24), (side * 22, 33)], dark, 2)
            line([(side * 30, -2), (side * 22, 1), (side * 14, 0)], dark, 1.6)
    if not young:
        for row in (-29, -34):
            line([(-17, row), (0, row - 2), (17, row)], dark, 1.6)
    line([(-2, -4), (-6, 12), (5, 13)], dark, 2)
    if male:
        line([(-13, 29), (0, 32), (13, 29)], "#7b3b34", 3)
    else:
        pen.ellipse(box(-14, 24, 14, 36), fill="#b3303f")
        line([(-13, 30), (0, 31), (13, 30)], "#7a1f2b", 1.5)
    if eyeglasses:
        frame = str(rng.choice(("#161616", "#5a2a1a", "#303a66")))
        for side in (-1, 1):
            lens = box(side * 19 - 14, -20, side * 19 + 14, 4)
            pen.rounded_rectangle(lens, 6 * FINER, outline=frame, width=3 * FINER)
            line([(side * 33, -10), (side * wide, -12)], frame, 3)
        line([(-5, -10), (5, -10)], frame, 3)
    return picture.reduce(FINER)


DRAWN = {"male": "Male", "black_hair": "Black_Hair", "eyeglasses": "Eyeglasses", "young": "Young"}
"""What can be seen in a face -> its column; each is as likely as not."""


@functools.cache
def faces(count=COUNT):
    """Pictures and their values by column, 1 or -1, and partition."""
    rng = np.random.default_rng(11)
    values = {name: np.where(rng.random(count) < 0.5, 1, -1) for name in ATTRIBUTE_NAMES}
    partition = rng.choice(3, count, p=SHARES)
    drawn = [
        drawn_face(
            np.random.default_rng([11, i]),
            **{seen: values[column][i] == 1 for seen, column in DRAWN.items()},
        )
        for i in range(count)
    ]
    return drawn, values, partition


@functools.cache
def encoded(count=COUNT, kind="JPEG"):
    found = []
    for picture in faces(count)[0]:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
        found.append(buffer.getvalue())
    return found


def name(i, suffix=".jpg"):
    return f"{i + 1:06d}{suffix}"


def attributes_text(count=COUNT, suffix=".jpg"):
    _, values, _ = faces(count)
    lines = [str(count), " ".join(ATTRIBUTE_NAMES) + " "]
    for i in range(count):
        cells = "".join(f" {values[column][i]:2d}" for column in ATTRIBUTE_NAMES)
        lines.append(name(i, suffix) + cells)
    return "\n".join(lines) + "\n"


def partition_text(count=COUNT):
    return "".join(f"{name(i)} {split}\n" for i, split in enumerate(faces(count)[2]))


def attributes_csv(count=COUNT):
    _, values, _ = faces(count)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["image_id", *ATTRIBUTE_NAMES])
    for i in range(count):
        rows.writerow([name(i), *(values[column][i] for column in ATTRIBUTE_NAMES)])
    return text.getvalue()


def partition_csv(count=COUNT):
    splits = faces(count)[2]
    return "image_id,partition\n" + "".join(f"{name(i)},{s}\n" for i, s in enumerate(splits))


def pictures(folder, count=COUNT, suffix=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(encoded(count, "JPEG" if suffix == ".jpg" else "PNG")):
        (folder / name(i, suffix)).write_bytes(data)


def make(root, layout, count=COUNT):
    """A tree of one layout; returns where pictures, attributes and partition are."""
    root = Path(root)
    if layout == "torchvision":
        base = root / "celeba"
        where = (
            base / "img_align_celeba",
            base / "list_attr_celeba.txt",
            base / "list_eval_partition.txt",
        )
        pictures(where[0], count)
        where[1].write_text(attributes_text(count))
        where[2].write_text(partition_text(count))
    elif layout in ("drive", "png"):
        base = root / "CelebA"
        inner = (
            "img_align_celeba/img_align_celeba" if layout == "drive" else "img_align_celeba_png"
        )
        where = (
            base / "Img" / inner,
            base / "Anno" / "list_attr_celeba.txt",
            base / "Eval" / "list_eval_partition.txt",
        )
        pictures(where[0], count, ".jpg" if layout == "drive" else ".png")
        for path, text in zip(
            where[1:], (attributes_text(count), partition_text(count)), strict=True
        ):
            path.parent.mkdir(parents=True)
            path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    elif layout == "kaggle":
        where = (
            root / "img_align_celeba" / "img_align_celeba",
            root / "list_attr_celeba.csv",
            root / "list_eval_partition.csv",
        )
        pictures(where[0], count)
        where[1].write_text(attributes_csv(count))
        where[2].write_text(partition_csv(count))
    else:
        _, values, partition = faces(count)
        data = encoded(count)
        (root / "data").mkdir(parents=True)
        for split, word in enumerate(("train", "valid", "test")):
            rows = np.flatnonzero(partition == split)
            columns = {
                "image": [{"bytes": data[i], "path": name(i)} for i in rows],
                **{c: pyarrow.array(values[c][rows] == 1) for c in ATTRIBUTE_NAMES},
                "celeb_id": list(range(len(rows))),
            }
            path = root / "data" / f"{word}-00000-of-00001.parquet"
            parquet.write_table(pyarrow.table(columns), path, row_group_size=25)
        where = (root / "data",) * 3
    return where
