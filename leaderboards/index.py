"""An index of a folder of records: no file is parsed twice, and no more than a row's is in memory.

It is a cache, one SQLite file a folder under the cache folder, and may be deleted at any time. An
entry holds for a file of the same size, times and inode and the same code; what was worked out for
a row holds for the same entries. What it can't be written to, or is damaged, is made anew beside
the system's temporary files, and gone with the process.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import sqlite3
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from sys import intern
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from fairbench import core, metrics, scores, storage
from fairbench.core.errors import InputError
from fairbench.core.keys import canonical
from fairbench.core.record import PerImage, Record
from fairbench.core.score import Score
from fairbench.leaderboards.counts import Confusion, confusions_in
from fairbench.leaderboards.helpers import mapped, worth_it
from fairbench.leaderboards.shelf import Group, Shelf, Work
from fairbench.storage.cache import cache_folder
from fairbench.storage.records import (
    RecordError,
    read_hashes,
    read_per_image,
    read_record,
    record_paths,
    sidecar_path,
)

__all__ = ["DamagedIndexError", "Index"]

_VERSION = 8
_NUMBERS = ("value", "low", "high", "floor", "n")
_TEXTS = tuple(one.name for one in fields(Score) if one.name not in _NUMBERS)
_numbers, _texts = attrgetter(*_NUMBERS), attrgetter(*_TEXTS)
_HEAVY = ("scores", "groups", "facts", "manifest")
_LIGHT = [one.name for one in fields(Record) if one.name not in (*_HEAVY, "config")]
_TABLES = """
CREATE TABLE IF NOT EXISTS records (
    path TEXT PRIMARY KEY, stamp TEXT, light BLOB, texts TEXT, numbers BLOB, counts BLOB,
    confusions TEXT, hashes BLOB, problem TEXT);
CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, every BLOB);
CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, code TEXT, found BLOB);
"""
_MARKS = ", ".join("?" * 9)  # a column of records each
_FORGET = "".join(f"DROP TABLE IF EXISTS {name}; " for name in ("records", "texts", "rows"))
_LISTS = 256  # of texts at once in memory


class DamagedIndexError(Exception):
    """What the index holds can't be read; `Index.forget` it and make it anew."""


