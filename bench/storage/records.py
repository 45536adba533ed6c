"""Records: one run, one JSON file; written atomically, checked when read.

A record lies at ``<results>/<dataset>/<method>/<run key>.json``. What can't be read is never
overwritten, and only complete records count as found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, get_args

from fairbench.core.errors import ContractError, InputError
from fairbench.core.keys import finite, plain
from fairbench.core.record import SCHEMA, Record, Status
from fairbench.core.score import Score
from fairbench.storage.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "RecordError",
    "find_record",
    "read_record",
    "read_records",
    "record_path",
    "write_record",
]


class RecordError(InputError):
    """A record file is missing, damaged or of a newer schema."""


def record_path(results: Path, dataset: str, method: str, key: str) -> Path:
    """Where the record of a run lies.

    Raises:
        InputError: If a name can't be one folder or file name.
    """
    for name in (dataset, method, key):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
            raise InputError(
                f"{name!r} becomes a folder or file name under {results}; use letters, digits, "
                "'_', '-', '+' and '.' only"
            )
    return results / dataset / method / f"{key}.json"


def write_record(results: Path, record: Record) -> Path:
    """Write a record whole or not at all.

    A failed or interrupted record doesn't replace a complete one: that file stays as it is.

    Returns:
        The record's path.

    Raises:
        ContractError: If the record holds something that JSON can't, or has another schema.
        RecordError: If a file that can't be read lies there; it isn't touched.
        InputError: If the folder can't be written to.
    """
    path = record_path(results, record.dataset, record.method, record.key)
    if record.schema != SCHEMA:
        raise ContractError(f"records are written with schema {SCHEMA}; seen {record.schema}")
    text = _to_text(record)
    if path.exists() and read_record(path).status == "complete" != record.status:
        return path
    try:
        with atomic_write(path) as file:
            # Surrogates of undecodable file names turn into JSON's own \udcxx escapes.
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error}); choose another folder") from error
    return path


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        RecordError: If it is missing, damaged or of a schema that isn't known here.
    """
    try:
        data = json.loads(
            path.read_bytes(), parse_float=_parse_float, parse_constant=_refuse_constant
        )
        schema = _schema(data)
    except OSError as error:
        raise RecordError(f"{path}: expected a record; it can't be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if schema not in _READERS:
        raise RecordError(
            f"{path}: expected a record of schema {SCHEMA} or older, seen {schema}; "
            "update fairbench or use another results folder"
        )
    try:
        return _READERS[schema](data)
    except ValueError as error:
        raise _damaged(path, error) from error


def find_record(path: Path) -> Record | None:
    """The complete record at `path`, None if there is none.

    Raises:
        RecordError: If what lies there can't be read or is another run's; so it is named before
            the work that would end in not being able to write it.
    """
    if not path.exists():
        return None
    record = read_record(path)
    if record.key != path.stem:
        raise RecordError(
            f"{path}: expected run key {path.stem}, seen {record.key}; move the file away"
        )
    return record if record.status == "complete" else None


def read_records(results: Path, warn: Callable[[str], None]) -> list[Record]:
    """All records of a folder, whatever their status, ordered by path.

    Args:
        results: Folder of all records; files elsewhere than two folders down are ignored.
        warn: Told in one line about every record that is damaged or newer, and left out.

    Raises:
        InputError: If the folder doesn't exist.
    """
    if not results.is_dir():
        raise InputError(f"{results}: expected a folder of records, seen none; check --results")
    records = []
    for path in sorted(results.glob("*/*/*.json")):
        if any(part.startswith(".") for part in path.relative_to(results).parts):
            continue
        try:
            records.append(read_record(path))
        except RecordError as error:
            warn(str(error))
    return records


def _to_text(record: Record) -> str:
    """JSON with an indent, but one row of the manifest a line."""
    data = plain(record, "record")
    rows = ",".join(f"\n    {json.dumps(row)}" for row in data.pop("manifest"))
    head = json.dumps(data, indent=2, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n  "manifest": [{rows}\n  ]\n}}\n'


def _parse_float(text: str) -> float:
    return finite(float(text), "a number")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"a number is {text}")


def _damaged(path: Path, problem: Exception) -> RecordError:
    return RecordError(
        f"{path}: expected a record of schema {SCHEMA}, but {problem}; "
        "restore the file, or move it away and run again"
    )


def _schema(data: object) -> int:
    if not isinstance(data, dict) or type(data.get("schema")) is not int:
        raise ValueError("it has no schema number")
    return int(data["schema"])


_NUMBER = (int, float)
_RECORD_V1: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "schema": (int,),
        "key": (str,),
        "generation_key": (str, NoneType),
        "status": (str,),
        "error": (str, NoneType),
        "method": (str,),
        "dataset": (str,),
        "task": (str,),
        "config": (dict,),
        "card": (dict,),
        "environment": (dict,),
        "seconds": (dict,),
        "peak_memory_mib": _NUMBER,
        "extra_parameters": (int,),
        "network_calls_per_image": _NUMBER,
        "scores": (list,),
        "groups": (dict,),
        "facts": (dict,),
        "manifest": (list,),
        "created": (str,),
    }
)
_SCORE_V1: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "name": (str,),
        "value": _NUMBER,
        "low": (*_NUMBER, NoneType),
        "high": (*_NUMBER, NoneType),
        "n": (int,),
        "better": (str,),
        "interval": (str,),
        "floor": (*_NUMBER, NoneType),
        "unit": (str,),
        "source": (str,),
        "level": _NUMBER,
    }
)


def _read_v1(data: object) -> Record:
    values = _checked(data, _RECORD_V1, "the record")
    if values["status"] not in get_args(Status):
        raise ValueError(f"its status is {values['status']!r}")
    for stage, seconds in values["seconds"].items():
        if type(seconds) not in _NUMBER:
            raise ValueError(f"the seconds of {stage!r} aren't a number")
    for name, rows in values["groups"].items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"the groups of {name!r} aren't a list of objects")
    scores = [Score(**_checked(row, _SCORE_V1, "a score")) for row in values["scores"]]
    return Record(
        **{
            **values,
            "scores": tuple(scores),
            "manifest": tuple(_image(row) for row in values["manifest"]),
        }
    )


def _checked(data: object, kinds: Mapping[str, tuple[type, ...]], what: str) -> dict[str, Any]:
    """The data, if it has exactly these names with values of these types.

    Raises:
        ValueError: If it hasn't.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{what} isn't an object")
    if missing := kinds.keys() - data.keys():
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := data.keys() - kinds.keys():
        raise ValueError(f"{what} has unknown {', '.join(sorted(unknown))}")
    for name, types in kinds.items():
        # Not isinstance: True would pass for an integer.
        if type(data[name]) not in types:
            raise ValueError(f"{name!r} of {what} is of type {type(data[name]).__name__}")
    return data


def _image(row: object) -> tuple[int, int, str]:
    match row:
        case [int(prompt), int(image), str(digest)]:
            return prompt, image, digest
    raise ValueError(f"a manifest row is {row!r}")


# How to read each schema ever written; a new one is added here, none is taken away.
_READERS: Mapping[int, Callable[[object], Record]] = MappingProxyType({1: _read_v1})
