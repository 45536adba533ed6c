"""A full disk is one line and exit code 2, leaves nothing half-written, and passes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from typer.testing import CliRunner

from fairbench.app.cli import app
from fairbench.app.terminal import ENVIRONMENT
from fairbench.core.progress import Reporter
from fairbench.runs.baselines import SHIPPED
from fairbench.storage import files
from fairbench.storage.networks import load_state, save_state
from fairbench.sweep.plan import plan_of
from fairbench.sweep.state import Failure
from fairbench.sweep.sweeping import Sweep
from fairbench.sweep.work import perform

WORDS = ("--dataset", "analytic", "--num-images", "100", "--device", "cpu")
RUN = ("run", "--method", "vanilla", "--task", "tone", *WORDS)
OF_THE_MACHINE = ("seconds", "peak_memory_mib", "environment", "created")


class Disk:
    """What fairbench writes by `atomic_write` goes to a disk with so many bytes of room."""

    def __init__(self) -> None:
        self.room: float = float("inf")

    def begun(self, path: Path) -> tuple[IO[bytes], Path]:
        file, part = BEGUN(path)
        return _Short(file, self), part  # type: ignore[return-value]


class _Short:
    """A file of a `Disk`."""

    def __init__(self, file: IO[bytes], disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Short:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> int:
        if len(memoryview(content).cast("B")) > self._disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk.room -= len(memoryview(content).cast("B"))
        return self._file.write(content)


BEGUN = files._begun


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    found = Disk()
    monkeypatch.setattr(files, "_begun", found.begun)
    return found


def refused(*words: str) -> str:
    """The one line on stderr of a command that a full disk ended."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if not line.startswith("done")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("fairbench: ")
    assert "No space left on device" in lines[0]
    return lines[0]


def check_whole(folder: Path) -> None:
    """Read every file; none is hidden and unfinished."""
    for path in folder.rglob("*"):
        assert not path.name.endswith(".part"), path
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None, path


def left(results: Path) -> dict[str, Any]:
    """What of a results folder doesn't depend on when and where it was made."""
    found: dict[str, Any] = {}
    for path in sorted(results.glob("*/*/*")):
        found[path.name] = path.read_bytes()
        if path.suffix == ".json":
            record = json.loads(found[path.name])
            found[path.name] = {k: v for k, v in record.items() if k not in OF_THE_MACHINE}
    return found


