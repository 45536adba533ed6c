from __future__ import annotations

import gc
import zipfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fairbench.core.errors import AssetError, FairbenchError, InputError
from fairbench.core.progress import Reporter
from fairbench.datasets import celeba
from fairbench.datasets.base import get_dataset
from fairbench.datasets.celeba import ATTRIBUTES, PROFILES, CelebA
from fairbench.datasets.parts.celeba_files import find_tree
from fairbench.datasets.parts.problems import DataError
from fairbench.inputs.resizing import to_square

LAYOUTS = ("torchvision", "drive", "kaggle", "parquet", "png")
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


@pytest.fixture(scope="module")
def common_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cached(common_cache, monkeypatch):
    """What one test prepares of a tree that none changes serves the others."""
    monkeypatch.setenv("FAIRBENCH_CACHE", str(common_cache))


def prepared(root):
    dataset = CelebA(root)
    dataset.prepare(Reporter())
    return dataset


@pytest.fixture(scope="module")
def trees(tmp_path_factory, stand_ins):
    """Layout -> root; not to be changed."""
    found = {}
    for layout in LAYOUTS:
        found[layout] = tmp_path_factory.mktemp(layout)
        stand_ins.make(found[layout], layout)
    return found


@pytest.fixture
def tree(tmp_path, stand_ins):
    """A tree in torchvision's layout that may be damaged: its root, and where its parts are."""
    return tmp_path, *stand_ins.make(tmp_path, "torchvision")


# --- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_labels_and_partition(trees, stand_ins, layout):
    dataset = prepared(trees[layout])
    index = dataset.index
    _, values, partition = stand_ins.faces()
    assert index.names == [f"{i + 1:06d}" for i in range(len(partition))]
    names = np.array(["train", "validation", "test"])
    np.testing.assert_array_equal(index.splits, names[partition])
    np.testing.assert_array_equal(index.labels["gender"] == 1, values["Male"] == 1)
    np.testing.assert_array_equal(index.labels["black_hair"] == 0, values["Black_Hair"] == 1)
    np.testing.assert_array_equal(index.labels["eyeglasses"] == 0, values["Eyeglasses"] == 1)
    np.testing.assert_array_equal(index.labels["age"] == 0, values["Young"] == 1)


def test_layouts_of_the_same_files_are_the_same_data(trees):
    hashes = {layout: prepared(trees[layout]).data_sha256() for layout in LAYOUTS}
    png = hashes.pop("png")  # not the pixels that JPEG keeps
    assert len(set(hashes.values())) == 1
    assert png not in hashes.values()


def test_images_are_the_central_square_resized(trees, stand_ins):
    dataset = prepared(trees["torchvision"])
    for side in (64, 128, 256):
        sized = dataset.sized(side)
        evaluation = sized.split("evaluation")
        rows = np.flatnonzero(stand_ins.faces()[2] == 2)[:3]
        (batch,) = evaluation.take(np.arange(3)).batches(10)
        for i, pixels in zip(rows, batch, strict=True):
            path = trees["torchvision"] / "celeba" / "img_align_celeba" / f"{i + 1:06d}.jpg"
            with Image.open(path) as image:
                np.testing.assert_array_equal(
                    to_square(image.crop((0, 20, 178, 198)), side), pixels
                )
    assert len({dataset.sized(side).data_sha256() for side in (64, 128, 256)}) == 3
    assert [dataset.sized(side).side for side in (None, 32, 65, 512)] == [256, 64, 128, 256]


def test_pictures_come_in_any_order_and_their_hashes_are_known(trees):
    for layout in ("torchvision", "parquet"):
        source = prepared(trees[layout]).sized(64).split("pool")
        order = np.random.default_rng(3).permutation(len(source))
        shuffled = source.take(order)
        whole = np.concatenate(list(source.batches(7)))
        np.testing.assert_array_equal(np.concatenate(list(shuffled.batches(16))), whole[order])
        assert shuffled.listing.sha256 == type(source.listing).of(whole[order]).sha256


