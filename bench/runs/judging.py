"""Which judges a run is measured with: those that read what the task asks, and read it well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairbench.core.errors import InputError
from fairbench.core.progress import Reporter
from fairbench.core.task import Control, Task
from fairbench.datasets.base import Dataset
from fairbench.instruments.base import AttributeJudge
from fairbench.instruments.calibration import ACCEPTED, balanced_accuracy, calibrated
from fairbench.instruments.class_readers import Calibrated
from fairbench.instruments.judges import judge_names, load_judge

__all__ = ["Judging", "choose_judges", "judge_report", "judging_config", "needed_attributes"]


@dataclass(frozen=True)
class Judging:
    """The judges of a run.

    Attributes:
        judges: One or more; the first is the one that scores come from.
        accepted: Judge -> what of it was accepted although it is below the bar, in words.
    """

    judges: tuple[AttributeJudge, ...]
    accepted: Mapping[str, str]

    def facts(self) -> dict[str, dict[str, str]]:
        """What a record says of them; nothing if all are good enough."""
        return {"accepted_judges": dict(self.accepted)} if self.accepted else {}


def judging_config(asked: Sequence[str], accept: bool) -> dict[str, Any]:
    """What a record keeps of the choice of judges; nothing if the user made none."""
    kept: dict[str, Any] = {"judges": list(asked)} if asked else {}
    return kept | ({"accept_judge": True} if accept else {})


def needed_attributes(task: Task, controls: Sequence[Control]) -> tuple[str, ...]:
    """What a judge must read to answer a task: its groups, its subjects, control variables."""
    strata = [name for prompt in task.prompts for name in prompt.stratum]
    # A variable of the user's own table has its levels with it.
    split = [control.name for control in controls if control.index is None]
    return tuple(dict.fromkeys([*task.attributes, *strata, *split]))


def choose_judges(
    dataset: Dataset,
    task: Task,
    cache: Path,
    report: Reporter,
    *,
    asked: Sequence[str] = (),
    accept: bool = False,
    controls: Sequence[Control] = (),
    device: str = "cpu",
    batch_size: int | None = None,
    allow_download: bool = False,
) -> Judging:
    """Load and calibrate the judges of a run; leave out those that can't answer its task.

    Args:
        dataset: Whose images are judged.
        task: What they are asked.
        cache: Folder that trained judges and counted errors lie in.
        report: Told which judges are left out, and why.
        asked: Judges that the user names; empty: those of the data set.
        accept: Whether to use those too that read an attribute of the task with a balanced
            accuracy below 90 %, or with one that isn't known.
        controls: Variables that groups are compared within.
        device: As ``--device``.
        batch_size: Images that a judge which leaves that open sees at once.
        allow_download: Get weights from upstream if they are nowhere.

    Raises:
        InputError: If no judge is left; the message says what each one lacks and what to do.
        AssetError: If weights are missing or damaged.
    """
    needed = needed_attributes(task, controls)
    used: list[AttributeJudge] = []
    accepted: dict[str, str] = {}
    left_out: list[str] = []
    weak = False
    for name in judge_names(dataset, asked, cache):
        judge = load_judge(
            name,
            dataset,
            cache,
            device=device,
            batch_size=batch_size,
            allow_download=allow_download,
        )
        lacking = _lacking(judge, dataset, needed, before=True)
        if not lacking:
            # Only now: measuring errors takes minutes, and could change nothing.
            judge = _calibrated(judge, dataset, cache, report, accept)
            lacking = _lacking(judge, dataset, needed, before=False)
        if lacking:
            left_out.append(f"{judge.name} {lacking}")
            continue
        poor = _poor(judge, task)
        if poor and not accept:
            weak = True
            left_out.append(f"{judge.name} {poor}")
            continue
        if poor:
            accepted[judge.name] = poor
        used.append(judge)
    if not used:
        remedy = f"fairbench train-judge --dataset {dataset.typed} makes one"
        if weak:
            remedy += ", or --accept-judge takes what is there"
        raise InputError(
            f"no judge of {dataset.name} can answer task {task.name!r}: {'; '.join(left_out)}; "
            f"{remedy}"
        )
    for line in left_out:
        report.note(f"judge {line}, so it isn't used")
    for name, poor in accepted.items():
        report.warn(f"judge {name} {poor}; used all the same, as --accept-judge says")
    return Judging(tuple(used), accepted)


def _calibrated(
    judge: AttributeJudge,
    dataset: Dataset,
    cache: Path,
    report: Reporter,
    accept: bool,
) -> AttributeJudge:
    if accept and isinstance(judge, Calibrated) and dataset.split("judge") is None:
        return judge  # what it can read without labelled images
    return calibrated(judge, dataset, cache, report.progress)


def _lacking(
    judge: AttributeJudge, dataset: Dataset, needed: Sequence[str], *, before: bool
) -> str:
    """What of the needed attributes a judge doesn't read, in words; empty if nothing."""
    reads = judge.levels if before and isinstance(judge, Calibrated) else judge.attributes
    refused = judge.refused if isinstance(judge, Calibrated) else {}
    for name in needed:
        if name in refused:
            return f"can't be trusted with {name}: {refused[name]}"
    absent = [name for name in needed if reads.get(name) != dataset.attributes[name]]
    return f"doesn't read {' and '.join(absent)}" if absent else ""


