"""One number of a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """One number, with its uncertainty and where it comes from.

    Attributes:
        name: Column name, such as ``"fairness_discrepancy"``.
        value: The number; finite.
        low, high: Ends of the interval at `level`; None where none exists.
        n: Images the number rests on.
        better: Which direction is better.
        interval: How the interval was made, such as ``"wilson"``; empty without one.
        floor: 95 % quantile of the value for a perfectly fair generator at this n, if it has one.
        unit: Such as ``"share"``, ``"seconds"``; empty for a distance.
        source: What it was measured with: judge, encoder or reference, by name.
        level: Confidence level of the interval.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    better: Literal["lower", "higher", "neither"]
    interval: str = ""
    floor: float | None = None
    unit: str = ""
    source: str = ""
    level: float = 0.95
