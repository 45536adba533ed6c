"""Measuring images made elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fairbench.cache import cache_folder
from fairbench.config import MINIMUM_IMAGES, check_writable, parse_target
from fairbench.datasets import Dataset, get_dataset
from fairbench.errors import InputError
from fairbench.generation import Reporter
from fairbench.measuring import load_instruments, measure
from fairbench.pipeline import Outcome, measuring_config, now
from fairbench.records import SCHEMA, Record, find_record, record_path, run_key, write_record
from fairbench.reference import confusions_of, encoder_columns, make_reference
from fairbench.registry import method_names
from fairbench.scoring import Sample, score_all
from fairbench.store import image_sha256

__all__ = ["evaluate"]


def evaluate(
    folder: Path,
    *,
    dataset: str,
    task: str | None,
    name: str,
    target: str = "uniform",
    num_images: int | None = None,
    device: str = "auto",
    results: Path = Path("results"),
    force: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Measure images made elsewhere.

    Args:
        folder: Holds the images: a folder, a ``.zip``, a ``.tar`` or an ``.npz``.
        dataset: What they are measured against.
        task: The question; None for the data set's first.
        name: What the row is called.
        target: As for a run.
        num_images: How many must be there; the first so many are taken. None: all.
        device: Where the instruments run.
        results: Folder of records.
        force: Compute although a record exists.
        reporter: Told what happens.
    Raises:
        FairbenchError: If the input is wrong.
    """
    from fairbench.devices import begin_run, peak_memory_mib, resolve_device
    from fairbench.images import read_images
    from fairbench.provenance import environment

    report = reporter or Reporter()
    chosen = get_dataset(dataset)
    question = parse_target(target, chosen.task(task, conditional=True))
    if question.per_prompt:
        raise InputError(
            f"task {question.name!r} is a mean over prompts, and a folder of images doesn't say "
            f"which prompt made which; choose one of "
            f"{', '.join(t for t in chosen.tasks if '_by_' not in t)}"
        )
    check_writable(record_path(results, chosen.name, name, "key").parent, "--results")
    check_writable(cache_folder(), "FAIRBENCH_CACHE")
    if num_images is not None and num_images < MINIMUM_IMAGES:
        raise InputError(
            f"--num-images must be at least {MINIMUM_IMAGES}; seen {num_images}: with fewer, a "
            "share's interval is wider than ±10 points"
        )
    _check_row_name(results, chosen, name)
    where = resolve_device(device)
    begin_run(where)
    started = time.monotonic()
    read = read_images(folder, size=chosen.image_size, limit=num_images, progress=report.progress)
    _enough(folder, len(read.images), num_images)
    for note in read.notes:
        report.note(note)
    reading = time.monotonic() - started
    instruments = load_instruments(str(where))
    manifest = tuple((0, i, digest) for i, digest in enumerate(image_sha256(read.images)))
    config = {
        "evaluated": name,
        "images": run_key({"sha256": [digest for _, _, digest in manifest]}),
        "num_images": len(read.images),
        "resized_from": list(read.source_size),
        **measuring_config(chosen, question, instruments),
    }
    key = run_key(config)
    path = record_path(results, chosen.name, name, key)
    found = find_record(path)
    if found is not None and not force:
        return Outcome(found, path, True)
    cache = cache_folder()
    started = time.monotonic()
    measured = measure(read.images, instruments, cache, report.progress)
    sensitive = chosen.sensitive
    reference = make_reference(question, sensitive, instruments, cache, report.progress)
    count = len(read.images)
    sample = Sample(measured, np.zeros(count, dtype=np.int64), None, np.arange(count))
    scores, tables, facts = score_all(
        sample,
        reference,
        question,
        chosen.attributes,
        sensitive,
        confusions_of(instruments),
        encoder_columns(instruments),
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
        card={"name": name, "role": "method", "ranked": False, "supervision": ["unknown"]},
        environment=environment(where),
        seconds={
            "read": round(reading, 3),
            "measure": round(time.monotonic() - started, 3),
        },
        peak_memory_mib=round(peak_memory_mib(where), 1),
        extra_parameters=0,
        network_calls_per_image=0.0,
        scores=scores,
        groups=tables,
        facts={**facts, "notes": list(read.notes)},
        manifest=manifest,
        created=now(),
    )
    return Outcome(record, write_record(results, record), False)


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
