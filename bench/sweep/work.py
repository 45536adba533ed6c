"""One step of a sweep on one worker, the same on every engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from fairbench.core.errors import FairbenchError
from fairbench.core.interrupts import listen, no_more
from fairbench.core.progress import Reporter
from fairbench.storage.files import disk_line, full_disk
from fairbench.storage.places import Place, place_of
from fairbench.sweep.state import BEAT, EXPIRY, State
from fairbench.sweep.steps import Ended, Step

__all__ = ["SAID", "main", "perform"]

SAID = "fairbench-step "
"""What the line begins with in which a worker says what became of its step."""


def perform(
    step: Step, results: str, holder: str, *, beat: float = BEAT, expiry: float = EXPIRY
) -> Ended:
    """Do a step, unless it is done, or another worker is at it.

    Args:
        step: What to do.
        results: Where records are, as ``--results``; relative paths are of this process.
        holder: As for `State.claim`.
        beat: Seconds between signs of life.
        expiry: Seconds after which another's claim without one counts as left.

    Returns:
        What became of it. An error is part of that; why a step failed is kept beside the records.
    """
    started = time.monotonic()
    try:
        place = place_of(results)
        state = State(place.objects, expiry)
        if _found(step, place):
            return Ended(step.key, "done", "found", time.monotonic() - started)
        if not state.claim(step.key, holder):
            return Ended(step.key, "busy", "another worker has it", time.monotonic() - started)
        with state.alive(step.key, holder, beat):
            line = _tried(step, place, state)
    except FairbenchError as error:
        line = _line(error)  # the store itself
    except OSError as error:  # a full disk, for instance, on which no note fits either
        line = _line(error)
    return Ended(step.key, "failed" if line else "done", line, time.monotonic() - started)


def _found(step: Step, place: Place) -> bool:
    """Whether a record answers a step by now."""
    from fairbench.storage.records import RecordError, find_record

    for name in step.records:
        if place.mirrored:
            place.fetch(name)
        with suppress(RecordError):  # what lies there is named by the run itself
            if find_record(place.folder / name) is not None:
                path = place.folder / name
                if not place.published(path):
                    place.publish(path)
                return True
    return False


def _tried(step: Step, place: Place, state: State) -> str:
    """Do a claimed step; why it failed, or nothing."""
    try:
        with _published(step, place):
            _do(step, place)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # one step that fails blocks no other
        line = _line(error)
        with suppress(FairbenchError, OSError):
            state.fail(step.key, line)
        return line
    with suppress(FairbenchError, OSError):
        state.forget(step.key)
    return ""


def _do(step: Step, place: Place) -> None:
    from fairbench.runs.running import prepare, take_part

    config = replace(step.config, results=place.folder, force=False)
    report = Reporter(warn=lambda line: print(f"fairbench: warning: {line}", file=sys.stderr))
    if step.kind == "run":
        take_part(config, report, tidy=False)
    else:
        prepare(config, step.kind, report)


@contextmanager
def _published(step: Step, place: Place) -> Iterator[None]:
    """Publish the record that the block made, if a mirror was written."""
    try:
        yield
    finally:
        if place.mirrored:
            for name in step.records:
                path = place.folder / name
                if path.is_file() and not place.published(path):
                    place.publish(path)


def _line(error: BaseException) -> str:
    """An error in one line; what isn't fairbench's own says its kind."""
    full = full_disk(error)
    if full is not None:
        return disk_line(full)
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, FairbenchError) else f"{type(error).__name__}: {text}"


def main() -> None:
    """A worker process: its arguments are the results and the holder of the step's claim.

    The step comes in as JSON by standard input, and a line says what became of it.
    """
    listen()
    step = Step.of(sys.stdin.read())
    try:
        told = perform(step, sys.argv[1], sys.argv[2])
    except KeyboardInterrupt:
        told = Ended(step.key, "lost", "it was ended")
    no_more()
    print(SAID + json.dumps([told.key, told.outcome, told.line, told.seconds]), flush=True)


if __name__ == "__main__":
    main()
