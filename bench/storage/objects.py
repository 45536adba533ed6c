"""Small files under a folder or an address that fsspec reaches: whole or not there, no renaming.

What claims, notes and records need of a store, and nothing else: a list, reading, writing,
creating what isn't there yet, removing, and the store's own clock, since those of machines differ.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from fairbench.core.errors import InputError
from fairbench.storage.files import LEFT, atomic_write, full_disk

__all__ = ["Entry", "Folder", "Objects", "Remote", "is_address", "objects_at"]

EXTRAS: Mapping[str, str] = {"s3": "s3", "s3a": "s3"}
"""Protocol -> extra of this package that brings what it needs."""

TOGETHER = 64
"""Files that are asked for at once."""


@dataclass(frozen=True)
class Entry:
    """One file of a store.

    Attributes:
        tag: Changes when its content does.
        modified: Seconds since 1970 by the store's clock.
    """

    tag: str
    modified: float


class Objects(Protocol):
    """A store of small files; names are relative, with slashes."""

    address: str

    def list(self, below: str = "") -> dict[str, Entry]:
        """Name -> what is known of it, of each file whose name starts with `below` and a slash."""
        ...

    def entry(self, name: str) -> Entry | None:
        """What is known of one file; None if there is none."""
        ...

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Name -> content, of those that are there."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one that is there."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless one is there; whether it was written.

        Of two that create the same file at once one is told so, wherever the store can do that;
        elsewhere both may be told that they did.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def clock(self) -> float:
        """Seconds since 1970 by the clock that `Entry.modified` is of."""
        ...


def is_address(text: str) -> bool:
    """Whether a text is an address such as ``s3://bucket/results``, not a path."""
    scheme, mark, _ = text.partition("://")
    # Drivers may be chained, as in simplecache::s3://bucket.
    return bool(mark) and len(scheme) > 1 and re.sub(r"[+:.-]", "", scheme).isalnum()


def objects_at(where: str) -> Objects:
    """The store at a path or an address.

    Raises:
        InputError: If the address is of a kind that isn't known here, or needs a package that
            isn't installed; says what to type.
    """
    if not is_address(where):
        return Folder(Path(where))
    if urlsplit(where).scheme in ("file", "local"):
        return Folder(local_path(where))
    return Remote(where)


def local_path(address: str) -> Path:
    """The path that a ``file://`` address names."""
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{address}: a file's address has three slashes: file:///{parts.netloc}…")
    path = unquote(parts.path)
    if not path.strip("/"):
        raise InputError(f"{address}: names no folder; expected file:///folder/results")
    return Path(path[1:] if os.name == "nt" else path)


class Folder:
    """A store that is a folder, of this machine or of a disk that several share."""

    def __init__(self, root: Path) -> None:
        self.root, self.address = root, str(root)

    def list(self, below: str = "") -> dict[str, Entry]:
        """As `Objects.list`."""
        found = {}
        for place, _, names in os.walk(self.root / below):
            for name in names:
                path = Path(place, name)
                if not LEFT.fullmatch(name) and (entry := _entry_of(path)) is not None:
                    found[path.relative_to(self.root).as_posix()] = entry
        return found

    def entry(self, name: str) -> Entry | None:
        """As `Objects.entry`."""
        return _entry_of(self.root / name)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """As `Objects.read`."""
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name] = (self.root / name).read_bytes()
        return found

    def write(self, name: str, content: bytes) -> None:
        """As `Objects.write`."""
        with atomic_write(self.root / name) as file:
            file.write(content)

    def create(self, name: str, content: bytes) -> bool:
        """As `Objects.create`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            part.write_bytes(content)
            try:
                os.link(part, path)  # which no other program's can take the place of
            except FileExistsError:
                return False
            except OSError as error:
                if full_disk(error):
                    raise
                return _created(path, content)  # a disk without links
            return True
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """As `Objects.remove`."""
        (self.root / name).unlink(missing_ok=True)

    def clock(self) -> float:
        """As `Objects.clock`: by what the disk's machine says of a file that is written now."""
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f".clock.{secrets.token_hex(4)}.part"
        try:
            probe.write_bytes(b"")
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _created(path: Path, content: bytes) -> bool:
    """Create a file under its own name; whether none was there."""
    try:
        with path.open("xb") as file:
            try:
                file.write(content)
                file.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        return False
    return True


def _entry_of(path: Path) -> Entry | None:
    try:
        had = path.stat()
    except OSError:
        return None
    return Entry(f"{had.st_size}-{had.st_mtime_ns}-{had.st_ino}", had.st_mtime)


