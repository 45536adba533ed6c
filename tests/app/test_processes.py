"""Runs shared by processes, as the page on several of them starts them: same bytes as one."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "gpu_and_scale.md"
QUICK = shlex.split("--num-images 130 --steps 2 --device cpu --json")
GUIDED = shlex.split("--param classifier_steps=2 --param trajectories=12 --param batch=32")
TRAINED = shlex.split("--param steps=2 --param batch=8")


def page_s_command(*options: str) -> list[str]:
    """The command that the page gives, with other options behind it."""
    (line,) = re.findall(r"^python -m torch.distributed.run .*$", PAGE.read_text(), re.MULTILINE)
    words = shlex.split(line)
    words[0] = sys.executable
    return [*words, *options]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"FAIRBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def record_of(folder: Path, command: list[str]) -> dict[str, Any]:
    """What a command printed, run in a folder with a cache of its own."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    assert record["status"] == "complete"
    return record


def alone(folder: Path, *options: str) -> dict[str, Any]:
    return record_of(folder, [sys.executable, "-m", "fairbench", "run", *options])


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Images, labels and scores are those of the other record, to the byte."""
    for name in ("key", "generation_key", "sidecar", "scores", "groups"):
        assert one[name] == other[name], name


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return alone(tmp_path_factory.mktemp("one") / "run", "--method", "vanilla", *QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("count", ["2", "4"])
def test_any_number_of_processes_makes_the_same_bytes(
    tmp_path: Path, by_one: dict[str, Any], count: str
) -> None:
    command = page_s_command(*QUICK)
    command[command.index("2")] = count

    same(record_of(tmp_path, command), by_one)

    assert not list((tmp_path / "cache").rglob("*.part*"))  # parts of readings are put together


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_two_processes_that_are_killed_go_on_to_the_same_bytes(
    tmp_path: Path, by_one: dict[str, Any]
) -> None:
    running = subprocess.Popen(
        page_s_command(*QUICK),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not list((tmp_path / "cache").glob("images/*/batch-*.npz")):
        assert running.poll() is None
        assert time.monotonic() < deadline, "no batch was stored"
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()

    same(record_of(tmp_path, page_s_command(*QUICK)), by_one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["balanced_data", "distribution_guidance"])
def test_the_first_process_trains_for_all(tmp_path: Path, method: str) -> None:
    """Coupled batches among them, whose images depend on each other."""
    options = ["--method", method, *QUICK]
    options += TRAINED if method == "balanced_data" else GUIDED

    shared = record_of(tmp_path / "two", page_s_command(*options))

    assert "processes" not in shared["config"]
    same(shared, alone(tmp_path / "one", *options))


@pytest.mark.slow
def test_a_shared_training_has_a_key_of_its_own(tmp_path: Path) -> None:
    options = ["--method", "balanced_data", *QUICK, *TRAINED, "--data-parallel"]
    record = record_of(tmp_path, page_s_command(*options))
    assert record["config"]["processes"] == 2