def test_the_index_is_written_once_and_made_anew_when_files_change(tree, own_cache):
    root, pictures, attributes, _ = tree
    prepared(root)
    (index,) = own_cache.glob("data/celeba-*.parquet")
    before = index.stat().st_mtime_ns
    prepared(root)
    assert index.stat().st_mtime_ns == before
    attributes.write_text(attributes.read_text().replace("000001.jpg", "000001.png"))
    with pytest.raises(InputError, match="have changed since"):
        CelebA(root).data_sha256()
    prepared(root)
    assert index.stat().st_mtime_ns != before
    # The same name with other bytes: seen when the picture is read.
    source = prepared(root).split("evaluation")
    path = root / source.index.places[source.rows[0]]
    path.write_bytes((pictures / "000002.jpg").read_bytes()[:600])
    with pytest.raises(FairbenchError, match=r"has changed since|can't be read"):
        list(source.batches(8))
    # A run trusts the index, `data prepare` doesn't.
    prepared(root)
    with pytest.raises(InputError, match="1 of 160 images can't be used"):
        CelebA(root).prepare(Reporter(), anew=True)
    assert not index.exists()
    path.unlink()
    with pytest.raises(AssetError, match="run fairbench data prepare again"):
        list(source.batches(8))


def test_an_interrupted_or_damaged_index_is_made_again(tree, own_cache):
    prepared(tree[0])
    (index,) = own_cache.glob("data/*")
    index.write_bytes(index.read_bytes()[:500])
    assert len(prepared(tree[0]).split("evaluation")) > 0
    assert [path.name for path in own_cache.glob("data/*")] == [index.name]


# --- splits ---------------------------------------------------------------------------------


def test_roles_are_disjoint_and_follow_the_partition(trees):
    dataset = prepared(trees["kaggle"])
    rows = {role: set(dataset.split(role).rows.tolist()) for role in dataset._rows}
    assert sum(map(len, rows.values())) == len(set().union(*rows.values())) == 160
    splits = dataset.index.splits
    assert {*splits[list(rows["pool"] | rows["method_reference"])]} == {"train"}
    assert {*splits[list(rows["judge"])]} == {"validation"}
    assert {*splits[list(rows["evaluation"])]} == {"test"}


def test_the_reference_set_is_balanced_in_any_leading_part(trees):
    dataset = prepared(trees["drive"])
    reference = dataset.split("method_reference")
    cells = reference.labels["gender"] * 2 + reference.labels["black_hair"]
    pool = dataset.split("pool")
    smallest = np.bincount(
        np.concatenate([cells, pool.labels["gender"] * 2 + pool.labels["black_hair"]])
    ).min()
    np.testing.assert_array_equal(np.bincount(cells), [smallest // 2] * 4)
    np.testing.assert_array_equal(np.bincount(cells[:8]), [2] * 4)


def test_profiles_have_their_shares(trees):
    dataset = prepared(trees["torchvision"])
    biased = dataset.training_set("biased")
    share = np.mean(biased.labels["gender"] == ATTRIBUTES["gender"].index("female"))
    assert abs(share - 0.9) <= 1 / len(biased)
    assert set(biased.rows) <= set(dataset.split("pool").rows)
    table = PROFILES["gender_black_hair"].shares
    assert table[0, 1] == 0.465
    assert table[1, 1] == 0.296
    assert table[0, 0] == 0.115
    assert table[1, 0] == 0.124
    assert ATTRIBUTES["black_hair"] == ("yes", "no")
    even = dataset.training_set("balanced")
    cells = np.bincount(even.labels["gender"] * 2 + even.labels["black_hair"], minlength=4)
    assert cells.max() - cells.min() <= 1


# --- tasks and judges -----------------------------------------------------------------------


def test_prompts_are_those_of_the_contract():
    dataset = get_dataset("celeba")
    task = dataset.task("gender_black_hair", conditional=True)
    assert task.prompts[0].text == "a photo of the face of a person"
    assert task.groups == ("female/yes", "female/no", "male/yes", "male/no")
    said = task.prompts[0].naming(task.group_phrases(1))
    assert said == "a photo of the face of a female person without black hair"
    glasses = dataset.task("eyeglasses", conditional=True)
    assert glasses.prompts[0].naming(glasses.group_phrases(0)).endswith("a person wearing glasses")
    assert [spec.name for spec in dataset.tasks] == [
        *("gender", "black_hair", "eyeglasses", "age", "gender_black_hair", "gender_age")
    ]
    assert dataset.task("age", conditional=False).prompts[0].text == ""


# --- damage ---------------------------------------------------------------------------------


def rewrite(path, change):
    path.write_text(change(path.read_text()))


def replace_line(path, number, change):
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines) + "\n")