def _poor(judge: AttributeJudge, task: Task) -> str:
    """Which attributes of the task a judge reads too badly, in words; empty if none."""
    said = []
    for name in task.attributes:
        counts = judge.confusion.get(name)
        if counts is None:
            # Of a judge that a data set declares without counts, nothing is known either way.
            if isinstance(judge, Calibrated):
                said.append(f"{name} with an accuracy that isn't known")
            continue
        value = balanced_accuracy(counts)
        if value is not None and value < ACCEPTED:
            said.append(f"{name} with a balanced accuracy of {value:.1%}")
    return f"reads {' and '.join(said)}, {ACCEPTED:.0%} is asked for" if said else ""


def judge_report(
    dataset: Dataset,
    cache: Path,
    report: Reporter,
    *,
    asked: Sequence[str] = (),
    device: str = "cpu",
    allow_download: bool = False,
) -> list[dict[str, Any]]:
    """How good judges are on a data set, measured where it isn't known yet.

    Args:
        dataset: Whose judge split they are measured on.
        cache: Folder that trained judges and counted errors lie in.
        report: Told about progress.
        asked: Judges to look at; empty: those that a run would use.
        device: As ``--device``.
        allow_download: Get weights from upstream if they are nowhere.

    Returns:
        One row a judge and attribute: ``judge``, ``attribute``, ``balanced_accuracy`` (None if it
        isn't known), ``held_out_images``, ``recall`` by level, ``confusion``, ``ranks`` (whether
        it is good enough), ``remark``.

    Raises:
        InputError: If there is no such judge, or the data set has no judge split.
        AssetError: If weights are missing or damaged.
    """
    rows: list[dict[str, Any]] = []
    for name in judge_names(dataset, asked, cache):
        judge = load_judge(name, dataset, cache, device=device, allow_download=allow_download)
        judge = calibrated(judge, dataset, cache, report.progress)
        rows += [_row(judge, attribute, dataset) for attribute in dataset.attributes]
    return rows


def _row(judge: AttributeJudge, attribute: str, dataset: Dataset) -> dict[str, Any]:
    levels = dataset.attributes[attribute]
    row: dict[str, Any] = {
        "judge": judge.name,
        "attribute": attribute,
        "balanced_accuracy": None,
        "held_out_images": 0,
        "recall": {},
        "confusion": [],
        "ranks": False,
        "remark": "",
    }
    counts = judge.confusion.get(attribute)
    refused = judge.refused if isinstance(judge, Calibrated) else {}
    cuts = judge.cuts if isinstance(judge, Calibrated) else {}
    if attribute in refused:
        row["remark"] = f"refused: {refused[attribute]}"
    elif judge.attributes.get(attribute) != levels:
        row["remark"] = "doesn't read it"
    elif counts is None:
        row["remark"] = "its errors were never counted"
    if counts is not None:
        totals = counts.sum(axis=1)
        value = balanced_accuracy(counts)
        row |= {
            "balanced_accuracy": value,
            "held_out_images": int(counts.sum()),
            "recall": {
                level: int(right) / int(total) if total else None
                for level, right, total in zip(levels, counts.diagonal(), totals, strict=True)
            },
            "confusion": counts.tolist(),
            "ranks": value is not None and value >= ACCEPTED and attribute not in refused,
        }
        if not row["remark"] and not row["ranks"]:
            row["remark"] = f"below {ACCEPTED:.0%}: only with --accept-judge"
        if not row["remark"] and attribute in cuts:
            row["remark"] = f"{cuts[attribute].older} from {cuts[attribute].start} years"
    return row
