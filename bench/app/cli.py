"""The command line: flags and printing only.

Exit codes: 0 done, 1 a check found a regression, 2 the user's input or environment is wrong,
3 internal failure, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from fairbench.core.errors import FairbenchError, InputError, unknown_name
from fairbench.runs.config import RunConfig

if TYPE_CHECKING:
    from fairbench.core.method import Method
    from fairbench.core.progress import Reporter
    from fairbench.core.record import Record
    from fairbench.leaderboards.formats import Format
    from fairbench.runs.running import Outcome

__all__ = ["app", "main"]

app = typer.Typer(
    name="fairbench",
    help="Compare debiasing methods for image diffusion models under one protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Choice = TypeVar("Choice", bound=StrEnum)

# Click's, or that of the copy of click that newer typers bring along.
UsageError: Any = typer.BadParameter.__base__

ENVIRONMENT = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
"""Failures of a disk or of rights to it: the user's environment, not this program."""

INTERRUPTED = "fairbench: interrupted; the same command without --force goes on where this stopped"


class Kind(StrEnum):
    """What ``fairbench list`` can list."""

    METHODS = "methods"
    DATASETS = "datasets"
    TASKS = "tasks"
    BACKBONES = "backbones"
    METRICS = "metrics"
    INSTRUMENTS = "instruments"
    FAMILIES = "families"
    FORMATS = "formats"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of records.")]
