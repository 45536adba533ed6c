"""``fairbench data``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fairbench.app.options import Debug, Json, Root, Speech, spread
from fairbench.app.terminal import guarded, print_json, print_lines, print_table, reporting
from fairbench.core.tables import Column
from fairbench.core.text import shown

__all__ = ["data"]

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@data.command("prepare")
@spread
def prepare(
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="See: fairbench data list.")],
    speech: Speech,
    data_root: Root = None,
) -> None:
    """Check every file of a data set and write the index that later runs read."""
    with guarded(speech.debug):
        from fairbench.app.data import Problems
        from fairbench.app.data import prepare as prepared

        with reporting(quiet=speech.quiet) as reporter:
            done = prepared(dataset, data_root, reporter)
        if speech.json_:
            print_json(dataclasses.asdict(done))
        elif not speech.quiet or isinstance(done, Problems):
            print_lines([shown(line) for line in done.lines()])
        if isinstance(done, Problems):
            raise typer.Exit(2)


@data.command("list")
def list_(data_root: Root = None, json_: Json = False, debug: Debug = False) -> None:
    """List data sets with their terms, and what of them is there."""
    with guarded(debug):
        from fairbench.app.data import listing

        rows = listing(data_root)
        if json_:
            print_json(rows)
            return
        columns = [
            Column("name", ()),
            Column("licence", (), whole=False, spare=2),
            Column("images_may_be_published", (), whole=False, spare=1),
            Column("splits", (), whole=False, spare=3),
            Column("found", (), whole=False),
        ]
        print_table([{key: _text(value) for key, value in row.items()} for row in rows], columns)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
    return str(value)
