"""What is known about images made elsewhere: a table with one row an image.

Columns: ``file``, the image's name as the reader of images gives it; ``prompt``, what it was made
from; ``requested_<attribute>``, the level that was asked for; ``<attribute>``, the level that
a person saw in it, empty or ``unsure`` for images that nobody looked at or could tell;
``control_<name>``, any text, within whose values groups are compared too. All but ``file`` are
optional, and further columns are passed over. Names and levels are found whatever their Unicode
form, names with or without ``./`` or one folder before all of them, levels in any case, where
only one is meant. A table that holds nothing but what people saw may have rows for some of the
images.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import ContractError, InputError, unknown_name
from fairbench.core.task import Control
from fairbench.inputs.sources import natural

__all__ = ["CONTROL", "REQUESTED", "Labels", "check_table", "read_labels"]

REQUESTED = "requested_"
"""What the name of a column of requested levels begins with."""

CONTROL = "control_"
"""What the name of a column of a control variable begins with."""

UNSURE = "unsure"
"""What a person writes who can't tell, in any case; an empty cell means the same."""

NEAR = 0.8
"""Likeness from which a column's name is a misspelt one, not one of the user's own."""

UNKNOWN = -1
"""Stands for the level of an image that no person told."""

MOST_LEVELS = 100
"""Values of a control variable: more are a number an image, not a variable to split by."""

TEXTS = (".csv", ".tsv", ".txt")
"""Endings of tables of text."""

EXCEL = re.compile(r"sep=.\r?\n")
"""A first line that Excel writes in some countries."""

NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}
"""What may stand between cells -> what messages call it."""

Table = dict[str, list[str]]
"""Column -> its cells, all columns of one length; an empty text stands for nothing."""


