"""Host memory of runs and evaluations of large images, beyond the model.

Run by hand: ``python tests/performance/memory.py [--side 512] [--few 300] [--many 1500]
[--pool-side 256] [--only run evaluate-zip …]``; it takes ``--many`` images four times of the disk.

A pipeline of a few channels makes real images of that size, so that nearly all memory is that of
images and of what is done with them. ``run``, and ``evaluate`` of a folder, a ``.zip`` and an
``.npz``, are started at two numbers of images each, in processes of their own; each tells its own
peak. What a further image costs is the difference over the difference of the numbers, and what
10,000 take follows from it: the peak at the larger number, and the images that lack. From that
the peak of a program that has only loaded the same modules and the model is taken. ``train`` is
a method that trains two steps on 8,000 images of the pool, at ``--pool-side`` pixels. The bar is
1.5 GB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

BAR = 1.5e9
TARGET = 10_000

FEWEST = 100
"""Images that a run has at least."""

TRAINED_ON = 8_000
"""Images of the pool that `balanced_data` trains on."""

TOLD = """
lines = open("/proc/self/status").read().splitlines()
held = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
print(int(held) * 1024, file=sys.stderr)
"""
"""Tells the peak. ``ru_maxrss`` begins at what the program held that started this one."""

PEAK = f"""
import sys
from fairbench.app.cli import main
from fairbench.runs import external
external.MOST_HELD = 0  # as if they were many: fewer bytes than that are simply held
try:
    main()
finally:
    exec({TOLD!r})
"""

IDLE = f"""
import sys
from pathlib import Path
import torch
from fairbench.backbones.base import load_backbone
from fairbench.datasets.base import get_dataset
from fairbench.instruments.measuring import load_instruments
import fairbench.runs.external, fairbench.scores.scoring
dataset = get_dataset(None)
load_instruments("cpu", dataset.instruments())
for role in ("evaluation", "method_reference", "pool"):
    dataset.split(role)
if len(sys.argv) > 1:
    load_backbone("m", Path(sys.argv[1]), device=torch.device("cpu"), dtype=torch.float32)
exec({TOLD!r})
"""


def pipeline(folder: Path, side: int) -> None:
    """Write a pixel model of that size and hardly any channels."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=side,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)


def peak(code: str, *arguments: object, cache: Path) -> int:
    """Bytes that a program of its own held at most."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"FAIRBENCH_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stderr.split()[-1])


def noise(count: int, side: int) -> Iterator[np.ndarray]:
    """Images that no two of are alike."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (side, side, 3), np.uint8)


@contextmanager
def images(form: str, count: int, side: int, work: Path) -> Iterator[Path]:
    """A folder, an archive or an array of noise; removed behind the block."""
    path = work / f"images-{form}-{count}"
    if form == "folder":
        path.mkdir()
        for i, pixels in enumerate(noise(count, side)):
            Image.fromarray(pixels).save(path / f"{i}.bmp")
        yield path
        for file in path.iterdir():
            file.unlink()
        return
    path = path.with_suffix(f".{form}")
    with zipfile.ZipFile(path, "w") as archive:
        if form == "zip":
            for i, pixels in enumerate(noise(count, side)):
                with archive.open(f"{i}.bmp", "w") as file:
                    Image.fromarray(pixels).save(file, "BMP")
        else:
            with archive.open("images.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
                np.lib.format.write_array_header_1_0(file, header)
                for pixels in noise(count, side):
                    file.write(pixels.tobytes())
    yield path
    path.unlink()


def peaks_of(what: str, counts: tuple[int, int], side: int, work: Path) -> list[int]:
    """Peaks of one command at two numbers of images."""
    command, _, form = what.partition("-")
    found = []
    for count in counts:
        common = ("--num-images", count, "--device", "cpu", "--quiet")
        common += ("--results", work / f"results-{what}-{count}")
        if command == "run":
            model = ("--backbone", work / "model", "--steps", 1)
            asked = ("run", "--method", "vanilla", *model, *common)
            found.append(peak(PEAK, *asked, cache=work / "cache"))
            continue
        with images(form, count, side, work) as path:
            asked = ("evaluate", path, "--name", "noise", *common)
            found.append(peak(PEAK, *asked, cache=work / "cache"))
    return found


KINDS = ("run", "evaluate-folder", "evaluate-zip", "evaluate-npz", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--few", type=int, default=300)
    parser.add_argument("--many", type=int, default=1500)
    parser.add_argument("--pool-side", type=int, default=256)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS)
    chosen = parser.parse_args()
    if not FEWEST <= chosen.few < chosen.many:
        parser.error(f"--few must be at least {FEWEST}, --many more than that")
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        pipeline(work / "model", chosen.side)
        without = peak(IDLE, cache=work / "cache")
        model = peak(IDLE, work / "model", cache=work / "cache")
        print(f"modules and data set: {without / 1e9:.2f} GB, {model / 1e9:.2f} with the model")
        for what in chosen.only:
            if what == "train":
                continue
            few, many = peaks_of(what, (chosen.few, chosen.many), chosen.side, work)
            idle = model if what == "run" else without
            each = (many - few) / (chosen.many - chosen.few)
            whole = many + max(each, 0.0) * (TARGET - chosen.many) - idle
            worst = max(worst, whole)
            print(
                f"{what}: {few / 1e9:.2f} GB at {chosen.few}, {many / 1e9:.2f} at {chosen.many}: "
                f"{each / 1e3:.1f} kB a further image of {chosen.side**2 * 3 / 1e3:.0f}; "
                f"{whole / 1e9:.2f} GB beyond the model at {TARGET:,}",
                flush=True,
            )
        if "train" in chosen.only:
            pipeline(work / "small", chosen.pool_side)
            trained = peak(
                PEAK,
                *("run", "--method", "balanced_data", "--backbone", work / "small", "--steps", 1),
                *("--num-images", 100, "--param", "steps=2", "--param", "batch=4"),
                *("--device", "cpu", "--quiet", "--results", work / "results-train"),
                cache=work / "cache",
            )
            worst = max(worst, trained - model)
            print(
                f"train: {trained / 1e9:.2f} GB with {TRAINED_ON:,} images of {chosen.pool_side} "
                f"pixels, which are {TRAINED_ON * chosen.pool_side**2 * 3 / 1e9:.1f} GB and their "
                f"latents four times as much; {(trained - model) / 1e9:.2f} GB beyond the model"
            )
    raise SystemExit(1 if worst > BAR else 0)


if __name__ == "__main__":
    main()
