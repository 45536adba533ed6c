"""What the command line has in common: exit codes, streams, progress, tables, JSON."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from fairbench.core.errors import FairbenchError
from fairbench.core.interrupts import no_more
from fairbench.core.tables import Column, lay_out
from fairbench.core.text import shown
from fairbench.storage.files import TAKEN, disk_line, full_disk

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fairbench.core.progress import Reporter

__all__ = [
    "INTERRUPTED",
    "PIPE_CLOSED",
    "guarded",
    "leave",
    "nothing_to_print_to",
    "print_json",
    "print_lines",
    "print_table",
    "reporting",
    "show",
    "told",
    "warn",
    "width",
]

ENVIRONMENT = (
    *(errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EPERM, errno.EROFS),
    *TAKEN,
)
"""Failures of a disk, of rights to it or of what lies on it: the user's environment, not this
program."""

NAMES = (errno.ELOOP, errno.ENAMETOOLONG)
"""What the system says of names that the user gave and no file can have."""

LONGEST = 80
"""Letters that are shown of such a name."""

INTERRUPTED = "fairbench: interrupted; the same command without --force goes on where this stopped"

PIPE_CLOSED = 141
"""Exit code when the reader of a pipe went away: what a shell says of a program that it stops."""

STARTED = time.time()
SLOW_START = 60.0
"""Seconds that processes of one run may begin one after another."""

REMEMBERED = 120.0
"""Seconds of progress that the time left is estimated from."""


@contextlib.contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Turn what goes wrong inside into one line and an exit code."""
    try:
        yield
    except FairbenchError as error:
        if debug:
            traceback.print_exc()
        leave(f"fairbench: {told(error)}", 2)
    except KeyboardInterrupt:
        leave(INTERRUPTED, 130)
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        failed = full_disk(error)
        if isinstance(error, OSError) and error.errno in ENVIRONMENT:
            failed = error
        if isinstance(error, OSError) and error.errno in NAMES:
            name = shown(str(error.filename or "a name")[:LONGEST])
            leave(f"fairbench: {name}…: {error.strerror}; give another name", 2)
        if failed is not None:
            leave(f"fairbench: {shown(disk_line(failed))}", 2)
        if isinstance(error, MemoryError):
            leave(
                "fairbench: out of memory; ask for fewer images, or lower what --param makes "
                "large, such as batch",
                2,
            )
        log = _write_log()
        leave(
            f"fairbench: internal failure: {type(error).__name__}: {told(error)} "
            f"(traceback in {log}, or with --debug)",
            3,
        )


def leave(line: str, code: int) -> NoReturn:
    """Say one line on stderr and exit; of processes that share a run only the first one says it.

    What ends one of them ends the others: all have the same mistake before them, or they are told
    to end.
    """
    no_more()
    if _is_first_to_leave():
        print(line, file=sys.stderr)
    raise SystemExit(code) from None


def _is_first_to_leave() -> bool:
    """Whether no other process that the same program started has said why it ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    port = os.environ.get("MASTER_PORT", "")
    said = Path(tempfile.gettempdir()) / f"fairbench-{os.getppid()}-{port}.said"
    with contextlib.suppress(OSError):
        if said.stat().st_mtime < STARTED - SLOW_START:  # of an earlier run of the same numbers
            said.unlink()
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # then it is rather said twice
        return True
    return True


def told(error: BaseException) -> str:
    """What an error says, in one line that steers no terminal."""
    text = str(error).strip()
    if not isinstance(error, FairbenchError):  # others' messages may go on for pages
        text = (text.splitlines() or [type(error).__name__])[0]
    return shown(text or type(error).__name__)


def _write_log() -> Path:
    with tempfile.NamedTemporaryFile(
        "w", prefix="fairbench-", suffix=".log", delete=False, errors="backslashreplace"
    ) as log:
        traceback.print_exc(file=log)
    return Path(log.name)


@functools.cache  # a damaged record is met several times in one run, and named once
def warn(line: str) -> None:
    """Say on stderr what may be wrong."""
    print(f"fairbench: warning: {shown(line)}", file=sys.stderr)


def width() -> int | None:
    """Letters a line of stdout; None for a file or a pipe, whose lines have any length."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return max(20, shutil.get_terminal_size().columns)
    return None


def print_lines(lines: Sequence[str]) -> None:
    """Write lines to stdout, as they are."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_table(rows: Sequence[Mapping[str, str]], columns: Sequence[Column]) -> None:
    """Write a table to stdout whose columns' cells come from rows.

    Args:
        rows: Title -> cell.
        columns: How each is shown; their own cells aren't read.
    """
    filled = [
        Column(
            one.title.replace("_", " "),
            [shown(row[one.title]) for row in rows],
            one.whole,
            one.right,
            one.spare,
        )
        for one in columns
    ]
    print_lines(lay_out(filled, width()))


def show(renderable: RenderableType) -> None:
    """Write what rich draws to stdout; in a pipe no line is cut, wrapped or filled with spaces."""
    from rich.console import Console

    columns = width()
    if sys.stdout.isatty():
        console = Console(width=columns)
        with console.capture() as drawn:
            console.print(renderable, crop=False)
        sys.stdout.write(drawn.get())
        return
    console = Console(width=columns or 10_000, color_system=None, force_terminal=False)
    with console.capture() as drawn:
        console.print(renderable, crop=False)
    print_lines([line.rstrip() for line in drawn.get().splitlines()])


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def reporting(*, quiet: bool = False) -> Iterator[Reporter]:
    """A reporter that draws progress on stderr if that is a terminal, else stays quiet.

    Args:
        quiet: Show warnings alone.
    """
    from fairbench.core.progress import Reporter
    from fairbench.diffusion.devices import is_main_process

    if not is_main_process():
        yield Reporter()
        return
    if quiet:
        yield Reporter(warn=warn)
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(note=lambda line: print(shown(line), file=sys.stderr), warn=warn)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=REMEMBERED) as bars:
        drawn: dict[str, Any] = {}
        warned: set[str] = set()

        def progress(what: str, done: float, total: float) -> None:
            if what not in drawn:
                drawn[what] = bars.add_task(shown(what), total=total)
            bars.update(drawn[what], completed=done, total=total)

        def say(line: str) -> None:
            console.print(shown(line), markup=False, highlight=False)

        def say_once(line: str) -> None:
            if line not in warned:
                warned.add(line)
                say(f"warning: {line}")

        yield Reporter(progress=progress, note=say, warn=say_once)


def nothing_to_print_to() -> None:
    """Give streams that the user closed a place where nothing is kept.

    Else the next file that is opened would be what is printed into.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
