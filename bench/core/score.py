"""One number of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["RANKED", "Better", "Score", "ScoreSpec"]

RANKED = "fairness_discrepancy_corrected"
"""The score that rows are ranked by."""

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Score:
    """One number, with its uncertainty and where it comes from.

    Attributes:
        name: Column name, such as ``"fairness_discrepancy"``.
        value: The number; finite.
        low, high: Ends of the interval at `level`; None where none exists, or where an end is
            infinite, which `interval` then says.
        n: Images the number rests on.
        better: Which direction is better.
        interval: How the interval was made, such as ``"wilson"``; empty without one.
        floor: 95 % quantile of the value for a perfectly fair generator at this n, if it has one.
        unit: Such as ``"share"``, ``"seconds"``; empty for a distance.
        source: What it was measured with: judge, encoder or reference, by name.
        level: Confidence level of the interval.
        version: Of its `ScoreSpec` when it was computed; records that don't say hold version 2.
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
    version: int = 2

    @classmethod
    def of_all(cls, values: Mapping[str, Any]) -> Score:
        """A score from the values of all of its fields, in a third of the time of a call."""
        made = cls.__new__(cls)
        made.__dict__.update(values)
        return made


@dataclass(frozen=True)
class ScoreSpec:
    """What is known of a column before anything is measured.

    Attributes:
        pattern: The score's name, or a pattern of names as `fnmatch` reads it, such as
            ``"kernel_*_balanced"``.
        meaning: One or two sentences: what it is, and what to make of it.
        better: Which direction is better.
        unit: Such as ``"share"``, ``"nats"``; empty for a distance.
        scale: What readers see it multiplied by, such as 1000 for a distance of the order of .001.
        summary: Whether the table of one run shows it; a record holds all.
        main: Place among the columns of the readable leaderboards, from 0; None: not there.
        compact: Whether the leaderboard for a terminal of 80 columns shows its value too.
        needs: What must be there to measure it, in words; empty for nothing but images.
        display: How patterns are written in lists, such as ``"kernel_<encoder>_balanced"``; empty
            for the pattern itself.
        margin: Smallest change that `fairbench check` calls a regression or an improvement, in the
            score's own unit; None: it isn't watched.
        relative: Whether `margin` is a share of what the baseline has, as of distances whose size
            depends on the encoder.
        of_labels: Whether hard labels and validity decide it, so that two images with the same
            labels add nothing to a difference.
        version: Raised whenever the same arrays give another value or other ends.
        batches_since: Version since which only numbers whose interval counts whole batches have
            changed; None: all have.
    """

    pattern: str
    meaning: str
    better: Better
    unit: str = ""
    scale: float = 1.0
    summary: bool = False
    main: int | None = None
    compact: bool = False
    needs: str = ""
    display: str = ""
    margin: float | None = None
    relative: bool = False
    of_labels: bool = False
    version: int = 2
    batches_since: int | None = None

    @property
    def specificity(self) -> tuple[bool, int]:
        """Of several patterns that match a name, the one where this is largest wins."""
        literal = self.pattern.replace("*", "").replace("?", "")
        return literal == self.pattern, len(literal)
