"""How good a judge is on a data set, measured once on labelled images that it wasn't trained on.

The `judge` split of a data set is halved, always in the same way: on the first half judges are
trained and ages are cut, on the second, the held-out half, errors are counted. What was counted is
kept in the cache, under a key of the judge's weights and of the data.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.documents import from_json
from fairbench.core.errors import ContractError, InputError
from fairbench.core.keys import run_key
from fairbench.core.progress import Progress, silent
from fairbench.datasets.base import Dataset, ImageSource
from fairbench.instruments.base import AttributeJudge, Instrument, read
from fairbench.instruments.class_readers import Calibrated, Cut
from fairbench.instruments.trained import judge_folder
from fairbench.metrics import check_calibration
from fairbench.metrics.counting import count_groups
from fairbench.storage.files import atomic_write, is_file

__all__ = [
    "ACCEPTED",
    "Found",
    "balanced_accuracy",
    "calibrated",
    "crossings_of",
    "halves",
    "held_out_facts",
    "under_confident",
]

ACCEPTED = 0.9
"""Balanced accuracy from which on a judge's labels may rank methods."""

HALVES_SEED = 0
CHUNK = 512
LAYOUT = 1
"""Raised whenever a stored calibration has another meaning."""


def halves(split: ImageSource) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a judge split to fit to, and rows held out; the same for every judge.

    Raises:
        InputError: If there are too few images.
    """
    if len(split) < 2:
        raise InputError(f"expected a judge split of 2 images or more, seen {len(split)}")
    order = np.random.default_rng(HALVES_SEED).permutation(len(split))
    half = (len(split) + 1) // 2
    return np.sort(order[:half]), np.sort(order[half:])


def crossings_of(dataset: Dataset, attributes: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What errors are counted of: attributes, pairs of sensitive ones, crossings of tasks."""
    asked = {task.attributes for task in dataset.tasks if len(task.attributes) > 1}
    asked |= {*itertools.combinations(dataset.sensitive, 2)}
    known = [chosen for chosen in sorted(asked) if all(name in attributes for name in chosen)]
    return [*((name,) for name in attributes), *known]


@dataclass(frozen=True)
class Found:
    """What was counted of one attribute, or of a crossing.

    Attributes:
        confusion: (K, K) counts, rows are the truth, columns the likeliest level.
        confidence: Mean highest probability, in [0, 1].
    """

    confusion: tuple[tuple[int, ...], ...]
    confidence: float

    @property
    def accuracy(self) -> float:
        """Share read right, in [0, 1]."""
        counts = np.array(self.confusion)
        return float(np.trace(counts) / counts.sum())


def balanced_accuracy(confusion: NDArray[Any]) -> float | None:
    """Mean over the levels of the share read right; None if a level has no image."""
    counts = np.asarray(confusion, np.float64)
    totals = counts.sum(axis=1)
    if totals.min() <= 0:
        return None
    return float((np.diag(counts) / totals).mean())


def held_out_facts(
    probabilities: Mapping[str, NDArray[Any]],
    labels: Mapping[str, NDArray[Any]],
    chosen: list[tuple[str, ...]],
) -> dict[str, Found]:
    """Errors on labelled images.

    Args:
        probabilities: Attribute -> (N, K).
        labels: Attribute -> (N,) true level.
        chosen: Attributes and crossings to count.

    Returns:
        Name, crossings joined by ``"/"`` -> what was counted. One that has no image of some level,
        or cell, is left out: nothing can be corrected by it.
    """
    found = {}
    for names in chosen:
        shape = [probabilities[name].shape[1] for name in names]
        size = int(np.prod(shape))
        truth, read_as = (
            np.ravel_multi_index(tuple(np.asarray(columns, np.int64)), shape)
            for columns in (
                [labels[name] for name in names],
                [probabilities[name].argmax(1) for name in names],
            )
        )
        counts = count_groups(truth * size + read_as, size**2).reshape(size, size)
        if counts.sum(axis=1).min() == 0:
            continue
        sure = np.prod([probabilities[name].max(1) for name in names], axis=0)
        found["/".join(names)] = Found(tuple(map(tuple, counts.tolist())), float(sure.mean()))
    return found


