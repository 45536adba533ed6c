"""Baselines: one JSON file with the runs that are compared with, and the questions they answer."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairbench.core.errors import InputError
from fairbench.core.keys import finite, plain, run_key
from fairbench.core.record import PerImage, Record
from fairbench.core.score import Score
from fairbench.core.specs import InstrumentNames
from fairbench.datasets.base import get_dataset
from fairbench.runs.config import RunConfig
from fairbench.runs.provenance import code_version
from fairbench.runs.question import question_of
from fairbench.runs.times import now
from fairbench.storage.files import atomic_write
from fairbench.storage.layout import check_baseline
from fairbench.storage.records import read_manifest, read_per_image, score_of

__all__ = ["Accepted", "Baseline", "Measured", "config_of", "measured", "read_baseline", "write"]

SCHEMA = 1
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SHORT = 16
"""Hex digits of an image's hash that a baseline keeps."""

BESIDE = ("encoders", "faces")
"""Parts of a question that only add scores."""

_DEFAULTS = RunConfig("vanilla")
_ASKED = (
    "method",
    "dataset",
    "task",
    "backbone",
    "target",
    "num_images",
    "seed",
    "dtype",
    "network_batch",
    "decode_batch",
    "parameters",
    "steps",
    "guidance",
    "eta",
    "scheduler",
    "encoders",
    "faces",
    "controls",
    "judges",
    "accept_judge",
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What one run measured, from a record or from a baseline.

    Attributes:
        question: What was asked, as plain values; fields of `RunConfig` that aren't the default,
            or, of images from elsewhere, ``evaluated`` with the row's name.
        key: The record's.
        hashes: Instrument or reference -> sha256.
        scores: Name -> score.
        images: What is known of each image; hashes may be cut. None if nothing is.
        count: Images in all.
        not_measured: Score -> why it wasn't.
        created: When the record was written.
        first: Of a baseline, the scores that it had before any update made them a little worse;
            None: `scores`.
    """

    question: Mapping[str, Any]
    key: str
    hashes: Mapping[str, str]
    scores: Mapping[str, Score]
    images: PerImage | None
    count: int
    not_measured: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    first: Mapping[str, Score] | None = None

    @property
    def at_first(self) -> Measured:
        """The run as it was before any update, as far as its scores tell."""
        if self.first is None or self.first == self.scores:
            return self
        return replace(self, scores=self.first, images=None)

    @property
    def identity(self) -> str:
        """Equal for runs of the same question; what only adds scores doesn't count."""
        return run_key({k: v for k, v in self.question.items() if k not in BESIDE})

    @property
    def family(self) -> str:
        """Equal for runs of the same question with whatever seed."""
        apart = (*BESIDE, "seed")
        return run_key({k: v for k, v in self.question.items() if k not in apart})

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.question.get("seed", 0))

    @property
    def name(self) -> str:
        """Method, task and what else sets it apart, without the seed."""
        asked = self.question
        words = [
            str(asked.get("method", asked.get("evaluated", "?"))),
            *asked.get("parameters", ()),
        ]
        words += [str(asked[name]) for name in ("task", "backbone") if name in asked]
        if "num_images" in asked:
            words.append(f"n={asked['num_images']}")
        return " ".join(words)


@dataclass(frozen=True)
class Accepted:
    """A baseline that was made worse on purpose.

    Attributes:
        reason: Why, in the user's words.
        created: When, UTC.
        scores: ``run: score`` -> [before, after]; after is None for what isn't measured any more.
    """

    reason: str
    created: str
    scores: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Baseline:
    """What is compared with.

    Attributes:
        runs: In the order of the plan.
        accepted: Every time that it was made worse on purpose, oldest first.
        created: When it was written last, UTC.
        code: By which code.
    """

    runs: tuple[Measured, ...]
    accepted: tuple[Accepted, ...] = ()
    created: str = ""
    code: Any = ""


# --- from records --------------------------------------------------------------------------


