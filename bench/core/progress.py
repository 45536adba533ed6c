"""Where long work says what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "Reporter", "silent"]

Progress = Callable[[str, float, float], None]
"""``progress(what, done, total)``: called often, cheap; a part of a thing may be done."""


def silent(what: str, done: float, total: float) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Reporter:
    """Where a run says what it does.

    Attributes:
        progress: ``progress(what, done, total)``.
        note: One line that the user should see.
        warn: One line about something that may be wrong.
    """

    progress: Progress = silent
    note: Callable[[str], None] = lambda line: None
    warn: Callable[[str], None] = lambda line: None
