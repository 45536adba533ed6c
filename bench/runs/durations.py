"""How long a run takes, by records of the same kind: same method, backbone and steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairbench.core.record import Record

__all__ = ["Duration", "alike", "duration"]


@dataclass(frozen=True)
class Duration:
    """What runs of one kind take.

    Attributes:
        prepare: Seconds before the first image, most of them training; a median.
        each: Seconds an image, made and measured; a median.
        memory_mib: Most memory that one of them took, MiB.
        records: How many records say so.
    """

    prepare: float
    each: float
    memory_mib: float
    records: int

    def hours(self, images: int) -> float:
        """Of a whole run of so many images."""
        return (self.prepare + self.each * images) / 3600


def alike(method: str, backbone: str, steps: int, records: Iterable[Record]) -> list[Record]:
    """Complete records of the same method, backbone and sampling steps."""
    return [
        record
        for record in records
        if record.status == "complete"
        and record.method == method
        and record.config.get("backbone") == backbone
        and record.config.get("sampling", {}).get("steps") == steps
        and "generate" in record.seconds
        and record.config.get("num_images")
    ]


def duration(records: Sequence[Record]) -> Duration | None:
    """What the runs of these records, all of one kind, took; None without one."""
    if not records:
        return None
    return Duration(
        float(statistics.median(record.seconds.get("prepare", 0.0) for record in records)),
        float(
            statistics.median(
                (record.seconds["generate"] + record.seconds.get("measure", 0.0))
                / record.config["num_images"]
                for record in records
            )
        ),
        max(record.peak_memory_mib for record in records),
        len(records),
    )