def quota_page_as_zip(root, pictures, attributes, partition):
    pictures.rename(root / "elsewhere.txt")
    (root / "celeba" / "img_align_celeba.zip").write_bytes(PAGE)
    for path in (root / "elsewhere.txt").iterdir():
        path.unlink()


def not_unpacked(root, pictures, attributes, partition):
    with zipfile.ZipFile(pictures.with_suffix(".zip"), "w") as archive:
        archive.write(pictures / "000001.jpg", "img_align_celeba/000001.jpg")
    for path in pictures.iterdir():
        path.unlink()


def cut_zip(root, pictures, attributes, partition):
    not_unpacked(root, pictures, attributes, partition)
    path = pictures.with_suffix(".zip")
    path.write_bytes(path.read_bytes()[:2000])


def numbered_from_0(root, pictures, attributes, partition):
    for path in sorted(pictures.iterdir()):
        path.rename(pictures / f"{int(path.stem) - 1:06d}.jpg")


def numbered_as_hq(root, pictures, attributes, partition):
    for path in sorted(pictures.iterdir()):
        path.rename(pictures / f"{int(path.stem)}.jpg")


def numbered_anew(root, pictures, attributes, partition):
    paths = sorted(pictures.iterdir())
    for split, part in (("train", paths[:100]), ("val", paths[100:])):
        (pictures / split).mkdir()
        for i, path in enumerate(part):
            path.rename(pictures / split / f"{i + 1:06d}.jpg")


