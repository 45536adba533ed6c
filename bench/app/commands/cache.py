"""``fairbench cache``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from fairbench.app.options import Debug, Json
from fairbench.app.terminal import guarded, print_json, print_lines, print_table
from fairbench.core.errors import InputError
from fairbench.core.tables import Column
from fairbench.core.text import shown

__all__ = ["cache"]

cache = typer.Typer(rich_markup_mode=None)


@cache.callback(invoke_without_command=True)
def whole(context: typer.Context, json_: Json = False, debug: Debug = False) -> None:
    """The cache: how large it is, by kind; and making it smaller."""
    if context.invoked_subcommand is None:
        size(json_=json_, debug=debug)


@cache.command()
def size(json_: Json = False, debug: Debug = False) -> None:
    """Say how much of the disk each kind of cached thing takes."""
    with guarded(debug):
        from fairbench.storage.cache import cache_folder
        from fairbench.storage.pruning import usage

        folder = cache_folder()
        found = usage(folder)
        if json_:
            kinds = [dataclasses.asdict(one) for one in found]
            print_json({"folder": str(folder), "kinds": kinds})
            return
        rows = [
            {
                "kind": one.kind,
                "files": f"{one.files:,}",
                "size": _mib(one.bytes),
                "made_again_by": one.made_by,
            }
            for one in found
        ]
        total = sum(one.bytes for one in found)
        print_lines([f"{shown(str(folder))}: {_mib(total)}"])
        columns = [
            Column("kind", ()),
            Column("files", (), right=True),
            Column("size", (), right=True),
            Column("made_again_by", (), whole=False),
        ]
        if rows:
            print_table(rows, columns)
            print_lines(["fairbench cache prune KIND … makes it smaller"])


@cache.command()
def prune(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND]…", help="Of fairbench cache; or: all.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Only what wasn't changed for so many days.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Remove cached files by kind, by age or both; runs make them again when they need them."""
    with guarded(debug):
        if not kinds and older_than is None:
            raise InputError(
                "name kinds to remove, as fairbench cache lists them, or all; or give --older-than"
            )
        from fairbench.storage.cache import cache_folder
        from fairbench.storage.pruning import prune as pruned

        done = pruned(cache_folder(), kinds or ["all"], older_than=older_than, dry=dry_run)
        if json_:
            print_json({"files": done.files, "bytes": done.bytes, "removed": not dry_run})
            return
        verb = "would remove" if dry_run else "removed"
        print_lines([f"{verb} {done.files:,} files, {_mib(done.bytes)}"])


def _mib(size_: int) -> str:
    return f"{size_ / 2**20:,.1f} MiB"
