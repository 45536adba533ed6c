"""Tables of groups: counts, shares and quality of every one; no scores."""

from __future__ import annotations

from fairbench.scores.parts.evidence import Evidence
from fairbench.scores.parts.family import Found, ScoreFamily
from fairbench.scores.parts.group_tables import group_tables

__all__ = ["FAMILY"]


def compute(evidence: Evidence) -> Found:
    """A table a crossing of sensitive attributes, other attribute and prompt."""
    first = evidence.first
    confusions = evidence.confusions[first.judge]
    return Found(
        tables=group_tables(first, evidence.sensitive, confusions, evidence.group_quality)
    )


FAMILY = ScoreFamily("groups", 100, (), compute)
