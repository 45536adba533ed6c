"""Scores of runs to an experiment tracker, through accelerate."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairbench.core.errors import InputError, unknown_name
from fairbench.core.keys import canonical
from fairbench.core.record import Record

__all__ = ["TRACKERS", "check_tracker", "track"]

TRACKERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
"""Name on the command line -> package that it needs."""

PROJECT = "fairbench"
_NOT_IN_NAMES = re.compile(r"[^\w./ -]")  # what MLflow refuses


def check_tracker(name: str) -> None:
    """Whether a tracker can be used, before anything is computed.

    Raises:
        InputError: If it is unknown or its package isn't installed.
    """
    if name not in TRACKERS:
        raise unknown_name("--tracker", name, TRACKERS)
    package = TRACKERS[name]
    found = importlib.util.find_spec(package) is not None
    if name == "tensorboard":  # either of two packages writes its files
        found = found or importlib.util.find_spec("tensorboardX") is not None
    if not found:
        raise InputError(f"--tracker {name} needs the package {package}; pip install {package}")


def track(name: str, record: Record, results: Path, warn: Callable[[str], None]) -> None:
    """Hand a record's scores, shares and configuration to a tracker, as a run of `PROJECT`.

    Args:
        name: One of `TRACKERS`.
        record: A complete record.
        results: Folder of records; TensorBoard and Weights & Biases write to ``.trackers`` there,
            the others where their own settings say.
        warn: Told in one line if the tracker fails: the record is there all the same.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder = results / ".trackers"
    label = f"{record.dataset}-{record.task}-{record.method}-{record.key}"
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": label, "logging_dir": str(folder)},
        "wandb": {"run_name": PROJECT, "name": label, "dir": str(folder)},
        "mlflow": {"experiment_name": PROJECT, "run_name": label},
        "trackio": {"run_name": PROJECT, "name": label},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name])
        tracker.start()
        tracker.store_init_configuration(_flat(record.config))
        tracker.log(numbers_of(record), step=0)
        tracker.finish()
    except Exception as error:  # other people's code, services and networks
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warn(f"--tracker {name} failed ({reason}); the record is written")


def numbers_of(record: Record) -> dict[str, float]:
    """Name -> number of every score, its ends, the groups' shares and the seconds.

    In names, what isn't a letter, digit or one of ``_./ -`` is an underscore.
    """
    told = {f"score/{score.name}": float(score.value) for score in record.scores}
    for score in record.scores:
        for end in ("low", "high", "floor"):
            value = getattr(score, end)
            if value is not None:
                told[f"score/{score.name}_{end}"] = float(value)
    for table, rows in record.groups.items():
        told |= {
            f"share/{table}/{row['group']}": float(row["share"])
            for row in rows
            if row.get("share") is not None
        }
    told |= {f"seconds/{stage}": float(value) for stage, value in record.seconds.items()}
    return {_NOT_IN_NAMES.sub("_", name): value for name, value in told.items()}


def _flat(config: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Trackers take plain values alone."""
    return {
        name: value if isinstance(value, str | int | float) else canonical(value)
        for name, value in config.items()
    }
