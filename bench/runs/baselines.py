"""What a run is compared with on the spot: the undebiased generator's record, if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fairbench.core.record import Record
from fairbench.runs.running import baseline_of, same_instruments
from fairbench.storage.records import RecordError, read_record

__all__ = ["Baseline", "find_baseline", "shipped_records"]

SHIPPED = Path(__file__).parents[1] / "assets" / "records"
"""Records of the undebiased backbones that come with fairbench, at their defaults."""

QUESTION = ("backbone_sha256", "sampling", "dtype", "target")
"""What must be the same, whatever the seed and the number of images."""


@dataclass(frozen=True)
class Baseline:
    """The undebiased generator's record.

    Attributes:
        record: The record.
        shipped: Whether it came with fairbench; then its seed and number of images may be others,
            and its time and memory are another machine's.
    """

    record: Record
    shipped: bool

    @property
    def beside(self) -> Record | None:
        """The record if it is of the very same question and machine, to stand in a column."""
        return None if self.shipped else self.record


def find_baseline(record: Record, results: Path, warn: Callable[[str], None]) -> Baseline | None:
    """The undebiased generator's record for another: of the user's own, else a shipped one.

    Args:
        record: Of a run.
        results: Folder of the user's records.
        warn: Told about each record that can't be read.
    """
    if record.method == "vanilla":
        return None
    own = baseline_of(record, results, warn)
    if own is not None:
        return Baseline(own, shipped=False)
    for other in shipped_records():
        if (
            (other.dataset, other.task) == (record.dataset, record.task)
            and all(other.config.get(name) == record.config.get(name) for name in QUESTION)
            and same_instruments(other, record)
        ):
            return Baseline(other, shipped=True)
    return None


def shipped_records() -> Iterator[Record]:
    """The records that come with fairbench."""
    for path in sorted(SHIPPED.glob("*.json")):
        with suppress(RecordError):  # the sentence is left out rather than the run
            yield read_record(path)
