"""Runs shared by processes, as the page on several of them starts them: same bytes as one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairbench.datasets.cartoonfaces import load_split

PAGE = Path(__file__).parents[2] / "docs" / "gpu_and_scale.md"
QUICK = shlex.split("--num-images 130 --steps 2 --network-batch 20 --device cpu --json")
GUIDED = shlex.split("--param classifier_steps=2 --param trajectories=12 --param batch=20")
TRAINED = shlex.split("--param steps=2 --param batch=8")


def page_s_command(
    *options: str, count: str = "2", command: str | None = "run --method vanilla"
) -> list[str]:
    """The command that the page gives, with other options behind it.

    Args:
        options: What comes behind.
        count: Processes in place of the page's two.
        command: What the page has fairbench do; None: what the options begin with.
    """
    (line,) = re.findall(r"^python -m torch.distributed.run .*$", PAGE.read_text(), re.MULTILINE)
    whole = "run --method vanilla"
    assert line.endswith(f" {whole}")
    words = shlex.split(line.removesuffix(whole) + (command or ""))
    words[0] = sys.executable
    words[words.index("--nproc_per_node") + 1] = count
    return [*words, *options]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"FAIRBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def document_of(folder: Path, command: list[str]) -> dict[str, Any]:
    """The one document that a command printed, run in a folder with a cache of its own."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def record_of(folder: Path, command: list[str]) -> dict[str, Any]:
    """The complete record that a command printed."""
    record = document_of(folder, command)
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
    folder = tmp_path_factory.mktemp("one") / "run"
    record = alone(folder, "--method", "vanilla", *QUICK)
    return record | {"cache": str(folder / "cache")}


@pytest.mark.slow
@pytest.mark.parametrize("count", ["2", "4"])
def test_any_number_of_processes_makes_the_same_bytes(
    tmp_path: Path, by_one: dict[str, Any], count: str
) -> None:
    same(record_of(tmp_path, page_s_command(*QUICK, count=count)), by_one)

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


@pytest.fixture
def warm(tmp_path: Path, by_one: dict[str, Any]) -> Callable[[str], Path]:
    """A folder whose cache holds what was read of the real images, and nothing that was made."""

    def made(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(Path(by_one["cache"]) / "features", folder / "cache" / "features")
        return folder

    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "count", "parameters"),
    [
        ("dsm_reference", "4", TRAINED),
        ("distribution_guidance", "2", GUIDED),
        ("fairgen", "2", shlex.split("--param iterations=2 --param batch=4")),
    ],
)
def test_the_first_process_trains_for_all(
    warm: Callable[[str], Path], method: str, count: str, parameters: list[str]
) -> None:
    """Coupled batches among them, whose images depend on each other."""
    options = ["--method", method, *QUICK, *parameters]

    shared = record_of(warm("several"), page_s_command(*options, count=count))

    assert "processes" not in shared["config"]
    same(shared, alone(warm("one"), *options))


@pytest.mark.slow
def test_a_shared_training_has_a_key_of_its_own_and_survives_a_killed_process(
    warm: Callable[[str], Path],
) -> None:
    options = ["--method", "balanced_data", *QUICK, *TRAINED, "--data-parallel"]
    record = record_of(warm("whole"), page_s_command(*options))
    assert record["config"]["processes"] == 2

    folder = warm("killed")
    (line,) = [
        line
        for line in ended(folder, KILLED_WHILE_TRAINING, "run", *options)
        if line.startswith("fairbench:")
    ]
    assert "goes on where this stopped" in line  # told to end, or left alone by the other
    assert list(folder.rglob("*.partial.pt"))

    same(record_of(folder, page_s_command(*options)), record)


@pytest.mark.slow
def test_a_training_that_can_t_be_shared_has_no_number_in_its_key(
    warm: Callable[[str], Path],
) -> None:
    options = ["--method", "invdiff", *QUICK, *TRAINED, "--param", "grouping=single"]

    shared = record_of(warm("two"), page_s_command(*options, "--data-parallel"))

    assert "processes" not in shared["config"]