def measured(path: Path, record: Record) -> Measured:
    """A complete record as the gate sees it.

    Raises:
        InputError: If it isn't complete, its sidecar is damaged, or its method isn't known here.
    """
    if record.status != "complete":
        raise InputError(f"{path}: expected a complete record, seen {record.status}")
    images = read_per_image(path, record)
    if images is None and record.manifest:
        images = _listed(read_manifest(path, record))
    count = int(record.config.get("num_images", 0)) if images is None else len(images)
    told = record.facts.get("not_measured", {})
    return Measured(
        _question(record),
        record.key,
        dict(record.config.get("hashes", {})),
        {score.name: score for score in record.scores},
        images,
        count,
        dict(told),
        record.created,
    )


def _listed(manifest: Sequence[tuple[int, int, str]]) -> PerImage:
    """Images of which nothing but their hashes is known."""
    rows = np.array([row[:2] for row in manifest], dtype=np.int64).reshape(-1, 2)
    return PerImage(
        tuple(digest for _, _, digest in manifest),
        rows[:, 0],
        rows[:, 1],
        None,
        np.arange(len(rows)),
        np.ones(len(rows), dtype=bool),
        {},
    )


def _question(record: Record) -> dict[str, Any]:
    """What a record answers, as plain values."""
    had = record.config
    if "evaluated" in had:
        asked = {
            "evaluated": record.method,
            "dataset": record.dataset,
            "task": record.task,
            "target": dict(had.get("target") or {}),
        }
        return dict(plain(asked))
    try:
        config = question_of(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"record {record.key}: its configuration doesn't say what was asked ({error!r})"
        ) from None
    hashes = had.get("hashes", {})
    config = replace(
        config,
        encoders=_further_encoders(record),
        faces="face_detector" in hashes and _instruments(record).detector is None,
        controls=tuple(had.get("control", ())),
        scheduler=had["sampling"].get("scheduler"),
        network_batch=had.get("network_batch"),
        decode_batch=had.get("decode_batch"),
    )
    return dict(
        plain(
            {
                name: value
                for name in _ASKED
                if (value := getattr(config, name)) != getattr(_DEFAULTS, name) or name == "method"
            }
        )
    )


def _instruments(record: Record) -> InstrumentNames:
    return get_dataset(record.dataset).instruments()


def _further_encoders(record: Record) -> tuple[str, ...]:
    """Public encoders that the images were seen by beside the data set's own."""
    hashes = record.config.get("hashes", {})
    used = [name.removeprefix("encoder_") for name in hashes if name.startswith("encoder_")]
    own = {part for name in _instruments(record).encoders for part in (name, name.split("/")[0])}
    further = [name for name in used if name not in own]
    if not further:
        return ()
    from fairbench.instruments.catalogue import instrument_specs  # loads torch

    known = instrument_specs()
    return tuple(name for name in further if name in known)


def config_of(question: Mapping[str, Any], results: Path) -> RunConfig:
    """A question as a run that is computed anew.

    Args:
        question: As `Measured` holds it, of a run.
        results: Folder of its record.

    Raises:
        InputError: If it asks nothing that can be run.
    """
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in question.items()
    }
    return RunConfig(**given, results=results, force=True)


# --- the file ------------------------------------------------------------------------------


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        InputError: If it is missing, damaged or of a newer schema; the message names the field.
    """
    what = "expected a baseline that fairbench check --update wrote"
    try:
        # A pipe would be waited for, for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: {what}, seen no file")
        data = json.loads(path.read_bytes(), parse_float=_float, parse_constant=_float)
    except OSError as error:
        raise InputError(f"{path}: {what}; {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {what}; {str(error).splitlines()[0]}") from None
    try:
        check_baseline(data)
        if data["schema"] != SCHEMA:
            raise ValueError(
                f"its schema is {data['schema']}, known is {SCHEMA}; update fairbench"
            )
        runs = tuple(_run(row) for row in data["runs"])
        if len({one.identity for one in runs}) < len(runs):
            raise ValueError("runs has the same question twice")
        accepted = tuple(Accepted(**row) for row in data["accepted"])
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {what}; {str(error).splitlines()[0]}") from None
    return Baseline(runs, accepted, data["created"], data["code"])


def _float(text: str) -> float:
    """A number that is one; JSON has no others."""
    return finite(float(text), "a number")


def write(path: Path, baseline: Baseline) -> None:
    """Write a baseline, whole or not at all.

    Raises:
        InputError: If it can't be written.
    """
    document = {
        "schema": SCHEMA,
        "created": now(),
        "code": code_version(),
        "accepted": plain(baseline.accepted),
        "runs": [_row(one) for one in baseline.runs],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error}); name another file") from None


def _row(run: Measured) -> dict[str, Any]:
    same = run.first is None or run.first == run.scores
    return {
        "question": dict(run.question),
        "key": run.key,
        "hashes": dict(run.hashes),
        "count": run.count,
        "scores": _bare(run.scores),
        "first": None if same or run.first is None else _bare(run.first),
        "images": None if run.images is None else _packed(run.images),
    }


def _bare(scores: Mapping[str, Score]) -> list[dict[str, Any]]:
    """Scores without what a comparison doesn't need."""
    return [
        {k: v for k, v in row.items() if k not in ("source", "floor", "level")}
        for row in plain(tuple(scores.values()))
    ]


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    blank = {"source": "", "floor": None, "level": 0.95}
    return {score.name: score for score in (score_of({**blank, **one}) for one in rows)}


