"""How long a method's sampling takes beside that of `vanilla`.

Run by hand, from anywhere, with nothing else on the machine:

    python tests/performance/methods.py distribution_guidance fairgen fairgen:merged=true invdiff
    python tests/performance/methods.py distribution_guidance --backbone cartoonfaces-ddpm

A method is `name` or `name:parameter=value,…`. What it trains is taken from the cache, or trained
first; how well it is trained doesn't change how long it takes to sample, so that a few steps do:
`fairgen:iterations=2`. In one process each round makes one network batch with vanilla, with the
method and with vanilla once more; the method's time is divided by the mean of the two around it.
Reported: the median ratio over the rounds with its quartiles, and, as the noise of the machine,
the quartiles of the ratio of the two vanilla times. Exit status 1 if a median is above its bar.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairbench.backbones.base import load_backbone
from fairbench.core.method import Preparation, Request, Sampler
from fairbench.datasets.base import get_dataset
from fairbench.methods import make_method
from fairbench.runs.generation import training_data
from fairbench.storage.cache import cache_folder

BARS = {
    "distribution_guidance": 1.10,
    "fairgen": 1.10,
    "fairgen:merged=true": 1.03,
    "invdiff": 1.5,
}


def bar_of(spec: str) -> float | None:
    """The bar of a method with these parameters, None if it has none."""
    name, _, given = spec.partition(":")
    merged = f"{name}:merged=true"
    return BARS.get(merged if "merged=true" in given.split(",") else name)


def prepared(spec: str, task: Any, backbone: Any, dataset: Any, preparation: Preparation) -> Any:
    """The sampler of `name:parameter=value,…`."""
    name, _, given = spec.partition(":")
    method, _ = make_method(name, [part for part in given.split(",") if part])
    data = training_data(dataset, method.configured_card())
    return method.prepare(task, backbone, data, preparation)


def seconds(sampler: Sampler, batch: Sequence[Request]) -> float:
    start = time.perf_counter()
    sampler(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", help="name or name:parameter=value,…")
    parser.add_argument("--backbone", help="default: the data set's first")
    parser.add_argument("--task", default="gender")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    dataset = get_dataset("cartoonfaces")
    found = dataset.backbone(options.backbone)
    backbone = load_backbone(
        found.name, found.folder, device=torch.device(options.device), dtype=torch.float32
    )
    task = dataset.task(options.task, conditional=found.conditional)
    images = backbone.network_batch
    cache = Path(cache_folder()) / "trained"
    preparation = Preparation(
        0, found.sampling, (images,) * len(task.prompts), cache, lambda *_: None
    )
    requests = [Request(task.prompts[0], 0, i, 0) for i in range(images)]
    vanilla = prepared("vanilla", task, backbone, dataset, preparation)
    print(f"{found.name}, {images} images a round, torch threads {torch.get_num_threads()}")
    print(f"{'method':<40}{'ratio, median [quartiles]':<28}{'vanilla / vanilla':<28}bar")
    within = True
    for spec in options.methods:
        sampler = prepared(spec, task, backbone, dataset, preparation)
        batch = sampler.batches(requests, images)[0]
        alike = requests[: len(batch)]
        for one, some in ((sampler, batch), (vanilla, alike)):
            one(some)  # a first call allocates
        ratios, noise = [], []
        for _ in range(options.rounds):
            before = seconds(vanilla, alike)
            mine = seconds(sampler, batch)
            after = seconds(vanilla, alike)
            ratios.append(2 * mine / (before + after))
            noise.append(after / before)
        bar = bar_of(spec)
        missed = bar is not None and float(np.median(ratios)) > bar
        within &= not missed
        verdict = "none" if bar is None else f"{bar:.2f}{' MISSED' if missed else ''}"
        print(f"{spec:<40}{quartiles(ratios):<28}{quartiles(noise):<28}{verdict}", flush=True)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
