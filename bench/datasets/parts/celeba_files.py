"""CelebA's files as users have them: where they lie, what they say, what is wrong with them.

Four layouts: torchvision's folder, the ``Anno/ Eval/ Img/`` of the project's own drive, Kaggle's
CSVs, and parquet with an image column and one column an attribute. Files are found by what they
are called at any depth that these layouts have. Labels are joined to images by file name, never
by row number; identities, boxes and landmarks aren't read.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.datasets.parts.index import Found, stamps
from fairbench.datasets.parts.pictures import ROW, image_column
from fairbench.datasets.parts.problems import DataError
from fairbench.datasets.parts.tables import (
    NAME_COLUMNS,
    LabelTable,
    is_web_page,
    read_table,
    stem_of,
)

__all__ = ["COLUMNS", "HOME", "IMAGES", "PARTITIONS", "Tree", "find_tree", "read_tree", "steps"]

COLUMNS: Mapping[str, tuple[str, tuple[str, str]]] = MappingProxyType(
    {
        "gender": ("Male", ("male", "female")),
        "black_hair": ("Black_Hair", ("yes", "no")),
        "eyeglasses": ("Eyeglasses", ("yes", "no")),
        "age": ("Young", ("young", "old")),
    }
)
"""Attribute -> its column in the official table, and what 1 and -1 stand for."""

PARTITIONS = ("train", "validation", "test")
"""What 0, 1 and 2 of the official partition stand for."""

IMAGES = 202_599
"""Of the official set."""

HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"

SIZE = (178, 218)
SIDE = 178
SIZES = (64, 128, 256)

MD5 = MappingProxyType(
    {
        "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
        "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
    }
)
"""Of the published files, as torchvision's ``datasets/celeba.py`` states them."""

DEPTH = 5
GLANCE = 100
"""Images of a folder after which a first look goes on elsewhere."""

PICTURE = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
ATTRIBUTES_FILE = re.compile(r"list_attr_celeba.*\.(txt|csv|parquet)$", re.IGNORECASE)
PARTITION_FILE = re.compile(r"list_eval_partition.*\.(txt|csv|parquet)$", re.IGNORECASE)
OWN_FOLDER = re.compile(r"celeba([-_]?(dataset|faces|attrs?|parquet))?", re.IGNORECASE)
ARCHIVE = re.compile(r"\.(zip|7z|7z\.\d+)$", re.IGNORECASE)
SPLIT_WORD = re.compile(
    r"(?:^|[^a-z])(train|validation|valid|val|test)(?:[^a-z]|$)", re.IGNORECASE
)

SPLIT_NAMES = {
    **{"0": "train", "1": "validation", "2": "test"},
    **{"train": "train", "training": "train", "test": "test"},
    **{"validation": "validation", "valid": "validation", "val": "validation"},
}
ATTRIBUTE_NAMES = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs"),
    *("Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair"),
    *("Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair"),
    *("Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline"),
    *("Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings"),
    *("Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young"),
)
"""Of upstream's text, in its order: what a table without a header has."""


@dataclass
class Tree:
    """What lies below a root.

    Attributes:
        root: Where it was looked.
        attributes: Tables of attributes.
        partitions: Tables of the official partition.
        folders: Folders with pictures.
        parquets: Parquet files.
        archives: Archives that weren't unpacked.
    """

    root: Path
    attributes: list[Path] = field(default_factory=list)
    partitions: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    parquets: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)

    def lacking(self) -> list[str]:
        """What isn't there at all; one line each."""
        if self.parquets and not self.folders:
            return []
        found = []
        if not self.folders:
            found.append(
                f"no folder of pictures (img_align_celeba/ with {IMAGES:,} .jpg)"
                + "".join(f"; {what_archive(path)}" for path in self.archives[:3])
            )
        above = {path.name for path in self.root.resolve().parent.glob("list_*")}
        for files, pattern, name in (
            (self.attributes, ATTRIBUTES_FILE, "list_attr_celeba"),
            (self.partitions, PARTITION_FILE, "list_eval_partition"),
        ):
            if not files:
                there = sorted(filter(pattern.search, above))
                hint = f" ({there[0]} lies one folder higher: give that folder)" if there else ""
                found.append(f"no {name}.txt or {name}.csv{hint}")
        return found


