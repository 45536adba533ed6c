"""From drawn faces in CelebA's layout to a leaderboard: ``python tests/end_to_end/full.py OUT``.

Everything is done by the commands that a user types: prepare, train a text-to-image pipeline of 64
pixels on the pool with nine women in ten, train a judge, run three methods on two tasks, evaluate
faces drawn in known shares, and make the board. What each command took and what came out is
printed, and the outcome is checked. An hour of one core, most of it the two trainings; the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_ins

METHODS: Mapping[str, Sequence[str]] = {
    "vanilla": (),
    "prompt_append": (),
    "fairgen": ("iterations=60", "batch=16", "rollout_every=20"),
}
TASKS = ("gender", "black_hair")
GUIDANCE = 2
QUALITY = "kernel_efficientnet_lite0_balanced"
"""Measured where the extra ``efficientnet`` is installed."""
EVALUATED = {"women": 0.7, "black_hair": 0.3}


class Commands:
    """``fairbench`` in processes of its own, and what each took."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.environment = os.environ | {
            "FAIRBENCH_DATA": str(out / "photographs"),
            "FAIRBENCH_CACHE": str(out / "cache"),
        }

    def __call__(self, *words: Any) -> Any:
        typed = [str(word) for word in words]
        began = time.monotonic()
        with (self.out / "stderr.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fairbench", *typed],
                cwd=self.out,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            assert process.stdout is not None
            said = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        print(
            f"{time.monotonic() - began:7.0f} s, {usage.ru_utime + usage.ru_stime:6.0f} s of CPU, "
            f"{usage.ru_maxrss / 1024:6.0f} MiB: fairbench {' '.join(typed)}",
            flush=True,
        )
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}; see {self.out / 'stderr.txt'}")
        return json.loads(said)


def shares(record: Mapping[str, Any], name: str) -> dict[str, float]:
    """Group -> share, measured by hard labels."""
    return {row["group"]: row["share"] for row in record["groups"][name]}


def value(record: Mapping[str, Any], name: str) -> float | None:
    """A score; None if it wasn't measured."""
    return next((one["value"] for one in record["scores"] if one["name"] == name), None)


def draw_for_evaluation(folder: Path, count: int) -> None:
    """Faces of known shares that no training saw, and what they show in a table beside them."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    rows = ["file,gender"]
    for i in range(count):
        male = i >= EVALUATED["women"] * count
        rows.append(f"{i:04d}.png,{'male' if male else 'female'}")
        face = stand_ins.drawn_face(
            np.random.default_rng([5, i]),
            male=male,
            black_hair=rng.random() < EVALUATED["black_hair"],
            eyeglasses=rng.random() < 0.5,
            young=rng.random() < 0.5,
        )
        face.crop((0, 20, 178, 198)).save(folder / f"{i:04d}.png")
    folder.with_suffix(".csv").write_text("\n".join(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to work in")
    parser.add_argument("--count", type=int, default=6000, help="faces that are drawn")
    parser.add_argument("--num-images", type=int, default=400)
    parser.add_argument("--sampling-steps", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2500, help="of the pipeline's U-Net")
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--judge-steps", type=int, default=250)
    parser.add_argument("--backbone", type=Path, help="a pipeline trained before, instead")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    fairbench = Commands(out)
    if not (out / "photographs").is_dir():
        stand_ins.make(out / "photographs", "torchvision", given.count)
    prepared = fairbench("data", "prepare", "celeba", "--json")
    print(prepared["splits"])
    backbone = given.backbone and given.backbone.resolve()
    if backbone is None:
        backbone = out / "pipeline"
        fairbench(
            *("train-backbone", "--dataset", "celeba", "--bias", "gender_90", "--side", 64),
            *("--steps", given.steps, "--vae-steps", given.vae_steps, "--batch", 32),
            *("--output", backbone, "--json"),
        )
    judge = fairbench(
        *("train-judge", "--dataset", "celeba", "--side", 32, "--steps", given.judge_steps),
        *("--batch", 32, "--device", "cpu", "--json"),
    )
    accuracy = {row["attribute"]: row["balanced_accuracy"] for row in judge["held_out"]}
    print("balanced accuracy", {name: round(one, 3) for name, one in accuracy.items()})
    records = {}
    for task in TASKS:
        for method, parameters in METHODS.items():
            record = records[task, method] = fairbench(
                *("run", "--method", method, "--dataset", "celeba", "--task", task),
                *("--backbone", backbone, "--guidance", GUIDANCE, "--json"),
                *("--num-images", given.num_images, "--steps", given.sampling_steps),
                *(word for one in parameters for word in ("--param", one)),
            )
            told = {group: round(share, 3) for group, share in shares(record, task).items()}
            names = (
                "fairness_discrepancy_corrected",
                "validity",
                "kernel_efficientnet_lite0_balanced",
            )
            print("   ", told, {name: value(record, name) for name in names})
    draw_for_evaluation(out / "drawn", given.num_images)
    drawn = fairbench(
        *("evaluate", "drawn", "--dataset", "celeba", "--task", "gender", "--name", "drawn"),
        *("--labels", out / "drawn.csv", "--json"),
    )
    seen = shares(drawn, "gender")["female"]
    print("drawn with", EVALUATED["women"], "women; of those with a face", round(seen, 3))
    agreement = value(drawn, "judge_agreement_gender")
    gap = value(drawn, "fairness_discrepancy"), value(drawn, "fairness_discrepancy_given")
    print(
        "read right",
        agreement,
        "discrepancy read and drawn",
        gap,
        "validity",
        value(drawn, "validity"),
    )
    board = fairbench("leaderboard", "--format", "json")
    print(json.dumps(board)[:600])

    assert min(accuracy[name] for name in TASKS) >= 0.9, accuracy
    # Of the images in which MTCNN finds a face: it misses more drawn men than women.
    assert agreement is not None
    assert agreement > 0.95, agreement
    assert None not in gap
    assert abs(gap[0] - gap[1]) < 0.03, gap  # type: ignore[operator]
    vanilla = shares(records["gender", "vanilla"], "gender")["female"]
    assert vanilla > 0.75, vanilla
    plain, *steered = (
        value(records["gender", method], "fairness_discrepancy_corrected") for method in METHODS
    )
    assert plain is not None
    assert all(one is not None and one < plain - 0.1 for one in steered), (plain, steered)


if __name__ == "__main__":
    main()