class Index:
    """Records of a folder.

    Args:
        results: The folder.
        warn: Told in one line about every record and sidecar that can't be read.

    Raises:
        InputError: If the folder doesn't exist.
    """

    def __init__(self, results: Path, warn: Callable[[str], None]) -> None:
        self._results, self._warn = results, warn
        self._file, self._base = _opened(results)
        self._process, self._inherited = os.getpid(), self._base
        self._places: dict[tuple[str, ...], str] = {}
        self._paths: dict[str, Path] = {}
        self._stamps: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        self._scores: dict[str, list[dict[str, Any]]] = {}
        self._told: set[str] = set()
        self._refresh()
        self.records = list(self._light())

    @staticmethod
    def forget(results: Path) -> None:
        """Remove the index of a folder."""
        for place in _places(results):
            _remove(place)

    def shelf(self) -> Shelf:
        """What rows are made from."""
        return Shelf(
            self.records,
            self.whole,
            self._counted,
            self._hashes,
            self._images,
            self._confusions,
            self._kept,
        )

    def whole(self, record: Record) -> Record:
        """A record with everything but its manifest."""
        with suppress(DamagedIndexError):
            return self._whole(record)
        return replace(read_record(self._paths[self._places[_place(record)]]), manifest=())

    def _whole(self, record: Record) -> Record:
        texts, numbers, counts = self._one("texts, numbers, counts", record)
        groups, facts = _unpacked(counts)
        told = zip(self._texts_of(texts), _unpacked(numbers), strict=True)
        scores = tuple(
            Score.of_all(
                {**same, "value": value, "low": low, "high": high, "floor": floor, "n": n}
            )
            for same, (value, low, high, floor, n) in told
        )
        return replace(record, scores=scores, groups=groups, facts=facts)

    def _texts_of(self, key: str) -> list[dict[str, Any]]:
        """What scores say beside their numbers: few lists of them are those of many records."""
        if key not in self._scores:
            if len(self._scores) >= _LISTS:
                self._scores.clear()
            query = "SELECT every FROM texts WHERE key = ?"
            (packed,) = _fetched(self._base, query, key)
            self._scores[key] = [dict(zip(_TEXTS, one, strict=True)) for one in _unpacked(packed)]
        return self._scores[key]

    def _counted(self, record: Record) -> Record:
        """A record with its groups and facts."""
        (counts,) = self._one("counts", record)
        groups, facts = _unpacked(counts)
        return replace(record, groups=groups, facts=facts)

    def _refresh(self) -> None:
        """Read the files that are new or changed, forget those that are gone."""
        had = dict(self._base.execute("SELECT path, stamp FROM records"))
        for path in record_paths(self._results):
            # A file's name may be no text, which the index couldn't hold.
            name = _text("/".join(path.parts[-3:]))
            self._paths[name], self._stamps[name] = path, _stamp(path)
        self._base.execute("DELETE FROM rows WHERE code != ?", (_code(),))
        gone = [(name,) for name in had.keys() - self._stamps.keys()]
        self._base.executemany("DELETE FROM records WHERE path = ?", gone)
        changed = [name for name, stamp in self._stamps.items() if had.get(name) != stamp]
        entries = mapped(partial(map, _Reader()), [self._paths[name] for name in changed])
        for name, (texts, *entry) in zip(changed, entries, strict=True):
            if texts is not None:
                self._base.execute("REPLACE INTO texts VALUES (?, ?)", texts)
            values = name, self._stamps[name], *entry
            self._base.execute(f"REPLACE INTO records VALUES ({_MARKS})", values)
        used = "SELECT texts FROM records WHERE texts IS NOT NULL"
        self._base.execute(f"DELETE FROM texts WHERE key NOT IN ({used})")
        self._base.commit()

    def _light(self) -> Iterator[Record]:
        """Every record without what takes room; said once what can't be read."""
        query = "SELECT path, light, problem FROM records ORDER BY path"
        found = {name: (light, problem) for name, light, problem in self._base.execute(query)}
        for name in self._stamps:
            light, problem = found[name]
            if light is None:
                self._warn(problem)
                continue
            texts, config = _unpacked(light)
            told = dict(zip(_LIGHT, map(self._shared, texts), strict=True))
            # Most of a configuration is that of other records, seldom all of it.
            told["config"] = {intern(field): self._shared(text) for field, text in config.items()}
            record = Record(**told, scores=(), groups={}, facts={}, manifest=())
            self._places[_place(record)] = name
            yield record
        self._values.clear()

    def _shared(self, text: str) -> Any:
        """The value of a JSON text; equal ones are one object, since records repeat much."""
        if text not in self._values:
            try:
                self._values[text] = json.loads(text)
            except (ValueError, TypeError) as error:
                raise DamagedIndexError(str(error)) from error
        return self._values[text]

    def _one(self, columns: str, record: Record) -> tuple[Any, ...]:
        name = self._places[_place(record)]
        return _fetched(self._base, f"SELECT {columns} FROM records WHERE path = ?", name)

    def _hashes(self, record: Record) -> Sequence[int] | None:
        """64 bits of each image's hash."""
        packed, problem = self._one("hashes, problem", record)
        if problem is not None:
            self._tell(problem)
        if packed is None:
            return None
        try:
            hashes: list[int] = np.frombuffer(packed, dtype=np.uint64).tolist()
        except (ValueError, TypeError) as error:
            raise DamagedIndexError(str(error)) from error
        return hashes

    def _images(self, record: Record) -> PerImage | None:
        name = self._places[_place(record)]
        try:
            return read_per_image(self._paths[name], record)
        except RecordError as error:
            self._tell(str(error))
            return None

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._warn(line)

    def _confusions(self, record: Record) -> list[Confusion]:
        (text,) = self._one("confusions", record)
        return [tuple(one) for one in self._shared(text)]

    def _kept(self, groups: Sequence[Group], about: Any, work: Work) -> Iterator[Any]:
        start = hashlib.sha256(canonical(about).encode()).hexdigest()
        keys = [self._key(start, group) for group in groups]
        had = {key for (key,) in self._base.execute("SELECT key FROM rows")}
        missing = [place for place, key in enumerate(keys) if key not in had]

        def worked_out(places: Sequence[int]) -> Iterator[bytes]:
            self._use_own_connection()
            every = work([groups[place] for place in places])
            for _ in places:
                warn, told, lines = self._warn, self._told, list[str]()
                self._warn, self._told = lines.append, set()
                try:
                    found = next(every)
                finally:
                    self._warn, self._told = warn, told
                yield _packed((found, lines))

        weight = sum(len(runs) for place in missing for runs in groups[place].rows)
        if worth_it(weight):
            import scipy.special  # noqa: F401  # once, instead of once in each helper
        self._base.commit()  # so that helpers see everything
        fresh = iter(mapped(worked_out, missing, weight=weight, alone=not self._file))
        for key in keys:
            if key in had:
                (packed,) = _fetched(self._base, "SELECT found FROM rows WHERE key = ?", key)
            else:
                packed = next(fresh)
                self._base.execute("REPLACE INTO rows VALUES (?, ?, ?)", (key, _code(), packed))
            found, lines = _unpacked(packed)
            for line in lines:
                self._tell(line)
            yield found
        self._base.commit()

    def _key(self, start: str, group: Group) -> str:
        names = [[self._places[_place(run)] for run in runs] for runs in group.rows]
        stamps = [[[name, self._stamps[name]] for name in row] for row in names]
        return hashlib.sha256(canonical([start, stamps, group.detail]).encode()).hexdigest()

    def _use_own_connection(self) -> None:
        """SQLite's connections aren't for the copies of a process."""
        if os.getpid() != self._process:
            self._process = os.getpid()
            self._inherited = self._base  # never closed here: it is its maker's to tidy up
            self._base = sqlite3.connect(f"file:{quote(self._file)}?mode=ro", uri=True, timeout=60)


