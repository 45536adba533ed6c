"""The measuring half: images and a question to scores; ``run`` and ``evaluate`` both call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.measurements import Measurements
from fairbench.core.progress import Progress, Reporter, silent
from fairbench.core.record import PerImage
from fairbench.core.score import Score
from fairbench.core.specs import BackboneSpec
from fairbench.core.task import Control, Task
from fairbench.datasets.base import Dataset, ImageSource
from fairbench.diffusion.devices import meet, process_count, process_index
from fairbench.instruments.measuring import (
    Instruments,
    measure,
    measure_features,
    measure_part,
)
from fairbench.runs.copies import MOST_COPIES, count_copies
from fairbench.runs.face_reading import face_reading, read_faces
from fairbench.runs.reference import confusions_of, encoder_columns, make_reference, real_images
from fairbench.scores.parts.crossings import NO_VALID, Sample
from fairbench.scores.parts.evidence import FaceEvidence
from fairbench.scores.parts.shares import RANKED
from fairbench.scores.scoring import METRIC_VERSION, score_all

if TYPE_CHECKING:
    import torch

__all__ = [
    "Evaluation",
    "Known",
    "Question",
    "crossed_by",
    "evaluate_images",
    "measuring_config",
    "share_readings",
]


@dataclass(frozen=True)
class Question:
    """What images are asked.

    Attributes:
        dataset: Declares attributes and groups, has real images and instruments.
        task: Prompts, groups and target.
        backbone: What made the images, where that is known; None for images from elsewhere.
        controls: Variables within whose levels groups are compared too.
    """

    dataset: Dataset
    task: Task
    backbone: BackboneSpec | None = None
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is known of N images beside their pixels.

    Attributes:
        prompt_index: (N,) which prompt of the task each was made from.
        batch_id: (N,) equal for images that depend on each other.
        requested: (N,) group that was asked for; None if none was.
        texts: N, what the user asked for; None if there were no prompts, or they aren't known.
        given: Attribute -> (N,) level that a person saw in each image.
        reference: Images that the method learned from; None if it read none.
    """

    prompt_index: NDArray[np.int64]
    batch_id: NDArray[np.int64]
    requested: NDArray[np.int64] | None = None
    texts: Sequence[str] | None = None
    given: Mapping[str, NDArray[np.int64]] = field(default_factory=lambda: MappingProxyType({}))
    reference: ImageSource | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        scores: The numbers.
        tables: Table name -> rows by group.
        facts: Details, and what isn't measured and why.
        measured: What the instruments said.
        per_image: What is known of each image.
    """

    scores: tuple[Score, ...]
    tables: Mapping[str, list[dict[str, Any]]]
    facts: Mapping[str, Any]
    measured: Measurements
    per_image: PerImage


def crossed_by(question: Question, instruments: Instruments) -> tuple[str, ...]:
    """The attributes whose crossing is measured: those of them that every judge reads."""
    read = instruments.read_by_all(question.dataset.attributes)
    return tuple(name for name in question.dataset.crossed(question.task.name) if name in read)


def measuring_config(question: Question, instruments: Instruments) -> dict[str, Any]:
    """Everything that the scores depend on beside the images."""
    dataset, task = question.dataset, question.task
    return {
        "dataset": dataset.name,
        "task": task.name,
        "target": dict(zip(task.groups, task.target, strict=True)),
        "hashes": {**instruments.hashes(), "reference": dataset.data_sha256()},
        "readings": {**instruments.readings(), **face_reading(instruments)},
        "reference": [dict(prompt.stratum) for prompt in task.prompts],
        "metric_version": METRIC_VERSION,
    }


def evaluate_images(
    images: ImageSource,
    question: Question,
    instruments: Instruments,
    known: Known,
    cache: Path,
    report: Reporter,
    *,
    seed: int = 0,
) -> Evaluation:
    """Measure images and score them.

    Args:
        images: N of any size, read a few at a time; every instrument resizes for itself.
        question: What they are asked.
        instruments: What measures them.
        known: What is known of them beside their pixels.
        cache: Folder of cached arrays.
        report: Told about progress and about what isn't measured.
        seed: Of every resample behind the intervals.
    """
    dataset, task = question.dataset, question.task
    # What some judge doesn't read can't be compared between judges, and is left out.
    attributes = instruments.read_by_all(dataset.attributes)
    crossed = crossed_by(question, instruments)
    listed = images.listing
    measured = measure(images, instruments, cache, report.progress, known.texts)
    reference = make_reference(
        dataset, task, question.backbone, instruments, cache, report.progress, crossed
    )
    seen = None
    if known.reference is not None:
        seen = measure_features(known.reference, instruments, cache, report.progress)
    faces = _faces(images, question, instruments, cache, report)
    copies = count_copies(listed, dataset)
    sample = Sample(measured, known.prompt_index, known.requested, known.batch_id)
    scores, tables, facts = score_all(
        sample,
        reference,
        task,
        attributes,
        crossed,
        confusions_of(instruments),
        encoder_columns(instruments),
        given={name: levels for name, levels in known.given.items() if name in attributes},
        seen=seen,
        controls=question.controls,
        faces=faces,
        copies=copies,
        seed=seed,
    )
    unread = [name for name in dataset.attributes if name not in attributes]
    if unread:
        facts["unread_attributes"] = unread
        report.note(f"not every judge reads {', '.join(unread)}, so nothing is said of that")
    if about := dataset.facts():
        facts["data"] = dict(about)
    _warn_of_gaps(facts, report)
    _warn_of_copies(copies, report)
    labels = {
        judge: {name: table.argmax(1) for name, table in by_attribute.items()}
        for judge, by_attribute in measured.probabilities.items()
    }
    per_image = PerImage(
        sha256=listed.sha256,
        prompt_index=known.prompt_index,
        image_index=_places(known.prompt_index),
        requested=known.requested,
        batch_id=known.batch_id,
        valid=measured.valid,
        labels=labels,
    )
    return Evaluation(scores, tables, facts, measured, per_image)


def share_readings(
    question: Question,
    images: ImageSource,
    instruments: Instruments,
    cache: Path,
    device: torch.device,
    progress: Progress = silent,
) -> None:
    """Look at a part of the images, as every other process does at another; then wait for them.

    With one process alone nothing is done: then `evaluate_images` looks at all.

    Args:
        question: Names the real images, which are looked at in the same way.
        images: What was made.
        instruments: What looks at them.
        cache: Folder of cached arrays, which all processes share.
        device: Where this process computes.
        progress: ``progress(what, done, total)``.
    """
    if process_count() == 1:
        return
    real, _ = real_images(question.dataset, question.task)
    for source, readers in ((images, instruments.readers), (real, instruments.all_encoders)):
        measure_part(source, readers, cache, progress, process_index(), process_count())
    meet(device)


def _places(prompts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) number of each image among those of its prompt."""
    places = np.zeros(len(prompts), dtype=np.int64)
    for prompt in np.unique(prompts):
        mine = prompts == prompt
        places[mine] = np.arange(int(mine.sum()))
    return places


