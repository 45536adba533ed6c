"""A check as others read it: JSON, JUnit's XML, a summary in Markdown, lines for a terminal."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairbench.core.errors import InputError
from fairbench.core.keys import plain
from fairbench.core.text import shown
from fairbench.gate.checking import Checked
from fairbench.gate.comparing import STATES, Finding, State, Verdict
from fairbench.storage.files import atomic_write

__all__ = ["LARGEST_SUMMARY", "append", "document", "junit", "markdown", "rows", "write_text"]

LARGEST_SUMMARY = 2**20
"""Bytes of all that a step may write to its page on GitHub; of more, nothing is shown."""

_SPARE = 2**10
_UNCUT: tuple[State, ...] = ("regressed", "missing", "inconclusive", "improved", "new")


def document(checked: Checked) -> dict[str, Any]:
    """The whole check as plain values."""
    verdict = checked.verdict
    found: dict[str, Any] = {
        "verdict": "written" if verdict is None else verdict.word,
        "exit_code": checked.exit_code,
        "written": checked.written,
        "refused": checked.refused,
    }
    if verdict is not None:
        found |= {
            "counts": {state: len(verdict.of(state)) for state in STATES},
            "refusals": list(verdict.refusals),
            "notes": list(verdict.notes),
            "findings": [asdict(one) for one in verdict.findings],
        }
    return dict(plain(found))


def rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Cells of a table of findings."""
    return [
        {
            "state": one.state,
            "score": one.score,
            "before": _number(one.before),
            "after": _number(one.after),
            "change": _change(one),
            "detectable": _detectable(one),
            "run": one.run,
            "why": one.reason or one.how,
        }
        for one in findings
    ]


def sentence(verdict: Verdict) -> str:
    """The verdict with the number of scores of each state."""
    counts = [f"{len(verdict.of(state))} {state}" for state in STATES if verdict.of(state)]
    return f"{verdict.word}: {', '.join(counts) or 'nothing was compared'}"


def markdown(verdict: Verdict, room: int = LARGEST_SUMMARY) -> str:
    """A summary for people, cut at a line so that it takes less room than there is.

    Args:
        verdict: What to tell.
        room: Bytes that it may take.
    """
    head = [f"### fairbench check: {_cell(sentence(verdict))}", ""]
    head += [f"- cannot be compared: {_cell(line)}" for line in verdict.refusals]
    head += [f"- {_cell(line)}" for line in verdict.notes]
    titles = ("state", "score", "before", "after", "change", "detectable", "run", "why")
    table = ["", f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    told = [one for state in _UNCUT for one in verdict.of(state)]
    for row in rows(told):
        table.append(f"| {' | '.join(_cell(row[title]) for title in titles)} |")
    kept: list[str] = []
    used = 0
    lines = [*head, *(table if told else [])]
    for place, line in enumerate(lines):
        used += len(line.encode("utf-8", "backslashreplace")) + 1
        if used > room - _SPARE:
            kept += ["", f"{len(lines) - place} more lines are left out; --json has all."]
            break
        kept.append(line)
    text = "\n".join(kept) + "\n"
    return text if len(text.encode("utf-8", "backslashreplace")) < room else ""


def junit(verdict: Verdict) -> bytes:
    """JUnit's XML: one suite a run, one case a score."""
    suites = ElementTree.Element("testsuites", name="fairbench check")
    by_run: dict[str, list[Finding]] = {}
    for one in verdict.findings:
        by_run.setdefault(one.run, []).append(one)
    for run, findings in by_run.items():
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=shown(run),
            tests=str(len(findings)),
            failures=str(sum(verdict.handling(one.state) == "fail" for one in findings)),
            errors="0",
            skipped=str(sum(_skipped(verdict, one) for one in findings)),
        )
        for one in findings:
            case = ElementTree.SubElement(
                suite, "testcase", classname=shown(run), name=shown(one.score)
            )
            if verdict.handling(one.state) == "fail":
                ElementTree.SubElement(case, "failure", message=shown(_said(one)))
            elif _skipped(verdict, one):
                ElementTree.SubElement(case, "skipped", message=shown(_said(one)))
    if verdict.refusals:
        count = str(len(verdict.refusals))
        suite = ElementTree.SubElement(
            suites, "testsuite", name="comparison", tests=count, failures="0", errors=count
        )
        for line in verdict.refusals:
            case = ElementTree.SubElement(suite, "testcase", classname="comparison", name="runs")
            ElementTree.SubElement(case, "error", message=shown(line))
    ElementTree.indent(suites)
    found: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def _skipped(verdict: Verdict, one: Finding) -> bool:
    """Whether a finding is neither a success nor a failure."""
    return (
        one.state in ("missing", "inconclusive", "new") and verdict.handling(one.state) != "fail"
    )


def write_text(file: Path, content: bytes, option: str) -> None:
    """Write a report, whole or not at all.

    Raises:
        InputError: If the file can't be written.
    """
    try:
        with atomic_write(file) as stream:
            stream.write(content)
    except OSError as error:
        raise InputError(f"{option} {file} can't be written: {error.strerror}") from error


def append(file: Path, verdict: Verdict) -> None:
    """Add the summary to a page that other steps write to as well, within what it may hold.

    Raises:
        InputError: If the file can't be written.
    """
    try:
        with file.open("ab") as stream:
            room = LARGEST_SUMMARY - stream.tell()
            stream.write(markdown(verdict, room).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(
            f"GITHUB_STEP_SUMMARY {file} can't be written: {error.strerror}"
        ) from error


def _said(one: Finding) -> str:
    row = rows([one])[0]
    numbers = f"{row['before']} -> {row['after']}, change {row['change']}" if one.change else ""
    return ": ".join(filter(None, [one.state, numbers, row["why"]]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _change(one: Finding) -> str:
    if one.change is None:
        return ""
    ends = "" if one.low is None or one.high is None else f" [{one.low:+.3g}, {one.high:+.3g}]"
    return f"{one.change:+.3g}{ends}"


def _detectable(one: Finding) -> str:
    """The smallest change that would be found, and the n with which the margin would be."""
    if one.detectable is None or one.margin is None:
        return ""
    found = f"{one.detectable:.3g}"
    if one.needed is not None and one.needed > one.images:
        found += f"; {one.margin:.3g} with n={one.needed:,}"
    return found


def _cell(text: str) -> str:
    """Text that breaks neither a table nor the page."""
    safe = shown(text).replace("\\", "\\\\").replace("|", "\\|")
    return safe.replace("<", "&lt;").replace("`", "'")
