"""Kills commands at random moments and looks whether anything is half-written afterwards.

By hand, from an environment in which fairbench is installed:

    python tests/kills/kills.py --times 200 --seed 0

Each round starts one of the commands below in a folder of its own, sends SIGKILL or SIGTERM after
a random time, reads every file that is left, then lets the same command run to its end and
compares with what the undisturbed one left. With ``--forked`` commands run in copies of this
process, which has imported what they need: most of a short command's time is that, and kills then
fall into its work.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_ins

RUN = ("run", "--method")


def commands_on(dataset: str) -> dict[str, tuple[str, ...]]:
    """What is killed -> its command line.

    Args:
        dataset: Of the runs: the analytic one is quick, the embedded one has networks.
    """
    of = ("--dataset", dataset)
    quick = (*of, "--num-images", "100", "--device", "cpu", "--quiet")
    trained: tuple[str, ...] = ("latent_editing", "--param", "classifier_steps=8")
    trained = (*trained, "--param", "trajectories=64", "--steps", "4")
    small = dataset != "analytic"  # where networks train; the analytic one has formulas
    if small:
        quick = (*quick, "--steps", "2")
        trained = ("fairgen", "--param", "iterations=6", "--param", "batch=8")
    return {
        "before": (*RUN, "prompt_append", *quick),
        "sampling": (*RUN, "vanilla", *quick, "--network-batch", "20"),
        "training": (*RUN, *trained, *quick),
        "coupled": (
            *(*RUN, "distribution_guidance", *quick),
            *("--param", "trajectories=64", "--param", "batch=32"),
        ),
        "forced": (*RUN, "vanilla", *quick, "--force"),
        "evaluate": ("evaluate", "images", *of, "--quiet"),
        "leaderboard": ("leaderboard", "--output", "board.csv"),
        "rescore": ("rescore", "results", "--quiet"),
        "check": (
            *("check", "--baseline", "baseline.json", "--results", "results", "--update"),
            *("--junit", "junit.xml", "--markdown", "summary.md", "--quiet"),
        ),
        "judge": (
            *("train-judge", "--dataset", "celeba", "--side", "32", "--device", "cpu", "--quiet"),
            *("--steps", "12", "--batch", "8"),
        ),
        "gate": ("check", "--baseline", "plan.json", "--markdown", "summary.md", "--quiet"),
    }


KILLED = tuple(name for name in commands_on("analytic") if name != "before")

SAME = ("key", "status", "scores", "groups", "sidecar")
"""Fields of a record that don't depend on when it was made."""

PLANNED = (*RUN, "vanilla", "--dataset", "analytic", "--num-images", "100", "--device", "cpu")
"""The run that the gate makes again."""


PATIENCE = 600.0
"""Seconds that a command has to end by itself after a SIGTERM."""


class Command(Protocol):
    """A running fairbench."""

    def poll(self) -> int | None:
        """Its exit code, or the number of the signal that ended it, negative; None if it runs."""

    def send_signal(self, by: int) -> None:
        """Send it a signal."""

    def said(self) -> str:
        """What it wrote to stderr, when it has ended."""


class Started:
    """fairbench in a process of its own."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairbench", *words],
            cwd=folder,
            env=os.environ | surroundings(folder),
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )
        self.poll, self.send_signal = self.process.poll, self.process.send_signal

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()


class Forked:
    """fairbench in a copy of this process.

    `modules` is what a command had imported that ended in one, for the next to have at once.
    """

    modules: frozenset[str] = frozenset()

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.listed = folder.parent / "modules.json"
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self.run(words, folder))

    def run(self, words: Sequence[str], folder: Path) -> int:
        """What the copy does; its exit code."""
        code: object = 1
        try:
            os.chdir(folder)
            os.environ.update(surroundings(folder))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self.errors.fileno(), 2)
            sys.argv = ["fairbench", *words]
            from fairbench.__main__ import main

            try:
                main()
            except SystemExit as left:
                code = left.code
            if not self.listed.exists():
                self.listed.write_text(json.dumps([*sys.modules]))
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return code if isinstance(code, int) else 0 if code is None else 1

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send_signal(self, by: int) -> None:
        os.kill(self.pid, by)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    @staticmethod
    def learn(folder: Path) -> None:
        """Import what the commands that ran below a folder did."""
        listed = folder / "modules.json"
        if listed.exists():
            for name in json.loads(listed.read_text()):
                with suppress(Exception):  # one that is for another system, for instance
                    importlib.import_module(name)
            listed.unlink()


def surroundings(folder: Path) -> dict[str, str]:
    """A cache and data of a folder's own."""
    return {
        "FAIRBENCH_CACHE": str(folder / "cache"),
        "FAIRBENCH_DATA": str(folder / "photographs"),
    }