def _warn_of_gaps(facts: Mapping[str, Any], report: Reporter) -> None:
    """Say why the row can't be ranked, if it can't, and which asked-for stage wasn't measured."""
    missing = facts.get("not_measured", {})
    reason = missing.get(RANKED)
    if reason is not None:
        hint = "; more --steps or a weaker method may help" if NO_VALID in reason else ""
        report.warn(f"{RANKED} can't be measured: {reason}{hint}")
    for name, why in missing.items():
        if name.startswith("identity"):
            report.note(f"{name}: not measured: {why}")


def _warn_of_copies(copies: Mapping[str, int], report: Reporter) -> None:
    """Say what copies make of the sample, and whether it holds what it is compared with."""
    images, distinct = copies["images"], copies["distinct"]
    if images - distinct > MOST_COPIES * images:
        report.warn(
            f"{images - distinct} of {images} images are exact copies of others: the effective n "
            f"is {distinct}, and intervals say too much"
        )
    if leaked := copies.get("evaluation", 0):
        report.warn(
            f"{leaked} of {images} images are real images that quality is measured against; "
            "quality scores say nothing of them"
        )


def _faces(
    images: ImageSource,
    question: Question,
    instruments: Instruments,
    cache: Path,
    report: Reporter,
) -> FaceEvidence | None:
    """What face networks say of generated, real and, where known, training images."""
    if instruments.detector is None:  # then none of these images need be read
        return None
    real, _ = real_images(question.dataset, question.task)
    trained: ImageSource | None = None
    if question.backbone is not None:
        trained = question.dataset.trained_on(question.backbone)
    return read_faces(images, real, trained, instruments, cache, report.progress)