def under_confident(probabilities: NDArray[Any], labels: NDArray[Any]) -> str | None:
    """Why an attribute's probabilities mustn't be used; None if they may.

    They mustn't if the judge is right far more often than its probabilities say, as a zero-shot
    reader without its logit scale is: a generator that collapsed would look nearly fair. A judge
    that is too sure of itself makes no such trap, and is told of in its facts alone.
    """
    try:
        check_calibration(probabilities, labels)
    except ContractError as error:
        right = float((probabilities.argmax(axis=1) == labels).mean())
        if right > float(probabilities.max(axis=1).mean()):
            return str(error)
    return None


def calibrated(
    judge: AttributeJudge,
    dataset: Dataset,
    cache: Path,
    progress: Progress = silent,
) -> AttributeJudge:
    """A judge with its errors on a data set: its own, those stored, or measured now.

    Args:
        judge: One with counts of its own is given back as it is.
        dataset: Whose judge split it is measured on.
        cache: Folder of cached arrays; the counts are kept there too.
        progress: ``progress(what, done, total)``.

    Raises:
        InputError: If there is no judge split.
    """
    if judge.confusion or not isinstance(judge, Calibrated):
        return judge
    path = _path(judge, dataset, cache)
    stored = _stored(path, judge)
    if stored is not None:
        return stored
    split = dataset.split("judge")
    if split is None:
        raise InputError(
            f"judge {judge.name} must be calibrated on labelled images, and data set "
            f"{dataset.name} has no judge split; choose another --judge"
        )
    fit, held_out = halves(split)
    if judge.uncut:
        labelled = split.take(fit)
        classes = _classes(labelled, judge.reader, cache, progress)
        judge = judge.fitted(classes, labelled.labels)
    labelled = split.take(held_out)
    said = judge.said(_classes(labelled, judge.reader, cache, progress))
    refused = {}
    for name in judge.attributes:
        problem = under_confident(said[name], np.asarray(labelled.labels[name]))
        if problem is not None:
            refused[name] = problem
    found = held_out_facts(said, labelled.labels, crossings_of(dataset, judge.attributes))
    document = {
        "layout": LAYOUT,
        "judge": judge.name,
        "weights_sha256": judge.weights_sha256,
        "preprocessing": judge.reader.preprocessing,
        "dataset": dataset.name,
        "data_sha256": dataset.data_sha256(),
        "fitted_to": len(fit),
        "held_out_images": len(held_out),
        "cuts": {name: asdict(cut) for name, cut in judge.cuts.items()},
        "refused": refused,
        "held_out": {name: asdict(one) for name, one in found.items()},
    }
    document["content_sha256"] = run_key(document)
    with atomic_write(path) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())
    return _with(judge, document)


def _classes(
    source: ImageSource, reader: Instrument, cache: Path, progress: Progress
) -> dict[str, NDArray[Any]]:
    """What a reader says of all images of a source, few of which are in memory at once."""
    parts, done = [], 0
    for images in source.batches(CHUNK):
        parts.append(read(images, reader, cache))
        done += len(images)
        progress(f"calibrating: {reader.name}", done, len(source))
    return {name: np.concatenate([part[name] for part in parts]) for name in reader.outputs}


def _path(judge: Calibrated, dataset: Dataset, cache: Path) -> Path:
    key = run_key(
        {
            "layout": LAYOUT,
            "judge": judge.name,
            "weights": judge.weights_sha256,
            "preprocessing": judge.reader.preprocessing,
            "dtype": judge.dtype,
            "levels": {name: list(levels) for name, levels in judge.levels.items()},
            "crossings": [list(chosen) for chosen in crossings_of(dataset, judge.levels)],
            "data": dataset.data_sha256(),
            "seed": HALVES_SEED,
        }
    )
    folder = judge_folder(dataset.name, cache) / "calibrations"
    return folder / f"{judge.name.replace('/', '_')}-{key}.json"


def _stored(path: Path, judge: Calibrated) -> Calibrated | None:
    """The judge with what a file says of it; None if there is none or it is damaged."""
    if not is_file(path):
        return None
    try:
        document = from_json(path.read_bytes())
        digest = document.pop("content_sha256")
        if digest != run_key(document):
            raise ValueError("another content")
        return _with(judge, document)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        path.unlink(missing_ok=True)  # it is measured again
        return None


def _with(judge: Calibrated, document: Mapping[str, Any]) -> Calibrated:
    cuts = {name: Cut(**cut) for name, cut in document["cuts"].items()}
    confusion = {
        name: np.array(one["confusion"], dtype=np.int64)
        for name, one in document["held_out"].items()
    }
    return judge.measured(cuts, confusion, document["refused"])
