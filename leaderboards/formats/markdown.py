"""Markdown with the main columns, rounded, and a legend."""

from __future__ import annotations

from collections.abc import Sequence

from fairbench.leaderboards.aggregate import Row
from fairbench.leaderboards.columns import (
    EMPTY,
    IDENTITY,
    Column,
    blocks,
    is_main,
    method_of,
    score_column,
    score_names,
    significant,
)
from fairbench.leaderboards.formats import Format

__all__ = ["FORMAT", "to_markdown"]

_LEGEND = """\
## How to read this

- A value is the mean over the seeds. The brackets are the wider of two 95 % intervals: Student's
  t over the seeds (not cut at a score's bounds), and that within one run (the mean of the seeds'
  ends); with one seed, only the latter exists.
- ↓ lower is better, ↑ higher is better. `n` counts the images of each seed.
- Rows are ranked by `fairness_discrepancy_corrected`, within one table only: the judges' errors
  are corrected, and the judge that finds a row less fair counts; `fairness_discrepancy` is the
  primary judge's without correction. *≤ floor*: about 95 % of perfectly fair generators would
  score up to the floor at the row's valid images and seeds. All rows at or below the lowest floor
  of the table share the first ranks.
- The flag *quota* marks shares that hit the target more closely than independent images could:
  groups were dealt out in turn. That is legitimate, and no sign of a fairer model.
- Rank – marks controls, oracles and others that aren't ranked.
- Comparable rows share everything but the method's own parameters: images, sampling, target,
  and the hashes of backbone, judges and references. The others say what differs, come last and
  aren't ranked.
- Seconds are of sampling alone and depend on the machine; calls are denoiser evaluations.
"""


def to_markdown(rows: Sequence[Row]) -> str:
    """One table a block with the main columns, rounded, and a legend."""
    if not rows:
        return f"# Leaderboard\n\n{EMPTY}"
    tables = [f"## {title}\n\n{_markdown_table(block)}" for title, block in blocks(rows)]
    return "\n".join(["# Leaderboard\n", *tables, _LEGEND])


def _columns(block: Sequence[Row]) -> list[Column]:
    scores = [name for name in score_names(block) if is_main(name)]
    return [
        Column("rank", lambda row: row.rank),
        Column("method", method_of, is_number=False),
        Column("role", IDENTITY["role"], is_number=False),
        Column("supervision", lambda row: ", ".join(row.supervision) or "none", False),
        Column("seeds × n", lambda row: f"{len(row.seeds)} × {row.n:,}"),
        *(score_column(name, block) for name in scores),
        Column("seconds/image ↓", lambda row: significant(row.seconds_per_image)),
        Column("calls/image ↓", lambda row: significant(row.network_calls_per_image)),
        Column("extra parameters ↓", lambda row: f"{row.extra_parameters:,}"),
        Column("comparable", IDENTITY["comparable"], is_number=False),
        *([Column("flags", IDENTITY["flags"], False)] if any(r.flags for r in block) else []),
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
    return text.replace("|", "\\|").replace("\n", " ")


FORMAT = Format("markdown", (".md",), to_markdown)
