"""Which images there are and in which order: the files of a folder, a ``.zip`` or a ``.tar``.

Nothing is ever unpacked to disk, and no file of an archive is read beyond the size that it states.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from fairbench.core.errors import InputError

__all__ = ["ARCHIVES", "MAX_FILE_BYTES", "SUFFIXES", "Entry", "Listing", "list_images", "natural"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings, in any case, of the files that are read; every other file is passed over."""

ARCHIVES = (".zip", ".tar")
"""Endings, in any case, of the archives that can take the place of a folder."""

MAX_FILE_BYTES = 256 * 2**20
"""Bytes of the largest file that is read out of an archive, unpacked."""

EMPTY_BLOCK = bytes(tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Entry:
    """One file that is to be an image.

    Attributes:
        where: What messages call it.
        home: ``"folder"`` or ``"archive"``.
        open: Gives a seekable stream of its bytes.
    """

    where: str
    home: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Listing:
    """The images of a source.

    Attributes:
        entries: Name -> file, in natural order; names have ``/`` on every platform.
        notes: What was passed over; one line each.
    """

    entries: Mapping[str, Entry]
    notes: tuple[str, ...]


@contextmanager
def list_images(path: Path) -> Iterator[Listing]:
    """List the images of a folder or an archive; its files can be opened within the block.

    Raises:
        InputError: If there is nothing at that path, it has no images, or it is an archive that
            is damaged or holds what can't be read safely.
    """
    if not path.exists():
        raise InputError(f"{path}: no such folder or file; give what holds the images")
    suffix = path.suffix.lower()
    if path.is_dir():
        yield _listing(path, "folder", *_folder(path))
    # Opening a pipe would wait forever.
    elif suffix not in ARCHIVES or not path.is_file():
        raise InputError(
            f"{path}: expected a folder, {', '.join(ARCHIVES)} or .npz, seen a file that is none; "
            "give the folder of the images"
        )
    else:
        with (_zip if suffix == ".zip" else _tar)(path) as (entries, others):
            yield _listing(path, "archive", entries, others, [])


def _listing(
    root: Path,
    home: str,
    entries: dict[str, Entry],
    others: Counter[str],
    links: list[str],
) -> Listing:
    notes = []
    if others:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
        notes.append(f"passed over files that aren't images by their suffix: {kinds}")
    if links:
        notes.append(f"did not follow links to folders: {', '.join(sorted(links))}")
    if not entries:
        seen = "; ".join(notes) or "it is empty"
        raise InputError(
            f"{root}: no images in this {home} ({seen}); expected files that end in "
            f"{' '.join(SUFFIXES)}"
        )
    ordered = {name: entries[name] for name in sorted(entries, key=natural)}
    return Listing(ordered, tuple(notes))


def natural(name: str) -> tuple[list[list[str | int]], str]:
    """Sort key of a relative path: folder by folder, runs of digits by their value."""
    # macOS hands out decomposed letters; without NFC its order would be another.
    parts = unicodedata.normalize("NFC", name).split("/")
    # Splitting at a captured group alternates text and digits, so like is compared with like.
    key = [
        [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
        for pieces in (re.split("([0-9]+)", part) for part in parts)
    ]
    return key, name


def _kind(name: str) -> str:
    """Suffix as it is counted among files that are passed over; empty for an image."""
    suffix = PurePosixPath(name).suffix.lower()
    return "" if suffix in SUFFIXES else suffix or "no suffix"


# --- folders -------------------------------------------------------------------------------


def _folder(root: Path) -> tuple[dict[str, Entry], Counter[str], list[str]]:
    """Images, other files by suffix, and links to folders that weren't followed."""
    entries: dict[str, Entry] = {}
    others: Counter[str] = Counter()
    links: list[str] = []
    for file in _walk(root, links):
        if kind := _kind(file.name):
            others[kind] += 1
        else:
            name = file.relative_to(root).as_posix()
            entries[name] = Entry(str(file), "folder", _opener(file))
    return entries, others, links


def _opener(file: Path) -> Callable[[], IO[bytes]]:
    return lambda: file.open("rb")


def _walk(root: Path, links: list[str]) -> Iterator[Path]:
    """Yield every visible file below `root`; names of links to folders are added to `links`."""
    for folder, subfolders, files in os.walk(root, onerror=_refuse_folder):
        for name in subfolders:
            if not name.startswith(".") and (link := Path(folder, name)).is_symlink():
                links.append(link.relative_to(root).as_posix())
        # os.walk goes down whatever is left in this list, except links.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            file = Path(folder, name)
            if file.is_symlink() and not file.exists():
                raise InputError(
                    f"{file}: broken link to {file.readlink()}; mend it or take it out"
                )
            # Opening a pipe would wait forever.
            if not file.is_file():
                raise InputError(f"{file}: expected a plain file; take it out of the folder")
            yield file


def _refuse_folder(error: OSError) -> NoReturn:
    raise InputError(
        f"{error.filename}: can't list this folder ({error.strerror}); make it readable or take "
        "it out"
    ) from error


# --- archives ------------------------------------------------------------------------------

Contents = tuple[dict[str, Entry], Counter[str]]


class _Collector:
    """Gathers the images of an archive by their checked names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.others: Counter[str] = Counter()

    def name(self, raw: str) -> str | None:
        """The name of an image; None if the file is to be passed over.

        Raises:
            InputError: If it is a name that leads out of the archive, or one seen before.
        """
        parts = PurePosixPath(raw).parts
        # Windows reads a backslash and a drive's colon as what POSIX takes for letters.
        if raw.startswith("/") or ".." in parts or "\\" in raw or re.match("[A-Za-z]:", raw):
            raise self.refusal(raw, "a name that leads out of the archive")
        if any(part.startswith(".") for part in parts):
            return None
        name = "/".join(parts)
        if kind := _kind(name):
            self.others[kind] += 1
            return None
        if name in self.entries:
            raise self.refusal(raw, "that name twice")
        return name

    def add(self, name: str, size: int, read: Callable[[], bytes]) -> None:
        """Take an image in.

        Raises:
            InputError: If it states more bytes than are read.
        """
        if size > MAX_FILE_BYTES:
            raise self.refusal(
                name, f"{size / 2**20:.0f} MiB, expected at most {MAX_FILE_BYTES // 2**20}"
            )
        # Line ends would break up a message.
        shown = name if name.isprintable() else repr(name)
        where = f"{self.path}: {shown}"
        self.entries[name] = Entry(where, "archive", lambda: io.BytesIO(read()))

    def refusal(self, name: str, seen: str) -> InputError:
        return InputError(
            f"{self.path}: {name!r}: expected a plain file inside the archive, seen {seen}; make "
            "the archive anew without it"
        )


@contextmanager
def _zip(path: Path) -> Iterator[Contents]:
    collected = _Collector(path)
    with _archive_errors(path, "zip"):
        archive = zipfile.ZipFile(path)
    with archive:
        for info in archive.infolist():
            if info.is_dir() or (name := collected.name(info.filename)) is None:
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise collected.refusal(info.filename, "a link")
            if info.flag_bits & 1:
                raise collected.refusal(info.filename, "an encrypted one")
            collected.add(name, info.file_size, partial(_zip_bytes, archive, info))
        yield collected.entries, collected.others


def _zip_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """As many bytes as a file states; `ZipFile.read` unpacks all that there are first."""
    with archive.open(info) as stream:
        content = stream.read(info.file_size)
        # What goes on behind has another checksum; what is less ends early.
        stream.read(1)
    if len(content) != info.file_size:
        raise zipfile.BadZipFile(f"it states {info.file_size} bytes and has {len(content)}")
    return content


@contextmanager
def _tar(path: Path) -> Iterator[Contents]:
    collected = _Collector(path)
    with _archive_errors(path, "tar (uncompressed)"):
        archive = tarfile.open(path, "r:")  # noqa: SIM115
    with archive:
        with _archive_errors(path, "tar (uncompressed)"):
            members = archive.getmembers()
            _check_end(path, archive.offset)
        for member in members:
            if member.isdir() or (name := collected.name(member.name)) is None:
                continue
            if not member.isreg():
                link = member.issym() or member.islnk()
                raise collected.refusal(member.name, "a link" if link else "a device or pipe")
            collected.add(name, member.size, partial(_tar_bytes, archive, member))
        yield collected.entries, collected.others


def _check_end(path: Path, offset: int) -> None:
    """Refuse an archive without its end mark: one that was cut between two files looks whole."""
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(len(EMPTY_BLOCK)) != EMPTY_BLOCK:
            raise tarfile.ReadError("it ends early")


def _tar_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


@contextmanager
def _archive_errors(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    # Damaged archives raise nearly anything: struct.error, ValueError, UnicodeDecodeError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: expected a complete {kind} archive, seen one that can't be read ({reason}); "
            "make it anew"
        ) from error
