"""LaTeX tables with booktabs, for papers: the main columns, rounded as in the other tables."""

from __future__ import annotations

from collections.abc import Sequence

from fairbench.core.text import shown
from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.columns import (
    EMPTY,
    IDENTITY,
    Column,
    blocks,
    method_of,
    notes_of,
    score_column,
    score_names,
    standing_of,
)
from fairbench.leaderboards.formats import Format
from fairbench.scores.catalogue import spec_of

__all__ = ["FORMAT", "to_latex"]

_HEAD = "% Needs \\usepackage{booktabs} and, for wide tables, \\usepackage{graphicx}.\n"

_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "–": "--",
    "·": r"$\cdot$",
}


def to_latex(rows: Sequence[Row]) -> str:
    """One ``table*`` a block; every sign of a name stands for itself."""
    if not rows:
        return f"% {EMPTY}"
    return _HEAD + "\n".join(_table(title, block) for title, block in blocks(rows))


def _table(title: str, block: Sequence[Row]) -> str:
    columns = _columns(block)
    layout = "".join("r" if column.is_number else "l" for column in columns)
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{_escaped(title)}: {_escaped(notes_of(block))}. "
        r"Brackets are 95\,\% intervals; "
        r"rows with one letter can't be told apart.}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        _line([column.header for column in columns]),
        r"\midrule",
    ]
    ranked = [row for row in block if row.tie_class]
    others = [row for row in block if not row.tie_class]
    lines += [_line([column.text(row) for column in columns]) for row in ranked]
    if ranked and others:
        lines.append(r"\midrule")
    lines += [_line([column.text(row) for column in columns]) for row in others]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def _columns(block: Sequence[Row]) -> list[Column]:
    """The ranked column and those that fit a page beside it."""
    names = [
        name
        for name in score_names(block)
        if name == block[0].ranked_by or ((spec := spec_of(name)) is not None and spec.compact)
    ]
    return [
        Column("rank", standing_of, is_number=False),
        Column("method", method_of, is_number=False),
        Column("role", IDENTITY["role"], is_number=False),
        Column("seeds × n", lambda row: f"{len(row.seeds)} × {row.n:,}"),
        *(score_column(name, block) for name in names),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(_escaped, cells))} \\\\"


def _escaped(text: str) -> str:
    return "".join(_SIGNS.get(sign, sign) for sign in shown(text))


FORMAT = Format("latex", (".tex",), to_latex)
