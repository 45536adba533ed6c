"""``fairbench evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairbench.app.options import Measuring, Speech, path, spread
from fairbench.app.terminal import guarded, print_json, reporting

__all__ = ["evaluate"]


@spread
def evaluate(
    image_dir: Annotated[
        Path, typer.Argument(parser=path, help="Folder, .zip, .tar or .npz of images.")
    ],
    measuring: Measuring,
    speech: Speech,
    name: Annotated[
        str | None, typer.Option(help="Row name; default: that of the images.")
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="Take the first so many.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            help="CSV or parquet: file, prompt, requested_<attribute>, <attribute>, "
            "control_<any>.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            help="Record of the undebiased generator's images; a rank needs one.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals' resamples.")] = 0,
) -> None:
    """Measure images made elsewhere."""
    with guarded(speech.debug):
        from fairbench.storage.places import place_of

        where = place_of(measuring.results)
        shared = measuring.arguments(where.folder)
        from fairbench.runs.requisites import find_requisites

        # Before torch is even imported.
        find_requisites(measuring.dataset, measuring.data_root, generating=False)
        where.update()
        from fairbench.app.outcome import print_outcome
        from fairbench.core.keys import plain
        from fairbench.runs.external import evaluate as evaluate_folder

        with reporting(quiet=speech.quiet) as reporter:
            try:
                outcome = evaluate_folder(
                    image_dir,
                    name=_name_of(image_dir.resolve()) if name is None else name,
                    num_images=num_images,
                    labels=labels,
                    baseline=baseline,
                    seed=seed,
                    reporter=reporter,
                    **shared,
                )
            finally:
                where.publish_new()
            if measuring.force:
                where.replace(outcome.path)
        if speech.json_:
            print_json(plain(outcome.record))
        else:
            print_outcome(outcome, None, quiet=speech.quiet)


def _name_of(images: Path) -> str:
    return images.stem if images.is_file() else images.name
