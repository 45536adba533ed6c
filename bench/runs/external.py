"""Measuring images made elsewhere."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ParamSpec, cast

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError, unknown_name
from fairbench.core.keys import run_key
from fairbench.core.progress import Reporter
from fairbench.core.record import SCHEMA, Record
from fairbench.core.task import Task, parse_target
from fairbench.datasets.base import ArrayImages, Dataset, ImageSource
from fairbench.inputs.images import ImageSet, read_images
from fairbench.inputs.labels import REQUESTED, Labels, check_table, read_labels
from fairbench.instruments.catalogue import instrument_spec
from fairbench.instruments.measuring import load_instruments
from fairbench.methods import method_names
from fairbench.runs.config import MINIMUM_IMAGES, check_batch, check_count, check_seed
from fairbench.runs.evaluation import (
    Known,
    Question,
    evaluate_images,
    measuring_config,
    share_readings,
)
from fairbench.runs.judging import choose_judges, judging_config
from fairbench.runs.pixels import MOST_HELD
from fairbench.runs.reference import real_images
from fairbench.runs.requisites import find_requisites
from fairbench.runs.running import Outcome
from fairbench.runs.times import now
from fairbench.scores.parts.crossings import crossing
from fairbench.scores.strata import check_controls
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import check_writable, sweep
from fairbench.storage.places import place_of
from fairbench.storage.pruning import clean
from fairbench.storage.records import find_record, read_record, record_path, write_record

__all__ = ["evaluate"]

P = ParamSpec("P")


def _at_an_address(function: Callable[P, Outcome]) -> Callable[P, Outcome]:
    """Let a function that takes a folder of records as `results` take an address, too."""

    @functools.wraps(function)
    def anywhere(*given: P.args, **named: P.kwargs) -> Outcome:
        place = place_of(cast("Path | str", named.get("results", "results")))
        place.update()
        named["results"] = place.folder
        try:
            outcome = function(*given, **named)
        finally:
            place.publish_new()
        if named.get("force"):
            place.replace(outcome.path)
        return outcome

    return anywhere


@_at_an_address
def evaluate(
    folder: Path,
    *,
    dataset: str | None = None,
    data_root: Path | None = None,
    task: str | None = None,
    name: str,
    target: str = "uniform",
    num_images: int | None = None,
    labels: Path | None = None,
    baseline: Path | None = None,
    encoders: Sequence[str] = (),
    faces: bool = False,
    controls: Sequence[str] = (),
    judges: Sequence[str] = (),
    accept_judge: bool = False,
    allow_download: bool = False,
    device: str = "auto",
    network_batch: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    results: Path | str = "results",
    force: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Measure images made elsewhere; several processes share the looking.

    Args:
        folder: Holds the images: a folder, a ``.zip``, a ``.tar`` or an ``.npz``.
        dataset: What they are measured against; None for the default.
        data_root: Folder of the data set's files; None: what ``FAIRBENCH_DATA`` names.
        task: The question; None for the data set's first.
        name: What the row is called.
        target: As for a run.
        num_images: How many must be there; the first so many are taken. None: all.
        labels: Table of prompts, requested groups and labels, as `read_labels` takes it.
        baseline: Record of the undebiased generator's images, such as one that ``evaluate`` made;
            None: the row isn't ranked, since nothing says what its quality was before.
        encoders: Public encoders to measure with beside the data set's own.
        faces: Whether to look for faces too, as on photographs.
        controls: Attributes within whose levels groups are compared too, as they are within the
            columns ``control_<name>`` of the labels.
        judges: Judges to use instead of the data set's own: names or paths.
        accept_judge: Whether to use judges below 90 % balanced accuracy too.
        allow_download: Get their weights from upstream if they are nowhere.
        device: Where the instruments run.
        network_batch: Images that a public encoder sees at once; None for its default.
        batch_size: What older programs call `network_batch`.
        seed: Of every resample behind the intervals.
        results: Folder of records, or an address that fsspec reaches.
        force: Compute although a record exists.
        reporter: Told what happens.
    Raises:
        FairbenchError: If the input is wrong.
        SystemExit: With code 0, on a process that helped another, which writes the record.
    """
    from fairbench.diffusion.devices import (
        begin_run,
        is_main_process,
        peak_memory_mib,
        resolve_device,
    )
    from fairbench.runs.provenance import environment

    report, results = reporter or Reporter(), Path(results)
    rows = batch_size if network_batch is None else network_batch
    check_batch("network-batch", rows)
    check_seed(seed)
    if num_images is not None:
        check_count(num_images)
    if not folder.exists():
        raise InputError(f"{folder}: no such folder or file; give what holds the images")
    if labels is not None:
        check_table(labels)
    for encoder in encoders:
        instrument_spec(encoder, "encoder")
    named = None if baseline is None else read_record(baseline)
    chosen = find_requisites(dataset, data_root, generating=False)
    question = parse_target(target, chosen.task(task, conditional=True))
    if question.per_prompt and labels is None:
        raise InputError(
            f"task {question.name!r} is a mean over prompts, and images alone don't say which "
            f"prompt made which; give --labels with a column prompt, or choose one of "
            f"{', '.join(chosen.pooled_tasks())}"
        )
    controlled = check_controls(controls, chosen.attributes, chosen.crossed(question.name))
    _check_row_name(results, chosen, name)
    check_writable(record_path(results, chosen.name, name, "key").parent, "--results")
    check_writable(cache_folder(), "FAIRBENCH_CACHE")
    if is_main_process():
        clean(cache_folder())
        sweep(results)
    chosen.prepare(report)
    real_images(chosen, question)  # what quality is measured against must be there
    where = resolve_device(device)
    begin_run(where)
    judging = choose_judges(
        chosen,
        question,
        cache_folder(),
        report,
        asked=judges,
        accept=accept_judge,
        controls=controlled,
        device=str(where),
        batch_size=rows,
        allow_download=allow_download,
    )
    instruments = load_instruments(
        str(where),
        chosen.instruments(),
        encoders,
        judges=judging.judges,
        faces=faces,
        allow_download=allow_download,
        batch_size=rows,
    )
    started = time.monotonic()
    read = read_images(
        folder, size=None, limit=num_images, progress=report.progress, most_held=MOST_HELD
    )
    _enough(folder, len(read.images), num_images)
    for note in read.notes:
        report.note(note)
    reading = time.monotonic() - started
    chosen = chosen.sized(min(read.source_size))
    known = _Known.read(labels, read, question, chosen)
    for note in () if known.labels is None else known.labels.notes:
        report.note(note)
    images: ImageSource = (
        ArrayImages(read.images, {}) if isinstance(read.images, np.ndarray) else read.images
    )
    if known.labels is not None:
        controlled += known.labels.controls
    asked = Question(chosen, question, None, controlled)
    config = {
        "evaluated": name,
        "images": run_key({"sha256": list(images.listing.sha256)}),
        "num_images": len(read.images),
        "size": list(read.source_size),
        **measuring_config(asked, instruments),
    }
    if known.labels is not None:
        config["labels"] = known.labels.sha256
    config |= judging_config(judges, accept_judge)
    if controls:
        config["control"] = sorted(set(controls))
    if seed:
        config["scoring_seed"] = seed
    before = None
    if baseline is not None and named is not None:
        before = _baseline(baseline, named, chosen, config["hashes"])
    if before is not None:
        config["baseline"] = before["key"]
    key = run_key(config)
    path = record_path(results, chosen.name, name, key)
    found = find_record(path)
    if found is not None and not force:
        if not is_main_process():
            raise SystemExit(0)
        return Outcome(found, path, True)
    started = time.monotonic()
    share_readings(asked, images, instruments, cache_folder(), where, report.progress)
    if not is_main_process():
        raise SystemExit(0)
    measured = evaluate_images(
        images,
        asked,
        instruments,
        Known(
            prompt_index=known.prompt_index,
            batch_id=np.arange(len(read.images)),
            requested=known.requested,
            texts=None if known.labels is None else known.labels.prompts,
            given={} if known.labels is None else known.labels.given,
        ),
        cache_folder(),
        report,
        seed=seed,
    )
    record = Record(
        schema=SCHEMA,
        key=key,
        generation_key=None,
        status="complete",
        error=None,
        method=name,
        dataset=chosen.name,
        task=question.name,
        config=config,
        card={
            "name": name,
            "role": "method",
            "ranked": before is not None,
            "supervision": ["unknown"],
        },
        environment=environment(where),
        seconds={
            "read": round(reading, 3),
            "measure": round(time.monotonic() - started, 3),
        },
        peak_memory_mib=round(peak_memory_mib(where), 1),
        extra_parameters=0,
        network_calls_per_image=0.0,
        scores=measured.scores,
        groups=measured.tables,
        facts={
            **measured.facts,
            **judging.facts(),
            "notes": list(read.notes),
            **({} if before is None else {"baseline": before}),
        },
        manifest=(),
        created=now(),
    )
    path = write_record(results, record, measured.per_image)
    return Outcome(read_record(path), path, False)


