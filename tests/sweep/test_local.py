"""Workers on this machine: same bytes however many, whatever becomes of them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.core.progress import Reporter
from fairbench.runs.running import run
from fairbench.sweep.engine import Crew
from fairbench.sweep.engines.local import Local
from fairbench.sweep.steps import Ended
from fairbench.sweep.sweeping import Sweep

WORDS = ("--dataset", "analytic", "--num-images", "100", "--device", "cpu")
PLAN = ("--methods", "vanilla,prompt_append", "--tasks", "tone,tone_hue", *WORDS)


def started(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fairbench", "sweep", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def by_hand(whole: Sweep, results: Path) -> None:
    """The runs of a sweep one by one in this process, in another order."""
    for one in reversed(whole.asked):
        run(replace(one.config, results=results))


def test_a_sweep_leaves_what_runs_one_by_one_leave(
    tmp_path: Path,
    sweep_of: Callable[..., Sweep],
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    whole = sweep_of(methods=["vanilla"])
    notes: list[str] = []
    tally = whole.run(Local, jobs=2, device="cpu", report=Reporter(note=notes.append))
    assert whole.counts() == {"done": 2, "running": 0, "failed": 0, "missing": 0}
    assert len(tally.done) == 3  # the images, which two tasks share, among them
    assert any(note.startswith("done: images of 2 runs") for note in notes)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another"))
    by_hand(whole, tmp_path / "alone")
    assert left(tmp_path / "results") == left(tmp_path / "alone")
    assert not list((tmp_path / "results" / ".sweep" / "claims").iterdir())
    again = sweep_of(methods=["vanilla"])
    assert again.run(Local, report=Reporter()).done == []


def test_a_failed_run_blocks_no_other_and_is_tried_again_when_asked(tmp_path: Path) -> None:
    words = ["--methods", "vanilla", "--tasks", "tone", "--seeds", "0,1", *WORDS]
    told = json.loads(CliRunner().invoke(app, ["sweep", *words, "--dry-run", "--json"]).stdout)
    damaged = tmp_path / "results" / told["runs"][0]["record"]
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    done = CliRunner().invoke(app, ["sweep", *words, "--jobs", "2", "--retry-failed"])
    assert done.exit_code == 2
    assert "swept    1 of 2 runs have a record, 1 failed" in done.stdout
    status = CliRunner().invoke(app, ["sweep", "status", *words])
    assert status.exit_code == 0
    assert "2 runs: 1 done, 0 running, 1 failed, 0 missing" in status.stdout
    assert "restore the file, or move it away" in status.stdout
    damaged.unlink()  # and still it isn't tried again by itself
    json_ = CliRunner().invoke(app, ["sweep", "status", *words, "--json"])
    failed = [one for one in json.loads(json_.stdout)["runs"] if one["standing"] == "failed"]
    assert [one["key"] for one in failed] == [damaged.stem]
    assert json.loads(json_.stdout)["steps"] == []
    retried = CliRunner().invoke(app, ["sweep", *words, "--retry-failed"])
    assert retried.exit_code == 0
    assert not list((tmp_path / "results" / ".sweep" / "failed").iterdir())


def test_notes_of_a_sweep_are_no_records(tmp_path: Path, sweep_of: Callable[..., Sweep]) -> None:
    whole = sweep_of(methods=["vanilla"], tasks=["tone"])
    (one,) = whole.asked
    run(replace(one.config, results=tmp_path / "results"))
    whole.state.fail("key", "no luck")
    assert whole.state.claim("other", "a worker")
    board = CliRunner().invoke(app, ["leaderboard", "--format", "csv"])
    assert board.exit_code == 0
    assert board.stderr == ""
    checked = CliRunner().invoke(app, ["leaderboard", "validate", "results", "--json"])
    assert [Path(told["record"]).stem for told in json.loads(checked.stdout)] == [one.key]


def test_slots_are_as_many_as_asked_and_memory_decides_what_begins(
    monkeypatch: pytest.MonkeyPatch, sweep_of: Callable[..., Sweep]
) -> None:
    engine = Local(Crew("results", "cpu", jobs=3))
    first, second = sweep_of(methods=["vanilla"], seeds=[0, 1], tasks=["tone"]).steps(
        retry_failed=False
    )
    available = psutil.virtual_memory().available / 2**20
    huge = replace(second, memory_mib=2 * available)
    assert engine.room(huge)  # alone it is tried
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kept: _Sleeping(args[0], kept["stdout"])
    )
    engine.start(replace(first, memory_mib=100.0))
    assert not engine.room(huge)
    assert engine.room(replace(second, memory_mib=100.0))
    assert not engine.full()
    promised = replace(first, memory_mib=available - 600)
    engine.start(promised)
    assert not engine.room(replace(second, memory_mib=400.0))  # although all is still free
    engine.start(second)
    assert engine.full()
    engine.close()
    assert not engine.full()


class _Sleeping:
    """A process that runs for ever, and holds nothing."""

    pid = 2**22 + 1

    def __init__(self, words: Sequence[str], out: Any) -> None:
        self.stdin = open(os.devnull, "wb")  # noqa: PTH123, SIM115

    def poll(self) -> None:
        return None

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_that_are_killed_at_random_change_nothing(
    tmp_path: Path,
    sweep_of: Callable[..., Sweep],
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    class Killed(Local):
        """Kills a worker now and then."""

        rng, kills = random.Random(0), 0

        def wait(self, seconds: float) -> Sequence[Ended]:
            ended = super().wait(min(seconds, self.rng.uniform(0.5, 5)))
            running = [one for one in self._workers if one.process.poll() is None]
            if not ended and running and self.kills < 6:
                os.killpg(self.rng.choice(running).process.pid, signal.SIGKILL)
                self.kills += 1
                type(self).kills = self.kills
            return ended

    whole = sweep_of(seeds=[0, 1])
    tally = whole.run(Killed, jobs=2, device="cpu", report=Reporter())
    assert Killed.kills == 6
    assert tally.lost >= 1
    assert whole.counts()["done"] == len(whole.asked) == 8
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another"))
    by_hand(whole, tmp_path / "alone")
    assert left(tmp_path / "results") == left(tmp_path / "alone")


@pytest.mark.slow
def test_two_sweeps_of_one_plan_at_once_share_the_work(
    tmp_path: Path,
    sweep_of: Callable[..., Sweep],
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Path], dict[str, Any]],
) -> None:
    both = [started((*PLAN, "--seeds", "0,1", "--jobs", "1"), tmp_path) for _ in range(2)]
    errors = [one.communicate(timeout=900)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], errors
    made = [line for text in errors for line in text.splitlines() if line.startswith("done: ")]
    # What is shared may be looked for by both; the second finds it in the cache.
    runs = [line.rpartition(" (")[0] for line in made if "images of" not in line]
    assert len(runs) == len(set(runs)) == 8
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "another"))
    by_hand(sweep_of(seeds=[0, 1]), tmp_path / "alone")
    assert left(tmp_path / "results") == left(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_ended_leaves_no_worker_and_goes_on_later(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = (*PLAN, "--seeds", "0", "--jobs", "2")
    sweep = started(words, tmp_path)
    children: list[psutil.Process] = []
    until = time.monotonic() + 120
    while len(children) < 2 and time.monotonic() < until:
        children = psutil.Process(sweep.pid).children(recursive=True)
        time.sleep(0.1)
    time.sleep(3)
    sweep.send_signal(number)
    _, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert not list((tmp_path / "results").glob(".sweep/claims/*"))
    again = started(words, tmp_path)
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
