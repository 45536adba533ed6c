"""``fairbench leaderboard``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairbench.app.options import Debug, Json, Results, path
from fairbench.app.terminal import guarded, print_lines, show, warn
from fairbench.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from fairbench.leaderboards.formats import Format

__all__ = ["leaderboard"]


def _formats() -> list[str]:
    from fairbench.leaderboards.formats import formats

    return list(formats())


def leaderboard(
    results: Results = Path("results"),
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, csv, markdown, json; else by --output's suffix.",
            autocompletion=_formats,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(parser=path, help="File to write instead of printing.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(parser=path, help="Draw fairness against quality to this PNG, too."),
    ] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Turn records into one table."""
    with guarded(debug):
        from fairbench.leaderboards.formats import formats

        layout = _layout(formats(), "json" if json_ and format_ is None else format_, output)
        from fairbench.storage.files import check_file

        for option, file in (("--output", output), ("--plot", plot)):
            if file is not None:
                check_file(file, option)
        from fairbench import leaderboards
        from fairbench.leaderboards.names import check_names

        check_names(results, dataset, task)
        rows = leaderboards.leaderboard(results, dataset=dataset, task=task, warn=warn)
        if not rows:
            asked = " and ".join(
                f"{kind} {name!r}"
                for kind, name in (("data set", dataset), ("task", task))
                if name
            )
            raise InputError(
                f"{results} holds no complete record{' of ' + asked if asked else ''}; "
                "make one with fairbench run"
            )
        if plot is not None:
            _write_file(plot, leaderboards.to_plot(rows), "--plot")
        text = layout.write(rows)
        if not isinstance(text, str):  # what is only for a terminal
            show(text)
            print_lines(["all columns: --format markdown, csv or json"])
        elif output is None:
            sys.stdout.write(text)
        else:
            _write_file(output, text.encode(), "--output")


def _layout(known: Mapping[str, Format], name: str | None, output: Path | None) -> Format:
    """The format of that name, else that of the output's suffix, else the terminal's."""
    if name is not None and name not in known:
        raise unknown_name("--format", name, known)
    if name is not None:
        if output is not None and not known[name].suffixes:
            others = ", ".join(other for other, one in known.items() if one.suffixes)
            raise InputError(f"--output needs --format {others}")
        return known[name]
    return known["table"] if output is None else _format_of(output, list(known.values()))


def _format_of(output: Path, known: Sequence[Format]) -> Format:
    """The format whose files end as the output does."""
    for one in known:
        if output.suffix.lower() in one.suffixes:
            return one
    endings = ", ".join(suffix for one in known for suffix in one.suffixes)
    raise InputError(f"--output {output} ends in none of {endings}; give --format")


def _write_file(file: Path, content: bytes, option: str) -> None:
    from fairbench.storage.files import atomic_write

    try:
        with atomic_write(file) as stream:
            stream.write(content)
    except OSError as error:
        raise InputError(f"{option} {file} can't be written: {error.strerror}") from error
