"""Kills commands at random moments and looks whether anything is half-written afterwards.

By hand, from an environment in which fairbench is installed:

    python tests/kills/kills.py --times 200 --seed 0

Each round starts one of the commands below in a folder of its own, sends SIGKILL or SIGTERM after
a random time, reads every file that is left, then lets the same command run to its end and
compares with what the undisturbed one left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_ins

QUICK = ("--num-images", "100", "--steps", "2", "--device", "cpu", "--quiet")
RUN = ("run", "--method")
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sampling": ((*RUN, "vanilla", *QUICK, "--network-batch", "20"),),
    "training": ((*RUN, "fairgen", *QUICK, "--param", "iterations=6", "--param", "batch=8"),),
    "coupled": (
        (
            *(*RUN, "distribution_guidance", *QUICK),
            *("--param", "trajectories=64", "--param", "batch=32"),
        ),
    ),
    "forced": ((*RUN, "vanilla", *QUICK, "--force"),),
    "evaluate": (("evaluate", "images", "--quiet"),),
    "leaderboard": (("leaderboard", "--output", "board.csv"),),
    "rescore": (("rescore", "results", "--quiet"),),
    "check": (
        (
            *("check", "--baseline", "baseline.json", "--results", "results", "--update"),
            *("--junit", "junit.xml", "--markdown", "summary.md", "--quiet"),
        ),
    ),
    "judge": (
        (
            *("train-judge", "--dataset", "celeba", "--side", "32", "--device", "cpu", "--quiet"),
            *("--steps", "12", "--batch", "8"),
        ),
    ),
    "gate": (("check", "--baseline", "plan.json", "--markdown", "summary.md", "--quiet"),),
}
"""What is killed -> its command lines; the last of each is the one that is compared."""

SAME = ("key", "status", "scores", "groups", "sidecar")
"""Fields of a record that don't depend on when it was made."""

PLANNED = (*RUN, "vanilla", "--dataset", "analytic", "--num-images", "100", "--device", "cpu")
"""The run that the gate makes again."""


def command(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start fairbench in a folder, with a cache of its own there."""
    return subprocess.Popen(
        [sys.executable, "-m", "fairbench", *words],
        cwd=folder,
        env=os.environ
        | {
            "FAIRBENCH_CACHE": str(folder / "cache"),
            "FAIRBENCH_DATA": str(folder / "photographs"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(words: Sequence[str], folder: Path) -> None:
    """Run fairbench to its end, which must be a good one."""
    running = command(words, folder)
    _, err = running.communicate()
    assert running.returncode == 0, f"{words}: exit code {running.returncode}: {err}"


def kill(words: Sequence[str], folder: Path, after: float, by: signal.Signals) -> int:
    """Start fairbench and send it a signal after some seconds; its exit code."""
    running = command(words, folder)
    deadline = time.monotonic() + after
    while running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if running.poll() is None:
        running.send_signal(by)
    _, err = running.communicate(timeout=120)
    if by == signal.SIGTERM:
        assert running.returncode in (0, 130, -by), f"exit code {running.returncode}: {err}"
        assert "Traceback" not in err, err
    return running.returncode


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


def prepare(folder: Path) -> None:
    """A folder with what the commands read: images, photographs, records, baselines, a cache."""
    import numpy as np
    from PIL import Image

    from fairbench.datasets.cartoonfaces import load_split

    (folder / "images").mkdir(parents=True)
    for place, image in enumerate(load_split("evaluation").images[:100]):
        Image.fromarray(np.asarray(image)).save(folder / "images" / f"{place}.png")
    stand_ins.make(folder / "photographs", "torchvision", 240)
    finish(("data", "prepare", "celeba", "--json"), folder)
    finish((*RUN, "prompt_append", *QUICK), folder)
    finish((*PLANNED, "--results", "planned", "--quiet"), folder)
    for name, records in (("baseline", "results"), ("plan", "planned")):
        words = ("--baseline", f"{name}.json", "--results", records, "--update", "--quiet")
        finish(("check", *words), folder)


def rounds(names: Sequence[str], times: int, seed: int) -> None:
    """Kill each command in turn until `times` rounds are done."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        template = Path(work) / "template"
        prepare(template)
        wanted: dict[str, tuple[dict[str, Any], float]] = {}
        for name in names:
            folder = Path(work) / name
            shutil.copytree(template, folder)
            started = time.monotonic()
            for words in COMMANDS[name]:
                finish(words, folder)
            wanted[name] = left(folder), time.monotonic() - started
        for number in range(times):
            name = names[number % len(names)]
            by = rng.choice([signal.SIGKILL, signal.SIGTERM])
            expected, seconds = wanted[name]
            after = rng.uniform(0, seconds)
            folder = Path(work) / f"round-{number}"
            shutil.copytree(template, folder)
            words = COMMANDS[name][-1]
            code = kill(words, folder, after, by)
            check_whole(folder)
            finish(words, folder)
            check_whole(folder)
            seen = left(folder)
            others = [
                file for file in {**expected, **seen} if expected.get(file) != seen.get(file)
            ]
            assert not others, f"{name} ends otherwise after {by.name} at {after:.2f}: {others}"
            assert not leftovers(folder), f"{name}: {leftovers(folder)}"
            print(f"{number + 1:4} {name:12} {by.name} after {after:5.2f} s: {code}", flush=True)
            shutil.rmtree(folder)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[*COMMANDS], default=[*COMMANDS])
    asked = parser.parse_args()
    rounds(asked.only, asked.times, asked.seed)


if __name__ == "__main__":
    main()
