"""One check: the baseline, what is compared with it, and the baseline that takes its place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fairbench.core.errors import FairbenchError, InputError
from fairbench.core.progress import Reporter
from fairbench.core.record import Record
from fairbench.gate.baseline import (
    Accepted,
    Baseline,
    Measured,
    config_of,
    measured,
    read_baseline,
    write,
)
from fairbench.gate.comparing import Finding, Handling, Verdict, compare
from fairbench.runs.times import now
from fairbench.storage.files import check_file
from fairbench.storage.records import read_record, read_records, record_path

__all__ = ["Checked", "check"]


@dataclass(frozen=True)
class Checked:
    """What a check came to.

    Attributes:
        verdict: The comparison; None where there was no baseline yet.
        written: Whether the baseline was written.
        refused: Why it wasn't although that was asked for; empty otherwise.
    """

    verdict: Verdict | None
    written: bool = False
    refused: str = ""

    @property
    def exit_code(self) -> int:
        """0, 1 where something got worse and isn't accepted, 2 where nothing can be compared."""
        if self.verdict is None or self.written:
            return 0
        return self.verdict.exit_code or int(bool(self.refused))


def check(
    file: Path,
    results: Path | None = None,
    records: Sequence[Path] = (),
    *,
    on_inconclusive: Handling = "warn",
    on_missing: Handling = "fail",
    update: bool = False,
    accept_worse: str | None = None,
    use_cache: bool = False,
    report: Reporter | None = None,
) -> Checked:
    """Compare what is measured now with a baseline.

    Args:
        file: The baseline.
        results: Folder of records that answer its questions.
        records: Records, or folders of them, beside or in place of that; without either the
            baseline's plan is run.
        on_inconclusive: What is made of scores of which a regression can't be excluded.
        on_missing: What is made of scores and runs that aren't there any more.
        update: Whether what is measured now becomes the baseline, if nothing is worse.
        accept_worse: Why it becomes the baseline although something is.
        use_cache: Whether runs may take images and trained networks from the cache; else all is
            made anew, so that nothing is judged by what older code left there.
        report: Told about progress, and about records that can't be read and are left out.

    Raises:
        FairbenchError: If the baseline can't be read, or there is nothing to compare.
    """
    told = report or Reporter()
    if accept_worse is not None and not accept_worse.strip():
        raise InputError("--accept-worse needs a reason in words; seen none")
    if accept_worse is not None and not update:
        raise InputError("--accept-worse goes with --update; add it, or leave the reason out")
    if update:
        check_file(file, "--baseline")
    given = results is not None or bool(records)
    there = file.exists() or file.is_symlink()
    if not there and not (update and given):
        raise InputError(
            f"{file}: no such baseline; make one from records with fairbench check --baseline "
            f"{file} --update RECORD…"
        )
    baseline = read_baseline(file) if there else None
    if given:
        candidate = _of_records(results, records, baseline, told)
        lacking: dict[str, str] = {}
    else:
        candidate, lacking = _run_plan(file, baseline, told, use_cache=use_cache)
    if baseline is None:
        _first(candidate)
        write(file, Baseline(tuple(candidate)))
        return Checked(None, written=True)
    verdict = compare(
        baseline.runs,
        candidate,
        on_inconclusive=on_inconclusive,
        on_missing=on_missing,
        lacking=lacking,
    )
    if not update:
        return Checked(verdict)
    return _updated(file, baseline, candidate, verdict, accept_worse)


def _first(candidate: Sequence[Measured]) -> None:
    """Refuse a baseline that nothing could ever be compared with."""
    if not candidate:
        raise InputError("no complete record to make a baseline of; run fairbench run first")
    found = compare(candidate, candidate)
    if found.refusals:
        raise InputError(f"this can't be a baseline: {found.refusals[0]}")


def _updated(
    file: Path,
    baseline: Baseline,
    candidate: Sequence[Measured],
    verdict: Verdict,
    accept_worse: str | None,
) -> Checked:
    """Write what is measured now, unless it is worse and nobody says that this is right."""
    since = compare([one.at_first for one in baseline.runs], candidate)
    told = {(one.run, one.score) for one in verdict.of("regressed")}
    drifted = [one for one in since.of("regressed") if (one.run, one.score) not in told]
    worse = [*verdict.of("regressed"), *drifted, *verdict.of("missing")]
    if verdict.refusals:
        return Checked(verdict, refused=verdict.refusals[0])
    if worse and accept_worse is None:
        slowly = " than they were at first, by steps that were each too small" if drifted else ""
        return Checked(
            verdict,
            refused=f"{len(worse)} scores or runs are worse{slowly} or missing, such as "
            f"{worse[0].run}: {worse[0].score}; --accept-worse REASON takes them all the same",
        )
    _first(candidate)
    accepted = baseline.accepted
    if worse and accept_worse is not None:
        scores = {f"{one.run}: {one.score}": (one.before, one.after) for one in worse}
        accepted = (*accepted, Accepted(accept_worse.strip(), now(), scores))
    places = {one.identity: place for place, one in enumerate(baseline.runs)}
    ordered = sorted(candidate, key=lambda one: places.get(one.identity, len(places)))
    if not worse:
        better = since.of("improved")
        known = {one.identity: one for one in baseline.runs}
        ordered = [
            one if one.identity not in known else _held(known[one.identity], one, better)
            for one in ordered
        ]
    write(file, replace(baseline, runs=tuple(ordered), accepted=accepted))
    return Checked(verdict, written=True)


