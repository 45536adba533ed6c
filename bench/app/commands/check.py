"""``fairbench check``."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fairbench.app.options import Speech, path, spread
from fairbench.app.terminal import guarded, print_json, print_lines, print_table, reporting
from fairbench.core.errors import unknown_name
from fairbench.core.text import shown

if TYPE_CHECKING:
    from fairbench.gate.checking import Checked
    from fairbench.gate.comparing import Handling

__all__ = ["check"]

HANDLINGS = ("fail", "warn", "ignore")
MOST_ROWS = 40
"""Of one state in the terminal's table; the rest is counted."""

SUMMARY = "GITHUB_STEP_SUMMARY"


@spread
def check(
    speech: Speech,
    baseline: Annotated[
        Path, typer.Option("--baseline", parser=path, help="File of the baseline.")
    ],
    records: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECORD]…",
            parser=path,
            help="Records, or folders of them; without any the baseline's plan is run.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", parser=path, help="Folder of records to compare with it."),
    ] = None,
    on_inconclusive: Annotated[
        str, typer.Option(help="fail, warn or ignore: where a regression can't be excluded.")
    ] = "warn",
    on_missing: Annotated[
        str, typer.Option(help="fail, warn or ignore: where a score isn't there any more.")
    ] = "fail",
    update: Annotated[
        bool, typer.Option("--update", help="Make what is measured now the baseline.")
    ] = False,
    accept_worse: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Update although something is worse; it is kept."),
    ] = None,
    use_cache: Annotated[
        bool, typer.Option("--use-cache", help="Take images from the cache where they are there.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(parser=path, help="Write JUnit's XML to this file.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(parser=path, help="Write a summary in Markdown to this file.")
    ] = None,
) -> None:
    """Compare with a baseline: exit status 1 if anything got worse."""
    with guarded(speech.debug):
        from fairbench.storage.files import check_apart, check_file
        from fairbench.storage.records import check_no_record

        handlings = [
            _handling("--on-inconclusive", on_inconclusive),
            _handling("--on-missing", on_missing),
        ]
        reports_to = [("--junit", junit), ("--markdown", markdown)]
        written = [(option, file) for option, file in reports_to if file is not None]
        for option, file in written:
            check_file(file, option)
        read = [one for one in (results, *(records or ())) if one is not None]
        check_apart(written, [("--baseline", baseline), *(("RECORD", one) for one in read)])
        for (option, file), one in itertools.product(written, read):
            check_no_record(file, option, one)
        from fairbench.gate import reports
        from fairbench.gate.checking import check as checked

        with reporting(quiet=speech.quiet) as reporter:
            found = checked(
                baseline,
                results,
                records or (),
                on_inconclusive=handlings[0],
                on_missing=handlings[1],
                update=update,
                accept_worse=accept_worse,
                use_cache=use_cache,
                report=reporter,
            )
        if found.verdict is not None:
            if junit is not None:
                reports.write_text(junit, reports.junit(found.verdict), "--junit")
            if markdown is not None:
                text = reports.markdown(found.verdict).encode("utf-8", "backslashreplace")
                reports.write_text(markdown, text, "--markdown")
            if page := os.environ.get(SUMMARY):
                reports.append(Path(page), found.verdict)
        if speech.json_:
            print_json(reports.document(found))
        else:
            _print(found, baseline, quiet=speech.quiet)
        if found.exit_code:
            raise typer.Exit(found.exit_code)


def _handling(option: str, name: str) -> Handling:
    if name not in HANDLINGS:
        raise unknown_name(option, name, HANDLINGS)
    return cast("Handling", name)


def _print(found: Checked, baseline: Path, *, quiet: bool) -> None:
    """What became of the scores: all that isn't well, and a count of the rest."""
    from fairbench.core.tables import Column
    from fairbench.gate.comparing import STATES
    from fairbench.gate.reports import rows, sentence

    verdict = found.verdict
    if verdict is not None and not quiet:
        for state in STATES:
            if state in ("pass", "identical") or not (listed := verdict.of(state)):
                continue
            columns = [
                Column("state", ()),
                Column("score", ()),
                Column("before", (), right=True, spare=2),
                Column("after", (), right=True, spare=2),
                Column("change", (), right=True),
                Column("detectable", (), right=True, spare=3),
                Column("run", (), whole=False, spare=1),
                Column("why", (), whole=False),
            ]
            print_table(rows(listed[:MOST_ROWS]), columns)
            more = len(listed) - MOST_ROWS
            print_lines([*([f"and {more} more {state}; --json has all"] if more > 0 else []), ""])
        print_lines([f"note     {shown(line)}" for line in verdict.notes])
    if verdict is not None:
        print_lines([f"refused  {shown(line)}" for line in verdict.refusals])
        print_lines([f"verdict  {sentence(verdict)}"])
    if found.refused:
        print_lines([f"not updated: {shown(found.refused)}"])
    if found.written:
        print_lines([f"baseline {shown(str(baseline))}"])
