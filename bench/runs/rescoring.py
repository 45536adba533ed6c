"""Bringing the scores of records up to date, without what it took to make their images.

A score says which version of its definition it was computed by. Of one that is older than today's,
the value may be another by now: it is computed again from what there is, in this order: the images
and features in the cache; hard labels, validity and batches of each image in the record's sidecar;
the counts in the record's own tables. What needs pixels that are gone waits until the images are
made again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import FairbenchError, InputError
from fairbench.core.progress import Reporter
from fairbench.core.record import Record
from fairbench.core.score import RANKED, Score
from fairbench.core.specs import InstrumentNames
from fairbench.core.task import parse_target
from fairbench.datasets.base import Dataset, get_dataset
from fairbench.diffusion.devices import resolve_device
from fairbench.instruments.measuring import Instruments, load_instruments
from fairbench.runs.copies import count_copies
from fairbench.runs.evaluation import Question, crossed_by
from fairbench.runs.generation import find_generated, generate
from fairbench.runs.judging import choose_judges
from fairbench.runs.plan import Plan, plan_keys, plan_run
from fairbench.runs.provenance import code_version
from fairbench.runs.question import command_of, question_of
from fairbench.runs.reference import confusions_of
from fairbench.runs.scoring import score_generated
from fairbench.runs.times import now
from fairbench.scores.catalogue import is_older
from fairbench.scores.known_labels import KnownLabels, expanded, scores_of_labels
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import full_disk, sweep
from fairbench.storage.readings import ImageList
from fairbench.storage.records import (
    read_manifest,
    read_per_image,
    read_record,
    read_records,
    record_path,
    rewrite_record,
)

__all__ = ["Rescoring", "old_scores", "refreshed", "rescore", "rescore_all"]

Basis = Literal["", "features", "labels of each image", "counts", "images made again"]


@dataclass(frozen=True)
class Rescoring:
    """What became of one record.

    Attributes:
        path: Where it lies.
        basis: What its scores were computed from; empty if none was.
        changed: Names of the scores that were computed again, or are new.
        old: Names of the scores that are still of an older version.
        problem: Why those couldn't be computed, in one line; empty if there are none.
        command: What makes them, if the user has the time; empty if nothing is to be made.
    """

    path: Path
    basis: Basis
    changed: tuple[str, ...]
    old: tuple[str, ...]
    problem: str = ""
    command: str = ""


@dataclass(frozen=True)
class _Found:
    """Scores, tables and facts that a record's own are replaced by."""

    basis: Basis
    scores: tuple[Score, ...]
    tables: Mapping[str, Any]
    facts: Mapping[str, Any]


def old_scores(record: Record) -> tuple[str, ...]:
    """Names of the scores that today's code would compute in another way."""
    return tuple(score.name for score in record.scores if is_older(score))


def rescore(
    path: Path, record: Record, *, make_images: bool = False, report: Reporter | None = None
) -> Rescoring:
    """Bring the scores of one record up to date, as far as possible.

    The file is replaced at once or not at all. It keeps when it was made, and says when, by which
    code and from what it was rescored.

    Args:
        path: Where the record lies.
        record: What lies there.
        make_images: Make images again that are nowhere, which takes as long as the run did.
        report: Told about progress.

    Raises:
        FairbenchError: If the record's sidecar is damaged or the file can't be written.
    """
    if record.status != "complete" or not old_scores(record):
        return Rescoring(path, "", (), ())
    told = report or Reporter()
    problem = ""
    try:
        plan, instruments = _asked(record)
        problem = _other_instruments(record, plan, instruments)
        if not problem:
            return _rescored(path, record, plan, instruments, told, make_images=make_images)
    except InputError as error:
        if full_disk(error):
            raise
        problem = str(error).splitlines()[0]
    return Rescoring(path, "", (), old_scores(record), problem)