@pytest.mark.slow
def test_trajectories_are_the_same_in_all_processes_that_share_a_training(
    warm: Callable[[str], Path],
) -> None:
    """Each learns from its own part of a batch; afterwards all have the same adapters."""
    parameters = shlex.split("--param iterations=3 --param batch=4 --param rollout_every=2")
    options = ["--method", "fairgen", *QUICK, *parameters, "--data-parallel"]

    shared = record_of(warm("two"), page_s_command(*options))
    again = record_of(warm("again"), page_s_command(*options))

    assert shared["config"]["processes"] == 2
    same(again, shared)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real images with noise on them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    some = load_split("evaluation").images[:130].astype(int)
    for i, pixels in enumerate((some + rng.integers(-9, 10, some.shape)).clip(0, 255)):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_any_number_of_processes_measures_the_same(tmp_path: Path, pictures: Path) -> None:
    options = ["evaluate", str(pictures), "--name", "noisy", "--device", "cpu", "--json"]

    one = record_of(tmp_path / "one", [sys.executable, "-m", "fairbench", *options])

    for count in ("2", "4"):
        several = record_of(tmp_path / count, page_s_command(*options, count=count, command=None))
        same(several, one)


BACKBONE = shlex.split(
    "--kind ddpm --steps 6 --batch 8 --num-images 64 --size tiny --device cpu --json"
)
JUDGE = shlex.split("--steps 4 --batch 8 --side 32 --device cpu --json")


def trained_files(folder: Path) -> dict[str, str]:
    """Weight file -> its hash, of what a training command wrote."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for place in ("made", "cache/judges")
        for path in sorted((folder / place).rglob("*.safetensors"))
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["train-backbone", "--output", "made", *BACKBONE], ["train-judge", *JUDGE]],
    ids=["backbone", "judge"],
)
def test_a_training_command_is_shared_and_goes_on_to_the_same_weights(
    command: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = document_of(whole, page_s_command(*command, command=None))
    ended(killed, KILLED_WHILE_TRAINING, *command)
    assert list(killed.rglob("*.partial.pt"))
    again = document_of(killed, page_s_command(*command, command=None))
    assert trained_files(whole)
    assert trained_files(killed) == trained_files(whole)
    key = "judge" if command[0] == "train-judge" else "found"
    assert again[key] == printed[key]  # by one process, else it were two documents


# One of several processes ends

KILLED_WHILE_TRAINING = """
from fairbench.diffusion import training
training.CHECKPOINT_SECONDS = -1.0
step = training._Training.take_step
def take_step(self, checkpoint):
    if RANK == 1 and self.step == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, checkpoint)
training._Training.take_step = take_step
"""

REFUSED_BY_ONE = """
from fairbench.core.errors import InputError
from fairbench.runs import generation
def refused(folder):
    raise InputError(f"process {RANK} can't read its disk; mend it")
if RANK == 1:
    generation._finished_batches = refused
"""


def ended(folder: Path, what_happens: str, *options: str) -> list[str]:
    """Lines on stderr of two processes, in one of which something happens; in due time."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(
        'import os, signal\nRANK = int(os.environ["RANK"])\n'
        f"{what_happens}\nfrom fairbench.app.cli import main\nmain()\n"
    )
    command = page_s_command(command=None)
    done = subprocess.run(
        [*command[: command.index("-m", 2)], str(script), *options],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 1  # torchrun's own
    assert "internal failure" not in done.stderr
    return done.stderr.splitlines()


@pytest.mark.slow
def test_what_is_wrong_in_one_process_is_said_in_one_line(
    warm: Callable[[str], Path],
) -> None:
    said = ended(warm("refused"), REFUSED_BY_ONE, "run", "--method", "vanilla", *QUICK)

    assert [line for line in said if line.startswith("fairbench:")] == [
        "fairbench: process 1 can't read its disk; mend it"
    ]


@pytest.mark.slow
def test_what_is_wrong_in_all_processes_is_said_once(tmp_path: Path) -> None:
    said = ended(tmp_path, "", "run", "--method", "vanilla", "--param", "x=1")

    assert [line for line in said if line.startswith("fairbench:")] == [
        "fairbench: vanilla has no parameters; seen --param x=1"
    ]
