"""The command line: its commands, and how it begins and ends.

Exit codes: 0 done, 1 a check found a regression, 2 the user's input or environment is wrong,
3 internal failure, 130 interrupted, 141 the reader of a pipe went away.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

from fairbench.app.commands.cache import cache
from fairbench.app.commands.check import check
from fairbench.app.commands.check_method import check_method
from fairbench.app.commands.data import data
from fairbench.app.commands.doctor import doctor
from fairbench.app.commands.evaluate import evaluate
from fairbench.app.commands.judges import calibrate, train_judge
from fairbench.app.commands.leaderboard import leaderboard, leaderboard_validate
from fairbench.app.commands.list import list_
from fairbench.app.commands.rescore import rescore
from fairbench.app.commands.run import run
from fairbench.app.commands.sweep import sweep
from fairbench.app.commands.train_backbone import train_backbone
from fairbench.app.terminal import INTERRUPTED, PIPE_CLOSED, leave, nothing_to_print_to
from fairbench.core.text import shown

__all__ = ["app", "main"]

DISTRIBUTION = "fairbench-diffusion"

app = typer.Typer(
    name="fairbench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Click's, or that of the copy of click that newer typers bring along.
UsageError: Any = typer.BadParameter.__base__


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fairbench {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def whole(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Compare debiasing methods for image diffusion models under one protocol."""


app.command()(run)
app.command()(evaluate)
app.command()(sweep)
board = typer.Typer(rich_markup_mode=None)
board.callback(invoke_without_command=True)(leaderboard)
board.command("validate")(leaderboard_validate)
app.add_typer(board, name="leaderboard")
app.command()(rescore)
app.command()(check)
app.command("list")(list_)
app.command()(doctor)
app.add_typer(data, name="data", help="Data sets: what is there, and preparing it.")
app.add_typer(cache, name="cache")
app.command()(calibrate)
app.command("train-judge")(train_judge)
app.command("train-backbone")(train_backbone)
app.command("check-method")(check_method)


def main() -> None:
    """Entry point of the ``fairbench`` command."""
    nothing_to_print_to()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A pipe on Windows couldn't carry an arrow; a file's name may not be text at all.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _code()
        sys.stdout.flush()
    except BrokenPipeError:
        _say_no_more()
        code = PIPE_CLOSED
    raise SystemExit(code)


def _say_no_more() -> None:
    """Let nothing be written at exit into a pipe that nobody reads."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(quiet, stream.fileno())


def _code() -> int | str | None:
    """Run the command of the command line."""
    try:
        code: int | str | None = app(prog_name="fairbench", standalone_mode=False)
    except typer.Abort:
        code = 130
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError" or not sys.argv[1:]:
            error.show()  # not an error, but all of the help
            return 2
        leave(f"fairbench: {_usage(error)}", 2)
    except SystemExit as left:
        # Click's own way to end when it meets a closed pipe.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            raise BrokenPipeError from None
        return left.code
    if code == 130:
        # Ctrl-C before a command was entered or after it was left: older versions of click raise
        # Abort then, newer ones return this code.
        leave(INTERRUPTED, code)
    return code


def _usage(error: Any) -> str:
    """What click has to say about a command line, in one line."""
    message = shown(" ".join(error.format_message().split()).rstrip(".?"))
    # Of some errors click doesn't know the command.
    command = error.ctx.command_path if error.ctx else _command_of(sys.argv[1:])
    return f"{message[:1].lower()}{message[1:]}; see {command} --help"


def _command_of(words: list[str]) -> str:
    """The command that a command line names, as far as it does."""
    found = ["fairbench"]
    place: Any = typer.main.get_command(app)
    for word in words:
        place = getattr(place, "commands", {}).get(word)
        if place is None:
            break
        found.append(word)
    return " ".join(found)
