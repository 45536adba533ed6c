"""The loop, with an engine that does nothing: order, failures, retries, other sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fairbench.core.errors import InputError
from fairbench.runs.config import RunConfig
from fairbench.storage.objects import Folder
from fairbench.storage.places import place_of
from fairbench.sweep.coordinating import ATTEMPTS, Books, Look, drive
from fairbench.sweep.state import State
from fairbench.sweep.steps import Ended, Step


class Engine:
    """Ends one step at each wait, as `told` says; counts what runs at once."""

    def __init__(self, told: Callable[[Step], Ended], places: int = 2) -> None:
        self.told, self.places = told, places
        self.running: list[Step] = []
        self.begun: list[str] = []
        self.most, self.closed, self.now = 0, False, 0.0

    def full(self) -> bool:
        return len(self.running) >= self.places

    def room(self, step: Step) -> bool:
        return not self.running or (step.memory_mib or 0) < 1000

    def start(self, step: Step) -> None:
        self.running.append(step)
        self.begun.append(step.key)
        self.most = max(self.most, len(self.running))

    def wait(self, seconds: float) -> Sequence[Ended]:
        self.now += seconds
        return [self.told(self.running.pop(0))] if self.running else []

    def close(self) -> None:
        self.closed = True


class Notes(Books):
    """Books without a store."""

    def __init__(self, look: Callable[[Step], Look] = lambda step: "free") -> None:
        self.looked, self.failed = look, dict[str, str]()

    def look(self, step: Step) -> Look:
        return self.looked(step)

    def fail(self, step: Step, line: str) -> None:
        self.failed[step.key] = line


def step(key: str, *after: str, hours: float | None = 1.0, memory: float | None = None) -> Step:
    records = () if key.startswith("shared") else (f"{key}.json",)
    kind = "run" if records else "images"
    return Step(key, kind, RunConfig("vanilla"), key, records, after, hours, memory)


def done(one: Step) -> Ended:
    return Ended(one.key, "done", "", 1.0)


def test_shared_steps_come_first_and_long_chains_before_short_ones() -> None:
    engine = Engine(done, places=1)
    steps = [step("short"), step("shared"), step("a", "shared", hours=5.0), step("long", hours=3)]
    tally = drive(steps, engine, Notes())
    assert engine.begun == ["shared", "a", "long", "short"]
    assert sorted(tally.done) == ["a", "long", "shared", "short"]
    assert engine.closed


def test_a_failure_takes_along_what_waits_for_it_and_nothing_else() -> None:
    def told(one: Step) -> Ended:
        return Ended(one.key, "failed", "no luck") if one.key == "shared" else done(one)

    engine, notes = Engine(told), Notes()
    tally = drive(
        [step("shared"), step("a", "shared"), step("b", "shared"), step("c")], engine, notes
    )
    assert tally.done == ["c"]
    line = "what it shares with other runs failed: no luck"
    assert tally.failed == {"shared": "no luck", "a": line, "b": line}
    assert notes.failed == {"a": line, "b": line}  # the worker itself kept the other
    assert "a" not in engine.begun


def test_a_step_whose_worker_dies_is_begun_again_and_not_for_ever() -> None:
    deaths = {"a": 2, "b": 99}

    def told(one: Step) -> Ended:
        deaths[one.key] = deaths.get(one.key, 0) - 1
        return Ended(one.key, "lost", "signal 9", 2.0) if deaths[one.key] >= 0 else done(one)

    engine, notes = Engine(told), Notes()
    tally = drive([step("a"), step("b"), step("c")], engine, notes)
    assert sorted(tally.done) == ["a", "c"]
    assert engine.begun.count("a") == 3
    assert engine.begun.count("b") == ATTEMPTS
    assert notes.failed["b"] == f"{ATTEMPTS} workers died of it, the last one so: signal 9"
    assert tally.lost == 2 + ATTEMPTS
    assert tally.wasted == 2.0 * tally.lost


def test_what_another_sweep_is_at_is_looked_at_again_later() -> None:
    seen: list[str] = []

    def look(one: Step) -> Look:
        seen.append(one.key)
        return "held" if one.key == "a" and seen.count("a") < 4 else "free"

    engine = Engine(done)
    tally = drive([step("a"), step("b")], engine, Notes(look), clock=lambda: engine.now)
    assert engine.begun == ["b", "a"]
    assert sorted(tally.done) == ["a", "b"]
    assert 30 < engine.now < 120


def test_a_busy_worker_is_no_failure() -> None:
    answers = iter(["busy", "busy", "done"])
    engine = Engine(lambda one: Ended(one.key, next(answers)))  # type: ignore[arg-type]
    tally = drive([step("a")], engine, Notes(), clock=lambda: engine.now)
    assert tally.done == ["a"]
    assert not tally.failed


def test_a_record_that_came_meanwhile_is_not_made_again() -> None:
    engine = Engine(done)
    tally = drive([step("a"), step("b")], engine, Notes(lambda one: "done"))
    assert engine.begun == []
    assert sorted(tally.done) == ["a", "b"]


def test_nothing_is_shared_by_runs_that_are_done() -> None:
    engine = Engine(done)
    steps = [step("shared"), step("shared too", "shared"), step("a", "shared too")]
    drive(steps, engine, Notes(lambda one: "done" if one.records else "free"))
    assert engine.begun == []


def test_what_another_sweep_failed_at_meanwhile_is_not_tried_again(tmp_path: Path) -> None:
    state = State(Folder(tmp_path))
    state.fail("a", "of an earlier sweep")
    now = 0.0
    books = Books(place_of(tmp_path), state, clock=lambda: now)
    assert books.look(step("a")) == "free"
    state.fail("b", "no luck")
    state.fail("a", "again")
    now = 60.0
    assert [books.look(step(key)) for key in "abc"] == ["failed", "failed", "free"]
    engine = Engine(done)
    tally = drive([step("b"), step("c")], engine, books, clock=lambda: now)
    assert engine.begun == ["c"]
    assert tally.failed == {"b": "no luck"}


def test_what_doesnt_fit_waits_and_smaller_steps_go_before_it() -> None:
    engine = Engine(done, places=3)
    steps = [step("big", hours=9, memory=5000.0), step("big2", hours=8, memory=5000.0)]
    drive([*steps, step("small"), step("small2")], engine, Notes())
    assert engine.begun == ["big", "small", "small2", "big2"]


def test_the_engine_is_closed_when_the_user_interrupts() -> None:
    def told(one: Step) -> Ended:
        raise KeyboardInterrupt

    engine = Engine(told)
    with pytest.raises(KeyboardInterrupt):
        drive([step("a")], engine, Notes())
    assert engine.closed


def test_a_store_that_is_gone_for_a_while_ends_no_sweep() -> None:
    def look(one: Step) -> Look:
        raise InputError("gone")

    assert drive([step("a")], Engine(done), Notes(look)).done == ["a"]
