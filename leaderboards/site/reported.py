"""Numbers that papers report: a layer of their own, never in a measured column."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fairbench.metrics.discrepancies import family_of_fair

__all__ = ["Reported", "fair_value", "reported"]


@dataclass(frozen=True)
class Reported:
    """One table of reported numbers.

    Attributes:
        measure: What is reported, on what.
        source, table: Where it stands.
        checked: How it was read: numbers are told apart by how far they can be relied on.
        columns: Of the table.
        rows: Each with its method, its values as they are printed, whether its source ``copied``
            or ``measured`` them, and of what.
        sizes: Images behind a number; empty if that isn't known.
        unit: What those images are of.
        fair: Size, column and what a perfectly fair model would show in the mean.
        notes: Sentences below the table.
    """

    measure: str
    source: str
    table: str
    checked: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    sizes: tuple[int, ...]
    unit: str
    fair: tuple[tuple[int, str, float], ...]
    notes: tuple[str, ...]


def reported() -> tuple[Reported, ...]:
    """All tables that ship."""
    text = (
        resources.files("fairbench.leaderboards.site").joinpath("reported.json").read_text("utf-8")
    )
    return tuple(
        Reported(
            one["measure"],
            one["source"],
            one["table"],
            one["checked"],
            tuple(one["columns"]),
            tuple(one["rows"]),
            tuple(one["sizes"]),
            one["unit"],
            tuple(
                (n, column, fair_value(one["member"], n, groups))
                for n in one["sizes"]
                for column, groups in one["groups"].items()
            ),
            tuple(one["notes"]),
        )
        for one in json.loads(text)
    )


@cache
def _fair(n: int, groups: int) -> dict[str, float]:
    return family_of_fair([1 / groups] * groups, n)


def fair_value(member: str, n: int, groups: int) -> float:
    """What a perfectly fair model shows in the mean, to about 1 %.

    Args:
        member: Of `fairbench.metrics.discrepancies.DiscrepancyFamily`.
        n: Images.
        groups: K; the target is uniform.
    """
    return _fair(n, groups)[member]
