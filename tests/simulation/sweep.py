"""Sweeps of clusters that aren't here: the real loop and the real claims, with fake time and work.

By hand:

    python tests/simulation/sweep.py --runs 10000 --workers 512

What is simulated: how long steps take, wrong estimates of that, steps that fail, workers that are
killed or preempted (what they made up to their last checkpoint is kept), machines' clocks that are
wrong by hours, several sweeps of the same plan at once, and a sweep that dies with its workers.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fairbench.runs.config import RunConfig
from fairbench.storage.objects import Entry
from fairbench.storage.places import Place
from fairbench.sweep.coordinating import Books, Tally, drive
from fairbench.sweep.state import BEAT, State
from fairbench.sweep.steps import Ended, Step

HOUR = 3600.0
CONFIG = RunConfig("vanilla")
RECORD_OPERATIONS = 8
"""Of a worker for a record at an address: tests/storage/test_places.py counts them."""


@dataclass(frozen=True)
class Case:
    """What a simulation is of; times in seconds, rates an hour of a worker."""

    runs: int = 10_000
    workers: int = 512
    sweeps: int = 1
    mean: float = 0.5 * HOUR
    spread: float = 0.8
    training: float = 1.0 * HOUR
    kills: float = 0.02
    failing: float = 0.01
    start: float = 15.0
    checkpoint: float = 300.0
    noticed: float = 30.0
    skew: float = 6 * HOUR
    dies: float = math.inf
    seed: int = 0


@dataclass(frozen=True)
class File:
    """A file, when it was written, and whose it is if it is a claim."""

    content: bytes
    written: float
    holder: str | None


class Store:
    """A store of small files in fake time, whose operations are counted."""

    address = "simulated://results"

    def __init__(self, world: World) -> None:
        # By folder, as those of a disk and the prefixes of a bucket: a list costs what it lists.
        self.world, self.folders = world, defaultdict[str, dict[str, File]](dict)
        self.operations: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.caller = "coordinator"
        self.dead: dict[str, float] = {}

    @contextmanager
    def by(self, caller: str):
        before, self.caller = self.caller, caller
        yield
        self.caller = before

    def count(self, number: int = 1) -> None:
        self.operations[self.caller] += number

    def modified(self, name: str, file: File) -> float:
        """When a claim's holder gave its last sign of life, or a file was written."""
        if file.holder is None:
            return file.written
        until = min(self.world.now, self.dead.get(f"{name} {file.holder}", math.inf))
        return file.written + BEAT * max(0.0, (until - file.written) // BEAT)

    def file(self, name: str) -> File | None:
        return self.folders[name.rpartition("/")[0]].get(name)

    def put(self, name: str, content: bytes) -> None:
        holder = None
        if name.startswith(".sweep/claims/"):
            holder = json.loads(content)["holder"]
        self.folders[name.rpartition("/")[0]][name] = File(content, self.world.now, holder)

    def list(self, below: str = "") -> dict[str, Entry]:
        self.count()
        found = {}
        for name, file in self.folders[below].items():
            modified = self.modified(name, file)
            found[name] = Entry(str(modified), modified)
        self.told[self.caller] += len(found)
        return found

    def entry(self, name: str) -> Entry | None:
        self.count()
        file = self.file(name)
        if file is None:
            return None
        modified = self.modified(name, file)
        return Entry(str(modified), modified)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        self.count(len(names))
        found = {name: self.file(name) for name in names}
        return {name: file.content for name, file in found.items() if file is not None}

    def write(self, name: str, content: bytes) -> None:
        self.count()
        self.put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        self.count()
        if self.file(name) is not None:
            return False
        self.put(name, content)
        return True

    def remove(self, name: str) -> None:
        self.count()
        self.folders[name.rpartition("/")[0]].pop(name, None)

    def clock(self) -> float:
        self.count(3)  # write, look, remove
        return self.world.now


@dataclass
class World:
    """Fake time: what happens when, and whose turn it is."""

    case: Case
    now: float = 1e9
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.case.seed)
        self.store = Store(self)
        self.truth: dict[str, float] = {}
        self.left: dict[str, float] = {}
        self.bad: set[str] = set()
        self.made: Counter[str] = Counter()
        self.worked = self.wasted = 0.0
        self.cached: set[str] = set()

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what))

    def run(self, done: Callable[[], bool]) -> None:
        while self.events and not done():
            self.now, _, what = heapq.heappop(self.events)
            what()


class DiedError(Exception):
    """A sweep that ends without a word, and its workers with it."""


