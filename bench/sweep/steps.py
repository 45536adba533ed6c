"""The graph of a sweep: its runs, and before them what several of them share."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairbench.core.errors import ContractError
from fairbench.core.keys import plain
from fairbench.runs.config import RunConfig

if TYPE_CHECKING:
    from fairbench.sweep.asked import Asked

__all__ = ["Ended", "Kind", "Outcome", "Step", "steps_of", "total_hours", "urgency"]

Kind = Literal["train", "images", "run"]

Outcome = Literal["done", "failed", "busy", "lost"]
"""Done; failed by an error of its own; another worker has it; its worker died, or was ended."""


@dataclass(frozen=True)
class Step:
    """One piece of work that one worker does.

    Attributes:
        key: Of its claim: a run key, or of what is shared.
        kind: What is made: ``"train"`` what a method trains, ``"images"`` those of several runs,
            ``"run"`` a record.
        config: The run, or one of those that share this.
        title: What a reader calls it.
        records: Where records that answer it lie below the results; none for what is shared.
        after: Keys of the steps that must have ended before.
        hours: How long it takes; None if nobody knows.
        memory_mib: Most memory that it takes, MiB; None if nobody knows.
    """

    key: str
    kind: Kind
    config: RunConfig
    title: str
    records: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    hours: float | None = None
    memory_mib: float | None = None

    def text(self) -> str:
        """As JSON, for a worker elsewhere."""
        config = asdict(self.config)
        for name, value in config.items():
            if isinstance(value, Path):
                config[name] = str(value)
        return json.dumps(plain({**asdict(self), "config": config}))

    @staticmethod
    def of(text: str) -> Step:
        """The step of a JSON text.

        Raises:
            ContractError: If it is none.
        """
        try:
            told: dict[str, Any] = json.loads(text)
            config: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in told.pop("config").items()
            }
            for name in ("data_root", "results"):
                config[name] = None if config[name] is None else Path(config[name])
            records, after = (tuple(told.pop(name)) for name in ("records", "after"))
            return Step(**told, config=RunConfig(**config), records=records, after=after)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ContractError(f"expected a step of a sweep; {error!r}") from None


@dataclass(frozen=True)
class Ended:
    """What became of a step.

    Attributes:
        key: Of the step.
        outcome: What became of it.
        line: Why, where it wasn't done.
        seconds: How long its worker took.
    """

    key: str
    outcome: Outcome
    line: str = ""
    seconds: float = 0.0


def steps_of(asked: Sequence[Asked]) -> list[Step]:
    """The steps of questions that aren't answered yet, each after those that it needs.

    What one question alone needs is part of its run.
    """
    by_training: dict[str, list[Asked]] = defaultdict(list)
    by_images: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        by_images[one.generation].append(one)
        if one.training is not None:
            by_training[one.training].append(one)
    steps: list[Step] = []
    trained: dict[str, str] = {}
    for key, some in by_training.items():
        if len({one.generation for one in some}) < 2:
            continue
        first = some[0]
        hours = None if first.took is None else first.took.prepare / 3600
        trained[key] = f"train-{key}"
        steps.append(_shared("train", trained[key], first, (), hours, len(some)))
    made: dict[str, str] = {}
    for key, some in by_images.items():
        if len(some) < 2:
            continue
        first = some[0]
        made[key] = f"images-{key}"
        after = tuple(trained[one] for one in (first.training,) if one in trained)
        hours = first.hours
        if hours is not None and first.took is not None and after:
            hours -= first.took.prepare / 3600
        steps.append(_shared("images", made[key], first, after, hours, len(some)))
    for one in asked:
        steps.append(_run(one, trained.get(one.training or ""), made.get(one.generation)))
    return steps


def _shared(
    kind: Kind, key: str, one: Asked, after: tuple[str, ...], hours: float | None, count: int
) -> Step:
    what = {"train": "training", "images": "images"}[kind]
    memory = None if one.took is None else one.took.memory_mib
    title = f"{what} of {count} runs such as {one.title}"
    return Step(key, kind, one.config, title, (), after, hours, memory)


def _run(one: Asked, training: str | None, images: str | None) -> Step:
    after = tuple(key for key in (training, images) if key is not None)
    hours = one.hours
    if hours is not None and one.took is not None:
        if images is not None:
            hours = 0.0  # measuring alone; records don't say what it took apart
        elif training is not None:
            hours -= one.took.prepare / 3600
    memory = None if one.took is None else one.took.memory_mib
    return Step(
        one.key, "run", one.config, one.title, tuple(one.records), after[-1:], hours, memory
    )


def total_hours(steps: Iterable[Step]) -> tuple[float, int]:
    """Hours of steps on one device, and how many steps' hours nobody knows."""
    known = [step.hours for step in steps]
    return sum(hours for hours in known if hours is not None), known.count(None)


def urgency(steps: Sequence[Step]) -> Mapping[str, float]:
    """Hours from the beginning of each step to the end of the longest chain that waits for it.

    A step of which nobody knows how long it takes may be the longest, so it begins early.
    """
    waiting: dict[str, list[str]] = defaultdict(list)
    known = [step.hours for step in steps if step.hours is not None]
    longest = max(known, default=1.0)
    for step in steps:
        for key in step.after:
            waiting[key].append(step.key)
    found: dict[str, float] = {}
    for step in reversed(steps):  # each lies behind those that it needs
        behind = max((found[key] for key in waiting[step.key]), default=0.0)
        found[step.key] = behind + (longest if step.hours is None else step.hours)
    return found
