"""What a run would do, how long it would take, and what is missing for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fairbench.core.errors import FairbenchError
from fairbench.core.progress import Reporter
from fairbench.core.text import shown
from fairbench.runs.baselines import shipped_records
from fairbench.runs.config import RunConfig
from fairbench.runs.durations import alike, duration

__all__ = ["Forecast", "forecast", "spoken"]


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it is done.

    Attributes:
        method: Its method.
        images: How many it makes.
        key: Its run key; None where something is missing.
        record: Where its record will lie, or lies; None where something is missing.
        found: Whether the record is there already.
        hours: How long it takes, by records of the same kind; None without one.
        memory_mib: Most memory that they took; None without one.
        rests_on: What the two rest on, in words.
        missing: What must be there first; empty if nothing is missing.
    """

    method: str
    images: int
    key: str | None
    record: str | None
    found: bool
    hours: float | None
    memory_mib: float | None
    rests_on: str
    missing: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As a reader sees it, nothing of which was done."""
        return [shown(f"{title:<8} {text}") for title, text in self._told()]

    def _told(self) -> Iterator[tuple[str, str]]:
        yield "method", self.method
        yield "images", f"{self.images:,}"
        if self.key is not None:
            yield "key", self.key
        if self.record is not None:
            yield "record", self.record + (" (there already)" if self.found else "")
        if self.hours is None or self.memory_mib is None:
            yield "time", self.rests_on
        else:
            yield "time", f"about {spoken(self.hours)}, by {self.rests_on}"
            yield "memory", f"about {self.memory_mib:,.0f} MiB"
        for reason in self.missing:
            yield "missing", reason


def forecast(config: RunConfig, report: Reporter) -> Forecast:
    """Plan a run without making an image or training anything.

    Args:
        config: What would be done.
        report: Told about records that can't be read.

    Raises:
        FairbenchError: If an option is wrong, which nothing that is fetched would mend.
    """
    from fairbench.methods import make_method
    from fairbench.runs.requisites import missing_requisites

    make_method(config.method, config.parameters)
    lacking = missing_requisites(
        config.dataset,
        config.data_root,
        backbone=config.backbone,
        allow_download=config.allow_download,
    )
    if lacking:
        unknown = "unknown until all is there"
        return Forecast(
            config.method,
            config.num_images,
            None,
            None,
            found=False,
            hours=None,
            memory_mib=None,
            rests_on=unknown,
            missing=tuple(lacking),
        )
    from fairbench.runs.generation import check_disk
    from fairbench.runs.running import plan_keys_of
    from fairbench.storage.cache import cache_folder
    from fairbench.storage.records import find_record, read_records

    plan, keys, path = plan_keys_of(config, report)
    own = list(read_records(config.folder, report.warn)) if config.folder.is_dir() else []
    kind = (config.method, plan.backbone.name, plan.sampling.steps)
    took, whose = duration(alike(*kind, own)), "own"
    if took is None:
        took, whose = duration(alike(*kind, shipped_records())), "shipped"
    rests_on = f"unknown: no record of {config.method} on {plan.backbone.name} in {config.folder}"
    if took is not None:
        count = f"{took.records} record{'s' if took.records > 1 else ''}"
        machine = " of this folder" if whose == "own" else ", made on another machine,"
        rests_on = f"{count}{machine} of this method, backbone and steps"
    try:
        found = find_record(path) is not None
    except FairbenchError as error:
        found = False
        report.warn(str(error))
    missing: tuple[str, ...] = ()
    if not found or config.force:
        try:
            check_disk(plan, keys.generation, cache_folder())
        except FairbenchError as error:
            missing = (str(error),)
    return Forecast(
        config.method,
        config.num_images,
        keys.run,
        str(path),
        found,
        None if took is None else took.hours(config.num_images),
        None if took is None else took.memory_mib,
        rests_on,
        missing,
    )


def spoken(hours: float) -> str:
    """Hours as a reader says them."""
    if hours < 1 / 60:
        return f"{max(1, round(hours * 3600))} seconds"
    if hours < 1:
        return f"{round(hours * 60)} minutes"
    return f"{hours:.1f} hours"
