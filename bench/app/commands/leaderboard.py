"""``fairbench leaderboard``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairbench.app.options import Debug, Json, Place, path
from fairbench.app.terminal import guarded, print_json, print_lines, show, warn
from fairbench.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from fairbench.leaderboards.formats import Format

__all__ = ["leaderboard", "leaderboard_validate"]


def _formats() -> list[str]:
    from fairbench.leaderboards.formats import formats

    return list(formats())


def leaderboard(
    context: typer.Context,
    results: Place = "results",
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, csv, markdown, latex, json; html, every_eval_ever and eval_results "
            "write folders; else by --output's suffix.",
            autocompletion=_formats,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(parser=path, help="File to write instead of printing, or a format's folder."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(parser=path, help="Draw fairness against quality to this PNG, PDF or SVG."),
    ] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Turn records into one table."""
    if context.invoked_subcommand is not None:
        return
    with guarded(debug):
        from fairbench.leaderboards.formats import formats
        from fairbench.leaderboards.plot import check_suffix

        layout = _layout(formats(), "json" if json_ and format_ is None else format_, output)
        from fairbench.storage.files import check_apart, check_file, check_writable

        texts = (("--output", output if layout.build is None else None), ("--plot", plot))
        written = [(option, file) for option, file in texts if file is not None]
        for option, file in written:
            check_file(file, option)
        check_apart(written, [])
        if plot is not None:
            check_suffix(plot.suffix)
        if layout.build is not None and output is not None:
            if output.exists() and not output.is_dir():
                raise InputError(f"--output {output} is a file; name a folder")
            check_writable(output, "--output")
        from fairbench import leaderboards
        from fairbench.leaderboards.board import open_board
        from fairbench.leaderboards.names import check_names
        from fairbench.storage.places import place_of
        from fairbench.storage.records import check_no_record

        where = place_of(results)
        for option, file in written:
            check_no_record(file, option, where.folder)
        where.update(pictures=layout.build is not None)
        check_names(where.folder, dataset, task)
        board = open_board(where.folder, dataset=dataset, task=task, warn=warn)
        rows = list(board.rows)
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
            drawn = leaderboards.to_plot(rows, plot.suffix.lower())
            _write_file(plot, drawn, "--plot")
        if layout.build is not None and output is not None:
            layout.build(board, output)
            print_lines([f"board    {output / layout.entry}"])
            return
        text = layout.write(rows) if layout.write is not None else ""
        if not isinstance(text, str):  # what is only for a terminal
            show(text)
            print_lines(["all columns: --format markdown, csv or json"])
        elif output is None:
            sys.stdout.write(text)
        else:
            _write_file(output, text.encode(), "--output")


def leaderboard_validate(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORD…", help="Records, or folders of them.")
    ],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check records before they enter a board: exit status 2 if anything is wrong."""
    with guarded(debug):
        from fairbench.leaderboards.validation import records_in, validate

        found = {file: validate(file) for file in records_in(records)}
        if json_:
            print_json(
                [
                    {"record": str(file), "findings": [asdict(one) for one in told]}
                    for file, told in found.items()
                ]
            )
        else:
            for file, told in found.items():
                wrong = any(one.level == "error" for one in told)
                print_lines(
                    [
                        f"{'FAIL' if wrong else 'ok  '}  {file}",
                        *(f"      {one.level}: {one.check}: {one.text}" for one in told),
                    ]
                )
        if any(one.level == "error" for told in found.values() for one in told):
            raise typer.Exit(2)


def _layout(known: Mapping[str, Format], name: str | None, output: Path | None) -> Format:
    """The format of that name, else that of the output's suffix, else the terminal's."""
    if name is not None and name not in known:
        raise unknown_name("--format", name, known)
    if name is not None:
        if known[name].build is not None and output is None:
            raise InputError(f"--format {name} writes a folder; name it with --output")
        if output is not None and known[name].build is None and not known[name].suffixes:
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