def rescore_all(
    results: Path, *, make_images: bool = False, report: Reporter | None = None
) -> list[Rescoring]:
    """Bring the scores of all complete records of a folder up to date, as far as possible.

    Args:
        results: Folder of records.
        make_images: As for `rescore`.
        report: Told about progress, and about records that are damaged and left as they are.

    Returns:
        What became of each, by path.

    Raises:
        InputError: If there is no such folder.
    """
    told = report or Reporter()
    found = []
    sweep(results)
    records = []
    for record in read_records(results, told.warn):
        try:
            path = record_path(results, record.dataset, record.method, record.key)
        except InputError as error:  # a record that was put there by hand
            told.warn(str(error))
            continue
        records.append((path, record))
    for place, (path, record) in enumerate(records):
        try:
            found.append(rescore(path, record, make_images=make_images, report=told))
        except FairbenchError as error:  # one damaged sidecar doesn't stop the rest
            if full_disk(error):
                raise
            line = str(error).splitlines()[0]
            told.warn(line)
            found.append(Rescoring(path, "", (), old_scores(record), line))
        told.progress("rescoring records", place + 1, len(records))
    return found


def refreshed(
    record: Record, path: Path, plan: Plan, instruments: Instruments, report: Reporter
) -> Record:
    """A record that a run found, brought up to date if that needs no new images.

    What can't be is said, with the command that does it.
    """
    if not old_scores(record):
        return record
    found = _rescored(path, record, plan, instruments, report, make_images=False)
    if found.changed:
        report.note(
            f"{len(found.changed)} scores were of an older version and are computed anew from "
            f"{found.basis}"
        )
    if found.old:
        report.warn(
            f"{len(found.old)} scores, such as {found.old[0]}, are of an older version: "
            f"{found.problem}; compute the run again by adding --force"
        )
    return read_record(path) if found.changed else record


def _rescored(
    path: Path,
    record: Record,
    plan: Plan | None,
    instruments: Instruments,
    report: Reporter,
    *,
    make_images: bool,
) -> Rescoring:
    problems: list[str] = []
    found = None
    if plan is not None:
        found = _from_images(path, record, plan, instruments, report, make_images, problems)
    if found is None:
        found = _from_labels(path, record, plan, instruments, problems)
    if found is None:
        return Rescoring(
            path, "", (), old_scores(record), "; ".join(problems), _command(record, plan)
        )
    kept = {score.name: score for score in record.scores}
    changed = tuple(
        score.name
        for score in found.scores
        if score.name not in kept or kept[score.name].version < score.version
    )
    fresh = {score.name: score for score in found.scores if score.name in changed}
    # In the order that the record has; what is new comes last.
    scores = tuple({**kept, **fresh}.values())
    whole = found.basis in ("features", "images made again")
    updated = dataclasses.replace(
        record,
        scores=scores,
        groups=found.tables if whole else _laid_over(record.groups, found.tables),
        facts={**_without_gaps(record.facts), **found.facts}
        if whole
        else _laid_over(record.facts, found.facts),
        rescored={
            "code": code_version(),
            "created": now(),
            "from": found.basis,
            "scores": list(changed),
        },
    )
    left = old_scores(updated)
    if changed:
        rewrite_record(path, updated)
    return Rescoring(
        path,
        found.basis,
        changed,
        left,
        "; ".join(problems) if left else "",
        _command(record, plan) if left else "",
    )


def _without_gaps(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "not_measured"}


def _command(record: Record, plan: Plan | None) -> str:
    return "" if plan is None else f"{command_of(record)} --force"