def steps(root: Path | None) -> list[str]:
    """What to do to get the files; one line each."""
    place = "PATH" if root is None else str(root)
    return [
        f"get img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt at {HOME} "
        "(agree to its terms: non-commercial research, no copies), or a parquet copy",
        f"unzip img_align_celeba.zip into {place}/celeba and put both lists beside the folder",
        f"run: fairbench data prepare celeba --data-root {place}",
    ]


def what_archive(path: Path) -> str:
    """What an archive is that lies where an unpacked folder should."""
    if is_web_page(path):
        return (
            f"{path} holds a web page saved as an archive (a download's quota or sign-in page): "
            "delete it and get it again"
        )
    if path.suffix.lower() == ".zip" and not zipfile.is_zipfile(path):
        return f"{path} is no complete zip archive: delete it and get it again"
    return f"{path} isn't unpacked: unpack it where it lies"


# --- finding -------------------------------------------------------------------------------


def find_tree(root: Path) -> Tree:
    """Look for CelebA's files below a folder; no file is opened, and few pictures are listed.

    Raises:
        DataError: If there is no such folder.
    """
    if not root.is_dir():
        seen = "a file" if root.exists() else "nothing"
        raise DataError(
            [f"--data-root {root}: expected the folder of CelebA's files, seen {seen} there"],
            steps(None),
        )
    tree = Tree(root)
    # Beside a folder of that name may lie other data sets, with pictures and tables of their own.
    own = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and OWN_FOLDER.fullmatch(path.name)
    ]
    for folder in own:
        _walk(folder, tree, 1)
    if not own or tree.lacking() or not (tree.folders or tree.parquets):
        tree = Tree(root)
        _walk(root, tree, 0)
    for found in (tree.attributes, tree.partitions):
        # Upstream's own text first: it states its number of rows.
        found.sort(key=lambda path: (path.suffix.lower() != ".txt", path.name.lower(), str(path)))
    tree.folders.sort(key=lambda path: ("png" in path.name.lower(), str(path)))
    aligned = [path for path in tree.folders if "align" in path.relative_to(root).as_posix()]
    tree.folders = aligned or tree.folders  # img_celeba/ has the same names, in the wild
    tree.parquets.sort()
    tree.archives.sort()
    return tree


def _walk(folder: Path, tree: Tree, depth: int) -> None:
    pictures, below = 0, []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if PICTURE.search(entry.name):
                    pictures += 1
                    if pictures >= GLANCE:
                        break
                elif entry.is_dir():
                    below.append(Path(entry.path))
                else:
                    _file(Path(entry.path), tree)
    except OSError as error:
        raise InputError(
            f"{folder}: can't be listed ({error.strerror}); make it readable"
        ) from error
    if pictures:
        tree.folders.append(folder)
    for one in sorted(below) if depth < DEPTH else ():
        _walk(one, tree, depth + 1)


def _file(path: Path, tree: Tree) -> None:
    name = path.name
    if ATTRIBUTES_FILE.search(name):
        tree.attributes.append(path)
    elif PARTITION_FILE.search(name):
        tree.partitions.append(path)
    elif name.lower().endswith(".parquet"):
        tree.parquets.append(path)
    elif ARCHIVE.search(name):
        tree.archives.append(path)


# --- reading -------------------------------------------------------------------------------


def read_tree(root: Path) -> Found:
    """What CelebA's tables say of the pictures below a folder.

    Raises:
        DataError: With all that is wrong, as far as it can be seen without opening a picture.
    """
    tree = find_tree(root)
    problems = tree.lacking()
    if tree.parquets and not tree.folders:
        return _read_parquets(tree)
    attributes = _table(problems, tree.attributes, [column for column, _ in COLUMNS.values()])
    partition = _table(problems, tree.partitions, ["partition"])
    rows: dict[str, int] = {}
    if attributes is not None and partition is not None:
        rows = _same_rows(problems, tree, attributes, partition)
    files: dict[str, str] = {}
    notes: list[str] = []
    if tree.folders and rows:
        files = _match(problems, notes, tree, rows)
    if problems or attributes is None or partition is None:
        raise DataError(problems, steps(root))
    stems = sorted(rows)
    try:
        labels = {
            name: _levels(tree.attributes[0], attributes.columns[column], values)
            for name, (column, values) in COLUMNS.items()
        }
        places = {stem_of(name): i for i, name in enumerate(partition.names)}
        splits = _splits(tree.partitions[0], partition.columns["partition"])
    except InputError as error:
        raise DataError([str(error)], steps(root)) from None
    order = np.array([rows[stem] for stem in stems])
    watched = [tree.attributes[0], tree.partitions[0]]
    watched += sorted({(root / place).parent for place in files.values()})
    return Found(
        root,
        stems,
        [files[stem] for stem in stems],
        [splits[places[stem]] for stem in stems],
        {name: values[order] for name, values in labels.items()},
        stamps(root, watched),
        SIZES,
        (SIZE, (SIDE, SIDE)),
        (*notes, *_passed_over(tree), *_origin(tree, len(stems))),
    )


