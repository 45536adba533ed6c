"""Records: one run, one JSON file and its sidecar; written atomically, checked when read.

A record lies at ``<results>/<dataset>/<method>/<run key>.json``; what is known of each image lies
beside it in ``<run key>.images.npz``, whose hash the record holds. The sidecar is written first: a
record exists when its JSON does. What can't be read is never overwritten, and only complete
records count as found.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from fairbench.core.errors import ContractError, InputError
from fairbench.core.keys import finite, plain
from fairbench.core.record import SCHEMA, PerImage, Record, Status
from fairbench.core.score import Score
from fairbench.storage.files import atomic_write
from fairbench.storage.layout import check_layout

__all__ = [
    "RecordError",
    "check_no_record",
    "find_record",
    "read_hashes",
    "read_record",
    "read_records",
    "record_path",
    "record_paths",
    "rewrite_record",
    "score_of",
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


def sidecar_path(path: Path) -> Path:
    """Where what is known of each image of the record at `path` lies."""
    return path.with_suffix(".images.npz")


def write_record(results: Path, record: Record, images: PerImage | None = None) -> Path:
    """Write a record, and first its sidecar, each whole or not at all.

    A failed or interrupted record doesn't replace a complete one: that file stays as it is.

    Args:
        results: Folder of all records.
        record: What to write.
        images: What is known of each image; None: the record has no sidecar.

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
    packed = None if images is None else _packed(images)
    digest = None if packed is None else hashlib.sha256(packed).hexdigest()
    record = replace(record, sidecar=digest)
    text = _to_text(record)
    if path.exists() and read_record(path).status == "complete" != record.status:
        return path
    try:
        if packed is not None:
            with atomic_write(sidecar_path(path)) as file:
                file.write(packed)
        with atomic_write(path) as file:
            # Surrogates of undecodable file names turn into JSON's own \udcxx escapes.
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error}); choose another folder") from error
    return path


def rewrite_record(path: Path, record: Record) -> None:
    """Replace a record by one of the same key whose scores were brought up to date.

    What is known of its images stays as it is, in whatever schema it was written.

    Args:
        path: Where it lies.
        record: What to write there; it names the sidecar, or holds the manifest, that is there.

    Raises:
        ContractError: If the record holds something that JSON can't, or is of another key.
        InputError: If the file can't be written to.
    """
    if record.key != path.stem:
        raise ContractError(f"{path}: expected the record of key {path.stem}, seen {record.key}")
    text = _to_text(record)
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error}); check its rights") from error