def _held(before: Measured, after: Measured, improved: Sequence[Finding]) -> Measured:
    """A run with the scores that later ones are held against, or they could get worse by drops."""
    titles = (after.name, f"{after.name} seed")
    better = {
        one.score for one in improved if one.run == titles[0] or one.run.startswith(titles[1])
    }
    held = before.at_first.scores
    first = {
        name: score if name in better else held.get(name, score)
        for name, score in after.scores.items()
    }
    return replace(after, first=first)


# --- what is compared ----------------------------------------------------------------------


def _of_records(
    results: Path | None, records: Sequence[Path], baseline: Baseline | None, report: Reporter
) -> list[Measured]:
    """The newest record of each question; of `results` only those that the baseline asks."""
    found: list[Measured] = []
    for path in records:
        if path.is_dir():
            found += _of_folder(path, report)
            continue
        try:
            found.append(measured(path, read_record(path)))
        except FairbenchError as error:  # one bad record doesn't stop the rest
            report.warn(f"{_line(error)}; it is left out")
    if results is not None:
        known = None if baseline is None else {one.identity for one in baseline.runs}
        found += [
            one for one in _of_folder(results, report) if known is None or one.identity in known
        ]
    if not found:
        raise InputError("no record that can be read answers a question of the baseline")
    newest: dict[str, Measured] = {}
    for one in sorted(found, key=lambda run: run.created):
        before = newest.get(one.identity)
        if before is not None and before.key != one.key:
            report.note(f"{one.name}: record {one.key} is newer than {before.key} and is taken")
        newest[one.identity] = one
    return list(newest.values())


def _of_folder(folder: Path, report: Reporter) -> list[Measured]:
    found = []
    for record in read_records(folder, report.warn):
        if record.status == "complete":
            found += _readable(folder, record, report)
    return found


def _readable(folder: Path, record: Record, report: Reporter) -> list[Measured]:
    try:
        path = record_path(folder, record.dataset, record.method, record.key)
        return [measured(path, record)]
    except FairbenchError as error:
        report.warn(f"{_line(error)}; it is left out")
        return []


def _run_plan(
    file: Path, baseline: Baseline | None, report: Reporter, *, use_cache: bool
) -> tuple[list[Measured], dict[str, str]]:
    """The plan's runs, made anew; what fails is a run that is missing, and why."""
    from fairbench.runs.running import run

    plan = () if baseline is None else baseline.runs
    if not plan:
        raise InputError(f"{file}: its plan is empty; make another with --update RECORD…")
    found: list[Measured] = []
    lacking: dict[str, str] = {}
    with _fresh_folders(use_cache=use_cache) as results:
        for place, one in enumerate(plan):
            report.progress("checking: runs", place, len(plan))
            if "evaluated" in one.question:
                lacking[one.identity] = "its images come from elsewhere; give its record"
                continue
            try:
                outcome = run(config_of(one.question, results), report)
                found.append(measured(outcome.path, outcome.record))
            except FairbenchError as error:
                lacking[one.identity] = _line(error)
        report.progress("checking: runs", len(plan), len(plan))
    if not found:
        raise InputError(f"{file}: none of its runs can be made: {next(iter(lacking.values()))}")
    return found, lacking


@contextmanager
def _fresh_folders(*, use_cache: bool) -> Iterator[Path]:
    """A folder of records, and a cache beside it unless the user's own is wanted."""
    before = os.environ.get("FAIRBENCH_CACHE")
    with tempfile.TemporaryDirectory(prefix="fairbench-check-") as folder:
        try:
            if not use_cache:
                os.environ["FAIRBENCH_CACHE"] = str(Path(folder) / "cache")
            yield Path(folder) / "results"
        finally:
            if before is None:
                os.environ.pop("FAIRBENCH_CACHE", None)
            else:
                os.environ["FAIRBENCH_CACHE"] = before


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