@dataclass(frozen=True)
class _Known:
    """What a table of labels says about the images; without one they answer the only prompt."""

    labels: Labels | None
    prompt_index: NDArray[np.int64]
    requested: NDArray[np.int64] | None

    @classmethod
    def read(cls, path: Path | None, read: ImageSet, task: Task, dataset: Dataset) -> _Known:
        count = len(read.images)
        if path is None:
            return cls(None, np.zeros(count, dtype=np.int64), None)
        labels = read_labels(path, read.names, dataset.attributes, unread=read.unread)
        return cls(labels, _answers(path, labels, task), _requested(path, labels, task))


def _answers(path: Path, labels: Labels, task: Task) -> NDArray[np.int64]:
    """(N,) which prompt of the task each image was made from."""
    if not task.per_prompt:
        return np.zeros(len(labels), dtype=np.int64)
    if labels.prompts is None:
        raise InputError(
            f"{path}: task {task.name!r} is a mean over prompts and needs a column prompt; add it"
        )
    places = {prompt.text: p for p, prompt in enumerate(task.prompts)}
    for text in labels.prompts:
        if text not in places:
            raise InputError(f"{path}: {unknown_name('prompt', text, places)}")
    answers = np.array([places[text] for text in labels.prompts], dtype=np.int64)
    for text, p in places.items():
        if not (answers == p).any():
            raise InputError(
                f"{path}: expected images of every prompt of task {task.name!r}, seen none of "
                f"{text!r}; add them"
            )
    return answers