class Cluster:
    """The engine of one sweep: workers of the world; `wait` gives the turn to others."""

    def __init__(self, world: World, name: str, workers: int, dies: float) -> None:
        self.world, self.name, self.workers, self.dies = world, name, workers, world.now + dies
        self.running: dict[str, Callable[[], None]] = {}
        self.ended: list[Ended] = []
        self.turn, self.waiting = threading.Event(), threading.Event()
        self.token = 0
        self.inside = 0.0

    def full(self) -> bool:
        return len(self.running) >= self.workers

    def room(self, step: Step) -> bool:
        return True

    def start(self, step: Step) -> None:
        begun = time.thread_time()
        self.running[step.key] = lambda: None
        self.world.at(self.world.now + self.world.case.start, lambda: self.work(step))
        self.inside += time.thread_time() - begun

    def wait(self, seconds: float) -> Sequence[Ended]:
        if not self.ended:
            self.token += 1
            token = self.token
            self.world.at(self.world.now + max(seconds, 0.001), lambda: self.wake(token))
            self.waiting.set()
            self.turn.wait()
            self.turn.clear()
        if self.world.now >= self.dies:
            raise DiedError
        ended, self.ended = self.ended, []
        return ended

    def wake(self, token: int) -> None:
        """Let the sweep go on until it waits again."""
        if token != self.token:
            return
        self.token += 1
        self.waiting.clear()
        self.turn.set()
        self.waiting.wait()

    def close(self) -> None:
        self.running.clear()

    def tell(self, ended: Ended) -> None:
        if self.running.pop(ended.key, None) is not None:
            self.ended.append(ended)
            self.wake(self.token)

    def work(self, step: Step) -> None:
        """What `fairbench.sweep.work.perform` does, in fake time."""
        world, store = self.world, self.world.store
        case, key = world.case, step.key
        if world.now >= self.dies or key not in self.running:
            return
        holder = f"{self.name} {key}"
        state = State(store)
        with store.by("worker"):
            store.count(len(step.records))
            if any(store.file(name) is not None for name in step.records):
                self.tell(Ended(key, "done", "found", 1.0))
                return
            if not state.claim(key, holder):
                world.wasted += case.start
                self.tell(Ended(key, "busy", "", 1.0))
                return
        store.dead.pop(f".sweep/claims/{key}.json {holder}", None)
        needed = 1.0 if key in world.cached else world.left.setdefault(key, world.truth[key])
        if key in world.bad:
            needed *= 0.5
        killed = world.rng.expovariate(case.kills / HOUR) if case.kills else math.inf
        began = world.now
        if killed < needed or began + needed >= self.dies:
            lasts = min(killed, self.dies - began)
            kept = case.checkpoint * (lasts // case.checkpoint)
            world.left[key] = needed - kept
            world.worked += lasts
            world.wasted += lasts - kept
            store.dead[f".sweep/claims/{key}.json {holder}"] = began + lasts
            lost = Ended(key, "lost", "killed", lasts)
            world.at(began + lasts + world.rng.uniform(0, case.noticed), lambda: self.tell(lost))
            return
        world.at(began + needed, lambda: self.end(step, holder, needed))

    def end(self, step: Step, holder: str, took: float) -> None:
        world, store, key = self.world, self.world.store, step.key
        world.worked += took
        with store.by("signs of life"):
            store.count(int(took // BEAT))
        with store.by("worker"):
            state = State(store)
            if key in world.bad:
                world.wasted += took
                state.fail(key, "bad luck")
                state.release(key, holder)
                self.tell(Ended(key, "failed", "bad luck", took))
                return
            if key not in world.cached or step.records:
                world.made[key] += 1
                world.wasted += took if world.made[key] > 1 else 0.0
            world.cached.add(key)
            if step.records:
                store.put(step.records[0], b"")
                store.count(RECORD_OPERATIONS)
            state.forget(key)
            state.release(key, holder)
        self.tell(Ended(key, "done", "", took))


def graph(case: Case, world: World) -> list[Step]:
    """A plan: of ten runs four share a training, three others images, three nothing."""
    rng = world.rng
    steps: list[Step] = []

    def add(key: str, seconds: float, *after: str) -> None:
        world.truth[key] = seconds
        told = None if rng.random() < 0.1 else seconds / HOUR * rng.lognormvariate(0, 0.3)
        records = (f"analytic/vanilla/{key}.json",) if key.startswith("run") else ()
        kind = "run" if records else ("train" if key.startswith("train") else "images")
        if rng.random() < case.failing and records:
            world.bad.add(key)
        steps.append(Step(key, kind, CONFIG, key, records, after, told))

    def length() -> float:
        mu = math.log(case.mean) - case.spread**2 / 2
        return rng.lognormvariate(mu, case.spread)

    shared: dict[int, tuple[str, ...]] = {}
    for first in range(0, case.runs, 10):
        add(f"train-{first}", case.training * rng.uniform(0.5, 2))
        add(f"images-{first}", length())
        for place in range(10):
            kind = "train" if place < 4 else "images"
            shared[first + place] = (f"{kind}-{first}",) if place < 7 else ()
    for number in range(case.runs):
        seconds = 60.0 if shared[number][:1] == (f"images-{number // 10 * 10}",) else length()
        add(f"run{number}", seconds, *shared[number])
    # Each behind those that it needs, as the real ones are.
    return sorted(steps, key=lambda step: bool(step.after))


@dataclass(frozen=True)
class Found:
    """What a simulation came to.

    Attributes:
        operations: Caller -> operations of the store a run.
        listed: Files a run whose names the store told the coordinator: what its own cost grows by.
        own_seconds: Of the CPU, the coordinator's, with what the store takes to answer it.
    """

    runs: int
    records: int
    makespan: float
    bound: float
    worked: float
    wasted: float
    operations: dict[str, float]
    listed: float
    own_seconds: float
    twice: int
    tallies: tuple[Tally | None, ...]


def simulate(case: Case) -> Found:
    """Sweep a plan to its end."""
    world = World(case)
    steps = graph(case, world)
    began = world.now
    tallies: dict[int, Tally | None] = {}
    own: dict[int, float] = {}
    clusters = [
        Cluster(
            world,
            f"sweep {number}",
            case.workers // case.sweeps,
            case.dies if number == 0 else math.inf,
        )
        for number in range(case.sweeps)
    ]

    def sweep(number: int) -> None:
        cluster = clusters[number]
        cluster.turn.wait()
        cluster.turn.clear()
        started = time.thread_time()
        place = Place(Path("nowhere"), world.store, mirrored=True)
        try:
            tallies[number] = drive(
                steps,
                cluster,
                Books(place, State(world.store), clock=lambda: world.now),
                clock=lambda: world.now,
            )
        except DiedError:
            tallies[number] = None
        own[number] = time.thread_time() - started - cluster.inside
        cluster.token = -1
        cluster.waiting.set()

    threads = [
        threading.Thread(target=sweep, args=(number,), daemon=True)
        for number in range(case.sweeps)
    ]
    true_time = time.time
    time.time = lambda: true_time() + world.rng.uniform(-case.skew, case.skew)
    try:
        for thread, cluster in zip(threads, clusters, strict=True):
            thread.start()
            world.at(began, lambda c=cluster: c.wake(c.token))
        world.run(lambda: len(tallies) == case.sweeps)
    finally:
        time.time = true_time
    needed = sum(
        seconds * (0.5 if key in world.bad else 1.0) for key, seconds in world.truth.items()
    )
    chains: dict[str, float] = defaultdict(float)
    for step in steps:
        before = max((chains[key] for key in step.after), default=0.0)
        chains[step.key] = before + world.truth[step.key]
    runs = [step for step in steps if step.records]
    return Found(
        case.runs,
        sum(world.store.file(step.records[0]) is not None for step in runs),
        world.now - began,
        max(_shortest(needed, case), max(chains.values())),
        world.worked,
        world.wasted,
        {who: number / case.runs for who, number in world.store.operations.items()},
        world.store.told["coordinator"] / case.runs,
        sum(own.values()),
        sum(number > 1 for number in world.made.values()),
        tuple(tallies[number] for number in range(case.sweeps)),
    )


def _shortest(needed: float, case: Case) -> float:
    """Seconds that so much work takes if no worker ever idles."""
    if case.dies == math.inf:
        return needed / case.workers
    rest = case.workers - case.workers // case.sweeps
    return case.dies + (needed - case.workers * case.dies) / rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    case = Case(runs=asked.runs, workers=asked.workers, seed=asked.seed)
    cases = {
        "nothing goes wrong": replace(case, kills=0.0, failing=0.0),
        "kills and failures": case,
        "two sweeps at once": replace(case, sweeps=2),
        "one of two dies": replace(case, sweeps=2, dies=2 * HOUR),
        "kills ten times as often": replace(case, kills=10 * case.kills),
    }
    for name, one in cases.items():
        found = simulate(one)
        print(
            f"{name}: {found.records} of {found.runs} records; makespan"
            f" {found.makespan / HOUR:.2f} h, bound {found.bound / HOUR:.2f} h"
            f" ({found.makespan / found.bound:.3f});"
            f" wasted {found.wasted / HOUR:.1f} of {found.worked / HOUR:.0f} h"
            f" ({found.wasted / found.worked:.2%}); operations a run: "
            + ", ".join(f"{who} {number:.2f}" for who, number in found.operations.items())
            + f"; own cost {found.own_seconds:.2f} s ({found.own_seconds / found.makespan:.4%});"
            f" done twice {found.twice}"
        )
    for runs in (1000, 4000, 16000, 64000):
        found = simulate(replace(case, runs=runs))
        print(
            f"own cost of {runs} runs: {found.own_seconds / runs * 1e6:.0f} microseconds a run"
            f" ({found.own_seconds / found.makespan:.4%}), {found.listed:.0f} files listed a run;"
            " operations a run: "
            + ", ".join(f"{who} {number:.2f}" for who, number in found.operations.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
