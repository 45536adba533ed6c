"""A data set that a file of the user's declares: which images, which labels, how they are said.

The file is ``dataset.toml`` in the folder of the images; without one the folder's only table of
labels says all that is needed, and everything else has its default.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fairbench.core.documents import content, from_toml
from fairbench.core.errors import InputError, unknown_name
from fairbench.core.prompts import Phrase
from fairbench.datasets.parts.index import Found, stamps
from fairbench.datasets.parts.pictures import ROW, attempted, image_column
from fairbench.datasets.parts.problems import DataError
from fairbench.datasets.parts.tables import NAME_COLUMNS, LabelTable, read_table, stem_of
from fairbench.inputs.sources import SUFFIXES, natural

__all__ = ["FILE", "ROLES", "Declared", "declare", "find_images"]

FILE = "dataset.toml"
ROLES: Mapping[str, str] = {
    **{role: role for role in ("pool", "method_reference", "judge", "evaluation")},
    **{"train": "pool", "training": "pool", "test": "evaluation"},
    **{"val": "judge", "valid": "judge", "validation": "judge"},
}
"""What a cell of the split column may say -> the role that it stands for."""

TABLES = (".csv", ".tsv", ".txt", ".parquet")
MOST_LEVELS = 20
"""Values of a column that is taken for an attribute although no levels are declared."""

LARGEST = 256
"""Pixels a side of images whose size isn't declared, at most."""

GLANCE = 256
"""Images whose sizes are read at once."""

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
LEVEL = re.compile(r"[^/,=]+")

KEYS = {
    "name": str,
    "title": str,
    "licence": str,
    "citation": str,
    "may_publish_images": bool,
    "folder": str,
    "table": str,
    "file_column": str,
    "split_column": str,
    "size": int,
    "subject": str,
    "template": str,
    "sensitive": list,
    "judges": list,
    "encoders": list,
    "validity": str,
    "reference_per_cell": int,
    "training_images": int,
    "attributes": dict,
    "splits": dict,
    "images": dict,
    "tasks": list,
    "bias": dict,
}
ATTRIBUTE_KEYS = {"column": str, "levels": list, "values": dict, "said": dict, "after": bool}
TASK_KEYS = {"name": str, "attributes": list}
BIAS_KEYS = {"attributes": list, "shares": list}