def _passed_over(tree: Tree) -> list[str]:
    """A note on tables that lie beside those that were read."""
    return [
        f"read {used}, passed over {', '.join(path.name for path in others[:3])}"
        for used, *others in (tree.attributes, tree.partitions)
        if others
    ]


def _table(problems: list[str], paths: Sequence[Path], wanted: Sequence[str]) -> LabelTable | None:
    """The first of several tables that can be read; what is wrong with it joins the problems."""
    default = ATTRIBUTE_NAMES if len(wanted) > 1 else wanted
    for path in paths[:1]:
        try:
            return read_table(path, wanted, default=default)
        except InputError as error:
            other = f" ({paths[1]} lies there, too: delete the bad one)" if paths[1:] else ""
            problems.append(f"{error}{other}")
    return None


def _same_rows(
    problems: list[str], tree: Tree, attributes: LabelTable, partition: LabelTable
) -> dict[str, int]:
    """Name without suffix -> row of the attributes; the partition must have the same names."""
    rows = {stem_of(name): i for i, name in enumerate(attributes.names)}
    if len(rows) < len(attributes.names):
        problems.append(f"{tree.attributes[0]}: some names differ by their suffix only; keep one")
    split = {stem_of(name) for name in partition.names}
    if rows.keys() != split:
        lost, more = sorted(split - rows.keys()), sorted(rows.keys() - split)
        problems.append(
            f"{tree.attributes[0]} and {tree.partitions[0]} list different images: "
            + " and ".join(
                f"{len(names)} only in the {which}, such as {names[0]}"
                for which, names in (("second", lost), ("first", more))
                if names
            )
            + "; one is cut or of another copy, get both again"
        )
        return {}
    return rows


def _match(
    problems: list[str], notes: list[str], tree: Tree, rows: Mapping[str, int]
) -> dict[str, str]:
    """Name without suffix -> place of its picture."""
    listed = {folder: _pictures(folder, notes) for folder in tree.folders}
    hits = {folder: len(names.keys() & rows.keys()) for folder, names in listed.items()}
    best = max(tree.folders, key=lambda folder: hits[folder])  # the first of equals
    chosen = {stem: (best / name) for stem, name in listed[best].items()}
    missing = rows.keys() - chosen.keys()
    others = [folder for folder in tree.folders if folder != best]
    if missing and others:
        twice = [folder for folder in others if listed[folder].keys() & chosen.keys()]
        if twice:
            problems.append(
                f"{best} and {twice[0]} hold pictures of the same numbers and neither holds all "
                f"{len(rows)}: they are numbered anew in each folder, so labels can't be joined "
                "to them by name; get the pictures with the names of list_attr_celeba"
            )
            return {}
        for folder in others:
            chosen |= {stem: folder / name for stem, name in listed[folder].items()}
        missing = rows.keys() - chosen.keys()
    strange = chosen.keys() - rows.keys()
    numbered = sorted(stem for stem in strange if stem.isdigit())
    if numbered:
        problems.append(_renumbered(best, numbered, sorted(missing), rows, len(chosen)))
    elif missing:
        first = min(missing)
        problems.append(
            f"{best}: expected {len(rows)} pictures, one for each row of {tree.attributes[0].name}"
            f"; {len(missing)} are missing, such as {first}: the folder was copied or unpacked by "
            "half, copy it again"
            + "".join(f"; {what_archive(path)}" for path in tree.archives[:2])
        )
    if strange and not numbered:
        notes.append(f"passed over {len(strange)} pictures without a row, such as {min(strange)}")
    return {
        stem: chosen[stem].relative_to(tree.root).as_posix()
        for stem in rows.keys() & chosen.keys()
    }