def _asked(record: Record) -> tuple[Plan | None, Instruments]:
    """The plan of a record's question, None for images from elsewhere, and its instruments."""
    if "evaluated" in record.config:
        return None, _instruments("auto", *_judged(record), None, False)
    encoders = [
        name.removeprefix("encoder_")
        for name in record.config.get("hashes", {})
        if name.startswith("encoder_")
    ]
    asked = dataclasses.replace(
        question_of(record),
        results=cache_folder(),  # where nothing is written
        controls=tuple(record.config.get("control", ())),
        faces="face_detector" in record.config.get("hashes", {}),
    )
    plan = plan_run(asked)
    device, judged = str(plan.device), _judged(record)
    instruments = _instruments(device, *judged, (), asked.faces)
    shipped = {one.name for one in instruments.encoders}
    further = tuple(name for name in encoders if name not in shipped)
    if further:
        instruments = _instruments(device, *judged, further, asked.faces)
    return plan, instruments


def _judged(record: Record) -> tuple[str, int | None, str, tuple[str, ...], bool]:
    """What a record was measured by.

    Its data set and the size of that's images, its task, the judges that it named, whether poor
    ones were taken.
    """
    had = record.config
    return (
        record.dataset,
        record.facts.get("data", {}).get("side"),
        record.task,
        tuple(had.get("judges", ())),
        bool(had.get("accept_judge", False)),
    )


@functools.lru_cache(maxsize=16)  # many records are measured by the same
def _instruments(
    device: str,
    dataset: str,
    side: int | None,
    task: str,
    judges: tuple[str, ...],
    accept: bool,
    encoders: tuple[str, ...] | None,
    faces: bool,
) -> Instruments:
    """What measures; without encoders, not even the data set's own, for None."""
    chosen = get_dataset(dataset).sized(side)
    question = chosen.task(task, conditional=True)
    where = str(resolve_device(device))
    judging = choose_judges(
        chosen, question, cache_folder(), Reporter(), asked=judges, accept=accept, device=where
    )
    names = chosen.instruments()
    if encoders is None:
        names = InstrumentNames(names.judges, validity=names.validity)
    return load_instruments(where, names, encoders or (), judges=judging.judges, faces=faces)


def _other_instruments(record: Record, plan: Plan | None, instruments: Instruments) -> str:
    """Why today's instruments aren't those of the record; empty if they are."""
    then, now = record.config.get("hashes", {}), instruments.hashes()
    moved = sorted(name for name in then.keys() & now.keys() if then[name] != now[name])
    missing = sorted(then.keys() - now.keys() - {"reference"}) if plan is not None else []
    if moved or missing:
        return (
            f"it was measured with another {', '.join(moved or missing)}; its scores stay what "
            "they were"
        )
    return ""


def _from_images(
    path: Path,
    record: Record,
    plan: Plan,
    instruments: Instruments,
    report: Reporter,
    make_images: bool,
    problems: list[str],
) -> _Found | None:
    """From images in the cache, and what instruments said of them; or from images made again."""
    cache, basis = cache_folder(), "features"
    key = str(record.generation_key)
    generated = find_generated(key, cache)
    if generated is None and not make_images:
        problems.append("its images aren't in the cache")
        return None
    if generated is None:
        made = plan_keys(plan, instruments).generation
        if made != key:
            problems.append(
                "its images can't be made again: the method, its defaults, the backbone or the "
                "number format are others today"
            )
            return None
        generated, basis = generate(plan, key, cache, report), "images made again"
    listed = generated.images.listing
    before = [digest for _, _, digest in read_manifest(path, record)]
    differing = sum(a != b for a, b in zip(before, listed.sha256, strict=False))
    if differing or len(before) != len(listed):
        problems.append(
            f"{differing or len(before)} of {len(before)} images come out otherwise than its "
            "manifest says: other versions of packages, or another machine, made them"
        )
        return None
    found = score_generated(plan, generated, instruments, cache, report)
    return _Found(
        "features" if basis == "features" else "images made again",
        found.scores,
        found.tables,
        found.facts,
    )


