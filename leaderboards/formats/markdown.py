"""Markdown with the main columns, rounded, and a legend."""

from __future__ import annotations

from collections.abc import Sequence

from fairbench.core.text import shown
from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.columns import (
    EMPTY,
    IDENTITY,
    Column,
    blocks,
    is_main,
    method_of,
    notes_of,
    score_column,
    score_names,
    significant,
    standing_of,
)
from fairbench.leaderboards.formats import Format

__all__ = ["FORMAT", "to_markdown"]

_LEGEND = """\
## How to read this

- Several seeds are one estimate: a discrepancy is the distance of the mean shares from the target,
  not the mean of the seeds' distances; other columns are means over the seeds. Brackets are 95 %
  intervals. With several seeds they count both finite images and what differs between the seeds,
  whichever is more; with one seed they hold for that run alone. JSON names each cell's rule.
- ↓ lower is better, ↑ higher is better. `n` counts the images of each seed.
- Rows are ranked within one table only, by the column that stands above it.
  `fairness_discrepancy_corrected`: the judges' errors are undone, and the judge that finds a row
  less fair counts; `fairness_discrepancy` is the primary judge's without correction. *≤ floor*:
  about 95 % of perfectly fair generators would score up to the floor at the row's valid images and
  seeds.
- Rank: rows with one letter can't be told from the best of them (all pairs of a table are tested,
  Holm's method, 5 % for the table); A is the class of the fairest row. Behind it the ranks that
  the row may have. All rows at or below the lowest floor of the table count as equal.
- A word instead of a rank says why a row has none: *control*, *oracle*, *ablation* (never ranked),
  *protocol* (other images, sampling, target or instruments than the baseline's), *setting* (a
  method is ranked once, by its card's defaults), *seeds*, *images* (fewer than 100 valid),
  *unmeasured*, *baseline* (no undebiased run to compare with), *validity*, *quality* (much worse
  than the baseline's), *duplicates*, *leak* (images of the evaluation split), *quota* (groups
  dealt out in turn; legitimate, and no sign of a fairer model).
- The flag *quality?* marks a row whose distance to real images may be above twice the baseline's.
- † behind a number: an older version of the score's definition gave it, and today's would give
  another value or interval; `fairbench rescore --make-images` computes it anew.
- Compared *unpaired*: the row's records don't hold what judges said of each image, so that its
  images can't be compared with those that other methods made from the same noise.
- Seconds are of sampling alone and depend on the machine; calls are denoiser evaluations.
"""


def to_markdown(rows: Sequence[Row]) -> str:
    """One table a block with the main columns, rounded, and a legend."""
    if not rows:
        return f"# Leaderboard\n\n{EMPTY}"
    tables = [
        f"## {_escape(title)}\n\n{_escape(_capital(notes_of(block)))}.\n\n{_markdown_table(block)}"
        for title, block in blocks(rows)
    ]
    return "\n".join(["# Leaderboard\n", *tables, _LEGEND])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _columns(block: Sequence[Row]) -> list[Column]:
    scores = [name for name in score_names(block) if is_main(name)]
    return [
        Column("rank", standing_of),
        Column("method", method_of, is_number=False),
        Column("role", IDENTITY["role"], is_number=False),
        Column("supervision", lambda row: ", ".join(row.supervision) or "none", False),
        Column("seeds × n", lambda row: f"{len(row.seeds)} × {row.n:,}"),
        *(score_column(name, block) for name in scores),
        Column("seconds/image ↓", lambda row: significant(row.seconds_per_image)),
        Column("calls/image ↓", lambda row: significant(row.network_calls_per_image)),
        Column("extra parameters ↓", lambda row: f"{row.extra_parameters:,}"),
        *_told(block),
    ]


def _told(block: Sequence[Row]) -> list[Column]:
    """Columns of words that only some tables need."""
    columns = {
        "why not ranked": "reasons",
        "compared": "compared",
        "flags": "flags",
    }
    return [
        Column(header, IDENTITY[name], is_number=False)
        for header, name in columns.items()
        if any(IDENTITY[name](row) for row in block)
    ]


def _markdown_table(block: Sequence[Row]) -> str:
    columns = _columns(block)
    lines = [
        [column.header for column in columns],
        ["---:" if column.is_number else "---" for column in columns],
        *([column.text(row) for column in columns] for row in block),
    ]
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)


def _escape(text: str) -> str:
    # A page that is made of it must not take a name for an element, a link or a picture.
    safe = shown(text.replace("\n", " ")).replace("|", "\\|").replace("<", "&lt;")
    return safe.replace("](", "]\\(")


FORMAT = Format("markdown", (".md",), to_markdown)