@dataclass(frozen=True)
class Labels:
    """A table of labels, brought into the order of the images.

    Attributes:
        names: The N images.
        prompts: What each was made from; None if the table doesn't say.
        requested: Attribute -> (N,) int64, index of the level that was asked for.
        given: Attribute -> (N,) int64, index of the level that a person saw; -1: nobody told.
        sha256: Of all of the above and the controls, in hex; the order of the table's rows
            changes nothing.
        controls: Variables to split by, their levels in natural order.
        notes: Which columns were passed over; one line each.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...] | None
    requested: Mapping[str, NDArray[np.int64]]
    given: Mapping[str, NDArray[np.int64]]
    sha256: str
    controls: tuple[Control, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def read_labels(
    path: Path,
    names: Sequence[str],
    attributes: Mapping[str, tuple[str, ...]],
    *,
    unread: Collection[str] = (),
) -> Labels:
    """Read a table of labels and match it to images by their names.

    Args:
        path: A ``.parquet``, or text with commas, semicolons or tabs between cells.
        names: Of the images, in their order; each must have one row, unless the table holds
            nothing but what people saw.
        attributes: Attribute -> its levels in declared order; other columns are passed over,
            unless their name is nearly one that means something.
        unread: Further images, which may have a row.

    Raises:
        ContractError: If there are no names.
        InputError: If the table can't be read; if a column, a level or a file is unknown; if an
            image has no row or two; if a cell is empty; if nobody saw a level in any image.
    """
    if not names:
        raise ContractError("expected the name of at least one image, seen none")
    table = _read(path)
    known = ["file", "prompt", *(REQUESTED + name for name in attributes), *attributes]
    whole, (table, notes) = table, _columns(path, table, known)
    if "file" not in table:
        raise _without_names(path, whole, {*names, *unread})
    seen = [column for column in table if column in attributes]
    _check_cells(path, {name: cells for name, cells in table.items() if name not in seen})
    some = bool(seen) and {*table} == {"file", *seen}
    files, cut = _without_folder(path, table["file"], {*names, *unread})
    rows = _match(path, files, names, unread, some=some)
    prompts = tuple(table["prompt"][row] for row in rows) if "prompt" in table else None
    levels: dict[str, NDArray[np.int64]] = {}
    for column, cells in table.items():
        if column in known and column not in ("file", "prompt"):
            declared = attributes[column.removeprefix(REQUESTED)]
            index = _indices(path, table["file"], column, cells, declared, told=column in seen)
            # One more at the end, which images without a row are given.
            levels[column] = np.append(index, UNKNOWN)[rows]
            if column in seen and (levels[column] == UNKNOWN).all():
                raise InputError(
                    f"{path}: column {column} tells no level of any image; fill some in, or "
                    "leave the column out"
                )
    requested = {
        c.removeprefix(REQUESTED): v for c, v in levels.items() if c.startswith(REQUESTED)
    }
    given = {c: v for c, v in levels.items() if not c.startswith(REQUESTED)}
    controls = tuple(
        _control(path, column, [table[column][row] for row in rows], attributes)
        for column in table
        if _is_control(column)
    )
    content: list[object] = [list(names), prompts, *(_plain(part) for part in (requested, given))]
    # Only where there are some, so that tables without keep their hash.
    if controls:
        content.append(
            sorted((c.name, [table[_column(c)][row] for row in rows]) for c in controls)
        )
    return Labels(
        tuple(names),
        prompts,
        MappingProxyType(requested),
        MappingProxyType(given),
        hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        controls,
        (*notes, *cut),
    )


def _without_names(path: Path, table: Table, names: Collection[str]) -> InputError:
    """What to say of a table that names no image in a column called ``file``."""
    known = _by_plain_name(names)
    holders = [
        column for column, cells in table.items() if any(_plain_name(c) in known for c in cells)
    ]
    todo = f"rename {holders[0]!r}" if len(holders) == 1 else "add it"
    return InputError(
        f"{path}: expected a column file with the images' names, seen "
        f"{', '.join(map(repr, table)) or 'no column'}; {todo}"
    )


def _columns(path: Path, table: Table, known: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """The columns that mean something, by their own names, and what is said of others.

    Raises:
        InputError: If a name is nearly one that means something, or two mean the same.
    """
    kept: Table = {}
    ignored = []
    for column, cells in table.items():
        name = column if _is_control(column) else _unfolded(column, known)
        if name is None and (
            column.startswith((REQUESTED, CONTROL))
            or difflib.get_close_matches(_folded(column), known, cutoff=NEAR)
        ):
            raise InputError(f"{path}: {unknown_name('column', column, known)}")
        if name is None and any(
            _unfolded(part, known) for mark in NAMES for part in column.split(mark)
        ):
            raise InputError(
                f"{path}: column {column!r} names several; put the same mark between all cells"
            )
        if name is None:
            ignored.append(column)
        elif name in kept:
            raise InputError(f"{path}: column {name!r} comes twice; keep one")
        else:
            kept[name] = cells
    if not ignored:
        return kept, ()
    one = len(ignored) == 1
    names = ", ".join(map(repr, ignored))
    note = f"{path}: column{'' if one else 's'} {names} passed over: no attribute is called so"
    return kept, (note,)


def _unfolded(text: str, known: Collection[str]) -> str | None:
    """The known word that a text is, whatever its case and Unicode form; None for none or two."""
    if text in known:
        return text
    found = [word for word in known if _folded(word) == _folded(text)]
    return found[0] if len(found) == 1 else None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().casefold()


def _is_control(column: str) -> bool:
    return column.startswith(CONTROL) and column != CONTROL


def _column(control: Control) -> str:
    return CONTROL + control.name


def _control(
    path: Path, column: str, cells: Sequence[str], attributes: Mapping[str, tuple[str, ...]]
) -> Control:
    """A column of a control variable as levels and their indices."""
    name = column.removeprefix(CONTROL)
    if name in attributes:
        raise InputError(
            f"{path}: column {column}: judges read {name} themselves; use --control {name}, or "
            "call the column otherwise"
        )
    levels = tuple(sorted(set(cells), key=natural))
    if len(levels) > MOST_LEVELS:
        raise InputError(
            f"{path}: column {column} has {len(levels)} values, expected at most {MOST_LEVELS}; "
            "put them into bands"
        )
    places = {level: index for index, level in enumerate(levels)}
    return Control(name, levels, np.array([places[cell] for cell in cells], np.int64))


def _plain(levels: Mapping[str, NDArray[np.int64]]) -> list[tuple[str, list[int]]]:
    return [(name, levels[name].tolist()) for name in sorted(levels)]


# --- the table -----------------------------------------------------------------------------


def check_table(path: Path) -> None:
    """Find out whether there is a table of a kind that is read, before any work.

    Raises:
        InputError: If there isn't.
    """
    if path.suffix.lower() not in (*TEXTS, ".parquet"):
        raise InputError(f"{path}: expected labels as .csv or .parquet; save them as one of these")
    if not path.is_file():
        seen = "seen no file there" if path.exists() else "no such file"
        raise InputError(f"{path}: {seen}; give the table of the labels")


def _read(path: Path) -> Table:
    check_table(path)
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not any(table.values()):
        raise InputError(f"{path}: the table has no row; expected one an image")
    return table


def _read_csv(path: Path) -> Table:
    with _damage(path, "CSV in UTF-8"):
        text = _decoded(path.read_bytes())
        if told := EXCEL.match(text):  # which says itself what stands between cells
            text = text[told.end() :]
        delimiter = _delimiter(text)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(rows, [])
        # Spreadsheets end lines with as many delimiters as their widest line has.
        while header and not header[-1].strip():
            header.pop()
        header = [name.strip() for name in header]
        _check_header(path, header)
        table: Table = {column: [] for column in header}
        for row in rows:
            if not row:
                continue
            while len(row) > len(header) and not row[-1].strip():
                row.pop()
            if len(row) != len(header):
                raise InputError(
                    f"{path}: line {rows.line_num}: expected {len(header)} cells as in the "
                    f"header, seen {len(row)}; put cells that hold a {NAMES[delimiter]} in quotes"
                )
            for column, cell in zip(header, row, strict=True):
                table[column].append(cell)
    return table


def _decoded(content: bytes) -> str:
    """Text with or without a byte order mark; spreadsheets call UTF-16 "Unicode text"."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds zero bytes: no text, or UTF-16 that doesn't say so")
    return text


