"""The time, as records hold it."""

from __future__ import annotations

import datetime

__all__ = ["now"]


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