def _renumbered(
    folder: Path,
    numbered: Sequence[str],
    missing: Sequence[str],
    rows: Mapping[str, int],
    count: int,
) -> str:
    """What is said of pictures whose numbers aren't those of the table."""
    values = {int(stem) for stem in rows if stem.isdigit()}
    same = all(int(stem) in values for stem in numbered)
    how = "a numbering of its own"
    if not missing:
        return (
            f"{folder}: {len(numbered)} of {count} pictures have no row, such as {numbered[0]}: "
            "the tables are cut, or those of another copy; get them again"
        )
    if same:
        how = "numbers of another length, as CelebA-HQ's"
    elif min(map(int, numbered)) == 0 and 0 not in values:
        how = "numbers from 0, where the tables count from 1: labels would be shifted by one"
    return (
        f"{folder}: {len(numbered)} pictures have no row, such as {numbered[0]}, and "
        f"{len(missing)} rows no picture, such as {missing[0]}: two numberings ({how}), so labels "
        "can't be joined by name; get the pictures with the names of list_attr_celeba"
    )


def _pictures(folder: Path, notes: list[str]) -> dict[str, str]:
    """Name without suffix -> file; of a .jpg and a .png of one name the .jpg, upstream's own."""
    found: dict[str, str] = {}
    twice = 0
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if PICTURE.search(entry.name) and not entry.name.startswith(".")
        )
    for name in names:  # .jpg sorts before .png
        stem = stem_of(name)
        if stem in found:
            twice += 1
            if not name.lower().endswith(".png"):
                found[stem] = name
        else:
            found[stem] = name
    if twice:
        notes.append(f"{folder}: {twice} pictures lie there as .jpg and .png; the .jpg is taken")
    return found


def _levels(path: Path, cells: Sequence[str], values: tuple[str, str]) -> NDArray[np.uint8]:
    """(N,) index of each cell's level, in the declared order; see `declared`."""
    signs = {"1": 1, "1.0": 1, "true": 1, "-1": 0, "-1.0": 0, "0": 0, "0.0": 0, "false": 0}
    ways = {cell.strip().lower() for cell in set(cells)}
    strange = sorted(ways - signs.keys())
    if strange:
        raise InputError(
            f"{path}: expected -1 and 1, 0 and 1, or true and false; seen {strange[0]!r} "
            f"(row {[c.strip().lower() for c in cells].index(strange[0]) + 1}); get the file again"
        )
    if ways & {"-1", "-1.0"} and ways & {"0", "0.0", "false"}:
        raise InputError(
            f"{path}: a column holds both -1 and 0, so it isn't known what 0 means; get the file "
            "again"
        )
    order = declared(values)
    yes, no = order.index(values[0]), order.index(values[1])
    of = {cell: yes if signs[cell.strip().lower()] else no for cell in set(cells)}
    return np.fromiter((of[cell] for cell in cells), np.uint8, len(cells))


def declared(values: tuple[str, str]) -> tuple[str, str]:
    """The levels of a column in their declared order: of Male, female comes first."""
    return (values[1], values[0]) if values[0] == "male" else values


def _splits(path: Path, cells: Sequence[str]) -> list[str]:
    known = {cell: SPLIT_NAMES.get(cell.strip().lower().removesuffix(".0")) for cell in set(cells)}
    for cell, name in known.items():
        if name is None:
            raise InputError(
                f"{path}: expected 0, 1 or 2 (train, validation, test); seen {cell!r}; get the "
                "file again"
            )
    return [str(known[cell]) for cell in cells]


def _origin(tree: Tree, count: int) -> Iterator[str]:
    """What is known about where the files come from."""
    if count != IMAGES:
        yield f"{count:,} images; the official set has {IMAGES:,}, so this is a part or a stand-in"
        return
    for path in (tree.attributes[:1] + tree.partitions[:1]) if tree.attributes else []:
        expected = MD5.get(path.name.lower())
        if expected is None:
            yield f"{path.name}: no hash of this file is published; its names and counts agree"
            continue
        with path.open("rb") as file:
            seen = hashlib.file_digest(file, "md5").hexdigest()
        yield f"{path.name}: " + (
            "the published file, by its MD5"
            if seen == expected
            else f"MD5 {seen[:8]}…, published {expected[:8]}…: names and counts agree, its values "
            "can't be checked; line ends alone change the hash"
        )


# --- parquet -------------------------------------------------------------------------------


