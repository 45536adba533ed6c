"""``fairbench sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairbench.app.options import DatasetName, Device, Place, Speech, spread
from fairbench.app.terminal import guarded, print_json, print_lines, print_table, reporting
from fairbench.core.errors import InputError
from fairbench.core.tables import Column
from fairbench.core.text import shown

if TYPE_CHECKING:
    from fairbench.sweep.coordinating import Tally
    from fairbench.sweep.sweeping import Sweep

__all__ = ["sweep"]

STATUS = "status"

MOST_ROWS = 40
"""Runs that the terminal lists; the rest is counted."""

MOST_JOBS = 10_000
"""Steps at once; more than any cluster gives one user is a slip of the keyboard."""

FAILED = 2
"""Exit code of a sweep some of whose runs failed."""


def _methods() -> list[str]:
    from fairbench.methods import method_names

    return method_names()


@spread
def sweep(
    speech: Speech,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[status] [PLAN.toml]",
            help="A plan; with the word status before it, nothing is run.",
        ),
    ] = None,
    committed: Annotated[
        bool, typer.Option("--committed", help="The plan of fairbench's own results.")
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(help="all, or names with commas between; in place of the plan's."),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="As --methods.")] = None,
    backbones: Annotated[str | None, typer.Option(help="As --methods.")] = None,
    seeds: Annotated[str | None, typer.Option(help="0,1,2; in place of the plan's.")] = None,
    num_images: Annotated[
        int | None, typer.Option(help="Images of each run; in place of the plan's.")
    ] = None,
    dataset: DatasetName = None,
    engine: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at once; default: one a GPU, or one a core of the CPU."),
    ] = None,
    device: Device = "auto",
    results: Place = "results",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what is missing and how long it takes.")
    ] = False,
) -> None:
    """Do the runs of a plan whose records aren't there, here or on a cluster."""
    with guarded(speech.debug):
        status, file = _what(words or [])
        if file is not None and committed:
            raise InputError(f"give a plan or --committed, not both; seen {file}")
        if jobs is not None and not 1 <= jobs <= MOST_JOBS:
            raise InputError(f"--jobs must lie in 1…{MOST_JOBS}; seen {jobs}")
        from fairbench.sweep.engine import load_engine
        from fairbench.sweep.plan import COMMITTED, read_plan

        changes = {
            "methods": _names("--methods", methods),
            "tasks": _names("--tasks", tasks),
            "backbones": _names("--backbones", backbones),
            "seeds": _seeds(seeds),
            "num_images": num_images,
            "dataset": dataset,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        if file is None and not committed and "methods" not in given:
            raise InputError("nothing to sweep; name a plan, --committed, or --methods all")
        plan = read_plan(COMMITTED if committed else file, given)
        make = load_engine(engine)
        from fairbench.sweep.sweeping import Sweep

        with reporting(quiet=speech.quiet) as reporter:
            whole = Sweep.of(plan, results, reporter, device=device)
            if status or dry_run:
                _say(whole, speech, retry_failed=retry_failed, listed=not status)
                return
            if not speech.json_ and not speech.quiet:
                _print(whole, retry_failed=retry_failed, listed=True)
            tally = whole.run(
                make,
                jobs=jobs,
                device=device,
                settings=plan.engines.get(engine, {}),
                retry_failed=retry_failed,
                report=reporter,
            )
        _ended(whole, tally, speech)


def _what(words: Sequence[str]) -> tuple[bool, Path | None]:
    """Whether the status is asked for, and of which plan."""
    status = bool(words) and words[0] == STATUS
    rest = words[1:] if status else words
    if len(rest) > 1:
        raise InputError(f"one plan at a time; seen {' '.join(rest)}")
    return status, Path(rest[0]) if rest else None


def _names(option: str, text: str | None) -> str | list[str] | None:
    if text is None or text == "all":
        return text
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"{option} must be all, or names with commas between; seen {text!r}")
    return names


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds must be numbers such as 0,1,2; seen {text!r}") from None


def _say(whole: Sweep, speech: Speech, *, retry_failed: bool, listed: bool) -> None:
    if speech.json_:
        print_json(whole.document(retry_failed=retry_failed))
    else:
        _print(whole, retry_failed=retry_failed, listed=listed)


def _print(whole: Sweep, *, retry_failed: bool, listed: bool) -> None:
    """What stands how; what is to do, a line each, or what failed and why."""
    from fairbench.app.forecast import spoken

    count = whole.counts()
    print_lines(
        [
            f"plan     {len(whole.asked)} runs: "
            + ", ".join(f"{number} {name}" for name, number in count.items())
        ]
    )
    for line in whole.left_out[:MOST_ROWS]:
        print_lines([f"left out {shown(line.partition(';')[0])}"])
    if len(whole.left_out) > MOST_ROWS:
        print_lines([f"left out {len(whole.left_out) - MOST_ROWS} combinations more"])
    for one in whole.of_standing("running")[:MOST_ROWS]:
        print_lines([f"running  {shown(one.title)}"])
    for one in whole.of_standing("failed")[:MOST_ROWS]:
        print_lines([f"failed   {shown(f'{one.title}: {whole.why(one)}')}"])
    if not retry_failed and any(not whole.passing(one) for one in whole.of_standing("failed")):
        print_lines(["         --retry-failed runs them again"])
    steps = whole.steps(retry_failed=retry_failed)
    if listed and steps:
        rows = [
            {"step": step.title, "hours": "?" if step.hours is None else f"{step.hours:.3f}"}
            for step in steps[:MOST_ROWS]
        ]
        print_table(rows, [Column("step", (), whole=False), Column("hours", (), right=True)])
        if len(steps) > MOST_ROWS:
            print_lines([f"and {len(steps) - MOST_ROWS} more; --dry-run --json has all"])
    hours, unknown = whole.hours(retry_failed=retry_failed)
    left = f"about {spoken(hours)} on one device" if hours else "nothing that is known of"
    if not steps:
        left = "none: nothing is left to do"
    elif unknown:
        left += f", and {unknown} steps of a kind that no record is of"
    print_lines([f"time     {left}"])


def _ended(whole: Sweep, tally: Tally, speech: Speech) -> None:
    done = len(whole.of_standing("done"))
    if speech.json_:
        print_json(whole.document(retry_failed=False) | {"lost": tally.lost})
    else:
        failed, total = len(whole.of_standing("failed")), len(whole.asked)
        print_lines([f"swept    {done} of {total} runs have a record, {failed} failed"])
        if not speech.quiet:
            for one in whole.of_standing("failed")[:MOST_ROWS]:
                print_lines([f"failed   {shown(f'{one.title}: {whole.why(one)}')}"])
    if done < len(whole.asked):
        raise typer.Exit(FAILED)