def _run(row: Mapping[str, Any]) -> Measured:
    question = row["question"]
    if "evaluated" not in question:
        unknown = question.keys() - set(_ASKED)
        if unknown or "method" not in question:
            raise ValueError(f"runs.question has {sorted(unknown) or 'no method'}")
    images = None if row["images"] is None else _unpacked(row["images"], row["count"])
    return Measured(
        question,
        row["key"],
        row["hashes"],
        _scores(row["scores"]),
        images,
        row["count"],
        first=None if row["first"] is None else _scores(row["first"]),
    )


def _packed(images: PerImage) -> dict[str, Any]:
    """A letter an image for each label, and runs of numbers for what counts up or stays."""
    return {
        "sha256": " ".join(digest[:SHORT] for digest in images.sha256),
        "prompt_index": _segments(images.prompt_index),
        "image_index": _segments(images.image_index),
        "batch_id": _segments(images.batch_id),
        "valid": _letters(images.valid.astype(np.int64)),
        "labels": {
            judge: {name: _letters(levels) for name, levels in said.items()}
            for judge, said in images.labels.items()
            if all(int(levels.max(initial=0)) < len(DIGITS) for levels in said.values())
        },
    }


def _unpacked(packed: Mapping[str, Any], count: int) -> PerImage:
    digests = tuple(packed["sha256"].split())
    numbers = [
        _numbers(packed[name], count) for name in ("prompt_index", "image_index", "batch_id")
    ]
    labels = {
        judge: {name: _levels(text) for name, text in said.items()}
        for judge, said in packed["labels"].items()
    }
    valid = _levels(packed["valid"]).astype(bool)
    sizes = {
        len(digests),
        len(valid),
        *(len(one) for said in labels.values() for one in said.values()),
    }
    if sizes != {count}:
        raise ValueError(f"images has {sorted(sizes)} entries, expected {count} of each")
    return PerImage(digests, numbers[0], numbers[1], None, numbers[2], valid, labels)


def _letters(levels: NDArray[np.int64]) -> str:
    return "".join(DIGITS[level] for level in levels.tolist())


def _levels(text: str) -> NDArray[np.int64]:
    try:
        return np.array([DIGITS.index(letter) for letter in text], dtype=np.int64)
    except ValueError:
        raise ValueError("images has a label that is no digit or lower-case letter") from None


def _segments(values: NDArray[np.int64]) -> list[list[int]]:
    """[first value, 0 or 1 by which it counts up, how many] again and again."""
    found: list[list[int]] = []
    for value in values.tolist():
        if found:
            first, step, many = found[-1]
            if many == 1 and value - first in (0, 1):
                found[-1] = [first, value - first, 2]
                continue
            if many > 1 and value == first + step * many:
                found[-1][2] += 1
                continue
        found.append([value, 0, 1])
    return found


def _numbers(segments: Sequence[Sequence[int]], count: int) -> NDArray[np.int64]:
    if any(len(one) != 3 for one in segments) or sum(one[2] for one in segments) != count:
        raise ValueError(f"images has runs of numbers that don't count {count} images")
    parts = [first + step * np.arange(many) for first, step, many in segments]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
