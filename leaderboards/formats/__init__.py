"""How leaderboards are written: one file a format, and entry points of other packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairbench.core.registry import Registry

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fairbench.leaderboards.aggregate import Row
    from fairbench.leaderboards.board import Board

__all__ = ["Format", "formats"]


@dataclass(frozen=True)
class Format:
    """A way of writing rows.

    Attributes:
        name: As ``--format`` calls it.
        suffixes: Of files in it, such as ``(".csv",)``; none of what is only for a terminal.
        write: Rows -> text, or what rich can print; the same rows give the same bytes. None of a
            format that is a folder of files.
        build: Writes a board as such a folder; None of one that is a text.
        entry: The file of the folder to begin with; empty where none is.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Sequence[Row]], str | RenderableType] | None
    build: Callable[[Board, Path], None] | None = None
    entry: str = ""


def formats() -> Mapping[str, Format]:
    """Every format by name, sorted."""
    found, _ = Registry[Format]("format", "fairbench.leaderboards.formats", "FORMAT").entries()
    return {one.name: one for one in sorted(found.values(), key=lambda one: one.name)}
