"""Training a judge for a data set that has none, or none that is good enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from fairbench.core.documents import from_json
from fairbench.core.errors import InputError
from fairbench.core.keys import run_key
from fairbench.core.parameters import SIZES
from fairbench.core.progress import Progress, silent
from fairbench.datasets.base import Dataset, ImageSource
from fairbench.diffusion.devices import is_main_process, process_count, resolve_device
from fairbench.diffusion.training import Draws, TrainingPlan, seeded_modules, train_or_load
from fairbench.instruments.calibration import (
    CHUNK,
    crossings_of,
    halves,
    held_out_facts,
    under_confident,
)
from fairbench.instruments.trained import (
    CARD,
    DEPTHS,
    WEIGHTS,
    Crop,
    Cropper,
    TrainedJudge,
    judge_folder,
    judge_network,
    labels_sha256,
    load_trained_judge,
    scaled,
)
from fairbench.storage.files import atomic_write

__all__ = ["JudgeRecipe", "train_judge"]

LIMIT = 20_000
"""Images that are fitted to at most: at 128 pixels they take a gigabyte."""

SHIFT = 0.06
"""Share of the side by which training images are moved at most, up or down and sideways."""

LIGHT = 0.15
"""By how much of itself the contrast, and by how much of the range the brightness varies."""


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is trained.

    Attributes:
        seed: Of weights, draws and augmentation; another seed is another judge.
        depth: Layers of the ResNet, one of `fairbench.instruments.trained.DEPTHS`.
        steps: Optimiser steps.
        batch: Images a step.
        learning_rate: Peak of AdamW's.
        side: Pixels a side that the network sees; None: 64 for images of up to 64 pixels, else
            128.
        crop: ``"centre"``: the central square; ``"face"``: the face that MTCNN finds, with its
            hair, for photographs whose faces aren't where those of generated images are.
        name: What it is called; empty: by depth and seed.
    """

    seed: int = 0
    depth: int = 18
    steps: int = 1500
    batch: int = 64
    learning_rate: float = 1e-3
    side: int | None = None
    crop: Crop = "centre"
    name: str = ""

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise InputError(f"--depth must be {' or '.join(map(str, DEPTHS))}; seen {self.depth}")
        if self.crop not in ("centre", "face"):
            raise InputError(f"--crop must be centre or face; seen {self.crop!r}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must lie in 0…{2**32 - 1}; seen {self.seed}")
        if self.steps < 1 or self.batch < 2:
            raise InputError(
                f"expected --steps of 1 or more and --batch of 2 or more; seen {self.steps} and "
                f"{self.batch}"
            )
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value > SIZES[name]:
                raise InputError(f"--{name} must be at most {SIZES[name]}; seen {value}")
        if self.side is not None and not 32 <= self.side <= 512:
            raise InputError(f"--side must lie in 32…512; seen {self.side}")
        if self.name and (not self.name.replace("-", "").replace("_", "").isalnum()):
            raise InputError(
                f"--name must be of letters, digits, - and _ alone; seen {self.name!r}"
            )

    @property
    def judge_name(self) -> str:
        """What the judge is called."""
        face = "-face" if self.crop == "face" else ""
        return self.name or f"resnet{self.depth}-seed{self.seed}{face}"


@dataclass(frozen=True)
class _Surroundings:
    """Of one training."""

    seed: int
    cache: Path
    progress: Progress
    dtype: str = "float32"


def train_judge(
    dataset: Dataset,
    recipe: JudgeRecipe,
    cache: Path,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> tuple[TrainedJudge, Path, bool]:
    """Train a judge of all attributes of a data set, or find the one of this very recipe.

    It is fitted to the first half of the judge split and measured on the second. An interrupted
    training goes on where it stopped, and ends in the same weights.

    Args:
        dataset: Whose images.
        recipe: How.
        cache: Folder of cached arrays; the judge is put into ``judges/<data set>/<name>`` there.
        device: As ``--device``.
        progress: ``progress(what, done, total)``.

    Returns:
        The judge, its folder, and whether it was there before.

    Raises:
        InputError: If the data set has no judge split, or one without some level; or if the
            training diverges.
    """
    split = dataset.split("judge")
    if split is None:
        raise InputError(
            f"data set {dataset.name} has no judge split, so no judge can be trained on it; "
            "choose another --dataset"
        )
    fit, held_out = halves(split)
    _check_levels(dataset, split, fit)
    where = resolve_device(device)
    side = recipe.side or _side_for(split)
    content = {
        "judge": recipe.judge_name,
        "dataset": dataset.name,
        "data_sha256": dataset.data_sha256(),
        "attributes": {name: list(levels) for name, levels in dataset.attributes.items()},
        "crossings": [list(chosen) for chosen in crossings_of(dataset, dataset.attributes)],
        "recipe": asdict(recipe) | {"side": side},
        "limit": LIMIT,
    }
    if process_count() > 1:  # each draws rows of its own
        content["processes"] = process_count()
    key = run_key(content)
    folder = judge_folder(dataset.name, cache) / recipe.judge_name
    if _made_by(folder) == key:
        return load_trained_judge(folder, dataset, str(where)), folder, True
    rows = fit[:LIMIT] if len(fit) <= LIMIT else _some(fit)
    cropper = Cropper(recipe.crop, side, str(where))
    images = _cropped(split.take(rows), cropper, progress)
    labels = {name: np.asarray(split.labels[name])[rows] for name in dataset.attributes}
    sizes = [len(levels) for levels in dataset.attributes.values()]
    with seeded_modules(recipe.seed):
        module = judge_network(recipe.depth, sum(sizes))
    module.to(where)
    weights = [_weights(labels[name], size, where) for name, size in _sizes(dataset)]

    def loss_of(draws: Draws) -> Tensor:
        chosen = draws.rng.integers(0, len(images), draws.rows)
        pixels = scaled(_augmented(images[chosen], draws.rng)).to(where)
        total = torch.zeros((), device=where)
        parts = torch.split(module(pixels), sizes, dim=1)
        for part, (name, _), weight in zip(parts, _sizes(dataset), weights, strict=True):
            truth = torch.from_numpy(labels[name][chosen].astype(np.int64)).to(where)
            total = total + functional.cross_entropy(part.float(), truth, weight)
        return total

    plan = TrainingPlan(
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=0.0,
        weight_decay=5e-2,
    )
    facts = train_or_load(
        module,
        f"judge_{dataset.name}",
        content,
        plan,
        loss_of,
        _Surroundings(recipe.seed, cache, progress),
        device=where,
        what=f"training {recipe.judge_name}",
    )
    state = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    packed = save(state)
    card: dict[str, Any] = {
        "name": recipe.judge_name,
        "key": key,
        "dataset": dataset.name,
        "data_sha256": dataset.data_sha256(),
        "labels_sha256": labels_sha256(dataset),
        "architecture": f"torchvision ResNet-{recipe.depth}, one head an attribute",
        "depth": recipe.depth,
        "side": side,
        "crop": recipe.crop,
        "attributes": content["attributes"],
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(packed).hexdigest()},
        "seed": recipe.seed,
        "fitted_to": len(rows),
        "training": facts | {"plan": asdict(plan)},
        "held_out_images": len(held_out),
        "held_out": {},
        "under_confident": {},
    }
    judge = TrainedJudge(recipe.judge_name, module, card, str(where))
    card |= _measured(judge, split.take(held_out), dataset, progress)
    if is_main_process():
        with atomic_write(folder / WEIGHTS) as file:
            file.write(packed)
        # The card is last: a judge exists when its card does.
        with atomic_write(folder / CARD) as file:
            file.write((json.dumps(card, indent=1) + "\n").encode())
    return TrainedJudge(recipe.judge_name, module, card, str(where)), folder, False