@dataclass(frozen=True, eq=False)
class Declared:
    """What is known of a user's data set before an image is opened.

    Attributes:
        root: The folder that paths are below.
        table: Names and cells of every image.
        source: The file that they come from.
        levels: Attribute -> its levels, in order.
        columns: Attribute -> its column.
        values: Attribute -> what the table says -> the level that it stands for.
        said: Attribute -> level -> how it is said.
        options: The rest of the file.
        content: Hash of the file.
        watched: Files that the index stands and falls with.
    """

    root: Path
    table: LabelTable
    source: Path
    levels: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]
    said: Mapping[str, Mapping[str, Phrase]]
    options: Mapping[str, Any]
    content: str
    watched: tuple[Path, ...]
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in records."""
        return str(self.options["name"])


def _steps(root: Path) -> list[str]:
    return [
        f"put a table of labels into {root}: labels.csv with the columns file, split (pool, judge,"
        " evaluation) and one for each attribute, or dataset.toml as docs/real_data.md shows it",
        f"run: fairbench data prepare folder --data-root {root}",
    ]


def declare(root: Path) -> Declared:
    """Read what a folder, or a file in it, declares.

    Args:
        root: A folder with ``dataset.toml`` or one table of labels, or such a file.

    Raises:
        DataError: If something is missing or wrong.
    """
    file = root / FILE if root.is_dir() else root
    folder = file.parent
    try:
        if not root.exists():
            raise InputError(f"{root}: no such folder or file")
        options = _options(file) if file.suffix == ".toml" and file.is_file() else {}
        if not root.is_dir() and file.suffix != ".toml":
            raise InputError(f"{root}: expected a folder or a .toml file")
        return _declared(folder, file, options)
    except DataError:
        raise
    except InputError as error:
        raise DataError([str(error)], _steps(folder)) from None


def _options(path: Path) -> dict[str, Any]:
    try:
        found = from_toml(content(path))
    except ValueError as error:
        raise InputError(f"{path}: expected TOML, seen {' '.join(str(error).split())}") from error
    _check(path, "", found, KEYS)
    for name, one in found.get("attributes", {}).items():
        if not isinstance(one, dict):
            raise InputError(f"{path}: attributes.{name} must be a table with levels")
        _check(path, f"attributes.{name}.", one, ATTRIBUTE_KEYS)
    for task in found.get("tasks", ()):
        _check(path, "tasks.", task, TASK_KEYS)
    _check(path, "bias.", found.get("bias", {}), BIAS_KEYS)
    return found


def _check(path: Path, where: str, found: Mapping[str, Any], keys: Mapping[str, type]) -> None:
    for key, value in found.items():
        if key not in keys:
            raise InputError(f"{path}: {unknown_name('key', where + key, keys)}")
        if not isinstance(value, keys[key]) or (keys[key] is int and isinstance(value, bool)):
            raise InputError(
                f"{path}: {where}{key} must be a {keys[key].__name__}; seen {value!r}"
            )


def _declared(folder: Path, file: Path, options: dict[str, Any]) -> Declared:
    watched = [file] if options else []
    if "images" in options:
        if "table" in options:
            raise InputError(f"{file}: give table or images, not both")
        source, table = file, _rows_of(file, options["images"])
    else:
        source = _table_path(folder, options)
        watched.append(source)
        table = _read(source, options.get("file_column"))
    split = options.get("split_column", "split")
    attributes = options.get("attributes") or _guessed(source, table, split)
    levels, columns, values, said = {}, {}, {}, {}
    for name, one in attributes.items():
        column = one.get("column", name)
        if column not in table.columns:
            raise InputError(
                f"{source}: {unknown_name(f'column of attribute {name}', column, table.columns)}"
            )
        columns[name] = column
        values[name] = {str(k): str(v) for k, v in one.get("values", {}).items()}
        levels[name] = tuple(map(str, one.get("levels", ()))) or _seen(
            source, column, table.columns[column], values[name]
        )
        _check_levels(file if options else source, name, levels[name])
        said[name] = _phrases(file, name, levels[name], one)
    if not levels:
        raise InputError(f"{source}: expected a column for each attribute, seen none")
    options = {"name": _slug(folder), **options}
    if not NAME.fullmatch(str(options["name"])):
        raise InputError(
            f"{file}: name must be of a to z, digits, _ . and -; seen {options['name']!r}"
        )
    text = file.read_bytes() if file.is_file() and file.suffix == ".toml" else b""
    return Declared(
        folder,
        table,
        source,
        levels,
        columns,
        values,
        said,
        options,
        hashlib.sha256(text).hexdigest(),
        tuple(watched),
        {**ROLES, **{str(k): str(v) for k, v in options.get("splits", {}).items()}},
    )


def _slug(folder: Path) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", folder.resolve().name.lower()).strip("-._") or "folder"


def _table_path(folder: Path, options: Mapping[str, Any]) -> Path:
    if "table" in options:
        path = folder / str(options["table"])
        if not path.is_file():
            raise InputError(f"{folder / FILE}: its table {path} isn't there")
        return path
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES)
    named = [path for path in found if path.stem.lower() == "labels"]
    if len(named or found) == 1:
        return (named or found)[0]
    if not found:
        raise InputError(f"{folder}: no {FILE} and no table of labels (.csv, .tsv or .parquet)")
    raise InputError(
        f"{folder}: several tables ({', '.join(path.name for path in found[:5])}); call the one "
        f"that is meant labels{found[0].suffix}, or name it in {FILE}"
    )


def _rows_of(path: Path, images: Mapping[str, Any]) -> LabelTable:
    """The table that the file itself holds: one table of cells an image."""
    columns = sorted({key for one in images.values() for key in one})
    cells: dict[str, list[str]] = {column: [] for column in columns}
    for name, one in images.items():
        for column in columns:
            if column not in one:
                raise InputError(f"{path}: images.{name!r} says nothing of {column}")
            cells[column].append(str(one[column]))
    return LabelTable(list(images), cells)


def _read(path: Path, file_column: str | None) -> LabelTable:
    if path.suffix.lower() == ".parquet" and (pictures := image_column(path)) is not None:
        return _parquet_with_pictures(path, pictures)
    return read_table(path, called=file_column)


def _parquet_with_pictures(path: Path, pictures: str) -> LabelTable:
    """The cells of a table that holds its pictures, too; rows are named by their numbers."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        others = [name for name in schema.names if name != pictures]
        stored = file.read(columns=others)
    cells = {
        name: ["" if cell is None else str(cell) for cell in stored[name].to_pylist()]
        for name in others
    }
    names = [f"{i:09d}" for i in range(stored.num_rows)]
    kept = {name: column for name, column in cells.items() if name.lower() not in NAME_COLUMNS}
    return LabelTable(names, kept)