def _requested(path: Path, labels: Labels, task: Task) -> NDArray[np.int64] | None:
    """(N,) group of the task that was asked for; None if the table doesn't say."""
    asked = [name for name in task.attributes if name in labels.requested]
    if not asked:
        return None
    lacking = [f"{REQUESTED}{name}" for name in task.attributes if name not in asked]
    if lacking:
        raise InputError(
            f"{path}: groups of task {task.name!r} need {', '.join(lacking)} too; add the column "
            f"or leave {REQUESTED}{asked[0]} out"
        )
    return crossing(labels.requested, asked, task.attributes)


def _baseline(
    path: Path, record: Record, dataset: Dataset, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """What a leaderboard compares a row's validity and quality with, from a record."""
    if record.dataset != dataset.name or record.status != "complete":
        raise InputError(
            f"--baseline {path}: expected a complete record of {dataset.name}, seen a "
            f"{record.status} one of {record.dataset}; give another"
        )
    theirs = record.config.get("hashes", {})
    for name in sorted(hashes.keys() & theirs.keys()):
        if hashes[name] != theirs[name]:
            raise InputError(
                f"--baseline {path}: measured with another {name} than these images; make it "
                "again with the same instruments and data"
            )
    scores = {
        score.name: {"value": score.value, "low": score.low, "high": score.high, "n": score.n}
        for score in record.scores
        if score.name == "validity" or fnmatchcase(score.name, "kernel_*_reweighted")
    }
    return {"key": record.key, "method": record.method, "scores": scores}


def _check_row_name(results: Path, dataset: Dataset, name: str) -> None:
    if name in method_names():
        raise InputError(f"--name {name} is a method's name; choose another for these images")
    try:
        record_path(results, dataset.name, name, "0")
    except InputError as error:
        raise InputError(f"--name: {error}") from None


def _enough(folder: Path, seen: int, wanted: int | None) -> None:
    needed = wanted or MINIMUM_IMAGES
    if seen < needed:
        fewer = " or ask for fewer" if needed > MINIMUM_IMAGES else ""
        raise InputError(
            f"{folder} holds {seen} images, expected at least {needed}; add images{fewer}"
        )
