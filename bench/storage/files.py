"""Files that appear whole or not at all, and what killed programs leave of them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fairbench.core.errors import InputError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "FREE",
    "TAKEN",
    "alone",
    "atomic_write",
    "check_apart",
    "check_file",
    "check_writable",
    "disk_line",
    "full_disk",
    "is_file",
    "remove",
    "sweep",
    "working_folder",
]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that has no room for a file."""

TAKEN = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
"""What a disk says of a path where something of another kind lies."""

FREE = "free some space"
"""What every message says whose reason is a full disk: that passes, and then all goes on."""

PART = ".part"
WORK = ".work-"
HELD = ".held"

LEFT = re.compile(r"\..+\.[0-9a-f]{8}\.part")
"""What the parts that are being written are called."""

STALE = 86400.0
"""Seconds after which a part counts as left behind where locks can't tell."""

FRESH = 60.0
"""Seconds in which a working folder may not be marked as held yet."""

TRIES = 5

WAIT = 0.5
"""Seconds between looks whether another process left."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well.

    It is written beside it under a hidden name; folders that are missing are made. What killed
    programs left of earlier attempts at the same file is removed.

    Raises:
        OSError: If the folder can't be written to; then nothing is left behind.
    """
    file, part = _begun(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # which can't rename an open file
                part.replace(path)
        if os.name == "nt":
            part.replace(path)
    except OSError as error:
        if error.filename is None:  # what a write says doesn't name the file
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def is_file(path: Path) -> bool:
    """Whether a file lies there. What is none, such as a folder or a pipe, is removed.

    For files that can be made again: a pipe would be waited for, for ever.
    """
    if path.is_file():
        return True
    remove(path)
    return False


def remove(path: Path) -> None:
    """Remove a file, a folder or whatever else is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def full_disk(error: BaseException) -> OSError | None:
    """What a full disk said, if that is what an error comes from.

    Args:
        error: Any; some libraries raise errors of their own on top of the system's.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def disk_line(error: OSError) -> str:
    """What a disk's failure means for the user, in one line."""
    advice = "check the disk and the rights, or"
    if error.errno in FULL:
        advice = f"{FREE}, or"
    elif error.errno in TAKEN:
        advice = "move away what lies in its place, or"
    return (
        f"{error.filename or 'a file'}: {error.strerror or error}; {advice} choose other folders "
        "by --results and FAIRBENCH_CACHE"
    )


def _begun(path: Path) -> tuple[IO[bytes], Path]:
    """A new file beside `path`, which other programs see is being written."""
    for attempt in range(TRIES):
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if attempt == 0:
                for other in path.parent.glob(f".{_literal(path.name)}.*{PART}"):
                    _remove_if_left(other)
            file = part.open("xb")
        except FileNotFoundError:  # another process removed the folder, which was empty
            if attempt + 1 == TRIES:
                raise
            continue
        if _locked(file) is not False and part.exists():
            return file, part
        file.close()  # another process took it for a left one, just before it was held
    raise FileNotFoundError(f"{path}: another process removes what is written there")


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _locked(file: IO[bytes]) -> bool | None:
    """Lock a file for as long as it is open; False if another has it, None where nothing tells."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return None
    return True


def _removed(path: Path) -> bool:
    """Remove a file if whoever wrote it is gone; whether it is."""
    with path.open("rb") as file:
        mine = _locked(file)
        if mine is None:
            mine = time.time() - path.stat().st_mtime > STALE
        # While the lock is held nobody can begin to write it.
        if mine and sys.platform != "win32":
            path.unlink(missing_ok=True)
    if mine:
        path.unlink(missing_ok=True)
    return mine


def _remove_if_left(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() and _removed(path)
    return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let no other process of the same disk enter its block for the same file meanwhile.

    What takes long is then made once: the others wait, and find it. Where locks don't work all
    make it, which does no harm. A killed process holds no lock.

    Args:
        path: What is made; it needn't be there.
    """
    # Called as a part of it, so that housekeeping removes one that a killed process left.
    lock = path.with_name(f".{path.name}.{'0' * 8}{PART}")
    file = _entered(lock)
    try:
        yield
    finally:
        if file is not None:
            lock.unlink(missing_ok=True)
            file.close()


def _entered(lock: Path) -> IO[bytes] | None:
    """The file, locked as soon as that is possible; None where nothing can be locked."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("ab")
        except FileNotFoundError:  # the folder was empty, and was removed
            continue
        held = _locked(file)
        if held is None:
            file.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            # Whoever left before removed the file that was waited for: it locks nobody out.
            if held and os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                return file
        file.close()
        if not held:
            time.sleep(WAIT)


@contextmanager
def working_folder(inside: Path) -> Iterator[Path]:
    """A folder that is there while the block runs; `sweep` removes those of killed programs.

    Args:
        inside: Where it is made.
    """
    folder = inside / f"{WORK}{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        with (folder / HELD).open("xb") as held:
            _locked(held)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, depth: int = 3, *, empty: bool = False) -> bool:
    """Remove what killed programs left in a folder: parts of files and working folders.

    Folders that are empty afterwards go too; the folder itself stays.

    Args:
        folder: Such as one of results.
        depth: How many folders down to look.
        empty: Whether folders go that were empty before.

    Returns:
        Whether anything was removed.
    """
    removed = False
    try:
        entries = list(os.scandir(folder))
    except OSError:  # not there, or nothing to be done about it
        return False
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            if LEFT.fullmatch(entry.name):
                removed |= _remove_if_left(path)
        elif entry.name.startswith(WORK):
            removed |= _remove_work(path)
        elif depth > 0 and not entry.name.startswith("."):
            inside = sweep(path, depth - 1, empty=empty)
            if inside or empty:
                with contextlib.suppress(OSError):  # most aren't empty
                    path.rmdir()
            removed |= inside
    return removed


def _remove_work(folder: Path) -> bool:
    held = folder / HELD
    with contextlib.suppress(OSError):
        fresh = time.time() - folder.stat().st_mtime < FRESH
        if _remove_if_left(held) or (not held.exists() and not fresh):
            shutil.rmtree(folder, ignore_errors=True)
            return True
    return False


def check_writable(folder: Path, option: str) -> None:
    """Find out whether files can be written to a folder; it isn't made yet.

    Args:
        folder: The folder.
        option: What the user chooses it by.

    Raises:
        InputError: If it can't be made or written to.
    """
    try:
        there = folder
        while not there.exists():
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"{option} {folder} can't be written to: {reason}; choose another folder"
        ) from None


def check_file(path: Path, option: str) -> None:
    """Find out whether a file can be written; nothing is.

    Args:
        path: The file.
        option: What the user chooses it by.

    Raises:
        InputError: If it is a folder, or its folder can't be written to.
    """
    try:
        folder = path.is_dir()
    except OSError:
        folder = False
    if folder or not path.name:
        raise InputError(f"{option} {path} can't be written: it is a folder; name a file")
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    except NotADirectoryError:  # which the folder's check says better
        kind = stat.S_IFREG
    except OSError as error:  # a name that is too long, for instance
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"{option} {path} can't be written: {reason}; name another") from None
    if not stat.S_ISREG(kind):  # a new file would take the place of the device itself
        raise InputError(
            f"{option} {path} can't be written: it is a device, a pipe or a socket; name a file, "
            "or leave it out and redirect what is printed"
        )
    check_writable(path.parent, option)


def check_apart(written: Iterable[tuple[str, Path]], read: Iterable[tuple[str, Path]]) -> None:
    """Find out whether files that are to be written take the place of no other; nothing is.

    Args:
        written: Option and path of each file that is to be written.
        read: Option and path of each that is read.

    Raises:
        InputError: If one that is to be written is another of them, under whatever name.
    """
    known: dict[object, str] = {_identity(path): option for option, path in read}
    for option, path in written:
        place = _identity(path)
        if place in known:
            raise InputError(f"{option} {path} would overwrite {known[place]}; name another file")
        known[place] = option


def _identity(path: Path) -> object:
    """The same for all names of a file."""
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino
