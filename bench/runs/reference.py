"""What generated images are compared with: real ones that match the prompts, and error tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.progress import Progress
from fairbench.core.specs import BackboneSpec
from fairbench.core.task import Task
from fairbench.datasets.base import Dataset, ImageSource, matches
from fairbench.instruments.measuring import Instruments, measure_features
from fairbench.metrics import balanced_subset
from fairbench.scores.parts.crossings import crossing, crossing_groups
from fairbench.scores.parts.evidence import Columns, Reference

__all__ = [
    "balanced_rows",
    "confusions_of",
    "encoder_columns",
    "make_reference",
    "real_images",
]

SEED = 0
"""Of the draw of balanced rows: one reference for all runs."""


def make_reference(
    dataset: Dataset,
    task: Task,
    backbone: BackboneSpec | None,
    instruments: Instruments,
    cache: Path,
    progress: Progress,
    crossed: Sequence[str] | None = None,
) -> Reference:
    """The evaluation images that match the task's prompts, as the encoders see them.

    Args:
        dataset: Whose images.
        task: Its prompts are matched.
        backbone: What made the generated images; None for images from elsewhere.
        instruments: Of which the encoders see them.
        cache: Folder of cached arrays.
        progress: ``progress(what, done, total)``.
        crossed: Attributes whose cells are balanced; None: the data set's sensitive ones.
    Raises:
        InputError: If the data set has no evaluation images that match.
    """
    part, answers = real_images(dataset, task)
    crossed = dataset.sensitive if crossed is None else crossed
    features = measure_features(part, instruments, cache, progress)
    rows, unbalanced = balanced_rows(dataset, task, part, answers, crossed)
    shares = None if backbone is None else dataset.training_shares(backbone)
    natural = None
    if shares is not None:
        natural = np.stack(
            [shares.given(prompt.stratum, crossed, dataset.attributes) for prompt in task.prompts]
        )
    return Reference(
        features=features,
        labels=dict(part.labels),
        prompt_index=answers,
        natural=natural,
        balanced=rows,
        unbalanced=unbalanced,
    )


def real_images(dataset: Dataset, task: Task) -> tuple[ImageSource, NDArray[np.int64]]:
    """The evaluation images that answer a prompt of the task, and which one, (M,).

    Raises:
        InputError: If the data set has none.
    """
    split = dataset.split("evaluation")
    count = 0 if split is None else len(split)
    answers = np.full(count, -1, dtype=np.int64)
    if split is not None:
        for p, prompt in reversed(list(enumerate(task.prompts))):
            answers[matches(prompt, split.labels, dataset.attributes, count)] = p
    if split is None or not (answers >= 0).any():
        raise InputError(
            f"data set {dataset.name} has no evaluation images that answer task {task.name!r}; "
            "quality can't be measured without"
        )
    return split.take(answers >= 0), answers[answers >= 0]


def balanced_rows(
    dataset: Dataset,
    task: Task,
    part: ImageSource,
    answers: NDArray[np.int64],
    crossed: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64] | None, str]:
    """Rows with every declared group equally often for each prompt, and why there are none.

    Args:
        dataset: Declares the levels.
        task: Its prompts.
        part: Real images that answer them.
        answers: (M,) which prompt each answers.
        crossed: Attributes whose crossing makes the groups; None: the sensitive ones.
    """
    crossed = dataset.sensitive if crossed is None else crossed
    groups = crossing_groups(crossed, dataset.attributes)
    cells = answers * len(groups) + crossing(part.labels, crossed, dataset.attributes)
    counts = np.bincount(cells, minlength=len(task.prompts) * len(groups))
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        named = [
            groups[cell % len(groups)]
            + (f" of {task.prompts[cell // len(groups)].subject}" if len(task.prompts) > 1 else "")
            for cell in empty
        ]
        return None, f"no real image of {', '.join(named)}, so no reference is balanced"
    return balanced_subset(cells, len(counts), seed=SEED).indices, ""


def confusions_of(instruments: Instruments) -> dict[str, Mapping[str, NDArray[np.int64]]]:
    """Judge, the primary one first -> attribute or crossing -> counts on labelled images."""
    return {judge.name: judge.confusion for judge in instruments.judges}


def encoder_columns(instruments: Instruments) -> dict[str, Columns]:
    """Encoder -> how its columns are called.

    ``fid`` and ``kid`` are Inception's with clean-fid's resizing and no others'.
    """
    special = {"inception@clean": ("fid", "kid"), "inception@tf": ("fid_tf", "kid_tf")}
    names = [one.name for one in instruments.all_encoders]
    columns = {}
    for name in names:
        stem = re.sub(r"\W", "_", name)
        columns[name] = Columns(stem, *special.get(name, (f"frechet_{stem}", f"kernel_{stem}")))
    return columns
