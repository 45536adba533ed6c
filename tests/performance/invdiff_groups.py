"""How well InvDiff's rule for groups finds a hidden attribute, beside simpler rules.

Run by hand, from anywhere:

    python tests/performance/invdiff_groups.py --seeds 0 1 2
    python tests/performance/invdiff_groups.py --backbone cartoonfaces-ddpm --images 2000
    python tests/performance/invdiff_groups.py --shares 0.05 0.1 0.3

The risk maps of an embedded backbone's training images are measured, or taken from the cache where
a run of `invdiff` left them. No rule reads a label; labels only score them: the area under the
curve of what a rule ranks images by, the purity of its upper group, and the rare level's share at
the objective's optimum, where 0.5 is even. A share thins one of the two levels out until the rare
one has that share within each subject; the backbone stays the one that was trained on the shares
of its card, so that this tests the rule, not another model.

`paper` puts images above the mean risk into the upper group, `tenth` the tenth with the largest
risk, whose size is chosen by hand; `latents` is the rule on the clean latents in place of the
risk maps, which tells what the network's errors add.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairbench.backbones.base import load_backbone
from fairbench.core.method import Preparation
from fairbench.datasets.base import get_dataset
from fairbench.methods.invdiff import InvDiff
from fairbench.methods.parts.finetuning import NoisedImages, images_sha256
from fairbench.methods.parts.invdiff_groups import (
    average_risk,
    balanced_groups,
    denoising_risks,
    rare_component,
)
from fairbench.runs.generation import training_data
from fairbench.runs.hidden_labels import area_under_curve, group_facts
from fairbench.storage.cache import cache_folder

RULES = ("rule", "paper", "tenth", "latents")


def grouped(
    name: str, maps: NDArray[Any], latents: NDArray[Any], seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a rule ranks (N,) images by, and their memberships in its upper group."""
    if name == "rule":
        return rare_component(maps, seed)[:2]
    if name == "latents":
        # Its logs are taken and its mean is the risk: the side of high risk stays the upper one.
        risk = np.log(maps.mean((0, 2)))[:, None]
        logs = latents - latents.mean(1, keepdims=True) + risk
        return rare_component(np.exp(logs)[None], seed)[:2]
    risk = average_risk(maps.mean(2), per_draw=True)
    above = risk.mean() if name == "paper" else np.quantile(risk, 0.9)
    return risk, (risk > above).astype(np.float64)


def thinned(
    rare: NDArray[np.bool_], share: float | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of which `share` are rare, as many as there are; all of them if it is None."""
    if share is None:
        return np.arange(len(rare))
    few, many = np.flatnonzero(rare), np.flatnonzero(~rare)
    count = min(len(few), int(len(many) * share / (1 - share)))
    rest = min(len(many), int(count * (1 - share) / share))
    kept = [rng.choice(few, count, replace=False), rng.choice(many, rest, replace=False)]
    return np.sort(np.concatenate(kept))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", help="default: the data set's first")
    parser.add_argument("--attribute", default="gender")
    parser.add_argument("--images", type=int, help="the first so many only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of draws and starts")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[None], help="of the rare level"
    )
    options = parser.parse_args()
    dataset, method = get_dataset("cartoonfaces"), InvDiff()
    spec = dataset.backbone(options.backbone)
    backbone = load_backbone(
        spec.name, spec.folder, device=torch.device("cpu"), dtype=torch.float32
    )
    data = training_data(dataset, method.card)
    assert data.training is not None
    few = slice(options.images)
    training = replace(
        data.training,
        images=data.training.images[few],
        subjects=data.training.subjects[few],
    )
    labels = dataset.training_set("biased").labels[options.attribute][: len(training)]
    images = NoisedImages(backbone, [training], data.subjects)
    content = {
        "method": method.card.name,
        "version": method.version,
        "backbone": backbone.weights_sha256,
        "data": images_sha256(training),
    }
    subjects = training.subjects if backbone.conditional else np.zeros(len(training), np.int64)
    latents = images.latents.flatten(1).double().numpy()
    print(f"{'seed':<6}{'share':<8}{'subject':<18}{'n':<7}", end="")
    print("".join(f"{name + ': AUC / purity / optimum':<34}" for name in RULES))
    for seed in options.seeds:
        preparation = Preparation(
            seed, spec.sampling, (64,), Path(cache_folder()) / "trained", lambda *_: None
        )
        maps, _ = denoising_risks(method, backbone, images, content, preparation)
        for subject in np.unique(subjects):
            own = np.flatnonzero(subjects == subject)
            counts = np.bincount(labels[own])
            rare = labels[own] == np.flatnonzero(counts)[counts[counts > 0].argmin()]
            for share in options.shares:
                kept = thinned(rare, share, np.random.default_rng(seed))
                rows, hit = own[kept], rare[kept]
                told = []
                for name in RULES:
                    ranks, member = grouped(name, maps[:, rows], latents[rows], seed)
                    facts = group_facts(
                        balanced_groups(member).numpy(), hit, np.zeros(len(rows), np.int64)
                    )
                    area = area_under_curve(ranks, hit)
                    purity = member[hit].sum() / member.sum()
                    told.append(f"{area:.2f} / {purity:.2f} / {facts['optimum']:.2f}")
                text = (
                    data.subjects[subject].text.split(" of ")[-1] if backbone.conditional else "–"
                )
                print(f"{seed:<6}{hit.mean():<8.2f}{text:<18}{len(rows):<7}", end="")
                print("".join(f"{one:<34}" for one in told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
