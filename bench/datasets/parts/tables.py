"""Tables of labels as they really arrive, brought to one shape; rows are found by name only.

Text with or without a header, commas or blanks between the cells, a first line that states the
number of rows, a byte order mark, any line ends; parquet. A web page saved under the table's name
is recognised.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fairbench.core.errors import InputError, unknown_name

__all__ = ["NAME_COLUMNS", "LabelTable", "is_web_page", "read_table", "stem_of"]

NAME_COLUMNS = ("file", "filename", "file_name", "image_id", "image", "name", "path", "img")
"""What the column of the images' names may be called, in any case; the first that is there."""

IMAGE_NAME = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?)$", re.IGNORECASE)

PAGE = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|\?xml|meta|title)", re.IGNORECASE
)

SHOWN = 80  # characters of a line that a message quotes


@dataclass(frozen=True)
class LabelTable:
    """Cells by column, all columns of one length.

    Attributes:
        names: N, the images' names as the table writes them, each once.
        columns: Column -> N cells.
        stated: Number of rows that the first line states; None if it states none.
    """

    names: list[str]
    columns: dict[str, list[str]]
    stated: int | None = None


def stem_of(name: str) -> str:
    """A name without its last suffix, by which labels and files are joined.

    Upstream's table says ``000001.jpg`` whatever suffix the file on the disk has.
    """
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return (path.parent / (path.stem if IMAGE_NAME.search(path.name) else path.name)).as_posix()


def is_web_page(path: Path) -> bool:
    """Whether a file that should be data holds a web page, such as a download's quota notice."""
    with path.open("rb") as file:
        return PAGE.match(file.read(512)) is not None


def read_table(
    path: Path,
    wanted: Collection[str] | None = None,
    *,
    default: Sequence[str] = (),
    called: str | None = None,
) -> LabelTable:
    """Read a table of labels.

    Args:
        path: ``.txt``, ``.csv``, ``.tsv`` or ``.parquet``.
        wanted: Columns to keep, in any case; None for all. Others are never held.
        default: Names of the columns beside the images' names where there is no header.
        called: Name of the column of the images' names; None: one of `NAME_COLUMNS`, else the
            first whose cells look like files of images.

    Raises:
        InputError: If it isn't there or can't be read, if it holds a web page, if a row has too
            few or too many cells, if it states another number of rows than it has, if a wanted
            column is missing, or if a name comes twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if is_web_page(path):
        raise InputError(
            f"{path}: expected a table of labels, seen a web page saved under that name (a "
            "download's quota or sign-in page); delete it and get the file again"
        )
    if path.suffix.lower() == ".parquet":
        table = _parquet(path, wanted, called)
    else:
        table = _text(path, wanted, default, called)
    if not table.names:
        raise InputError(f"{path}: expected one row an image, seen none; get the file again")
    if table.stated is not None and table.stated != len(table.names):
        raise InputError(
            f"{path}: its first line states {table.stated} rows, seen {len(table.names)}; the "
            "file is cut or was edited, get it again"
        )
    _check_names(path, table.names)
    return table


def _check_names(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{path}: {name!r} has two rows; keep one")
        seen.add(name)


def _kept(path: Path, header: Sequence[str], wanted: Collection[str] | None) -> dict[str, int]:
    """Column as the caller calls it -> its place."""
    names = [name.strip() if wanted is None else name.strip().lower() for name in header]
    places = {name: i for i, name in enumerate(names)}
    read = places if wanted is None else [name.lower() for name in wanted]
    twice = [name for name in read if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{path}: several columns are called {twice[0]!r}; rename all but one")
    if wanted is None:
        return places
    lacking = [name for name in wanted if name.lower() not in places]
    if lacking:
        raise InputError(
            f"{path}: expected columns {', '.join(wanted)}; seen no {', '.join(lacking)} among "
            f"{', '.join(header)[:300]}"
        )
    return {name: places[name.lower()] for name in wanted}


# --- text ----------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold anything, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected text in UTF-8, seen other bytes ({error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check its rights") from error


def _cells(line: str, comma: str | None) -> list[str]:
    if comma is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=comma))]


def _comma(line: str) -> str | None:
    """What stands between cells; None for blanks."""
    return next((mark for mark in (",", ";", "\t") if mark in line), None)


def _text(
    path: Path, wanted: Collection[str] | None, default: Sequence[str], called: str | None
) -> LabelTable:
    lines = _lines(path)
    first = next(lines, None)
    stated = None
    if first is not None and re.fullmatch(r"\s*\d+\s*[,;]*\s*", first[1]):
        stated, first = int(first[1].strip(" \t,;")), next(lines, None)
    second = next(lines, None)
    if first is None:
        return LabelTable([], {}, stated)
    comma = _comma(first[1])
    header, rows = _cells(first[1], comma), [line for line in (second,) if line is not None]
    if _is_row(header):  # no header at all
        rows.insert(0, first)
        header = ["file", *default]
    width = len(_cells(rows[0][1], comma)) if rows else len(header)
    if len(header) == width - 1:  # upstream's own text has no name for the column of names
        header = ["file", *header]
    place = _name_place(path, header, _cells(rows[0][1], comma) if rows else [], called)
    kept = _kept(path, header, wanted)
    kept = {name: i for name, i in kept.items() if i != place and (wanted or name)}
    names: list[str] = []
    columns: dict[str, list[str]] = {name: [] for name in kept}

    def take(number: int, line: str) -> None:
        cells = _cells(line, comma)
        if len(cells) != len(header):
            raise InputError(
                f"{path}: line {number}: expected {len(header)} cells, seen {len(cells)} "
                f"({line[:SHOWN]!r}); the file is cut or was edited, get it again"
            )
        names.append(cells[place])
        for name, i in kept.items():
            columns[name].append(cells[i])

    for number, line in rows:
        take(number, line)
    for number, line in lines:
        take(number, line)
    return LabelTable(names, columns, stated)


def _is_row(cells: Sequence[str]) -> bool:
    return any(IMAGE_NAME.search(cell) for cell in cells)


def _name_place(path: Path, header: Sequence[str], row: Sequence[str], called: str | None) -> int:
    """Which column holds the images' names."""
    lower = [name.strip().lower() for name in header]
    if called is not None and called.lower() not in lower:
        raise InputError(f"{path}: {unknown_name('column', called, header)}")
    for name in NAME_COLUMNS if called is None else (called.lower(),):
        if name in lower:
            return lower.index(name)
    for place, cell in enumerate(row):
        if IMAGE_NAME.search(cell):
            return place
    raise InputError(
        f"{path}: expected a column of the images' names, called {', '.join(NAME_COLUMNS[:4])}; "
        f"seen {', '.join(header)[:300]}"
    )


# --- parquet -------------------------------------------------------------------------------


def _parquet(path: Path, wanted: Collection[str] | None, called: str | None) -> LabelTable:
    from pyarrow import parquet

    try:
        header = list(parquet.read_schema(path).names)
        place = _name_place(path, header, [], called)
        kept = _kept(path, header, wanted)
        stored = parquet.read_table(
            path, columns=[header[place], *(header[i] for i in kept.values())]
        )
    except InputError:
        raise
    # pyarrow's own errors, OSError.
    except Exception as error:
        raise InputError(
            f"{path}: expected parquet, seen a file that can't be read as such "
            f"({' '.join(str(error).split())[:200]}); get it again"
        ) from error
    columns = {
        name: ["" if cell is None else str(cell) for cell in stored[header[i]].to_pylist()]
        for name, i in kept.items()
        if i != place
    }
    return LabelTable([str(cell) for cell in stored[header[place]].to_pylist()], columns)