def _sizes(dataset: Dataset) -> list[tuple[str, int]]:
    return [(name, len(levels)) for name, levels in dataset.attributes.items()]


def _made_by(folder: Path) -> str | None:
    """Key of the recipe and the data that made the judge there; None if there is none."""
    try:
        made: str = from_json((folder / CARD).read_bytes())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made


def _check_levels(dataset: Dataset, split: ImageSource, rows: NDArray[np.int64]) -> None:
    for name, levels in dataset.attributes.items():
        counts = np.bincount(np.asarray(split.labels[name])[rows], minlength=len(levels))
        lacking = [level for level, count in zip(levels, counts, strict=False) if count == 0]
        if lacking:
            raise InputError(
                f"the judge split of {dataset.name} has no image of {name} "
                f"{' and '.join(lacking)}, so no judge can learn it; add such images"
            )


def _side_for(split: ImageSource) -> int:
    shape = next(iter(split.take(np.arange(1)).batches(1))).shape
    return 64 if min(shape[1:3]) <= 64 else 128


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).choice(rows, LIMIT, replace=False))


def _cropped(source: ImageSource, cropper: Cropper, progress: Progress) -> NDArray[np.uint8]:
    """All images of a source as the network sees them, (N, side, side, 3)."""
    parts, done = [], 0
    for images in source.batches(CHUNK):
        parts.append(cropper(images))
        done += len(images)
        progress("preparing images", done, len(source))
    return np.concatenate(parts)


def _weights(labels: NDArray[Any], levels: int, device: torch.device) -> Tensor:
    """(K,) weight of each level in the loss: rare ones count as much as frequent ones."""
    counts = np.bincount(np.asarray(labels, np.int64), minlength=levels)
    return torch.tensor(len(labels) / (levels * counts), dtype=torch.float32, device=device)


def _augmented(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Images mirrored, moved and lit at random, (B, side, side, 3) in [0, 255]."""
    side = images.shape[1]
    reach = max(1, round(SHIFT * side))
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corners = rng.integers(0, 2 * reach + 1, (len(images), 2))
    mirrored = rng.random(len(images)) < 0.5
    moved = np.empty(images.shape, np.float32)
    for one, pixels, (top, left), mirror in zip(moved, padded, corners, mirrored, strict=True):
        cut = pixels[top : top + side, left : left + side]
        one[:] = cut[:, ::-1] if mirror else cut
    contrast = rng.uniform(1 - LIGHT, 1 + LIGHT, (len(images), 1, 1, 1)).astype(np.float32)
    brightness = rng.uniform(-LIGHT, LIGHT, (len(images), 1, 1, 1)).astype(np.float32)
    lit: NDArray[np.float32] = np.clip(
        (moved - 127.5) * contrast + 127.5 + 255 * brightness, 0, 255
    )
    return lit


def _measured(
    judge: TrainedJudge, labelled: ImageSource, dataset: Dataset, progress: Progress
) -> Mapping[str, Any]:
    """What the judge does on the held-out half, for its card."""
    parts, done = [], 0
    for images in labelled.batches(CHUNK):
        parts.append(judge(images))
        done += len(images)
        progress("measuring errors", done, len(labelled))
    said = {name: np.concatenate([part[name] for part in parts]) for name in judge.attributes}
    found = held_out_facts(said, labelled.labels, crossings_of(dataset, judge.attributes))
    problems = {
        name: problem
        for name in judge.attributes
        if (problem := under_confident(said[name], np.asarray(labelled.labels[name]))) is not None
    }
    return {
        "held_out": {name: asdict(one) for name, one in found.items()},
        "under_confident": problems,
    }