Encoders = Annotated[
    list[str] | None,
    typer.Option(help="Measure with this public encoder too, such as inception@clean; repeat."),
]
FacesToo = Annotated[
    bool, typer.Option("--faces", help="Find faces too, in 2,000 images; trained on photographs.")
]
Controls = Annotated[
    list[str] | None,
    typer.Option(help="Compare groups within each level of this attribute too; may be repeated."),
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
    typer.Option(help="Folder of the data set's files; default: what FAIRBENCH_DATA names."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DatasetName = Annotated[
    str | None,
    typer.Option(help="Name, or path of a dataset.toml; default: the embedded one."),
]
TaskName = Annotated[str | None, typer.Option(help="Default: the data set's first.")]
Target = Annotated[str, typer.Option(help='uniform or "GROUP=0.5,GROUP=0.5".')]
Force = Annotated[bool, typer.Option("--force", help="Compute although a record exists.")]


@app.command()
def run(
    method: Annotated[str, typer.Option(help="See: fairbench list methods.")],
    dataset: DatasetName = None,
    data_root: Root = None,
    task: TaskName = None,
    backbone: Annotated[
        str | None, typer.Option(help="Name or pipeline folder; default: the data set's first.")
    ] = None,
    target: Target = "uniform",
    num_images: Annotated[int, typer.Option(help="Images in all, at least 100.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several: 0,1,2 makes one record each.")
    ] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Images in work at once.")] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="key=value or preset=NAME; may be repeated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    eta: Annotated[float | None, typer.Option(help="DDIM noise share in [0, 1].")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="ddim, or own: the one that the backbone's folder names.")
    ] = None,
    encoder: Encoders = None,
    faces: FacesToo = False,
    control: Controls = None,
    judge: Judges = None,
    accept_judge: AcceptJudge = False,
    allow_download: Download = False,
    results: Results = Path("results"),
    force: Force = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a method to a backbone, generate images, measure them, write a record."""
    with _guarded(debug):
        wanted = _seeds(seed, seeds)
        configs = [
            RunConfig(
                method=method,
                dataset=dataset,
                data_root=data_root,
                task=task,
                backbone=backbone,
                target=target,
                num_images=num_images,
                seed=value,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                parameters=tuple(param or ()),
                steps=steps,
                guidance=guidance,
                eta=eta,
                scheduler=scheduler,
                encoders=tuple(encoder or ()),
                faces=faces,
                controls=tuple(control or ()),
                judges=tuple(judge or ()),
                accept_judge=accept_judge,
                allow_download=allow_download,
                results=results,
                force=force,
            )
            for value in wanted
        ]
        from fairbench.methods import make_method

        for config in configs:
            make_method(config.method, config.parameters)  # before torch is even imported
        _requisites(configs[0])
        from fairbench.runs.running import baseline_of, take_part

        records = []
        for config in configs:
            with _reporting() as reporter:
                outcome = take_part(config, reporter)
                if outcome is None:  # this process only helped to train
                    continue
                baseline = baseline_of(outcome.record, results, reporter.warn)
            records.append(outcome.record)
            if not json_:
                _print_outcome(outcome, baseline)
        if json_ and records:
            documents = [_as_json(record) for record in records]
            _print_json(documents[0] if seeds is None else documents)


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


@app.command()
def evaluate(
    image_dir: Annotated[Path, typer.Argument(help="Folder, .zip, .tar or .npz of images.")],
    dataset: DatasetName = None,
    data_root: Root = None,
    task: TaskName = None,
    name: Annotated[
        str | None, typer.Option(help="Row name; default: that of the images.")
    ] = None,
    target: Target = "uniform",
    num_images: Annotated[int | None, typer.Option(help="Take the first so many.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV or parquet: file, prompt, requested_<attribute>, <attribute>, control_<any>."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Record of the undebiased generator's images; a rank needs one."),
    ] = None,
    encoder: Encoders = None,
    faces: FacesToo = False,
    control: Controls = None,
    judge: Judges = None,
    accept_judge: AcceptJudge = False,
    allow_download: Download = False,
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Images that --encoder sees at once.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals' resamples.")] = 0,
    results: Results = Path("results"),
    force: Force = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure images made elsewhere."""
    with _guarded(debug):
        from fairbench.runs.requisites import find_requisites

        find_requisites(dataset, data_root, generating=False)  # before torch is even imported
        from fairbench.runs.external import evaluate as evaluate_folder

        with _reporting() as reporter:
            outcome = evaluate_folder(
                image_dir,
                dataset=dataset,
                data_root=data_root,
                task=task,
                name=name or _name_of(image_dir.resolve()),
                target=target,
                num_images=num_images,
                labels=labels,
                baseline=baseline,
                encoders=tuple(encoder or ()),
                faces=faces,
                controls=tuple(control or ()),
                judges=tuple(judge or ()),
                accept_judge=accept_judge,
                allow_download=allow_download,
                device=device,
                batch_size=batch_size,
                seed=seed,
                results=results,
                force=force,
                reporter=reporter,
            )
        if json_:
            _print_json(_as_json(outcome.record))
        else:
            _print_outcome(outcome, None)


def _name_of(images: Path) -> str:
    return images.stem if images.is_file() else images.name


leaderboard_app = typer.Typer(rich_markup_mode=None)
app.add_typer(leaderboard_app, name="leaderboard", help="Turn records into one table.")


@leaderboard_app.callback(invoke_without_command=True)
def leaderboard(
    context: typer.Context,
    results: Results = Path("results"),
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="table, csv, markdown, latex, json, html; else by --output's suffix."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write instead of printing; the folder of --format html."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw fairness against quality to this PNG, PDF or SVG.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Turn records into one table."""
    if context.invoked_subcommand is not None:
        return
    with _guarded(debug):
        from fairbench.leaderboards.formats import formats

        known = formats()
        if format_ is not None and format_ not in known:
            raise unknown_name("--format", format_, known)
        layout = known["table"] if format_ is None else known[format_]
        if format_ is None and output is not None:
            layout = _format_of(output, list(known.values()))
        if layout.build is not None and output is None:
            raise InputError(f"--format {layout.name} writes a folder; name it with --output")
        from fairbench import leaderboards
        from fairbench.leaderboards.board import open_board

        board = open_board(results, dataset=dataset, task=task, warn=_warn)
        rows = list(board.rows)
        if not rows:
            asked = " and ".join(
                f"{kind} {name!r}"
                for kind, name in (("data set", dataset), ("task", task))
                if name
            )
            raise InputError(
                f"{results} holds no complete record{' of ' + asked if asked else ''}; "
                "make one with fairbench run"
            )
        if plot is not None:
            drawn = leaderboards.to_plot(rows, plot.suffix.lower())
            _write_file(plot, drawn, "--plot")
        if layout.build is not None and output is not None:
            layout.build(board, output)
            print(f"board    {output / 'index.html'}")
            return
        text = layout.write(rows) if layout.write is not None else ""
        if not isinstance(text, str):  # what is only for a terminal
            if output is not None:
                others = ", ".join(name for name, one in known.items() if one.suffixes)
                raise InputError(f"--output needs --format {others}")
            console = _console()
            console.print(text)
            console.print("all columns: --format markdown, csv or json", highlight=False)
            return
        if output is None:
            sys.stdout.write(text)
            return
        _write_file(output, text.encode(), "--output")


@leaderboard_app.command("validate")
def leaderboard_validate(
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORD…", help="Records, or folders of them.")
    ],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check records before they enter a board: exit status 2 if anything is wrong."""
    with _guarded(debug):
        from fairbench.leaderboards.validation import records_in, validate

        found = {path: validate(path) for path in records_in(records)}
        if json_:
            _print_json(
                [
                    {"record": str(path), "findings": [dataclasses.asdict(one) for one in told]}
                    for path, told in found.items()
                ]
            )
        else:
            for path, told in found.items():
                wrong = any(one.level == "error" for one in told)
                print(f"{'FAIL' if wrong else 'ok  '}  {path}")
                for one in told:
                    print(f"      {one.level}: {one.check}: {one.text}")
        if any(one.level == "error" for told in found.values() for one in told):
            raise typer.Exit(2)


@app.command()
def rescore(
    results: Annotated[Path, typer.Argument(help="Folder of records.")] = Path("results"),
    make_images: Annotated[
        bool,
        typer.Option("--make-images", help="Make images again that are nowhere: takes hours."),
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Bring the scores of records up to date with today's definitions."""
    with _guarded(debug):
        from fairbench.runs.rescoring import rescore_all

        with _reporting() as reporter:
            found = rescore_all(results, make_images=make_images, report=reporter)
        if json_:
            _print_json([dataclasses.asdict(one) | {"path": str(one.path)} for one in found])
            return
        from fairbench.app.report import rescored

        for line in rescored(found, results):
            _console().print(line, soft_wrap=True, highlight=False, markup=False)


def _format_of(output: Path, known: Sequence[Format]) -> Format:
    """The format whose files end as the output does."""
    for one in known:
        if output.suffix.lower() in one.suffixes:
            return one
    endings = ", ".join(suffix for one in known for suffix in one.suffixes)
    raise InputError(f"--output {output} ends in none of {endings}; give --format")


def _write_file(path: Path, content: bytes, option: str) -> None:
    from fairbench.storage.files import atomic_write

    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"{option} {path} can't be written: {error.strerror}") from error


data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Data sets: what is there, and preparing it.")


@data_app.command("prepare")
def data_prepare(
    dataset: Annotated[str, typer.Argument(metavar="NAME", help="See: fairbench data list.")],
    data_root: Root = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file of a data set and write the index that later runs read."""
    with _guarded(debug):
        from fairbench.app.data import Problems, prepare

        with _reporting() as reporter:
            done = prepare(dataset, data_root, reporter)
        if json_:
            _print_json(dataclasses.asdict(done))
        else:
            for line in done.lines():
                print(line)
        if isinstance(done, Problems):
            raise typer.Exit(2)


@data_app.command("list")
def data_list(
    data_root: Root = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List data sets with their terms, and what of them is there."""
    with _guarded(debug):
        from fairbench.app.data import listing

        rows = listing(data_root)
        if json_:
            _print_json(rows)
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for key in rows[0]:
            table.add_column(key.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(_shown(value) for value in row.values()))
        _console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {count}" for key, count in value.items()) or "none"
    return str(value)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="|".join(Kind), help="What to list.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List what can be chosen."""
    with _guarded(debug):
        rows = _listing(_choice(Kind, "kind", kind))
        if json_:
            _print_json(rows)
            return
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        shown = [
            key
            for key, value in rows[0].items()
            if key == "supervision" or not isinstance(value, list | dict)
        ]
        for key in shown:
            table.add_column(key.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row[key]) for key in shown))
        _console().print(table)


@app.command("check-method")
def check_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See: fairbench list methods.")],
    debug: Debug = False,
) -> None:
    """Check a method's contract on tiny backbones, in under a minute."""
    with _guarded(debug):
        from fairbench.methods import get_method

        get_method(name)  # before torch is even imported
        from fairbench.methods.parts.contract import check_method as outcomes

        failed = False
        for outcome in outcomes(name):
            if outcome.problem is None:
                print(f"ok    {outcome.what}", flush=True)
            else:
                failed = True
                print(f"FAIL  {outcome.what}: {_one_line_of(outcome.problem)}", flush=True)
        if failed:
            raise typer.Exit(2)


