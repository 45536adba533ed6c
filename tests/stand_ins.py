"""CelebA's layouts with drawn faces of 178 x 218 pixels in place of photographs."""

from __future__ import annotations

import csv
import functools
import io
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from fairbench.datasets.cartoonfaces import load_split
from fairbench.datasets.parts.celeba_files import ATTRIBUTE_NAMES

LAYOUTS = ("torchvision", "drive", "kaggle", "parquet", "png")
COUNT = 160
SHARES = (0.6, 0.2, 0.2)  # of the partitions


@functools.cache
def faces(count=COUNT):
    """Encoded faces and their values by column, 1 or -1, and partition."""
    pool = load_split("pool")
    rng = np.random.default_rng(11)
    chosen = rng.permutation(len(pool))[:count]
    values = {name: np.where(rng.random(count) < 0.5, 1, -1) for name in ATTRIBUTE_NAMES}
    values["Male"] = np.where(pool.labels["gender"][chosen] == 1, 1, -1)
    values["Eyeglasses"] = np.where(pool.labels["glasses"][chosen] == 1, 1, -1)
    partition = rng.choice(3, count, p=SHARES)
    drawn = []
    for row in chosen:
        square = Image.fromarray(pool.images[row]).resize((178, 178), Image.Resampling.BICUBIC)
        picture = Image.new("RGB", (178, 218), square.getpixel((0, 0)))
        picture.paste(square, (0, 20))
        drawn.append(picture)
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