DAMAGES = {
    "quota page as zip": (quota_page_as_zip, r"img_align_celeba\.zip holds a web page"),
    "zip not unpacked": (not_unpacked, r"img_align_celeba\.zip isn't unpacked"),
    "zip cut": (cut_zip, "no complete zip"),
    "quota page as attributes": (
        lambda root, p, a, e: a.write_bytes(PAGE),
        r"list_attr_celeba\.txt.*web page",
    ),
    "half-copied folder": (
        lambda root, p, a, e: [path.unlink() for path in sorted(p.iterdir())[80:]],
        "expected 160 pictures.*80 are missing, such as 000081.*copied or unpacked by half",
    ),
    "truncated picture": (
        lambda root, p, a, e: (p / "000007.jpg").write_bytes(
            (p / "000007.jpg").read_bytes()[:900]
        ),
        r"1 of 160 images can't be used, such as .*000007\.jpg",
    ),
    "empty picture": (
        lambda root, p, a, e: (p / "000009.jpg").write_bytes(b""),
        r"000009\.jpg: expected a complete image, seen an empty file",
    ),
    "a folder called as a picture": (
        lambda root, p, a, e: [(p / "000011.jpg").unlink(), (p / "000011.jpg").mkdir()],
        r"1 of 160 images can't be used, such as .*000011\.jpg: Is a directory; copy these files",
    ),
    "a link to nowhere": (
        lambda root, p, a, e: [
            (p / "000011.jpg").unlink(),
            (p / "000011.jpg").symlink_to(root / "gone.jpg"),
            (p / "000013.jpg").write_bytes(b"x"),
        ],
        r"2 of 160 images can't be used, such as .*000011\.jpg: No such file",
    ),
    "another size": (
        lambda root, p, a, e: Image.new("RGB", (409, 687)).save(p / "000005.jpg"),
        r"000005\.jpg: expected 178x218 or 178x178 pixels, seen 409x687",
    ),
    "numbered from 0": (numbered_from_0, "two numberings .*labels would be shifted by one"),
    "numbered as CelebA-HQ": (numbered_as_hq, "two numberings .*CelebA-HQ"),
    "numbered anew in each folder": (numbered_anew, "numbered anew in each folder"),
    "attributes cut": (
        lambda root, p, a, e: rewrite(a, lambda text: text[: len(text) // 2].rpartition("\n")[0]),
        "first line states 160 rows, seen 7",
    ),
    "a line cut": (
        lambda root, p, a, e: replace_line(a, 20, lambda line: line[:40]),
        "line 21: expected 41 cells",
    ),
    "partition cut": (
        lambda root, p, a, e: rewrite(e, lambda text: "\n".join(text.split("\n")[:100])),
        "list different images: 60 only in the first, such as 000101",
    ),
    "a column gone": (
        lambda root, p, a, e: rewrite(a, lambda text: text.replace(" Male ", " Sex ")),
        "seen no Male",
    ),
    "a value of 2": (
        lambda root, p, a, e: replace_line(a, 30, lambda line: line.replace(" 1", " 2")),
        "expected -1 and 1, 0 and 1, or true and false; seen '2'",
    ),
    "-1 and 0": (
        lambda root, p, a, e: replace_line(a, 30, lambda line: line.replace("-1", " 0")),
        "both -1 and 0",
    ),
    "a row twice": (
        lambda root, p, a, e: replace_line(a, 12, lambda line: "000003" + line[6:]),
        r"'000003\.jpg' has two rows",
    ),
    "a partition of 3": (
        lambda root, p, a, e: replace_line(e, 12, lambda line: line[:-1] + "3"),
        "expected 0, 1 or 2 .*seen '3'",
    ),
    "UTF-16": (
        lambda root, p, a, e: a.write_bytes(a.read_text().encode("utf-16")),
        "expected text in UTF-8",
    ),
    "no partition": (lambda root, p, a, e: e.unlink(), r"no list_eval_partition\.txt or"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tree, damage, own_cache):
    change, message = DAMAGES[damage]
    change(*tree)
    warned = []
    with pytest.raises(InputError, match=message) as caught:
        CelebA(tree[0]).prepare(Reporter(warn=warned.append))
    assert "\n" not in str(caught.value)
    assert "data prepare" in str(caught.value)  # what to type
    assert not list(own_cache.glob("data/*"))


def test_every_problem_is_named_at_once(tree):
    root, _, attributes, partition = tree
    attributes.write_bytes(PAGE)
    partition.write_bytes(PAGE)
    with pytest.raises(DataError) as caught:
        CelebA(root).prepare(Reporter())
    assert len(caught.value.problems) == 2
    assert len(caught.value.steps) == 3


def test_what_needn_t_be_there_isn_t_asked_for(tree):
    root, pictures, attributes, _ = tree
    (pictures / "Thumbs.db").write_bytes(b"x")
    (pictures / "._000001.jpg").write_bytes(b"x")
    (pictures / "sheet of contacts.jpg").write_bytes(b"x")
    for i in (3, 4):  # both kinds of one picture: upstream's own is taken
        Image.new("RGB", (178, 218)).save(pictures / f"{i:06d}.png")
    attributes.write_text(attributes.read_text().partition("\n")[2])  # no count
    dataset = prepared(root)
    assert dataset.index.places[2].endswith("000003.jpg")
    assert any("2 pictures lie there as .jpg and .png" in note for note in dataset.notes())
    assert any("official set has 202,599" in note for note in dataset.notes())


def test_tables_that_were_passed_over_are_told(tree):
    root, _, attributes, _ = tree
    other = attributes.with_suffix(".csv")
    other.write_text(attributes.read_text().replace("-1", "0"))
    notes = prepared(root).notes()
    assert any(f"read {attributes}, passed over {other.name}" == note for note in notes)


def test_labels_follow_names_whatever_the_order_of_the_rows(tree, stand_ins):
    root, _, attributes, partition = tree
    head, *rows = attributes.read_text().splitlines()[1:]
    attributes.write_text("\n".join(["160", head, *reversed(rows)]))
    lines = partition.read_text().splitlines()
    partition.write_text(
        "image_id,partition\n" + "\n".join(sorted(lines, key=lambda t: t[5])).replace(" ", ",")
    )
    index = prepared(root).index
    _, values, splits = stand_ins.faces()
    np.testing.assert_array_equal(index.labels["gender"] == 1, values["Male"] == 1)
    np.testing.assert_array_equal(index.splits == "test", splits == 2)


def test_pictures_in_the_wild_and_files_one_folder_higher(tree):
    root, pictures, _, _ = tree
    wild = root / "celeba" / "img_celeba"
    wild.mkdir()
    Image.new("RGB", (409, 687)).save(wild / "000001.jpg")
    assert len(prepared(root).index) == 160
    (pictures / "000001.jpg").unlink()
    with pytest.raises(InputError, match="1 are missing, such as 000001"):
        CelebA(root).prepare(Reporter())
    line = CelebA(pictures).lacking()
    assert "list_attr_celeba.txt lies one folder higher: give that folder" in line


def test_other_data_sets_may_lie_beside_it(tmp_path, stand_ins):
    stand_ins.make(tmp_path / "celeba", "parquet", 40)
    other = tmp_path / "a_set"
    other.mkdir()
    Image.new("RGB", (178, 218)).save(other / "000001.jpg")
    (other / "list_attr_celeba.csv").write_text("someone else's")
    assert len(prepared(tmp_path).index) == 40


def test_parquet_numbered_anew_in_each_file_loses_nothing(tmp_path, stand_ins):
    stand_ins.make(tmp_path, "parquet")
    for path in (tmp_path / "data").iterdir():
        table = parquet.read_table(path)
        cells = table["image"].to_pylist()
        renamed = [{"bytes": one["bytes"], "path": f"{i}.jpg"} for i, one in enumerate(cells)]
        position = table.schema.get_field_index("image")
        parquet.write_table(table.set_column(position, "image", pyarrow.array(renamed)), path)
    dataset = prepared(tmp_path)
    _, values, partition = stand_ins.faces()
    evaluation = dataset.split("evaluation")
    np.testing.assert_array_equal(
        evaluation.labels["gender"] == 1, values["Male"][partition == 2] == 1
    )
    del dataset, evaluation
    gc.collect()


def test_parquet_of_an_unknown_split_is_refused(tmp_path, stand_ins):
    stand_ins.make(tmp_path, "parquet")
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.rename(path.with_name("celeba.parquet"))
    with pytest.raises(InputError, match=r"celeba\.parquet: it isn't known whether"):
        CelebA(tmp_path).prepare(Reporter())
    path.with_name("celeba.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="expected parquet"):
        CelebA(tmp_path).prepare(Reporter())


def test_a_root_without_the_files_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.delenv("FAIRBENCH_DATA", raising=False)
    assert "neither --data-root nor FAIRBENCH_DATA" in get_dataset("celeba").lacking()
    monkeypatch.setenv("FAIRBENCH_DATA", str(tmp_path))
    line = get_dataset("celeba").lacking()
    assert f"looked in {tmp_path}" in line
    assert "no list_attr_celeba.txt or list_attr_celeba.csv" in line
    assert "expected the folder" in get_dataset("celeba", tmp_path / "gone").lacking()
    with pytest.raises(InputError, match="leave --data-root out"):
        get_dataset("cartoonfaces", tmp_path)
    assert get_dataset("cartoonfaces").lacking() == ""


def test_a_first_look_doesn_t_list_every_picture(tree, monkeypatch):
    monkeypatch.setattr(celeba.files, "GLANCE", 1)
    assert find_tree(tree[0]).lacking() == []
