"""``fairbench train-backbone``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fairbench.app.options import DatasetName, Device, Download, Root, Speech, path, spread
from fairbench.app.terminal import guarded, print_json, print_lines, reporting
from fairbench.core.text import shown

__all__ = ["train_backbone"]


@spread
def train_backbone(
    output: Annotated[Path, typer.Option(parser=path, help="Folder to write the pipeline to.")],
    speech: Speech,
    dataset: DatasetName = None,
    data_root: Root = None,
    bias: Annotated[
        str,
        typer.Option(
            help="default, balanced, none (the whole pool), a profile of the data set, or shares "
            "such as gender:female=0.9,male=0.1."
        ),
    ] = "default",
    kind: Annotated[
        str, typer.Option(help="stable_diffusion (text to image) or ddpm (no prompts).")
    ] = "stable_diffusion",
    size: Annotated[str, typer.Option(help="tiny, small or base.")] = "tiny",
    side: Annotated[
        int | None,
        typer.Option(help="Pixels: 32, 64, 128, 256 or 512; default: the images', at most 64."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 8000,
    vae_steps: Annotated[int, typer.Option(help="Of the autoencoder, which is first.")] = 3000,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 1e-3, and 1e-4 with --start.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a batch is split into, for little memory.")
    ] = 1,
    num_images: Annotated[int, typer.Option(help="Images to train on at most.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Another seed makes another backbone.")] = 0,
    start: Annotated[
        str | None, typer.Option(help="Pipeline to train further: its U-Net changes alone.")
    ] = None,
    device: Device = "auto",
    allow_download: Download = False,
) -> None:
    """Train a backbone on a data set with a declared bias; the same command resumes."""
    with guarded(speech.debug):
        from fairbench.runs.requisites import find_requisites
        from fairbench.storage.files import check_writable

        chosen = find_requisites(dataset, data_root, generating=False)
        check_writable(output, "--output")
        from fairbench.diffusion.devices import is_main_process
        from fairbench.runs.backbone_training import BackboneRecipe
        from fairbench.runs.backbone_training import train_backbone as train
        from fairbench.storage.cache import cache_folder

        recipe = BackboneRecipe(
            kind=kind,  # type: ignore[arg-type]
            bias=bias,
            size=size,
            side=side,
            steps=steps,
            vae_steps=vae_steps,
            batch=batch,
            learning_rate=learning_rate,
            accumulate=accumulate,
            num_images=num_images,
            seed=seed,
            start=start,
        )
        with reporting(quiet=speech.quiet) as reporter:
            chosen.prepare(reporter)
            made = train(
                chosen,
                recipe,
                output,
                cache_folder(),
                reporter,
                device=device,
                allow_download=allow_download,
            )
        if not is_main_process():
            return
        where = shown(str(made.folder))
        if speech.json_:
            print_json({"folder": str(made.folder), "found": made.found, "card": made.card})
        elif speech.quiet:
            print_lines([where])
        else:
            print_lines(_summary(made.card, found=made.found, typed=chosen.typed, folder=where))


def _summary(card: Mapping[str, Any], *, found: bool, typed: str, folder: str) -> list[str]:
    """What was trained, on what, and the command that uses it."""
    lines = ["found the backbone of this recipe, nothing trained"] if found else []
    shares: dict[str, dict[str, float]] = card["shares"]
    for name, levels in shares.items():
        said = ", ".join(f"{level} {share:.1%}" for level, share in levels.items())
        lines.append(f"{name:10} {said} of {card['images']} training images")
    guidance = " --guidance 3" if card["recipe"]["kind"] == "stable_diffusion" else ""
    lines.append(f"backbone   {folder}")
    lines.append(
        f"use it     fairbench run --method vanilla --dataset {typed} --backbone "
        f"{shlex.quote(folder)}{guidance}"
    )
    return lines