def _delimiter(text: str) -> str:
    """What stands between the cells of the first line: the one that cuts out ``file``."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    for delimiter in NAMES:
        if any(_folded(cell.strip('"')) == "file" for cell in first.split(delimiter)):
            return delimiter
    return max(NAMES, key=first.count)


def _read_parquet(path: Path) -> Table:
    from pyarrow import parquet

    with _damage(path, "parquet"):
        stored = parquet.read_table(path)
        _check_header(path, stored.column_names)
        columns = stored.to_pydict()
    return {name: [_text(cell) for cell in cells] for name, cells in columns.items()}


def _text(cell: object) -> str:
    """A cell as CSV would hold it; None and NaN are empty."""
    return "" if cell is None or cell != cell else str(cell)


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = next((name for name in header if list(header).count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: column {twice!r} comes twice; keep one")


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # csv.Error, UnicodeDecodeError, pyarrow's own errors, OSError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: expected {kind}, seen a file that can't be read as such ({reason}); save it "
            "anew"
        ) from error


# --- its rows ------------------------------------------------------------------------------


def _row(files: Sequence[str], row: int) -> str:
    return f"row {row + 1} ({files[row]!r})"


def _check_cells(path: Path, table: Table) -> None:
    """Refuse a table with an empty cell."""
    for column, cells in table.items():
        empty = [row for row, cell in enumerate(cells) if not cell.strip()]
        if empty:
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            raise InputError(
                f"{path}: {_row(table['file'], empty[0])}{more}: column {column} is empty; fill "
                "it in, or leave the whole column out"
            )


def _without_folder(
    path: Path, files: Sequence[str], names: Collection[str]
) -> tuple[Sequence[str], tuple[str, ...]]:
    """Names without the folder that all begin with, if only so they are images; what is said."""
    known = _by_plain_name(names)
    plain = [_plain_name(file) for file in files]
    if any(file in names or name in known for file, name in zip(files, plain, strict=True)):
        return files, ()
    parts = [name.split("/") for name in plain]
    folders = [one[:-1] for one in parts]
    first = folders[0]
    shared = max(d for d in range(len(first) + 1) if all(f[:d] == first[:d] for f in folders))
    found = [
        depth
        for depth in range(1, shared + 1)
        if all("/".join(one[depth:]) in known for one in parts)
    ]
    if len(found) != 1:
        return files, ()
    (depth,) = found
    folder = "/".join(parts[0][:depth])
    note = f"{path}: {folder + '/'!r} is left out of the images' names, as all begin with it"
    return ["/".join(one[depth:]) for one in parts], (note,)


def _match(
    path: Path,
    files: Sequence[str],
    names: Sequence[str],
    unread: Collection[str],
    *,
    some: bool,
) -> list[int]:
    """Row of each image; -1 where there is none, if `some` allows that."""
    rows: dict[str, int] = {}
    known = {*names, *unread}
    places = _by_plain_name(known)
    files = [file if file in known else places.get(_plain_name(file), file) for file in files]
    for row, file in enumerate(files):
        if file in rows:
            raise InputError(
                f"{path}: {_row(files, row)}: there is a row for this file already, row "
                f"{rows[file] + 1}; keep one"
            )
        rows[file] = row
    strange = [file for file in files if file not in known]
    if strange:
        raise InputError(
            f"{path}: {_many(strange, 'row')} of {len(files)} name no image, such as "
            f"{strange[0]!r}; expected names within the folder or archive, such as {names[0]!r}"
        )
    lacking = [name for name in names if name not in rows]
    if lacking and not some:
        raise InputError(
            f"{path}: {_many(lacking, 'image')} of {len(names)} without a row, such as "
            f"{lacking[0]!r}; add a row for each"
        )
    return [rows.get(name, -1) for name in names]


def _plain_name(name: str) -> str:
    """A name in one Unicode form and one way of writing folders."""
    plain = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def _by_plain_name(names: Collection[str]) -> dict[str, str]:
    """Plain name -> the one name that is so when it is made plain."""
    found: dict[str, str | None] = {}
    for name in names:
        plain = _plain_name(name)
        found[plain] = None if plain in found else name
    return {plain: name for plain, name in found.items() if name is not None}


def _many(things: Sequence[str], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) > 1 else ''}"


def _indices(
    path: Path,
    files: Sequence[str],
    column: str,
    cells: Sequence[str],
    levels: tuple[str, ...],
    *,
    told: bool,
) -> NDArray[np.int64]:
    """Index of each cell's level; where people told it, they may have been unsure."""
    places = {level: index for index, level in enumerate(levels)}
    if told:
        unsure = {cell for cell in cells if cell.strip().lower() in ("", UNSURE)}
        places |= dict.fromkeys(unsure - places.keys(), UNKNOWN)
    for cell in {*cells} - places.keys():
        level = _unfolded(cell, levels)
        if level is not None:
            places[cell] = places[level]
    for row, cell in enumerate(cells):
        if cell not in places:
            error = unknown_name(f"level of {column}", cell, levels)
            sure = str(error).endswith("?") or not told
            empty = "" if sure else "; leave it empty where nobody could tell"
            raise InputError(f"{path}: {_row(files, row)}: {error}{empty}")
    return np.array([places[cell] for cell in cells], np.int64)
