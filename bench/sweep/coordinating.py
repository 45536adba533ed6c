"""The one loop that hands steps to an engine: what waits for what, retries, and failures."""

from __future__ import annotations

import heapq
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fairbench.core.errors import FairbenchError
from fairbench.storage.places import Place
from fairbench.sweep.engine import Engine
from fairbench.sweep.state import State
from fairbench.sweep.steps import Ended, Step, urgency

__all__ = ["ATTEMPTS", "Books", "Look", "Tally", "drive"]

ATTEMPTS = 5
"""How often a step is begun whose workers die, before it counts as failed."""

PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds until a step that another sweep is at is looked at again: first, and at most."""

FRESH = 10.0
"""Seconds that a list of claims is gone by."""

SEARCHED = 64
"""Steps of a queue that are asked whether they fit, where the first doesn't."""

SHARED = "what it shares with other runs"

Look = Literal["free", "done", "held", "failed"]


class Books:
    """What the loop asks and tells the results; every method may raise what a store raises.

    Args:
        place: Where the records are.
        state: Claims and notes beside them.
        clock: Seconds.
    """

    def __init__(
        self, place: Place, state: State, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place, self._state, self._clock = place, state, clock
        self._held: set[str] = set()
        self._before: Mapping[str, str] | None = None
        self._seen = -math.inf

    def look(self, step: Step) -> Look:
        """Whether a step needs to be begun, now that its turn has come.

        Claims, of which there are no more than workers, are listed now and then: a worker asks
        again anyway. Notes of failures grow with the runs, so only the step's own is asked for.
        Failures from before the sweep don't count, so that they can be tried again.
        """
        if self._before is None:
            self._before = self._state.noted()
        if self._clock() - self._seen > FRESH:
            self._held, self._seen = self._state.running(), self._clock()
        if step.key in self._held:
            return "held"
        tag = self._state.note(step.key)
        if tag is not None and self._before.get(step.key) != tag:
            return "failed"
        if self._place.mirrored:  # its worker looks
            return "free"
        from fairbench.storage.records import find_record

        for name in step.records:
            path = self._place.folder / name
            if path.exists() and find_record(path) is not None:
                return "done"
        return "free"

    def why(self, step: Step) -> str:
        """Why a step failed, whoever tried it."""
        failure = self._state.failure(step.key)
        return "failed" if failure is None else failure.line

    def fail(self, step: Step, line: str) -> None:
        """Keep why a run failed whose worker couldn't."""
        self._state.fail(step.key, line)


@dataclass
class Tally:
    """What became of a sweep's steps.

    Attributes:
        done: Keys of the steps that were done, by this sweep or another.
        failed: Key -> why.
        seconds: What workers took for steps, those included that were lost.
        wasted: What they took for attempts that were lost, failed, or another's already.
        lost: Attempts whose workers died.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    wasted: float = 0.0
    lost: int = 0


def drive(
    steps: Sequence[Step],
    engine: Engine,
    books: Books,
    *,
    tell: Callable[[Step, Ended], None] = lambda step, ended: None,
    clock: Callable[[], float] = time.monotonic,
) -> Tally:
    """Do all steps, as many at once as the engine takes, the longest chains first.

    A step that fails takes along those that wait for it, and no other; one whose worker dies is
    begun again. The engine is closed at the end, whatever that is.

    Args:
        steps: Each behind those that it needs.
        engine: Does them.
        books: The results.
        tell: Called with every step that ended, those included that are begun again.
        clock: Seconds.
    """
    loop = _Loop(steps, engine, books, tell, clock)
    try:
        while loop.going():
            loop.begin()
            for ended in engine.wait(loop.patience()):
                loop.end(ended)
    finally:
        engine.close()
    return loop.tally


class _Loop:
    """The state of `drive`: every step is waiting, ready, begun, put off or ended."""

    def __init__(
        self,
        steps: Sequence[Step],
        engine: Engine,
        books: Books,
        tell: Callable[[Step, Ended], None],
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._books, self._tell, self._clock = engine, books, tell, clock
        self._steps = {step.key: step for step in steps}
        self._urgent: Mapping[str, float] = urgency(steps)
        self._needs = {
            step.key: {key for key in step.after if key in self._steps} for step in steps
        }
        self._behind: dict[str, list[str]] = defaultdict(list)
        for key, needed in self._needs.items():
            for other in needed:
                self._behind[other].append(key)
        self._order = {key: place for place, key in enumerate(self._steps)}
        self._ready: list[tuple[float, int, str]] = []
        self._begun: set[str] = set()
        self._off: list[tuple[float, int, str]] = []
        self._pauses: dict[str, float] = {}
        self._attempts: dict[str, int] = defaultdict(int)
        self.tally = Tally()
        for key, needed in self._needs.items():
            if not needed:
                self._make_ready(key)

    def going(self) -> bool:
        """Whether a step hasn't ended yet."""
        return bool(self._ready or self._begun or self._off)

    def patience(self) -> float:
        """Seconds that the engine may wait for a step to end."""
        if self._off:
            return max(0.01, min(self._off[0][0] - self._clock(), LONGEST_PAUSE))
        return 0.0 if self._ready and not self._begun else LONGEST_PAUSE

    def begin(self) -> None:
        """Begin what can begin."""
        while self._off and self._off[0][0] <= self._clock():
            self._make_ready(heapq.heappop(self._off)[2])
        skipped: deque[tuple[float, int, str]] = deque()
        while self._ready and len(skipped) < SEARCHED and not self._engine.full():
            place = heapq.heappop(self._ready)
            step = self._steps[place[2]]
            if not self._engine.room(step):
                skipped.append(place)
                continue
            match self._look(step):
                case "done":
                    self._finish(step, Ended(step.key, "done", "found"))
                case "failed":  # by another sweep, which then told why
                    self._finish(step, Ended(step.key, "failed", self._why(step)))
                case "held":
                    self._put_off(step)
                case _:
                    self._begun.add(step.key)
                    self._engine.start(step)
        for place in skipped:
            heapq.heappush(self._ready, place)

    def end(self, ended: Ended) -> None:
        """Take note of a step that ended."""
        step = self._steps[ended.key]
        self._begun.discard(step.key)
        self.tally.seconds += ended.seconds
        if ended.outcome != "done":
            self.tally.wasted += ended.seconds
        if ended.outcome == "busy":
            self._tell(step, ended)
            self._put_off(step)
        elif ended.outcome == "lost":
            self.tally.lost += 1
            self._attempts[step.key] += 1
            if self._attempts[step.key] < ATTEMPTS:
                self._tell(step, ended)
                self._make_ready(step.key)
                return
            line = f"{ATTEMPTS} workers died of it, the last one so: {ended.line}"
            self._keep(step, line)
            self._finish(step, Ended(step.key, "failed", line))
        else:
            self._finish(step, ended)

    def _look(self, step: Step) -> Look:
        try:
            seen = self._books.look(step)
            if seen == "free" and not step.records and self._idle(step.key):
                return "done"
            return seen
        except (FairbenchError, OSError):  # the worker says what is wrong there
            return "free"

    def _why(self, step: Step) -> str:
        try:
            return self._books.why(step)
        except (FairbenchError, OSError) as error:
            return f"failed; why can't be read ({error})"

    def _idle(self, key: str) -> bool:
        """Whether all that waits for a shared step is done, by another sweep."""
        waiting = [self._steps[other] for other in self._behind[key]]
        return bool(waiting) and all(
            self._books.look(one) == "done" if one.records else self._idle(one.key)
            for one in waiting
        )

    def _keep(self, step: Step, line: str) -> None:
        try:
            self._books.fail(step, line)
        except (FairbenchError, OSError):  # it is told all the same, and tried by the next sweep
            return

    def _make_ready(self, key: str) -> None:
        heapq.heappush(self._ready, (-self._urgent[key], self._order[key], key))

    def _put_off(self, step: Step) -> None:
        pause = self._pauses.get(step.key, PAUSE)
        self._pauses[step.key] = min(2 * pause, LONGEST_PAUSE)
        heapq.heappush(self._off, (self._clock() + pause, self._order[step.key], step.key))

    def _finish(self, step: Step, ended: Ended) -> None:
        self._tell(step, ended)
        if ended.outcome == "done":
            self.tally.done.append(step.key)
            for key in self._behind[step.key]:
                self._needs[key].discard(step.key)
                if not self._needs[key]:
                    self._make_ready(key)
            return
        self.tally.failed[step.key] = ended.line
        for key in self._behind[step.key]:
            if key in self.tally.failed:
                continue
            other = self._steps[key]
            line = ended.line
            if not line.startswith(SHARED):
                line = f"{SHARED} failed: {line}"
            if other.records:
                self._keep(other, line)
            self._finish(other, Ended(key, "failed", line))