def _read_parquets(tree: Tree) -> Found:
    """What parquet files say that hold pictures and one column an attribute."""
    problems: list[str] = []
    partition = _table(problems, tree.partitions, ["partition"]) if tree.partitions else None
    by_name = {}
    if partition is not None:
        splits = _splits(tree.partitions[0], partition.columns["partition"])
        by_name = dict(zip(map(stem_of, partition.names), splits, strict=True))
    names: list[str] = []
    places: list[str] = []
    chosen: list[str] = []
    labels: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in COLUMNS}
    used = []
    for path in tree.parquets:
        try:
            part = _parquet(tree, path, by_name)
        except InputError as error:
            problems.append(str(error))
            continue
        if part is None:
            continue
        used.append(path)
        names += part[0]
        chosen += part[1]
        place = path.relative_to(tree.root).as_posix()
        places += [f"{place}{ROW}{row}" for row in range(len(part[0]))]
        for name, values in part[2].items():
            labels[name].append(values)
    if not used and not problems:
        problems.append(f"{tree.root}: no parquet file here has a column of encoded images")
    if problems:
        raise DataError(problems, steps(tree.root))
    notes = []
    if len(set(names)) < len(names):
        # Numbered anew in each file: the labels stand beside the pictures, so nothing is lost.
        notes.append("names in the parquet files come twice; rows are named by their place")
        counts: dict[str, int] = {}
        for i, split in enumerate(chosen):
            names[i] = f"{split}-{counts.setdefault(split, 0):07d}"
            counts[split] += 1
    order = sorted(range(len(names)), key=names.__getitem__)
    return Found(
        tree.root,
        [names[i] for i in order],
        [places[i] for i in order],
        [chosen[i] for i in order],
        {name: np.concatenate(parts)[order] for name, parts in labels.items()},
        stamps(tree.root, [*used, *tree.partitions[:1]]),
        SIZES,
        (SIZE, (SIDE, SIDE)),
        (*notes, *_origin(Tree(tree.root), len(names))),
    )


def _parquet(
    tree: Tree, path: Path, by_name: Mapping[str, str]
) -> tuple[list[str], list[str], dict[str, NDArray[np.uint8]]] | None:
    """Names, splits and labels of one file; None if it holds no pictures."""
    from pyarrow import parquet

    pictures = image_column(path)
    if pictures is None:
        return None
    schema = parquet.read_schema(path)
    lower = {name.lower(): name for name in schema.names}
    lacking = [column for column, _ in COLUMNS.values() if column.lower() not in lower]
    if lacking:
        raise InputError(f"{path}: no column {', '.join(lacking)}; get a copy with the attributes")
    wanted = [lower[column.lower()] for column, _ in COLUMNS.values()]
    said = next((lower[one] for one in ("split", "partition", "subset") if one in lower), None)
    called = [lower[one] for one in NAME_COLUMNS if one in lower and lower[one] != pictures]
    nested = f"{pictures}.path" if _has_paths(schema, pictures) else None
    columns = [*wanted, *called[:1], *filter(None, (said, nested))]
    with parquet.ParquetFile(path) as file:  # which, unlike read_table, keeps the struct
        table = file.read(columns=columns)
    rows = table.num_rows
    if called:
        raw = table[called[0]].to_pylist()
    elif nested:
        raw = [cell.get("path") for cell in table[pictures].to_pylist()]
    else:
        raw = [None] * rows
    place = path.relative_to(tree.root).with_suffix("").as_posix()
    names = [stem_of(str(cell)) if cell else f"{place}-{i:09d}" for i, cell in enumerate(raw)]
    labels = {
        name: _levels(
            path, [str(cell) for cell in table[lower[column.lower()]].to_pylist()], values
        )
        for name, (column, values) in COLUMNS.items()
    }
    if said is not None:
        splits = _splits(path, [str(cell) for cell in table[said].to_pylist()])
    elif word := _split_word(path.relative_to(tree.root)):
        splits = [SPLIT_NAMES[word]] * rows
    elif by_name and all(name in by_name for name in names):
        splits = [by_name[name] for name in names]
    else:
        raise InputError(
            f"{path}: it isn't known whether its rows are train, validation or test: neither the "
            "file's name nor a column split says so; put list_eval_partition.txt beside it"
        )
    return names, splits, labels


def _split_word(path: Path) -> str:
    """The split that a file's name says, else that of its folder; "" if neither does."""
    for text in (path.name, path.parent.as_posix()):
        if word := SPLIT_WORD.search(text):
            return word[1].lower()
    return ""


def _has_paths(schema: object, column: str) -> bool:
    kind = schema.field(column).type  # type: ignore[attr-defined]
    return hasattr(kind, "get_field_index") and kind.get_field_index("path") >= 0
