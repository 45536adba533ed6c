"""Tables of text for a terminal: no word is ever broken, columns give way instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GAP", "Column", "lay_out", "wrapped"]

GAP = 2
"""Spaces between columns."""

READABLE = 24
"""Letters a line that sentences get before further columns do."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its header; may have several lines.
        cells: Its cells, top to bottom; each may have several lines.
        whole: Whether its lines stay as they are; else they may be broken between words.
        right: Whether it is flush right, as numbers are.
        spare: Of columns that don't all fit, the one where this is largest is left out first;
            0: it always stays.
    """

    title: str
    cells: Sequence[str]
    whole: bool = True
    right: bool = False
    spare: int = 0


def lay_out(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """The lines of a table, header first; no line ends in spaces.

    Args:
        columns: All with as many cells.
        width: Letters a line; None: as many as it takes. What can't be made to fit, because of one
            long word, is wider.
    """
    kept = list(columns)
    while width is not None and _wanted(kept) > width and any(one.spare for one in kept):
        kept.remove(max(kept, key=lambda one: one.spare))
    widths = _widths(kept, width)
    lines: list[str] = []
    for row in zip(*([one.title, *one.cells] for one in kept), strict=True):
        parts = [
            text.split("\n") if column.whole else wrapped(text, size)
            for text, column, size in zip(row, kept, widths, strict=True)
        ]
        for place in range(max(map(len, parts))):
            cells = [
                _padded(part[place] if place < len(part) else "", size, right=column.right)
                for part, column, size in zip(parts, kept, widths, strict=True)
            ]
            lines.append((" " * GAP).join(cells).rstrip())
    return lines


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, broken between words; a long word stays whole."""
    lines: list[str] = []
    for line in text.split("\n"):
        words = line.split(" ")
        lines.append(words[0])
        for word in words[1:]:
            if _length(lines[-1]) + 1 + _length(word) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return lines


def _length(text: str) -> int:
    """Places that a text takes; letters of East Asia take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int, *, right: bool) -> str:
    fill = " " * (width - _length(text))
    return fill + text if right else text + fill


def _lines(column: Column) -> list[str]:
    return [line for text in (column.title, *column.cells) for line in text.split("\n")]


def _narrowest(column: Column) -> int:
    if column.whole:
        return max(map(_length, _lines(column)))
    return max(_length(word) for line in _lines(column) for word in line.split(" "))


def _wanted(columns: Sequence[Column]) -> int:
    """Letters a line in which sentences can be read."""
    sizes = []
    for column in columns:
        natural = max(map(_length, _lines(column)))
        sizes.append(natural if column.whole else max(_narrowest(column), min(natural, READABLE)))
    return sum(sizes) + GAP * (len(columns) - 1)


def _least(columns: Sequence[Column]) -> int:
    return sum(map(_narrowest, columns)) + GAP * (len(columns) - 1)


def _widths(columns: Sequence[Column], width: int | None) -> list[int]:
    """Each column's width: those that were narrowed most are widened first."""
    wanted = [max(map(_length, _lines(column))) for column in columns]
    if width is None:
        return wanted
    widths = [_narrowest(column) for column in columns]
    for _ in range(width - _least(columns)):
        narrow = [place for place, size in enumerate(widths) if size < wanted[place]]
        if not narrow:
            break
        widths[min(narrow, key=lambda place: widths[place])] += 1
    return widths