def _guessed(path: Path, table: LabelTable, split: str) -> dict[str, dict[str, Any]]:
    """Every column of few values is an attribute, where none is declared."""
    found: dict[str, dict[str, Any]] = {}
    for name, cells in table.columns.items():
        if name == split or not name:
            continue
        if len(set(cells)) > MOST_LEVELS:
            raise InputError(
                f"{path}: column {name} has {len(set(cells))} values, expected at most "
                f"{MOST_LEVELS} of an attribute; take it out, put it into bands, or declare the "
                f"attributes in {FILE}"
            )
        found[name] = {}
    return found


def _seen(
    path: Path, column: str, cells: Sequence[str], values: Mapping[str, str]
) -> tuple[str, ...]:
    found = {values.get(cell.strip(), cell.strip()) for cell in cells}
    if "" in found:
        row = [cell.strip() for cell in cells].index("")
        raise InputError(f"{path}: row {row + 1}: column {column} is empty; fill it in")
    return tuple(sorted(found, key=natural))


def _check_levels(path: Path, name: str, levels: Sequence[str]) -> None:
    if len(levels) < 2 or len(set(levels)) < len(levels):
        raise InputError(
            f"{path}: attribute {name} needs two levels or more, each once; seen "
            f"{', '.join(levels) or 'none'}"
        )
    plain = [level.strip().casefold() for level in levels]
    alike = [level for level, one in zip(levels, plain, strict=True) if plain.count(one) > 1]
    if alike:
        raise InputError(
            f"{path}: {' and '.join(map(repr, alike[:2]))} of attribute {name} differ by their "
            f"case alone; write them alike, or say by values in {FILE} what they stand for"
        )
    strange = [level for level in levels if not LEVEL.fullmatch(level)]
    if strange or not LEVEL.fullmatch(name):
        raise InputError(
            f"{path}: names of attributes and levels can't hold / , or =; seen "
            f"{(strange or [name])[0]!r}: declare another name by values in {FILE}"
        )


def _phrases(
    path: Path, name: str, levels: Sequence[str], one: Mapping[str, Any]
) -> dict[str, Phrase]:
    said = {str(level): text for level, text in one.get("said", {}).items()}
    for level in said:
        if level not in levels:
            raise InputError(f"{path}: {unknown_name(f'level of {name}', level, levels)}")
    after = bool(one.get("after", False))
    return {level: Phrase(str(said.get(level, level)), after) for level in levels}


# --- images --------------------------------------------------------------------------------


def find_images(declared: Declared) -> Found:
    """Join the table and the files by name.

    Raises:
        DataError: If an image is missing, a cell is unknown, or a name means two files.
    """
    table, source = declared.table, declared.source
    problems: list[str] = []
    notes: list[str] = []
    labels: dict[str, NDArray[np.uint8]] = {}
    splits: list[str] = []
    for name, levels in declared.levels.items():
        try:
            labels[name] = _indices(declared, name, levels)
        except InputError as error:
            problems.append(str(error))
    try:
        splits = _roles(declared, notes)
    except InputError as error:
        problems.append(str(error))
    places = _places(declared, problems, notes)
    if problems:
        raise DataError(problems, _steps(declared.root))
    size = _size(declared, places, notes)
    order = sorted(range(len(table.names)), key=lambda i: natural(table.names[i]))
    return Found(
        declared.root,
        [table.names[i] for i in order],
        [places[i] for i in order],
        [splits[i] for i in order],
        {name: values[order] for name, values in labels.items()},
        stamps(declared.root, [*declared.watched, *_folders(declared, places)]),
        (size,),
        notes=(*notes, f"labels from {source.name}"),
    )


def _folders(declared: Declared, places: Sequence[str]) -> list[Path]:
    """Folders of the images: a file that is added or taken out changes their time."""
    inside = sorted({PurePosixPath(place).parent for place in places if ROW not in place})
    # The root itself also holds what other programs may write.
    return [declared.root / one for one in inside if one != PurePosixPath(".")]


def _indices(declared: Declared, name: str, levels: Sequence[str]) -> NDArray[np.uint8]:
    column = declared.columns[name]
    cells, values = declared.table.columns[column], declared.values[name]
    places = {level: i for i, level in enumerate(levels)}
    found = np.empty(len(cells), np.uint8)
    for i, cell in enumerate(cells):
        level = values.get(cell.strip(), cell.strip())
        if level not in places:
            raise InputError(
                f"{declared.source}: {declared.table.names[i]}: expected {column} to be "
                f"{', '.join((*values, *levels))}; seen {cell!r}"
            )
        found[i] = places[level]
    return found