class Remote:
    """A store that fsspec reaches: ``s3://``, ``gs://``, ``memory://`` and others.

    Args:
        address: Of its root.
    """

    def __init__(self, address: str) -> None:
        protocol, _, rest = address.partition("://")
        if not rest.strip("/"):
            raise InputError(
                f"{address}: names no place; expected an address such as {protocol}://bucket/results"
            )
        self.address = address.rstrip("/")
        try:
            import fsspec

            # Listings are asked for anew: other machines write here.
            self._fs, self._root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except ImportError as error:
            extra = EXTRAS.get(protocol)
            package = f"'fairbench-diffusion[{extra}]'" if extra else _package(error)
            raise InputError(
                f"{address}: {protocol}:// needs a package that isn't installed; "
                f"pip install {package}"
            ) from None
        except ValueError as error:
            raise InputError(
                f"{address}: {str(error).splitlines()[0]}; use a folder, s3://, gs:// or file://"
            ) from None
        except Exception as error:  # some drivers connect at once, and each has its own
            raise self._unreachable(error) from error
        self._root = self._root.rstrip("/")

    def list(self, below: str = "") -> dict[str, Entry]:
        """As `Objects.list`."""
        with self._reached():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(below).rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        cut = len(self._root.lstrip("/")) + 1
        return {
            path.lstrip("/")[cut:]: _remote_entry(told)
            for path, told in found.items()
            if told.get("type", "file") == "file"
        }

    def entry(self, name: str) -> Entry | None:
        """As `Objects.entry`."""
        with self._reached():
            self._fs.invalidate_cache()
            try:
                told = self._fs.info(self._path(name))
            except FileNotFoundError:
                return None
        return _remote_entry(told) if told.get("type", "file") == "file" else None

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """As `Objects.read`; many at once where the store can."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), TOGETHER):
            paths = {self._path(name): name for name in names[start : start + TOGETHER]}
            with self._reached():
                got = self._fs.cat(list(paths), on_error="return")
            by_path = {path.lstrip("/"): name for path, name in paths.items()}
            for path, content in got.items():
                if isinstance(content, bytes):
                    found[by_path[path.lstrip("/")]] = content
                elif not isinstance(content, FileNotFoundError):
                    raise self._unreachable(content)
        return found

    def write(self, name: str, content: bytes) -> None:
        """As `Objects.write`."""
        with self._reached():
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """As `Objects.create`: conditionally where fsspec's driver knows how."""
        with self._reached():
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):
                if self._fs.exists(self._path(name)):
                    return False
                self._fs.pipe_file(self._path(name), content)
            except OSError as error:
                if _refused(error):
                    return False
                raise
        return True

    def remove(self, name: str) -> None:
        """As `Objects.remove`."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def clock(self) -> float:
        """As `Objects.clock`: by what the store says of a file that is written now."""
        probe = f".sweep/clock/{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.write(probe, b"")
        try:
            entry = self.entry(probe)
        finally:
            self.remove(probe)
        if entry is None:
            raise InputError(f"{self.address}: a file that was written isn't there to be read")
        return entry.modified

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self._root) / name)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what drivers raise into one line."""
        try:
            yield
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:  # each driver has its own
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> InputError:
        line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        return InputError(
            f"{self.address}: can't be reached ({line}); check the address, the rights and the "
            "store's own settings"
        )


def _refused(error: OSError) -> bool:
    """Whether a store says that what was to be created is there."""
    cause: BaseException | None = error
    while cause is not None:
        told = getattr(cause, "response", None)
        if isinstance(told, dict) and told.get("Error", {}).get("Code") in (
            "PreconditionFailed",
            "ConditionalRequestConflict",
            "412",
        ):
            return True
        cause = cause.__cause__
    return "PreconditionFailed" in str(error) or "pre-conditions" in str(error)


def _package(error: ImportError) -> str:
    """What fsspec tells to install, or the modules that weren't found."""
    if told := re.search(r"requires (.*) to be installed", str(error)):
        return " ".join(re.findall(r"[\w-]{2,}", told[1].replace(" and ", " ")))
    words = str(error).lower().replace('"', " ").replace("'", " ").split()
    if "install" in words[:-1]:
        return words[words.index("install") + 1]
    return error.name or "fsspec"


def _remote_entry(told: Mapping[str, Any]) -> Entry:
    modified = 0.0
    for name in ("LastModified", "mtime", "modified", "updated", "last_modified", "created"):
        value = told.get(name)
        if isinstance(value, datetime):
            value = value if value.tzinfo else value.replace(tzinfo=UTC)
            modified = value.timestamp()
            break
        if isinstance(value, int | float):
            modified = float(value)
            break
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                modified = datetime.fromisoformat(value).timestamp()
                break
    tag = told.get("ETag") or told.get("etag") or told.get("md5Hash")
    return Entry(str(tag or f"{told.get('size')}-{modified}"), modified)
