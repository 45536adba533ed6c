"""``fairbench rescore``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fairbench.app.options import Speech, path, spread
from fairbench.app.terminal import guarded, print_json, print_lines, reporting
from fairbench.core.text import shown

__all__ = ["rescore"]


@spread
def rescore(
    speech: Speech,
    results: Annotated[Path, typer.Argument(parser=path, help="Folder of records.")] = Path(
        "results"
    ),
    make_images: Annotated[
        bool,
        typer.Option("--make-images", help="Make images again that are nowhere: takes hours."),
    ] = False,
) -> None:
    """Bring the scores of records up to date with today's definitions."""
    with guarded(speech.debug):
        from fairbench.runs.rescoring import rescore_all

        with reporting(quiet=speech.quiet) as reporter:
            found = rescore_all(results, make_images=make_images, report=reporter)
        if speech.json_:
            print_json([dataclasses.asdict(one) | {"path": str(one.path)} for one in found])
            return
        from fairbench.app.report import rescored

        if not speech.quiet:
            print_lines([shown(line) for line in rescored(found, results)])