def _roles(declared: Declared, notes: list[str]) -> list[str]:
    column = declared.options.get("split_column", "split")
    if column not in declared.table.columns:
        if "split_column" in declared.options:
            raise InputError(
                f"{declared.source}: {unknown_name('column', column, declared.table.columns)}"
            )
        notes.append(f"no column {column}: every image is evaluation's, none is to train on")
        return ["evaluation"] * len(declared.table.names)
    found = []
    for name, cell in zip(declared.table.names, declared.table.columns[column], strict=True):
        role = declared.roles.get(cell.strip(), declared.roles.get(cell.strip().lower(), ""))
        if role not in ROLES.values():
            raise InputError(
                f"{declared.source}: {name}: expected {column} to be {', '.join(declared.roles)}; "
                f"seen {cell!r}"
            )
        found.append(role)
    return found


def _places(declared: Declared, problems: list[str], notes: list[str]) -> list[str]:
    """Where each image of the table lies, below the root."""
    table, source = declared.table, declared.source
    if source.suffix.lower() == ".parquet" and image_column(source) is not None:
        file = source.relative_to(declared.root).as_posix()
        return [f"{file}{ROW}{i}" for i in range(len(table.names))]
    folder = declared.root / declared.options.get("folder", ".")
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder of images")
        return []
    files = sorted(_files(folder))
    exact = {file: file for file in files}
    # The same letters may be written in two ways, and macOS has its own for names of files.
    exact |= {unicodedata.normalize("NFC", file): file for file in files}
    by_name = _unique(files, lambda file: PurePosixPath(file).name)
    by_stem = _unique(files, stem_of)
    loose = _unique(files, lambda file: stem_of(PurePosixPath(file).name))
    found: list[str] = []
    missing: list[str] = []
    twice: list[str] = []
    for raw in table.names:
        name = raw.strip().replace("\\", "/").removeprefix("./")
        name = unicodedata.normalize("NFC", name.removeprefix(f"{folder.as_posix()}/"))
        stem = stem_of(name)
        place = exact.get(name) or next(
            (
                way[key]
                for way, key in ((by_stem, stem), (by_name, name), (loose, stem))
                if key in way
            ),
            None,
        )
        if place is None:
            missing.append(raw)
        elif not place:
            twice.append(raw)
        found.append(place or "")
    if twice:
        wanted = stem_of(PurePosixPath(twice[0]).name)
        path = next(file for file in files if PurePosixPath(file).stem == wanted)
        problems.append(
            f"{source}: {len(twice)} names, such as {twice[0]!r}, are those of several files "
            f"below {folder} (numbered anew in each folder?); write the path, such as {path!r}"
        )
    if missing:
        problems.append(
            f"{folder}: {len(missing)} of {len(table.names)} images of {source.name} are missing, "
            f"such as {missing[0]!r}; copy them, or take their rows out"
        )
    places = set(found)
    unread = [file for file in files if file not in places]
    if unread:
        notes.append(f"passed over {len(unread)} images without a row, such as {unread[0]}")
    if len(places) < len(found) and not missing and not twice:
        problems.append(f"{source}: several rows mean the same file; keep one")
    inside = folder.relative_to(declared.root).as_posix()
    return [place if inside == "." else f"{inside}/{place}" for place in found]


def _files(folder: Path) -> Iterator[str]:
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES:
                yield (Path(place) / name).relative_to(folder).as_posix()


def _unique(files: Sequence[str], key: Any) -> dict[str, str]:
    """Key -> the file of it; an empty text where several have it."""
    found: dict[str, str] = {}
    for file in files:
        name = unicodedata.normalize("NFC", key(file))
        found[name] = "" if name in found else file
    return found


def _size(declared: Declared, places: Sequence[str], notes: list[str]) -> int:
    """Pixels a side: as declared, else of the smallest image, at most 256."""
    if "size" in declared.options:
        size = int(declared.options["size"])
        if not 8 <= size <= 1024:
            raise DataError(
                [f"{declared.root / FILE}: size must lie in 8…1024; seen {size}"],
                _steps(declared.root),
            )
        return size
    smallest, whose, largest = LARGEST, "", 0
    packed = bool(places) and ROW in places[0]
    for start in range(0, len(places), GLANCE):
        some = places[start : start + GLANCE]
        files: list[Any] = [declared.root / place for place in some]
        if packed:
            files = [
                io.BytesIO(data if isinstance(data, bytes) else b"")
                for data in attempted(declared.root, some)
            ]
        for place, file in zip(some, files, strict=True):
            try:
                with Image.open(file) as image:
                    side = min(image.size)
            except (OSError, ValueError, Image.DecompressionBombError):
                continue  # decoding it will say what is wrong
            largest = max(largest, side)
            if side < smallest:
                smallest, whose = side, place
    size = max(8, smallest)
    if whose and largest >= 2 * smallest:
        notes.append(
            f"images are brought to {size} pixels a side because {whose} is that small, others "
            f"have up to {largest}; size in {FILE} says otherwise"
        )
    return size
