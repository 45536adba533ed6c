"""Host memory of runs and evaluations of large images, beyond the model.

Run by hand: ``python tests/performance/memory.py [--side 512] [--few 100] [--many 300]``.

A pipeline of a few channels makes real images of that size, so that nearly all memory is that of
images and of what is done with them. ``run`` and ``evaluate`` are started at two numbers of images
each, in processes of their own; each tells its own peak. What a further image costs is the
difference over the difference of the numbers, and what 10,000 take follows from it: the peak at
the larger number, and the images that lack. From that the peak of a program that has only loaded
the same modules and the model is taken. The bar is 1.5 GB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

BAR = 1.5e9
TARGET = 10_000

PEAK = """
import resource, sys
from fairbench.app.cli import main
from fairbench.runs import external
external.MOST_HELD = 0  # as if they were many: fewer bytes than that are simply held
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""

IDLE = """
import resource, sys
from pathlib import Path
import torch
from fairbench.backbones.base import load_backbone
from fairbench.datasets.base import get_dataset
from fairbench.instruments.measuring import load_instruments
import fairbench.runs.external, fairbench.runs.running, fairbench.scores.scoring
dataset = get_dataset(None)
load_instruments("cpu", dataset.instruments())
for role in ("evaluation", "method_reference", "pool"):
    dataset.split(role)
load_backbone("m", Path(sys.argv[1]), device=torch.device("cpu"), dtype=torch.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=300)
    chosen = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        pipeline(work / "model", chosen.side)
        idle = peak(IDLE, work / "model", cache=work / "cache")
        print(f"modules, model and data set: {idle / 1e9:.2f} GB")
        rng = np.random.default_rng(0)
        for i in range(chosen.many):
            for count in (chosen.few, chosen.many):
                if i < count:
                    (work / f"images-{count}").mkdir(exist_ok=True)
                    pixels = rng.integers(0, 256, (chosen.side, chosen.side, 3), np.uint8)
                    Image.fromarray(pixels).save(work / f"images-{count}" / f"{i}.bmp")
        for what in ("run", "evaluate"):
            peaks = {}
            for count in (chosen.few, chosen.many):
                asked = {
                    "run": ["--method", "vanilla", "--backbone", work / "model", "--steps", 1],
                    "evaluate": [work / f"images-{count}", "--name", "noise"],
                }[what]
                peaks[count] = peak(
                    PEAK,
                    *(what, *asked, "--num-images", count, "--device", "cpu"),
                    *("--results", work / f"results-{what}-{count}", "--quiet"),
                    cache=work / "cache",  # the real images are read once
                )
            each = (peaks[chosen.many] - peaks[chosen.few]) / (chosen.many - chosen.few)
            whole = peaks[chosen.many] + max(each, 0.0) * (TARGET - chosen.many) - idle
            worst = max(worst, whole)
            print(
                f"{what}: {peaks[chosen.few] / 1e9:.2f} GB at {chosen.few}, "
                f"{peaks[chosen.many] / 1e9:.2f} at {chosen.many}: {each / 1e3:.1f} kB a further "
                f"image of {chosen.side**2 * 3 / 1e3:.0f}; {whole / 1e9:.2f} GB beyond the model "
                f"at {TARGET:,}"
            )
    raise SystemExit(1 if worst > BAR else 0)


if __name__ == "__main__":
    main()
