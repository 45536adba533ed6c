"""``fairbench run``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairbench.app.options import Measuring, Speech, spread
from fairbench.app.terminal import guarded, print_json, print_lines, reporting
from fairbench.core.errors import InputError
from fairbench.runs.config import RunConfig

if TYPE_CHECKING:
    from fairbench.core.record import Record
    from fairbench.storage.places import Place

__all__ = ["run"]

MOST_RECORDS = 1000
"""Records of one command line; more are a slip of the keyboard."""


def _methods() -> list[str]:
    from fairbench.methods import method_names

    return method_names()


@spread
def run(
    method: Annotated[
        str, typer.Option(help="See: fairbench list methods.", autocompletion=_methods)
    ],
    measuring: Measuring,
    speech: Speech,
    backbone: Annotated[
        str | None, typer.Option(help="Name or pipeline folder; default: the data set's first.")
    ] = None,
    num_images: Annotated[int, typer.Option(help="Images in all, at least 100.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several: 0,1,2 makes one record each.")
    ] = None,
    bias: Annotated[
        str,
        typer.Option(
            help="Of what a method trains on: default, none (the whole pool), balanced, a profile "
            "of the data set, or shares such as gender:female=0.9,male=0.1."
        ),
    ] = "default",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    decode_batch: Annotated[
        int | None, typer.Option(help="Images decoded at once; default: the network batch.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="key=value or preset=NAME; may be repeated.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="key=value,value: one record each; several: all combinations."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    eta: Annotated[float | None, typer.Option(help="DDIM noise share in [0, 1].")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, or own: the one that the backbone's folder names.")
    ] = None,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile the network first; goes on without if it can't."),
    ] = False,
    data_parallel: Annotated[
        bool,
        typer.Option(
            "--data-parallel",
            help="Under torchrun, share trainings too: another key by their number.",
        ),
    ] = False,
    tracker: Annotated[
        str | None,
        typer.Option(help="Hand scores to tensorboard, wandb, mlflow or trackio, too."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, how long and what is missing."),
    ] = False,
) -> None:
    """Apply a method to a backbone, generate images, measure them, write a record."""
    with guarded(speech.debug):
        from fairbench.storage.places import place_of

        where = place_of(measuring.results)
        first = RunConfig(
            method=method,
            backbone=backbone,
            num_images=num_images,
            bias=bias,
            dtype=dtype,
            decode_batch=decode_batch,
            parameters=tuple(param or ()),
            steps=steps,
            guidance=guidance,
            eta=eta,
            scheduler=scheduler,
            data_parallel=data_parallel,
            compile=compile_,
            **measuring.arguments(where.folder),
        )
        configs = _all_of(first, _seeds(seed, seeds), grid or ())
        from fairbench.methods import make_method

        for config in configs:
            make_method(config.method, config.parameters)  # before torch is even imported
        if tracker is not None:
            from fairbench.app.tracking import check_tracker

            check_tracker(tracker)
        where.update()
        if dry_run:
            _foretell(configs, speech)
            return
        _requisites(first)
        records = [
            record for config in configs for record in _done(config, speech, tracker, where)
        ]
        if speech.json_ and records:
            documents = [_as_json(record) for record in records]
            print_json(documents[0] if seeds is None and not grid else documents)


def _done(config: RunConfig, speech: Speech, tracker: str | None, where: Place) -> list[Record]:
    """The record of one run, tracked and printed; none on a process that only helped to train."""
    from fairbench.app.outcome import print_outcome
    from fairbench.runs.baselines import find_baseline
    from fairbench.runs.running import take_part

    with reporting(quiet=speech.quiet) as reporter:
        try:
            outcome = take_part(config, reporter)
        finally:
            where.publish_new()  # that of a failed run, too
        if outcome is None:
            return []
        if config.force:
            where.replace(outcome.path)
        baseline = find_baseline(outcome.record, config.folder, reporter.warn)
        if tracker is not None:
            from fairbench.app.tracking import track

            track(tracker, outcome.record, config.folder, reporter.warn)
    if not speech.json_:
        print_outcome(outcome, baseline, quiet=speech.quiet)
    return [outcome.record]


def _foretell(configs: Sequence[RunConfig], speech: Speech) -> None:
    from fairbench.app.forecast import forecast

    with reporting(quiet=speech.quiet) as reporter:
        found = [forecast(config, reporter) for config in configs]
    if speech.json_:
        documents = [one.document() for one in found]
        print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for one in found:
            print_lines(one.lines())
    if any(one.missing for one in found):
        raise typer.Exit(2)


def _requisites(config: RunConfig) -> None:
    """Look for data and backbone before torch is even imported."""
    from fairbench.runs.requisites import find_requisites

    find_requisites(
        config.dataset,
        config.data_root,
        generating=True,
        backbone=config.backbone,
        allow_download=config.allow_download,
    )


def _as_json(record: Record) -> dict[str, Any]:
    from fairbench.core.keys import plain

    document: dict[str, Any] = plain(record)
    return document


def _all_of(first: RunConfig, seeds: Sequence[int], grid: Sequence[str]) -> list[RunConfig]:
    """One configuration for each seed and each combination of the grid's values."""
    axes = [_axis(text, first.parameters) for text in grid]
    names = [axis[0].partition("=")[0] for axis in axes]
    if len(set(names)) < len(names):
        raise InputError(f"--grid names a parameter twice; seen {', '.join(names)}")
    count = len(seeds)
    for axis in axes:
        count *= len(axis)
    if count > MOST_RECORDS:
        raise InputError(f"--seeds and --grid make {count} records; at most {MOST_RECORDS}")
    return [
        replace(first, seed=seed, parameters=(*first.parameters, *chosen))
        for chosen in itertools.product(*axes)
        for seed in seeds
    ]


def _axis(text: str, given: Sequence[str]) -> list[str]:
    """``key=value`` strings of one ``--grid``."""
    name, equals, values = text.partition("=")
    parts = [value.strip() for value in values.split(",")]
    if not equals or not name or not all(parts):
        raise InputError(f"--grid must be key=value,value; seen {text!r}")
    if len(set(parts)) < len(parts):
        raise InputError(f"--grid names a value of {name} twice; seen {text!r}")
    if any(item.partition("=")[0] == name for item in given):
        raise InputError(f"give {name} by --param or by --grid, not both")
    return [f"{name}={value}" for value in parts]


def _seeds(seed: int | None, seeds: str | None) -> list[int]:
    if seeds is None:
        return [0 if seed is None else seed]
    if seed is not None:
        raise InputError("give --seed or --seeds, not both")
    try:
        values = [int(item) for item in seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds must be numbers such as 0,1,2; seen {seeds!r}") from None
    if len(set(values)) < len(values):
        raise InputError(f"--seeds names a seed twice; seen {seeds!r}")
    return values