def _from_labels(
    path: Path,
    record: Record,
    plan: Plan | None,
    instruments: Instruments,
    problems: list[str],
) -> _Found | None:
    """From hard labels and validity of each image, or else from the counts of the tables."""
    question = _evaluated(record) if plan is None else plan.question
    dataset, task = question.dataset, question.task
    checked = instruments.validity is not None
    images = read_per_image(path, record)
    basis: Basis = "labels of each image"
    if images is not None:
        known: KnownLabels | None = KnownLabels(
            images.labels,
            images.valid,
            checked,
            images.prompt_index,
            images.batch_id,
            images.requested,
            _copies(images.sha256, dataset),
        )
    else:
        basis = "counts"
        known = _from_counts(path, record, question, instruments, problems)
    if known is None:
        return None
    scores, tables, facts = scores_of_labels(
        known,
        task,
        instruments.read_by_all(dataset.attributes),
        crossed_by(question, instruments),
        confusions_of(instruments),
        seed=int(record.config.get("scoring_seed", 0)),
    )
    if "audit" in record.facts:  # which may have told other errors of the judges than these
        scores = tuple(score for score in scores if not score.name.startswith(RANKED))
    problems.append(f"they need more than {basis}")
    return _Found(basis, scores, tables, facts)


def _evaluated(record: Record) -> Question:
    """What images from elsewhere were asked."""
    dataset = get_dataset(record.dataset).sized(record.facts.get("data", {}).get("side"))
    task = dataset.task(record.task, conditional=True)
    shares = record.config["target"]
    target = ",".join(f"{group}={share!r}" for group, share in shares.items())
    return Question(dataset, parse_target(target, task))


def _copies(digests: Iterable[str], dataset: Dataset) -> dict[str, int]:
    split = dataset.split("evaluation")
    side = (0, 0) if split is None else (split.listing.height, split.listing.width)
    return count_copies(ImageList(tuple(digests), *side), dataset)


def _from_counts(
    path: Path,
    record: Record,
    question: Question,
    instruments: Instruments,
    problems: list[str],
) -> KnownLabels | None:
    """Images that have the counts of the record's table of the sensitive crossing."""
    task, crossed = question.task, crossed_by(question, instruments)
    if _coupled(record):
        problems.append("its images depend on each other, and counts don't say how")
        return None
    name = "/".join(crossed)
    manifest = read_manifest(path, record)
    if not manifest:
        problems.append("it has neither labels of its images nor their list")
        return None
    images = np.bincount(
        [prompt for prompt, _, _ in manifest], minlength=len(task.prompts)
    ).astype(np.int64)
    counts: dict[int, NDArray[np.int64]] = {}
    for p, prompt in enumerate(task.prompts):
        table = record.groups.get(name if len(task.prompts) == 1 else f"{name}|{prompt.subject}")
        if table is None:
            problems.append(f"it has no table of {name}")
            return None
        counts[p] = np.array([row["count"] for row in table], dtype=np.int64)
    return expanded(
        counts,
        images,
        crossed,
        question.dataset.attributes,
        instruments.judges[0].name,
        validity_checked=instruments.validity is not None,
        copies=_copies([digest for _, _, digest in manifest], question.dataset),
    )


def _coupled(record: Record) -> bool:
    """Whether the intervals of a record without a sidecar rest on batches."""
    fair = record.facts.get("fair", {}).get("fairness_discrepancy")
    valid = sum(row["count"] for row in next(iter(record.groups.values()), []))
    return fair is None or sum(fair["n"]) != valid or bool(record.card.get("batch_coupled"))


def _laid_over(old: Any, new: Any) -> Any:
    """Plain values with others in their place, entry by entry; what only one has is kept.

    None stands for what labels can't say, and takes nothing's place.
    """
    if new is None:
        return old
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        both = {key: _laid_over(old[key], new[key]) for key in old.keys() & new.keys()}
        return {**old, **new, **both}
    rows = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if rows and all(isinstance(row, Mapping) for row in [*old, *new]):
        return [_laid_over(mine, theirs) for mine, theirs in zip(old, new, strict=True)]
    return new