def _place(record: Record) -> tuple[str, ...]:
    return record.dataset, record.task, record.method, record.key


def _stamp(path: Path) -> str:
    """What changes with a file, with the sidecar beside it and with the code that reads them."""
    told = _code()
    for one in (path, sidecar_path(path)):
        try:
            had = one.stat()
            told += f" {had.st_size} {had.st_mtime_ns} {had.st_ctime_ns} {had.st_ino}"
        except OSError:
            told += " none"
    return told


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class _Reader:
    """Reads records as the index holds them."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def __call__(self, path: Path) -> tuple[Any, ...]:
        """What isn't known yet of a record's texts, and its columns but for path and stamp."""
        try:
            record = read_record(path)
            counts = _packed((record.groups, record.facts))
        except RecordError as error:
            return None, None, None, None, None, None, None, _text(str(error))
        except ValueError as error:  # nested thousands of levels deep
            told = f"{path}: expected a record, but {error}; move the file away and run again"
            return None, None, None, None, None, None, None, _text(told)
        light = [_json(getattr(record, name)) for name in _LIGHT]
        config = {name: _json(value) for name, value in record.config.items()}
        fresh, key = self._texts(record)
        hashes, problem = _hashes_of(path, record)
        return (
            fresh,
            _packed((light, config)),
            key,
            _packed([_numbers(score) for score in record.scores]),
            counts,
            _json(confusions_in(record)),
            hashes,
            problem,
        )

    def _texts(self, record: Record) -> tuple[tuple[str, bytes] | None, str]:
        """What the scores say beside their numbers, if it's new, and its key."""
        every = [_texts(score) for score in record.scores]
        told = marshal.dumps(every, 2)  # 1 and 1.0 are equal, and not the same
        if told in self._seen:
            return None, self._seen[told]
        key = hashlib.sha256(told).hexdigest()[:16]
        self._seen[told] = key
        return (key, _packed(every)), key


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()  # in a tenth of the time
    except TypeError:  # names that are no text, whole numbers beyond 64 bits
        return json.dumps(value)