command: type[Started] | type[Forked] = Started
"""How commands are started."""


def ended(running: Command, seconds: float) -> int:
    """Wait for a command; its exit code."""
    deadline = time.monotonic() + seconds
    while (code := running.poll()) is None:
        assert time.monotonic() < deadline, f"it runs for more than {seconds:.0f} s"
        time.sleep(0.005)
    return code


def finish(words: Sequence[str], folder: Path) -> None:
    """Run fairbench to its end, which must be a good one."""
    running = command(words, folder)
    code = ended(running, 6 * PATIENCE)
    assert code == 0, f"{words}: exit code {code}: {running.said()}"


def kill(words: Sequence[str], folder: Path, after: float, by: signal.Signals) -> int:
    """Start fairbench and send it a signal after some seconds; its exit code."""
    running = command(words, folder)
    deadline = time.monotonic() + after
    while running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if running.poll() is None:
        running.send_signal(by)
    code = ended(running, PATIENCE)
    if by == signal.SIGTERM:
        told = running.said()
        assert code in (0, 130, -by), f"exit code {code}: {told}"
        warning = "fairbench: warning:"  # of what it had come to before the signal
        lines = [line for line in told.splitlines() if line and not line.startswith(warning)]
        if code == 130:
            assert len(lines) == 1, told
            assert lines[0].startswith("fairbench: interrupted"), told
        else:  # it was done, or Python had not come to fairbench's first line
            assert not lines, f"exit code {code}: {told}"
    return code


def check_whole(folder: Path) -> None:
    """Read every file that has its final name."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(".") or "/.work-" in str(path):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None, path
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np"):
                pass
        elif path.suffix == ".csv":
            assert path.read_bytes().endswith(b"\n"), path


def left(folder: Path) -> dict[str, Any]:
    """What a command leaves: records without what depends on the time, networks, and tables."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "results").rglob("*.json")):
        record = json.loads(path.read_text())
        found[path.name] = {name: record[name] for name in SAME}
    for path in folder.glob("baseline.json"):
        found[path.name] = json.loads(path.read_text())["runs"]
    for path in (folder / "cache" / "judges").rglob("*.safetensors"):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in [*folder.glob("*.csv"), *folder.glob("*.md"), *folder.glob("*.xml")]:
        found[path.name] = path.read_text()
    return found


def leftovers(folder: Path) -> list[str]:
    """Hidden parts, working folders and empty folders."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.endswith(".part")
        or path.name.startswith(".work-")
        or (path.is_dir() and not any(path.iterdir()))
    ]


def prepare(folder: Path, dataset: str) -> None:
    """A folder with what the commands read: images, photographs, records, baselines, a cache."""
    import numpy as np
    from PIL import Image

    from fairbench.datasets.base import get_dataset

    (folder / "images").mkdir(parents=True)
    split = get_dataset(dataset, None).split("evaluation")
    assert split is not None
    for place, image in enumerate(np.concatenate([*split.take(np.arange(100)).batches(100)])):
        Image.fromarray(image).save(folder / "images" / f"{place}.png")
    stand_ins.make(folder / "photographs", "torchvision", 240)
    finish(("data", "prepare", "celeba", "--json"), folder)
    finish(commands_on(dataset)["before"], folder)
    finish((*PLANNED, "--results", "planned", "--quiet"), folder)
    for name, records in (("baseline", "results"), ("plan", "planned")):
        words = ("--baseline", f"{name}.json", "--results", records, "--update", "--quiet")
        finish(("check", *words), folder)


def one_round(
    words: Sequence[str],
    folder: Path,
    expected: dict[str, Any],
    after: float,
    by: signal.Signals,
) -> int:
    """Kill a command in a prepared folder, and let it run to its end; the killed one's code."""
    code = kill(words, folder, after, by)
    check_whole(folder)
    finish(words, folder)
    check_whole(folder)
    seen = left(folder)
    others = [file for file in {**expected, **seen} if expected.get(file) != seen.get(file)]
    assert not others, f"it ends otherwise: {others}"
    assert not leftovers(folder), f"left: {leftovers(folder)}"
    return code