def _packed(images: PerImage) -> bytes:
    """The bytes of a sidecar: the same for the same content."""
    arrays: dict[str, Any] = {
        "sha256": np.frombuffer(bytes.fromhex("".join(images.sha256)), np.uint8).reshape(-1, 32),
        "prompt_index": images.prompt_index.astype(np.int32),
        "image_index": images.image_index.astype(np.int64),
        "batch_id": images.batch_id.astype(np.int64),
        "valid": images.valid,
        **{
            f"label {judge} {name}": levels.astype(np.int16)
            for judge, by_attribute in images.labels.items()
            for name, levels in by_attribute.items()
        },
    }
    if images.requested is not None:
        arrays["requested"] = images.requested.astype(np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_per_image(path: Path, record: Record) -> PerImage | None:
    """What is known of each image of a record; None if it has no sidecar.

    Args:
        path: Where the record lies.
        record: The record.

    Raises:
        RecordError: If the sidecar is missing, damaged or not the one that the record names.
    """
    packed = _sidecar(path, record)
    if packed is None:
        return None
    arrays = _known(path, packed)
    labels: dict[str, dict[str, NDArray[np.int64]]] = {}
    for name, array in arrays.items():
        if name.startswith("label "):
            _, judge, attribute = name.split(" ", 2)
            labels.setdefault(judge, {})[attribute] = array.astype(np.int64)
    requested = arrays.get("requested")
    return PerImage(
        _hexes(arrays["sha256"]),
        arrays["prompt_index"].astype(np.int64),
        arrays["image_index"].astype(np.int64),
        None if requested is None else requested.astype(np.int64),
        arrays["batch_id"].astype(np.int64),
        arrays["valid"].astype(bool),
        labels,
    )


def read_hashes(path: Path, record: Record) -> NDArray[np.uint8] | Sequence[str] | None:
    """The SHA-256 of each image of a record, in image order; None if it has none.

    Returns:
        (N, 32) from a sidecar; from a manifest what it says, 64 hexadecimal digits each.

    Raises:
        RecordError: As `read_per_image`.
    """
    if record.manifest:
        return [digest for _, _, digest in record.manifest]
    packed = _sidecar(path, record)
    return None if packed is None else _known(path, packed, only="sha256")["sha256"]


def _sidecar(path: Path, record: Record) -> bytes | None:
    """The bytes of a record's sidecar; None if it has none."""
    if record.sidecar is None:
        return None
    beside = sidecar_path(path)
    try:
        packed = beside.read_bytes()
    except OSError as error:
        raise RecordError(f"{beside}: expected the sidecar of a record; {error}") from error
    if hashlib.sha256(packed).hexdigest() != record.sidecar:
        raise RecordError(
            f"{beside}: expected sha256 {record.sidecar[:8]}… as {path.name} states, seen another "
            "file; restore it, or run again with --force"
        )
    return packed


def _known(path: Path, packed: bytes, *, only: str = "") -> dict[str, NDArray[Any]]:
    """The arrays of a record's sidecar, or one of them, by name.

    Raises:
        RecordError: If it isn't as one is written.
    """
    try:
        found = _arrays(packed, only=only)
        hashes = found["sha256"]
        if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != 32:
            raise ValueError(f"its hashes are {hashes.dtype} of shape {hashes.shape}")
    except (ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise RecordError(
            f"{sidecar_path(path)}: expected the sidecar of a record, but {error}; restore it, or "
            "run again with --force"
        ) from error
    return found


def _arrays(packed: bytes, *, only: str = "") -> dict[str, NDArray[Any]]:
    """The arrays of a sidecar, or one of them, by name.

    NumPy's own reader takes ten times as long, most of it to parse headers as Python, and
    `zipfile` would read files of a few hundred bytes through three layers of buffers.
    """
    first = _first(packed, f"{only}.npy") if only else None
    if first is not None:
        return {only: _array(first)}
    found = {}
    with zipfile.ZipFile(io.BytesIO(packed)) as stored:
        members = [stored.getinfo(f"{only}.npy")] if only else stored.infolist()
        for member in members:
            told = _inflated(packed, member) or stored.read(member)
            found[member.filename.removesuffix(".npy")] = _array(told)
    return found


def _array(told: bytes) -> NDArray[Any]:
    """What a file of NumPy's holds."""
    header = _HEADER.match(told)
    if header is None:  # not as NumPy wrote it when this was written
        return np.lib.format.read_array(io.BytesIO(told), allow_pickle=False)
    kind, shape = header.groups()
    sizes = [int(size) for size in shape.split(b",") if size.strip()]
    start = 10 + int.from_bytes(told[8:10], "little")
    return np.frombuffer(told, kind.decode(), offset=start).reshape(sizes)


def _first(packed: bytes, name: str) -> bytes | None:
    """The first file of a zip archive whose hash was checked.

    None if it is another, or isn't as NumPy compresses it. To look at the archive's own list of
    files takes longer than to read one.
    """
    if len(packed) < _LOCAL.size:
        return None
    mark, flags, kind, name_size, extra_size = _LOCAL.unpack_from(packed)
    start = _LOCAL.size + name_size
    if (mark, flags & 1, kind) != (b"PK\3\4", 0, zipfile.ZIP_DEFLATED):
        return None
    if packed[_LOCAL.size : start] != name.encode():
        return None
    reader = zlib.decompressobj(-zlib.MAX_WBITS)
    told = reader.decompress(packed[start + extra_size :])
    return told if reader.eof else None


_LOCAL = struct.Struct("<4s2xHH16xHH")
"""What a file in a zip archive begins with: mark, flags, way of compressing, sizes of its name and
of what follows the name."""


def _inflated(packed: bytes, member: zipfile.ZipInfo) -> bytes | None:
    """A file of a zip archive whose hash was checked; None if it isn't as NumPy compresses it."""
    if member.compress_type != zipfile.ZIP_DEFLATED or member.flag_bits & 1:
        return None
    names = packed[member.header_offset + 26 : member.header_offset + 30]
    start = member.header_offset + 30 + sum(struct.unpack("<HH", names))
    return zlib.decompress(
        packed[start : start + member.compress_size], -zlib.MAX_WBITS, max(1, member.file_size)
    )


_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(\|b1|[<|][iu][1248])', 'fortran_order': False, "
    rb"'shape': \(([\d, ]*)\), \}",
    re.DOTALL,
)


def _hexes(digests: NDArray[np.uint8]) -> tuple[str, ...]:
    """Each row of (N, 32) as 64 hexadecimal digits."""
    text, width = digests.tobytes().hex(), 2 * digests.shape[1]
    return tuple(text[start : start + width] for start in range(0, len(text), width))


def read_manifest(path: Path, record: Record) -> tuple[tuple[int, int, str], ...]:
    """Rows (prompt index, image index, sha256) of a record of any schema, in image order.

    Raises:
        RecordError: As `read_per_image`.
    """
    images = read_per_image(path, record)
    return record.manifest if images is None else images.manifest


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        RecordError: If it is missing, damaged or of a schema that isn't known here.
    """
    try:
        # A pipe would be waited for, for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecordError(f"{path}: expected a record, seen no file; move it away")
        text = path.read_bytes()
        if not _has_long_number(text):
            with suppress(ValueError, KeyError):
                data = orjson.loads(text)  # in a third of the time
                return _READERS[_schema(data)](data)
        # What it refuses may be JSON to Python, such as names that are no text.
        data = json.loads(text, parse_float=_parse_float, parse_constant=_refuse_constant)
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
    records = []
    for path in record_paths(results):
        try:
            records.append(read_record(path))
        except RecordError as error:
            warn(str(error))
    return records


def record_paths(results: Path) -> list[Path]:
    """Where the records of a folder lie, in order.

    Raises:
        InputError: If the folder doesn't exist.
    """
    if not results.is_dir():
        raise InputError(f"{results}: expected a folder of records, seen none; check --results")
    folders = [inner for outer in _shown(results) for inner in _shown(outer)]
    files = [file for folder in folders for file in _shown(folder)]
    return [Path(file) for file in files if file.name.endswith(".json")]


_NO_FOLDER = (errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)


def _shown(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """What a folder holds, by name; nothing of a file, or where it may not be looked."""
    try:
        with os.scandir(folder) as entries:
            shown = [one for one in entries if not one.name.startswith(".")]
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return []
        raise
    return sorted(shown, key=lambda one: one.name)


def check_no_record(file: Path, option: str, results: Path) -> None:
    """Find out whether a file that is to be written would take the place of a record's.

    Args:
        file: The file.
        option: What the user chooses it by.
        results: Folder of the records.

    Raises:
        InputError: If it is a record, its sidecar or its picture.
    """
    whole, root = file.resolve(), results.resolve()
    record = whole.with_name(f"{whole.name.partition('.')[0]}.json")
    beside = (record, sidecar_path(record), record.with_suffix(".png"))
    inside = record.is_relative_to(root) and len(record.relative_to(root).parts) == 3
    if inside and record.is_file() and whole in beside:
        raise InputError(f"{option} {file} would overwrite a record's; name another file")


def _to_text(record: Record) -> str:
    """JSON with an indent."""
    data = plain(record, "record")
    manifest = data.pop("manifest")
    if record.schema == 1:  # newer ones have it in the sidecar
        del data["sidecar"]
    if record.rescored is None:
        del data["rescored"]
    for score in data["scores"]:
        if score["version"] == _UNSAID:  # so that records from before there were others stay
            del score["version"]
    text = json.dumps(data, indent=2, ensure_ascii=False)
    if record.schema == 1:
        # A line an image, so that files stay of a size to be read.
        lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in manifest)
        text = f'{text[:-2]},\n  "manifest": [\n{lines}\n  ]\n}}'
    return text + "\n"


_FLAT = bytes.maketrans(b"123456789:,[-\n\t\r", b"0" * 9 + b" " * 7)
_LONG = b" " + b"0" * 19


def _has_long_number(text: bytes) -> bool:
    """Whether a whole number may have more than 64 bits, of which orjson would make a float."""
    return _LONG in text.translate(_FLAT)


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
_UNSAID = 2  # version of a score that names none
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
        "version": (int,),
    }
)


_RECORD_V2: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        **{name: kinds for name, kinds in _RECORD_V1.items() if name != "manifest"},
        "sidecar": (str, NoneType),
    }
)


def _read_v1(data: object) -> Record:
    values = _with_rescored(data, _RECORD_V1)
    manifest = tuple(_image(row) for row in values["manifest"])
    return _record({**values, "manifest": manifest})


def _read_v2(data: object) -> Record:
    return _record({**_with_rescored(data, _RECORD_V2), "manifest": ()})


def _with_rescored(data: object, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """A record's values; one that was never rescored doesn't say so."""
    whole = {"rescored": None, **data} if isinstance(data, dict) else data
    return _checked(whole, {**kinds, "rescored": (dict, NoneType)}, "the record")


def _record(values: dict[str, Any]) -> Record:
    if values["status"] not in get_args(Status):
        raise ValueError(f"its status is {values['status']!r}")
    check_layout(values)
    scores = [score_of(row) for row in values["scores"]]
    return Record(**{**values, "scores": tuple(scores)})


def score_of(row: object) -> Score:
    """A score from the values that JSON holds of it.

    Raises:
        ValueError: If a value is missing, unknown or of another type.
    """
    if not isinstance(row, dict):
        raise ValueError("a score isn't an object")
    data = {"version": _UNSAID, **row}
    told = (*data, *map(type, data.values()))
    if told not in _SOUND_SCORES:  # there are few ways to write one down, and many scores
        _checked(data, _SCORE_V1, "a score")
        _SOUND_SCORES.add(told)
    return Score.of_all(data)


_SOUND_SCORES: set[tuple[Any, ...]] = set()
"""Names and types of values of scores that were found to be right."""


def _checked(data: object, kinds: Mapping[str, tuple[type, ...]], what: str) -> dict[str, Any]:
    """The data, if it has exactly these names with values of these types.

    Raises:
        ValueError: If it hasn't.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{what} isn't an object")
    if data.keys() != kinds.keys():
        if missing := kinds.keys() - data.keys():
            raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
        unknown = data.keys() - kinds.keys()
        raise ValueError(f"{what} has unknown {', '.join(sorted(unknown))}")
    for name, types in kinds.items():
        # Not isinstance: True would pass for an integer.
        if type(data[name]) not in types:
            raise ValueError(f"{name!r} of {what} is of type {type(data[name]).__name__}")
    return data


def _image(row: object) -> tuple[int, int, str]:
    if type(row) is list and tuple(map(type, row)) == _IMAGE:
        prompt, image, digest = row
        return prompt, image, digest
    raise ValueError(f"a manifest row is {row!r}")


_IMAGE = (int, int, str)


# How to read each schema ever written; a new one is added here, none is taken away.
_READERS: Mapping[int, Callable[[object], Record]] = MappingProxyType({1: _read_v1, 2: _read_v2})