def _one_line_of(text: str) -> str:
    return " ".join(text.split())


@app.command("train-judge")
def train_judge(
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
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Train a judge on a data set's judge split; the same command resumes."""
    with _guarded(debug):
        from fairbench.runs.requisites import find_requisites

        chosen = find_requisites(dataset, data_root, generating=False)
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
        with _reporting() as reporter:
            chosen.prepare(reporter)
            judge, folder, found = train(
                chosen, recipe, cache, device=device, progress=reporter.progress
            )
            rows = judge_report(chosen, cache, reporter, asked=[judge.name], device=device)
        if json_:
            _print_json({"judge": judge.name, "folder": str(folder), "held_out": rows})
            return
        if found:
            print("found the judge of this recipe, nothing trained")
        _print_judges(rows)
        print(f"judge    {folder}")


@app.command()
def calibrate(
    dataset: DatasetName = None,
    data_root: Root = None,
    judge: Judges = None,
    device: Device = "auto",
    allow_download: Download = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Count judges' errors on a data set's judge split; say which of them may rank."""
    with _guarded(debug):
        from fairbench.runs.requisites import find_requisites

        chosen = find_requisites(dataset, data_root, generating=False)
        from fairbench.diffusion.devices import resolve_device
        from fairbench.runs.judging import judge_report
        from fairbench.storage.cache import cache_folder

        with _reporting() as reporter:
            chosen.prepare(reporter)
            rows = judge_report(
                chosen,
                cache_folder(),
                reporter,
                asked=tuple(judge or ()),
                device=str(resolve_device(device)),
                allow_download=allow_download,
            )
        if json_:
            _print_json(rows)
        else:
            _print_judges(rows)


def _print_judges(rows: Sequence[Mapping[str, Any]]) -> None:
    """How good judges are, one line a judge and attribute."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("judge", "attribute", "balanced accuracy", "images", "ranks", "remark"):
        table.add_column(title, overflow="fold")
    for row in rows:
        value = row["balanced_accuracy"]
        table.add_row(
            row["judge"],
            row["attribute"],
            "" if value is None else f"{value:.1%}",
            str(row["held_out_images"] or ""),
            "yes" if row["ranks"] else "no",
            row["remark"],
        )
    _console().print(table)


@app.command()
def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Also hash every weight and data file.")
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is installed, found and missing, and what to do about it."""
    with _guarded(debug):
        from fairbench.app.doctor import examine

        findings = examine(verify=verify)
        if json_:
            _print_json([dataclasses.asdict(finding) for finding in findings])
        else:
            from rich.table import Table

            table = Table(box=None, pad_edge=False)
            for title in ("", "what", "found", "what to do"):
                table.add_column(title, overflow="fold")
            for finding in findings:
                missing = "[yellow]optional[/]" if finding.optional else "[red]missing[/]"
                mark = "[green]ok[/]" if finding.ok else missing
                table.add_row(mark, finding.what, finding.found, finding.remedy)
            _console().print(table)
        if not all(finding.ok or finding.optional for finding in findings):
            raise typer.Exit(2)


def main() -> None:
    """Entry point of the ``fairbench`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # a pipe on Windows couldn't carry an arrow
    try:
        code = app(prog_name="fairbench", standalone_mode=False)
    except typer.Abort:
        code = 130
    except UsageError as error:
        if not sys.argv[1:]:
            error.show()  # not an error, but all of the help
            raise SystemExit(2) from None
        _exit(f"fairbench: {_usage(error)}", 2)
    if code == 130:
        # Ctrl-C before a command was entered or after it was left: older versions of click raise
        # Abort then, newer ones return this code.
        _exit(INTERRUPTED, code)
    raise SystemExit(code)


def _usage(error: Any) -> str:
    """What click has to say about a command line, in one line."""
    message = " ".join(error.format_message().split()).rstrip(".?")
    command = error.ctx.command_path if error.ctx else "fairbench"
    return f"{message[:1].lower()}{message[1:]}; see {command} --help"


@contextlib.contextmanager
def _guarded(debug: bool) -> Iterator[None]:
    """Turn what goes wrong inside into one line and an exit code."""
    try:
        yield
    except FairbenchError as error:
        if debug:
            traceback.print_exc()
        _exit(f"fairbench: {_one_line(error)}", 2)
    except KeyboardInterrupt:
        _exit(INTERRUPTED, 130)
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away: nothing left to say it to
        raise SystemExit(141) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in ENVIRONMENT:
            _exit(
                f"fairbench: {error.filename or 'a file'}: {error.strerror}; check the disk and "
                "the rights, or choose other folders by --results and FAIRBENCH_CACHE",
                2,
            )
        log = _write_log()
        _exit(
            f"fairbench: internal failure: {type(error).__name__}: {_one_line(error)} "
            f"(traceback in {log}, or with --debug)",
            3,
        )


def _exit(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code) from None


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write_log() -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="fairbench-", suffix=".log", delete=False) as log:
        traceback.print_exc(file=log)
    return Path(log.name)


def _choice(choices: type[Choice], what: str, name: str) -> Choice:
    # Left to typer, an enumeration's error would name no near value.
    if name not in list(choices):
        raise unknown_name(what, name, choices)
    return choices(name)


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


@functools.cache  # a damaged record is met several times in one run, and named once
def _warn(line: str) -> None:
    print(f"fairbench: warning: {line}", file=sys.stderr)


def _console() -> Any:
    from rich.console import Console

    # Piped output is never cut to a terminal's width.
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False)


@contextlib.contextmanager
def _reporting() -> Iterator[Reporter]:
    """A reporter that draws progress on stderr if that is a terminal, else stays quiet."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from fairbench.core.progress import Reporter
    from fairbench.diffusion.devices import is_main_process

    if not is_main_process():
        yield Reporter()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(note=lambda line: print(line, file=sys.stderr), warn=_warn)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        shown: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=total)
            bars.update(shown[what], completed=done, total=total)

        yield Reporter(
            progress=progress,
            note=lambda line: console.print(line, markup=False, highlight=False),
            warn=lambda line: console.print(f"warning: {line}", markup=False, highlight=False),
        )


def _as_json(record: Record) -> dict[str, Any]:
    from fairbench.core.keys import plain

    document: dict[str, Any] = plain(record)
    return document


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _cell(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def _preset_row(method: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset sets, and what that makes of the row."""
    card = method(**values).configured_card()
    return {
        "parameters": dict(values),
        "role": card.role,
        "ranked": card.ranked,
        "supervision": sorted(card.supervision),
    }


def _listing(kind: Kind) -> list[dict[str, Any]]:
    if kind is Kind.METHODS:
        from fairbench.core.parameters import parameters_of
        from fairbench.methods import known_methods

        found, broken = known_methods()
        for reason in broken.values():
            _warn(reason)
        rows = []
        for method in found.values():
            card = dataclasses.asdict(method.card) | {
                "supervision": sorted(method.card.supervision),
                "needs": sorted(method.card.needs),
                "deviations": list(method.card.deviations),
            }
            parameters = [dataclasses.asdict(p) for p in parameters_of(method)]
            presets = {key: _preset_row(method, value) for key, value in method.presets.items()}
            order = ("name", "title", "role", "family", "supervision", "arxiv")
            rest = {key: value for key, value in card.items() if key not in order}
            first = {key: card[key] for key in order}
            rows.append(first | {"details": rest, "parameters": parameters, "presets": presets})
        return rows
    if kind is Kind.METRICS:
        from fairbench.scores.catalogue import metrics

        return [{"name": name, "meaning": meaning} for name, meaning in metrics().items()]
    if kind is Kind.INSTRUMENTS:
        from fairbench.instruments.catalogue import instrument_specs

        specs = instrument_specs()
        return [
            {
                "name": name,
                "kind": spec.kind,
                "title": spec.title,
                "weights": spec.weights or "come with it",
            }
            for name, spec in sorted(specs.items())
        ]
    if kind is Kind.FAMILIES:
        from fairbench.backbones.base import FAMILIES

        families, faults = FAMILIES.entries()
        for reason in faults.values():
            _warn(reason)
        return [
            {
                "name": family.name,
                "title": family.title,
                "pipelines": ", ".join(family.pipelines) or "any other text-to-image",
                "prompts": "yes" if family.conditional else "no",
            }
            for family in families.values()
        ]
    if kind is Kind.FORMATS:
        from fairbench.leaderboards.formats import formats

        return [
            {"name": one.name, "files": ", ".join(one.suffixes) or "none, for a terminal"}
            for one in formats().values()
        ]
    from fairbench.datasets.base import DATASETS

    datasets, faults = DATASETS.entries()
    for reason in faults.values():
        _warn(reason)
    rows = []
    for dataset in datasets.values():
        if kind is Kind.DATASETS:
            levels = {name: list(values) for name, values in dataset.attributes.items()}
            rows.append({"name": dataset.name, "title": dataset.card.title, "attributes": levels})
        elif kind is Kind.BACKBONES:
            for spec in dataset.backbones:
                sampling = dataclasses.asdict(spec.sampling)
                row = {"name": spec.name, "dataset": dataset.name, "title": spec.title}
                rows.append(row | {"sampling": sampling})
        else:
            for question in dataset.tasks:
                task = dataset.task(question.name, conditional=True)
                ranked = "mean over prompts" if task.per_prompt else "pooled"
                row = {"name": question.name, "dataset": dataset.name, "ranked": ranked}
                groups = {"number_of_groups": len(task.groups), "groups": list(task.groups)}
                prompts = [prompt.text for prompt in task.prompts]
                rows.append(row | groups | {"prompts": prompts})
    return rows


def _print_outcome(outcome: Outcome, baseline: Record | None) -> None:
    from fairbench.app.report import summary

    console = _console()
    if outcome.found:
        console.print(
            f"found a record of this run, nothing computed (--force computes again): "
            f"{outcome.path}",
            soft_wrap=True,
            markup=False,
        )
    console.print(summary(outcome.record, baseline))
    picture = outcome.path.with_suffix(".png")
    console.print(f"record   {outcome.path}", soft_wrap=True, highlight=False, markup=False)
    if picture.is_file():
        console.print(f"picture  {picture}", soft_wrap=True, highlight=False, markup=False)
