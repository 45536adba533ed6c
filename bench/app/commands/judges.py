"""``fairbench train-judge`` and ``fairbench calibrate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from fairbench.app.options import (
    DatasetName,
    Device,
    Download,
    Judges,
    Root,
    Speech,
    spread,
)
from fairbench.app.terminal import guarded, print_json, print_lines, print_table, reporting
from fairbench.core.tables import Column
from fairbench.core.text import shown

__all__ = ["calibrate", "train_judge"]


@spread
def train_judge(
    speech: Speech,
    dataset: DatasetName = None,
    data_root: Root = None,
    name: Annotated[str, typer.Option(help="Default: by depth and seed.")] = "",
    seed: Annotated[int, typer.Option(help="Another seed makes another judge.")] = 0,
    depth: Annotated[int, typer.Option(help="Layers of the ResNet: 18 or 34.")] = 18,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1500,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 64,
    side: Annotated[
        int | None, typer.Option(help="Pixels that it sees; default: 64 or 128.")
    ] = None,
    crop: Annotated[
        str, typer.Option(help="centre, or face: what MTCNN finds in photographs.")
    ] = "centre",
    device: Device = "auto",
) -> None:
    """Train a judge on a data set's judge split; the same command resumes."""
    with guarded(speech.debug):
        from fairbench.runs.requisites import find_requisites

        chosen = find_requisites(dataset, data_root, generating=False)
        from fairbench.diffusion.devices import is_main_process
        from fairbench.instruments.judge_training import JudgeRecipe
        from fairbench.instruments.judge_training import train_judge as train
        from fairbench.runs.judging import judge_report
        from fairbench.storage.cache import cache_folder

        recipe = JudgeRecipe(
            seed=seed,
            depth=depth,
            steps=steps,
            batch=batch,
            side=side,
            crop=crop,  # type: ignore[arg-type]
            name=name,
        )
        cache = cache_folder()
        with reporting(quiet=speech.quiet) as reporter:
            chosen.prepare(reporter)
            judge, folder, found = train(
                chosen, recipe, cache, device=device, progress=reporter.progress
            )
            if not is_main_process():  # it has helped; the first one writes and measures
                return
            rows = judge_report(chosen, cache, reporter, asked=[judge.name], device=device)
        if speech.json_:
            print_json({"judge": judge.name, "folder": str(folder), "held_out": rows})
            return
        where = shown(str(folder))
        if speech.quiet:
            print_lines([where])
            return
        if found:
            print_lines(["found the judge of this recipe, nothing trained"])
        _print_judges(rows)
        print_lines([f"judge    {where}"])


@spread
def calibrate(
    speech: Speech,
    dataset: DatasetName = None,
    data_root: Root = None,
    judge: Judges = None,
    device: Device = "auto",
    allow_download: Download = False,
) -> None:
    """Count judges' errors on a data set's judge split; say which of them may rank."""
    with guarded(speech.debug):
        from fairbench.runs.requisites import find_requisites

        chosen = find_requisites(dataset, data_root, generating=False)
        from fairbench.diffusion.devices import resolve_device
        from fairbench.runs.judging import judge_report
        from fairbench.storage.cache import cache_folder

        with reporting(quiet=speech.quiet) as reporter:
            chosen.prepare(reporter)
            rows = judge_report(
                chosen,
                cache_folder(),
                reporter,
                asked=tuple(judge or ()),
                device=str(resolve_device(device)),
                allow_download=allow_download,
            )
        if speech.json_:
            print_json(rows)
        elif not speech.quiet:
            _print_judges(rows)


def _print_judges(rows: Sequence[Mapping[str, Any]]) -> None:
    """How good judges are, one line a judge and attribute."""
    cells = [
        {
            "judge": row["judge"],
            "attribute": row["attribute"],
            "balanced_accuracy": _percent(row["balanced_accuracy"]),
            "images": str(row["held_out_images"] or ""),
            "ranks": "yes" if row["ranks"] else "no",
            "remark": row["remark"],
        }
        for row in rows
    ]
    columns = [
        Column("judge", ()),
        Column("attribute", ()),
        Column("balanced_accuracy", (), whole=False, right=True),
        Column("images", (), right=True, spare=1),
        Column("ranks", ()),
        Column("remark", (), whole=False),
    ]
    print_table(cells, columns)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