def test_a_run_ends_in_one_line_wherever_the_disk_is_full_and_goes_on_later(
    disk: Disk, tmp_path: Path
) -> None:
    told = []
    # Images, what they were measured as, picture, sidecar, record.
    for room in (0, 41_000, 50_000, 20_000, 30_000):
        disk.room = room
        told.append(refused(*RUN, "--quiet"))
        check_whole(tmp_path)
    assert len(set(told)) > 2  # each names the file that didn't fit
    disk.room = float("inf")
    done = CliRunner().invoke(app, [*RUN, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    undisturbed = CliRunner().invoke(app, [*RUN, "--quiet", "--results", "alone"])
    assert undisturbed.exit_code == 0
    assert left(tmp_path / "results") == left(tmp_path / "alone")


def test_measuring_and_boards_end_in_one_line(disk: Disk, tmp_path: Path) -> None:
    made = tmp_path / "results" / "cartoonfaces" / "vanilla"
    made.mkdir(parents=True)
    for path in SHIPPED.glob("*.json"):
        (made / path.name).write_bytes(path.read_bytes())
    disk.room = 0
    for name in ("board.csv", "board.md", "board.png"):
        option = "--plot" if name.endswith("png") else "--output"
        assert name in refused("leaderboard", option, name)
        assert not (tmp_path / name).exists()
    words = ("check", "--baseline", "baseline.json", "--results", "results", "--update")
    assert "baseline.json" in refused(*words)
    check_whole(tmp_path)
    disk.room = float("inf")
    assert CliRunner().invoke(app, ["leaderboard", "--output", "board.csv"]).exit_code == 0


def test_rescoring_stops_at_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, [*RUN, "--quiet"]).exit_code == 0
    (path,) = (tmp_path / "results").glob("*/*/*.json")
    record = json.loads(path.read_text())
    for score in record["scores"]:
        score["version"] = 0
    path.write_text(json.dumps(record))
    before = path.read_bytes()
    disk.room = 100
    assert path.name in refused("rescore", "--quiet")
    assert path.read_bytes() == before
    disk.room = float("inf")
    assert CliRunner().invoke(app, ["rescore", "--quiet"]).exit_code == 0
    assert path.read_bytes() != before


def test_a_state_of_a_training_that_does_not_fit_is_told_as_what_it_is(
    disk: Disk, tmp_path: Path
) -> None:
    disk.room = 50_000
    with pytest.raises(OSError, match="No space left") as error:
        save_state(tmp_path / "a.pt", {"weights": torch.zeros(100, 1000)})
    assert error.value.filename == str(tmp_path / "a.pt")
    assert files.full_disk(error.value) is error.value
    assert load_state(tmp_path / "a.pt") is None
    check_whole(tmp_path)


def test_what_lies_behind_an_error_is_found() -> None:
    taken = OSError(errno.ENOTDIR, "Not a directory", "cache/images/a.npz")
    assert "images/a.npz: Not a directory; move away what lies" in files.disk_line(taken)
    assert taken.errno in ENVIRONMENT
    full, own = OSError(errno.EDQUOT, "Disk quota exceeded"), RuntimeError("a library's own")
    own.__context__ = full
    assert files.full_disk(own) is full
    assert files.full_disk(OSError(errno.EACCES, "Permission denied")) is None
    assert files.full_disk(ValueError()) is None


def swept(results: str = "results", *tasks: str) -> Sweep:
    said = {"dataset": "analytic", "methods": ["vanilla"], "num_images": 100}
    plan = plan_of({**said, "tasks": [*tasks] or ["tone"]}, "the test")
    return Sweep.of(plan, results, Reporter(), device="cpu")


def test_what_a_full_disk_failed_is_noted_and_tried_again_by_the_next_sweep(
    disk: Disk, tmp_path: Path
) -> None:
    (step,) = swept().steps(retry_failed=False)
    disk.room = 75_000  # for the images and what they were measured as
    told = perform(step, "results", "a worker")
    assert told.outcome == "failed"
    assert "No space left on device" in told.line
    assert "\n" not in told.line
    check_whole(tmp_path)
    disk.room = float("inf")
    perform(step, "results", "a worker")  # as any of the next sweep
    assert swept().counts()["done"] == 1

    whole = swept("another")
    whole.place.folder.mkdir()
    whole.state.fail(step.key, told.line)
    whole.state.fail("other", "no luck")
    again = swept("another")
    assert again.counts()["failed"] == 1
    assert again.passing(again.asked[0])
    assert [one.key for one in again.steps(retry_failed=False)] == [step.key]
    again.state.fail(step.key, "no luck")
    assert swept("another").steps(retry_failed=False) == []
    assert not Failure("no luck").passing


def test_the_note_of_a_shared_step_goes_when_it_is_done(disk: Disk) -> None:
    whole = swept("results", "tone", "tone_hue")
    step = whole.steps(retry_failed=False)[0]
    assert step.kind == "images"
    disk.room = 3000  # for the claim and the note
    assert perform(step, "results", "a worker").outcome == "failed"
    assert whole.state.failures().keys() == {step.key}
    disk.room = float("inf")
    assert perform(step, "results", "a worker").outcome == "done"
    assert whole.state.failures() == {}


def test_a_failure_that_no_note_fits_of_is_told_at_the_end(disk: Disk, tmp_path: Path) -> None:
    whole = swept()
    (one,) = whole.asked
    noted = whole.standings.with_failed({one.key: "a: No space left on device", "other": "no"})
    assert noted.standing == {one.key: "failed"}
    assert noted.failures[one.key].line == "a: No space left on device"
    assert noted.left(whole.asked, retry_failed=False) == [one]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk, which becomes another size each time it is asked for."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place)]
    try:
        made = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")

    def of(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
        return place

    yield of
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "sizes"), [("results", ("4k", "64k")), ("FAIRBENCH_CACHE", ("12k", "64k"))]
)
def test_a_sweep_on_a_disk_that_is_too_small_ends_on_a_larger_one(
    mounted: Callable[[str], Path], tmp_path: Path, what: str, sizes: tuple[str, ...]
) -> None:
    cache = mounted("4k") if what == "FAIRBENCH_CACHE" else tmp_path / "cache"
    results = mounted("4k") / "results" if what == "results" else tmp_path / "results"
    words = ("--methods", "vanilla", "--tasks", "tone,tone_hue", *WORDS, "--jobs", "1")

    def sweep(results: Path, cache: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fairbench", "sweep", *words, "--results", str(results)],
            env=os.environ | {"FAIRBENCH_CACHE": str(cache)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    for size in sizes:
        mounted(size)
        done = sweep(results, cache)
        told = done.stdout + done.stderr
        assert done.returncode == 2, told
        assert "Traceback" not in told
        assert "No space left on device" in told or "free some space" in told
        end = [line for line in done.stdout.splitlines() if line.startswith("swept")]
        if end:  # else it couldn't even begin
            assert "0 failed" not in end[0]
            assert not list((results / ".sweep" / "claims").glob("*.json"))
        check_whole(tmp_path)
    mounted("100m")
    done = sweep(results, cache)
    assert done.returncode == 0, done.stdout + done.stderr
    done = sweep(tmp_path / "alone", tmp_path / "another")
    assert done.returncode == 0, done.stderr
    assert left(results) == left(tmp_path / "alone")
