"""Text of other people's, such as names of files and methods, made safe to show.

A name may hold anything: the codes by which a terminal is steered, line ends that break up a
table, marks that turn the order of letters around, or what a spreadsheet takes for a formula.
"""

from __future__ import annotations

import re

__all__ = ["cell", "shown"]

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What a cell that a spreadsheet computes begins with; some read the wide letters alike."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def shown(text: str) -> str:
    r"""The text with everything that isn't a letter, mark or plain space as Python writes it.

    So ESC becomes the four letters ``\x1b``, a line end ``\n``.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\N{NO-BREAK SPACE}" else _written(one) for one in text
    )


def _written(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def cell(text: str) -> str:
    """The text as a cell of a table that a spreadsheet may open: never a formula.

    What begins as one does gets an apostrophe before it, which spreadsheets read as: this is text.
    """
    safe = shown(text)
    if safe.startswith(FORMULA) and not NUMBER.fullmatch(safe):
        return f"'{safe}"
    return safe
