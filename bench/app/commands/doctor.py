"""``fairbench doctor``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from fairbench.app.options import Debug, Json
from fairbench.app.terminal import guarded, print_json, print_lines, width
from fairbench.core.tables import Column, lay_out
from fairbench.core.text import shown

if TYPE_CHECKING:
    from fairbench.app.doctor import Finding

__all__ = ["doctor"]

ROOM = 120
"""Letters a line from which what was found stands beside what was looked at."""


def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Also hash every weight and data file.")
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is installed, found and missing, and what to do about it."""
    with guarded(debug):
        from fairbench.app.doctor import examine

        findings = examine(verify=verify)
        if json_:
            print_json([dataclasses.asdict(finding) for finding in findings])
        else:
            print_lines(_lines(findings, width()))
        if not all(finding.ok or finding.optional for finding in findings):
            raise typer.Exit(2)


def _lines(findings: list[Finding], room: int | None) -> list[str]:
    """A table; on narrow terminals a list, in which no path or address is broken."""
    marks = ["ok" if one.ok else "optional" if one.optional else "MISSING" for one in findings]
    if room is None or room >= ROOM:
        return lay_out(
            [
                Column("", marks),
                Column("what", [one.what for one in findings]),
                Column("found", [shown(one.found) for one in findings], whole=room is None),
                Column("what to do", [shown(one.remedy) for one in findings], whole=room is None),
            ],
            room,
        )
    lines = []
    for mark, one in zip(marks, findings, strict=True):
        short = f"{mark:8}  {one.what}: {shown(one.found)}"
        if len(short) <= room:
            lines.append(short)
        else:
            lines += [f"{mark:8}  {one.what}", f"{'':10}{shown(one.found)}"]
        if one.remedy:
            lines.append(f"{'':10}to do: {shown(one.remedy)}")
    return lines
