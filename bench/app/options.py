"""Options that several commands have, each written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from fairbench.core.errors import InputError

__all__ = [
    "AcceptJudge",
    "DatasetName",
    "Debug",
    "Device",
    "Download",
    "Json",
    "Judges",
    "Measuring",
    "Place",
    "Quiet",
    "Results",
    "Root",
    "Speech",
    "path",
    "place",
    "spread",
]


def path(text: str | Path) -> Path:
    """A path as the user typed it; nothing isn't one, though Python reads it as this folder."""
    if not str(text).strip():
        raise typer.BadParameter("expected a path, seen nothing")
    from fairbench.storage.objects import is_address

    if is_address(str(text)):
        raise typer.BadParameter(
            f"expected a path, seen an address {text}; run, evaluate, sweep and leaderboard take "
            "one for --results"
        )
    return Path(text)


def place(text: str) -> str:
    """A path or an address as the user typed it."""
    if not text.strip():
        raise typer.BadParameter("expected a folder or an address, seen nothing")
    return text


def _datasets() -> list[str]:
    from fairbench.datasets.base import DATASETS

    return sorted({*DATASETS.files(), *DATASETS.foreign()} - {"base"})


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show neither progress nor notes nor tables.")
]
Results = Annotated[Path, typer.Option("--results", parser=path, help="Folder of records.")]
Place = Annotated[
    str,
    typer.Option(
        "--results",
        parser=place,
        metavar="PATH",
        help="Folder of records, or an address such as s3://bucket/results.",
    ),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge", help="Judge instead of the data set's own: name or path; may be repeated."
    ),
]
AcceptJudge = Annotated[
    bool, typer.Option("--accept-judge", help="Use judges below 90 % balanced accuracy too.")
]
Download = Annotated[
    bool,
    typer.Option(
        "--allow-download", help="Get missing weights of --encoder, --faces and --backbone."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        parser=path, help="Folder of the data set's files; default: what FAIRBENCH_DATA names."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DatasetName = Annotated[
    str | None,
    typer.Option(
        help="Name, or path of a dataset.toml; default: the embedded one.",
        autocompletion=_datasets,
    ),
]


@dataclass(frozen=True)
class Speech:
    """How a command speaks."""

    json_: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True)
class Measuring:
    """What ``run`` and ``evaluate`` ask of images in the same way, wherever they come from."""

    dataset: DatasetName = None
    data_root: Root = None
    task: Annotated[str | None, typer.Option(help="Default: the data set's first.")] = None
    target: Annotated[str, typer.Option(help='uniform or "GROUP=0.5,GROUP=0.5".')] = "uniform"
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure with this public encoder too, such as inception@clean; repeat."
        ),
    ] = None
    faces: Annotated[
        bool,
        typer.Option("--faces", help="Find faces too, in 2,000 images; trained on photographs."),
    ] = False
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare groups within each level of this attribute too; may be repeated."
        ),
    ] = None
    judge: Judges = None
    accept_judge: AcceptJudge = False
    allow_download: Download = False
    device: Device = "auto"
    network_batch: Annotated[
        int | None, typer.Option(help="Rows that a network sees at once.")
    ] = None
    batch_size: Annotated[str | None, typer.Option("--batch-size", hidden=True)] = None
    results: Place = "results"
    force: Annotated[bool, typer.Option("--force", help="Compute although a record exists.")] = (
        False
    )

    def arguments(self, results: Path) -> Mapping[str, Any]:
        """The options as `RunConfig` and `fairbench.runs.external.evaluate` call them.

        Args:
            results: The folder that records are read from and written to.

        Raises:
            InputError: If one of them has another name today.
        """
        if self.batch_size is not None:
            raise InputError(
                f"--batch-size is --network-batch today; give --network-batch {self.batch_size}"
            )
        return {
            "dataset": self.dataset,
            "data_root": self.data_root,
            "task": self.task,
            "target": self.target,
            "encoders": tuple(self.encoder or ()),
            "faces": self.faces,
            "controls": tuple(self.control or ()),
            "judges": tuple(self.judge or ()),
            "accept_judge": self.accept_judge,
            "allow_download": self.allow_download,
            "device": self.device,
            "network_batch": self.network_batch,
            "results": results,
            "force": self.force,
        }


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses became one option a field.

    Args:
        command: A function; each of its parameters is an option, or a dataclass of options.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = []
    for one in inspect.signature(command).parameters.values():
        kind = groups.get(one.name)
        if kind is None:
            parameters.append(_option(one.name, hints[one.name], one.default))
            continue
        own = get_type_hints(kind, include_extras=True)
        parameters += [
            _option(field.name, own[field.name], field.default) for field in fields(kind)
        ]

    @functools.wraps(command)
    def whole(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    whole.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(whole)["__signature__"] = inspect.Signature(parameters)
    return whole


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
    )