def rounds(names: Sequence[str], times: int, seed: int, dataset: str = "cartoonfaces") -> None:
    """Kill each command in turn until `times` rounds are done; tell all that went wrong."""
    rng, commands = random.Random(seed), commands_on(dataset)
    wrong: list[str] = []
    hits: Counter[tuple[str, str]] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as work:
        template = Path(work) / "template"
        prepare(template, dataset)
        Forked.learn(Path(work))
        wanted: dict[str, tuple[dict[str, Any], float]] = {}
        for name in names:
            folder = Path(work) / name
            for _ in range(2 if command is Forked else 1):  # the first copy imports a lot
                shutil.copytree(template, folder)
                started = time.monotonic()
                finish(commands[name], folder)
                wanted[name] = left(folder), time.monotonic() - started
                Forked.learn(Path(work))
                shutil.rmtree(folder)
            print(f"undisturbed: {name:12} {wanted[name][1]:5.2f} s", flush=True)
        for number in range(times):
            name = names[number % len(names)]
            by = rng.choice([signal.SIGKILL, signal.SIGTERM])
            expected, seconds = wanted[name]
            after = rng.uniform(0, seconds)
            folder = Path(work) / f"round-{number}"
            shutil.copytree(template, folder)
            said = f"{number + 1:4} {name:12} {by.name} after {after:5.2f} s"
            try:
                code = one_round(commands[name], folder, expected, after, by)
            except Exception as error:  # told at the end, too
                wrong.append(f"{said}: {error}")
                print(wrong[-1], flush=True)
            else:
                if code == 0:  # the machine is less busy than when it was measured
                    wanted[name] = expected, after
                # One that ends by SIGTERM itself was not at its first line yet.
                alive = code == 130 or code == -signal.SIGKILL
                (hits if alive else missed)[name, by.name] += 1
                print(f"{said}: {code}", flush=True)
            shutil.rmtree(folder)
    print_counts(names, hits, missed)
    assert not wrong, "\n".join(wrong)


def print_counts(
    names: Sequence[str], hits: Counter[tuple[str, str]], missed: Counter[tuple[str, str]]
) -> None:
    """Say how many kills struck a command that was at work, by command and signal."""
    signals = ("SIGKILL", "SIGTERM")
    print(f"{'hits':12} {' '.join(f'{one:>8}' for one in signals)}   too early or late")
    for name in names:
        struck = " ".join(f"{hits[name, one]:8}" for one in signals)
        print(f"{name:12} {struck} {sum(missed[name, one] for one in signals):8}")
    print(f"{hits.total()} hits of {hits.total() + missed.total()} kills")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=KILLED, default=KILLED)
    parser.add_argument("--dataset", default="cartoonfaces", choices=["cartoonfaces", "analytic"])
    parser.add_argument("--forked", action="store_true")
    asked = parser.parse_args()
    if asked.forked:
        global command
        command = Forked
        os.environ["OMP_NUM_THREADS"] = "1"  # a copy has none of its threads
    rounds(asked.only, asked.times, asked.seed, asked.dataset)


if __name__ == "__main__":
    main()
