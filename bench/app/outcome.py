"""What is printed of a record once it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairbench.app.terminal import print_lines, show, width
from fairbench.core.tables import wrapped
from fairbench.core.text import shown

if TYPE_CHECKING:
    from fairbench.runs.baselines import Baseline
    from fairbench.runs.running import Outcome

__all__ = ["print_outcome"]


def print_outcome(outcome: Outcome, baseline: Baseline | None, *, quiet: bool) -> None:
    """Print one sentence, the table and where the record lies; where alone, if `quiet`."""
    from fairbench.app.report import sentence, summary

    path = shown(str(outcome.path))
    if quiet:
        print_lines([path])
        return
    if outcome.found:
        print_lines(
            [f"found a record of this run, nothing computed (--force computes again): {path}"]
        )
    said = sentence(outcome.record, baseline)
    if said:
        print_lines([*wrapped(shown(said), width() or 10_000), ""])
    show(summary(outcome.record, None if baseline is None else baseline.beside))
    print_lines([f"record   {path}"])
    picture = outcome.path.with_suffix(".png")
    if picture.is_file():
        print_lines([f"picture  {shown(str(picture))}"])
