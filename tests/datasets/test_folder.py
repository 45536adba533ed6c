from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.datasets.base import get_dataset

pytestmark = pytest.mark.usefixtures("own_cache")
ROLES = ("pool", "judge", "evaluation")
SPLITS = ("train", "val", "test")

TOML = """\
name = "marks"
title = "sheets with a mark"
licence = "CC0-1.0"
may_publish_images = true
folder = "pictures"
table = "marks.csv"
file_column = "which"
split_column = "part"
size = 24
subject = "sheet"
template = "a scan of {}"
sensitive = ["shape", "ink"]
reference_per_cell = 3
judges = ["marks/judge"]

[attributes.shape]
levels = ["disc", "bar"]
values = { "0" = "disc", "1" = "bar" }
said = { disc = "with a round spot", bar = "with a stroke" }
after = true

[attributes.ink]
column = "colour"
levels = ["pale", "dark"]

[splits]
a = "pool"
b = "judge"
c = "evaluation"

[[tasks]]
name = "shape"
attributes = ["shape"]

[bias]
attributes = ["ink"]
shares = [0.75, 0.25]
"""


def cells(count=60):
    rng = np.random.default_rng(5)
    shape, ink = rng.integers(0, 2, (2, count))
    return shape, ink, rng.integers(0, 3, count)