def _packed(values: Any) -> bytes:
    """With the sum that tells damage. Not made smaller: that would take longer than all else."""
    return zlib.compress(marshal.dumps(values), 0)


def _unpacked(packed: bytes) -> Any:
    try:
        return marshal.loads(zlib.decompress(packed))
    except (zlib.error, ValueError, EOFError, TypeError) as error:
        raise DamagedIndexError(str(error)) from error


def _fetched(base: sqlite3.Connection, query: str, key: str) -> tuple[Any, ...]:
    """The row of a key."""
    try:
        found: tuple[Any, ...] | None = base.execute(query, (key,)).fetchone()
    except sqlite3.DatabaseError as error:
        raise DamagedIndexError(str(error)) from error
    if found is None:  # another process may have changed it meanwhile
        raise DamagedIndexError(f"no entry {key}")
    return found


def _hashes_of(path: Path, record: Record) -> tuple[bytes | None, str | None]:
    try:
        found = read_hashes(path, record)
    except RecordError as error:
        return None, _text(str(error))
    if found is None or not len(found):
        return None, None
    try:
        digests = (
            found.tobytes() if isinstance(found, np.ndarray) else bytes.fromhex("".join(found))
        )
        words = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 4)
        return np.bitwise_xor.reduce(words, axis=1).tobytes(), None
    except ValueError:  # made by hand: any text that tells images apart
        every = (hashlib.sha256(one.encode("utf-8", "surrogatepass")).digest() for one in found)
        return b"".join(one[:8] for one in every), None


def _opened(results: Path) -> tuple[str, sqlite3.Connection]:
    """The folder's index and its file, "" for none; empty if there was none or it's damaged."""
    if not results.is_dir():
        raise InputError(f"{results}: expected a folder of records, seen none; check --results")
    places = _places(results)
    for place in [*places, *places, ""]:
        base = sqlite3.connect(place, timeout=5)
        try:
            base.execute("PRAGMA synchronous = OFF")
            base.execute("PRAGMA journal_mode = WAL")  # helpers read while rows are kept
            base.execute("PRAGMA cache_size = -16000")
            (version,) = base.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                base.executescript(_FORGET)
            base.executescript(_TABLES)
            base.execute(f"PRAGMA user_version = {_VERSION}")
            base.execute("BEGIN IMMEDIATE")
            base.execute("SELECT count(*), max(length(light)) FROM records").fetchone()
        except sqlite3.OperationalError:  # in use, or it can't be written to
            base.close()
        except sqlite3.DatabaseError:
            base.close()
            _remove(place)
        else:
            return place, base
    raise InputError("the system's temporary folder can't hold the index of records")


def _places(results: Path) -> list[str]:
    """Where a folder's index may lie."""
    name = hashlib.sha256(str(results.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    with suppress(InputError, OSError):
        folder = cache_folder() / "boards"
        folder.mkdir(exist_ok=True)
        return [str(folder / f"{name}.sqlite")]
    return []


def _remove(place: str) -> None:
    for end in ("", "-wal", "-shm") if place else ():
        with suppress(OSError):
            Path(place + end).unlink(missing_ok=True)


@cache
def _code() -> str:
    """Hash of the code that reads records and works out rows, and of the Python that marshals."""
    digest = hashlib.sha256(f"{_VERSION} {sys.version}".encode())
    rooms = (__file__, *(str(room.__file__) for room in (core, metrics, scores, storage)))
    for room in rooms:
        for file in sorted(Path(room).parent.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