def draw(folder, names, sizes=((30, 24),)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(6)
    for i, name in enumerate(names):
        width, height = sizes[i % len(sizes)]
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def simple(root, count=60):
    """Images and one table, no declaration."""
    shape, ink, part = cells(count)
    names = [f"{i}.png" for i in range(count)]
    draw(root, names)
    rows = [
        f"{n},{SPLITS[p]},{['disc', 'bar'][s]},{k}"
        for n, p, s, k in zip(names, part, shape, ink, strict=True)
    ]
    (root / "labels.csv").write_text("\ufefffile,split,shape,ink\r\n" + "\r\n".join(rows))
    return shape, ink, part


def declared(root, count=60):
    shape, ink, part = cells(count)
    names = [f"{'xy'[i % 2]}/{i}.jpg" for i in range(count)]
    draw(root / "pictures", names)
    rows = [
        f"{name},{s},{('pale', 'dark')[k]},{'abc'[p]}"
        for name, s, k, p in zip(names, shape, ink, part, strict=True)
    ]
    (root / "marks.csv").write_text("which,shape,colour,part\n" + "\n".join(rows) + "\n")
    (root / "dataset.toml").write_text(TOML)
    return shape, ink, part


def prepared(root):
    dataset = get_dataset("folder", root)
    assert dataset.lacking() == ""
    dataset.prepare(Reporter())
    return dataset


def test_a_folder_with_a_table_is_a_data_set(tmp_path):
    root = tmp_path / "My Marks"
    shape, ink, part = simple(root)
    dataset = prepared(root)
    assert dataset.name == "my-marks"
    assert dataset.attributes == {"shape": ("bar", "disc"), "ink": ("0", "1")}
    assert [task.name for task in dataset.tasks] == ["shape", "ink", "shape_ink"]
    for p, role in enumerate(ROLES):
        source = dataset.split(role)
        assert len(source) == (part == p).sum()
        assert len(np.concatenate(list(source.batches(4)))) == len(source)
    evaluation = dataset.split("evaluation")
    np.testing.assert_array_equal(evaluation.labels["ink"], ink[part == 2])
    np.testing.assert_array_equal(evaluation.labels["shape"], 1 - shape[part == 2])
    assert next(evaluation.batches(1)).shape == (1, 24, 24, 3)  # the shorter side
    assert dataset.split("method_reference") is None
    assert len(dataset.training_set("biased")) == (part == 0).sum()
    assert get_dataset(str(root)).data_sha256() == dataset.data_sha256()
    assert not dataset.card.may_publish_images


def test_a_declaration_says_everything(tmp_path):
    part = declared(tmp_path, 160)[2]
    dataset = prepared(tmp_path)
    assert dataset.name == "marks"
    assert dataset.card.licence == "CC0-1.0"
    assert dataset.card.may_publish_images
    task = dataset.task(None, conditional=True)
    assert task.prompts[0].text == "a scan of a sheet"
    assert task.prompts[0].naming(task.group_phrases(0)) == "a scan of a sheet with a round spot"
    assert dataset.crossed("shape") == ("shape", "ink")
    reference = dataset.split("method_reference")
    np.testing.assert_array_equal(
        np.bincount(reference.labels["shape"] * 2 + reference.labels["ink"]), [3] * 4
    )
    assert len(reference) + len(dataset.split("pool")) == (part == 0).sum()
    biased = dataset.training_set("biased")
    assert abs(np.mean(biased.labels["ink"] == 0) - 0.75) <= 1 / len(biased)
    even = dataset.training_set("balanced").labels
    counts = np.bincount(even["shape"] * 2 + even["ink"], minlength=4)
    assert counts.max() - counts.min() <= 1
    assert dataset.instruments().judges == ("marks/judge",)
    assert not dataset.instruments().trained
    assert get_dataset(str(tmp_path / "dataset.toml")).name == "marks"


def test_the_declaration_is_part_of_the_data(tmp_path):
    declared(tmp_path)
    before = prepared(tmp_path).data_sha256()
    (tmp_path / "dataset.toml").write_text(TOML.replace("size = 24", "size = 16"))
    after = prepared(tmp_path)
    assert after.data_sha256() != before
    assert after.split("judge").listing.height == 16


def test_parquet_may_hold_the_images_and_toml_the_labels(tmp_path):
    root = tmp_path / "rows"
    _, ink, part = simple(root, 40)
    data = [(root / f"{i}.png").read_bytes() for i in range(40)]
    with_images = tmp_path / "packed"
    with_images.mkdir()
    columns = {
        "image": [{"bytes": one, "path": "0.png"} for one in data],
        "split": [SPLITS[p] for p in part],
        "ink": ink.tolist(),
    }
    parquet.write_table(pyarrow.table(columns), with_images / "all.parquet", row_group_size=7)
    packed = prepared(with_images).split("evaluation")
    loose = prepared(root).split("evaluation")
    assert {*packed.listing.sha256} == {*loose.listing.sha256}
    lines = [
        f'[images."{i}.png"]\nink = "{"pale" if k else "dark"}"\nsplit = "{SPLITS[p]}"\n'
        for i, (k, p) in enumerate(zip(ink, part, strict=True))
    ]
    (root / "labels.csv").unlink()
    (root / "dataset.toml").write_text("\n".join(lines))
    told = prepared(root)
    assert told.attributes == {"ink": ("dark", "pale")}
    assert len(told.split("judge")) == (part == 1).sum()


def edit(name, old, new):
    def change(root):
        path = root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            edit("dataset.toml", "licence", "license"),
            "unknown key 'license'; did you mean licence",
        ),
        (edit("dataset.toml", "size = 24", "size = 'x'"), "size must be a int; seen 'x'"),
        (edit("dataset.toml", "size = 24", "size = 4"), "size must lie in 8"),
        (edit("dataset.toml", "name = ", "name "), "expected TOML"),
        (edit("dataset.toml", '"marks"', '"celeba"'), "the name celeba is another data set's"),
        (edit("dataset.toml", '"marks"', '"../x"'), "name must be of a to z"),
        (edit("dataset.toml", "marks.csv", "other.csv"), r"its table .*other\.csv isn't there"),
        (edit("dataset.toml", '"colour"', '"hue"'), "unknown column of attribute ink 'hue'"),
        (edit("dataset.toml", '"dark"]', '"black"]'), "expected colour to be pale, black; seen"),
        (edit("dataset.toml", "0.25", "0.5"), "bias needs attributes and one share"),
        (edit("dataset.toml", '["shape", "ink"]', '["shape", "age"]'), "unknown attribute 'age'"),
        (edit("dataset.toml", 'a = "pool"', 'a = "pond"'), "expected part to be .*seen 'a'"),
        (edit("dataset.toml", "disc = ", "disk = "), "unknown level of shape 'disk'"),
        (edit("dataset.toml", '"pictures"', '"images"'), "no such folder of images"),
        (
            edit("marks.csv", "which,shape,colour", "which,shape,shape"),
            "several columns are called",
        ),
        (edit("marks.csv", "x/0.jpg", "x/999.jpg"), r"1 of 60 images of marks\.csv are missing"),
        (edit("marks.csv", "x/0.jpg", "y/1.jpg"), "has two rows"),
        (edit("marks.csv", "x/0.jpg", "1.jpg"), "several rows mean the same file"),
        (lambda root: (root / "pictures/x/0.jpg").write_bytes(b"<html>"), "can't be used"),
        (lambda root: (root / "marks.csv").write_bytes(b"<!DOCTYPE html>"), "web page"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message, own_cache):
    declared(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        get_dataset("folder", tmp_path).prepare(Reporter())
    assert "\n" not in str(caught.value)
    assert not list(own_cache.glob("data/*"))


def test_names_are_those_of_files_however_they_are_written(tmp_path):
    draw(tmp_path, ["Zoë é.png", unicodedata.normalize("NFD", "é/ñandú.png"), "c.png", "d.png"])
    rows = [unicodedata.normalize("NFD", "Zoë é.png"), "é/ñandú.png", f"{tmp_path}/c.png", "./d"]
    table = "".join(f'"{name}",{i % 2}\n' for i, name in enumerate(rows))
    (tmp_path / "labels.csv").write_text("file,ink\n" + table)
    dataset = prepared(tmp_path)
    assert sorted(dataset.index.places) == sorted(
        ["Zoë é.png", unicodedata.normalize("NFD", "é/ñandú.png"), "c.png", "d.png"]
    )


def test_the_image_that_makes_all_small_is_named(tmp_path):
    draw(tmp_path, ["a.png", "b.png", "c.png"], ((60, 50), (70, 12), (64, 64)))
    (tmp_path / "labels.csv").write_text("file,ink\na,0\nb,1\nc,1\n")
    (note,) = [one for one in prepared(tmp_path).notes() if "pixels a side" in one]
    assert "12 pixels a side because b.png is that small, others have up to 64" in note


def test_levels_that_differ_by_case_alone_are_refused(tmp_path):
    draw(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "labels.csv").write_text("file,ink\na,Dark\nb,dark\nc,pale\n")
    line = get_dataset("folder", tmp_path).lacking()
    assert "'Dark' and 'dark' of attribute ink differ by their case alone" in line
    (tmp_path / "dataset.toml").write_text('[attributes.ink.values]\nDark = "dark"\n')
    assert prepared(tmp_path).attributes == {"ink": ("dark", "pale")}


def test_names_that_mean_two_files_are_refused(tmp_path):
    draw(tmp_path, [f"{split}/{i}.png" for split in SPLITS for i in range(3)])
    table = tmp_path / "labels.csv"
    table.write_text("file,ink\n0.png,pale\n1.png,dark\n2.png,dark\n")
    with pytest.raises(InputError, match=r"3 names, such as '0.png', are those of several files"):
        get_dataset("folder", tmp_path).prepare(Reporter())
    table.write_text("file,ink\n" + "".join(f"{s}/{i},{i}\n" for s in SPLITS for i in range(3)))
    dataset = prepared(tmp_path)  # suffixes may be left out
    assert len(dataset.split("evaluation")) == 9
    assert any("no column split" in note for note in dataset.notes())


def test_a_column_that_is_no_attribute_is_refused(tmp_path):
    count = 30
    draw(tmp_path, [f"{i}.png" for i in range(count)])
    rows = "".join(f"{i}.png,{i}-Jan\n" for i in range(count))  # a spreadsheet's idea of ages
    (tmp_path / "labels.csv").write_text("file,age\n" + rows)
    line = get_dataset("folder", tmp_path).lacking()
    assert "column age has 30 values, expected at most 20" in line
    rows = "".join(f"{i}.png,{'' if i == 7 else i % 2}\n" for i in range(count))
    (tmp_path / "labels.csv").write_text("file,glasses\n" + rows)
    assert "row 8: column glasses is empty" in get_dataset("folder", tmp_path).lacking()


def test_a_folder_without_a_table_says_what_to_put_there(tmp_path):
    assert "neither --data-root nor FAIRBENCH_DATA" in get_dataset("folder").lacking()
    line = get_dataset("folder", tmp_path).lacking()
    assert "no dataset.toml and no table of labels" in line
    assert "labels.csv with the columns file, split" in line
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("file,x\n")
    assert "several tables (a.csv, b.csv)" in get_dataset("folder", tmp_path).lacking()
    assert "no such folder or file" in get_dataset("folder", tmp_path / "gone").lacking()
