"""The methods' own attribute classifier, trained on the labelled reference set; never the judge.

It labels trajectories, accepts or rejects images and gives gradients. What it says about generated
images isn't a result: the judges, which were trained on other images, give those.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import ImageSet, Preparation, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import fixed_batches
from fairbench.diffusion.training import Draws, TrainingPlan, seeded_modules, train_or_load
from fairbench.methods.parts.finetuning import images_sha256
from fairbench.methods.parts.guidance_parameters import Classified
from fairbench.methods.parts.latents import MOST_HELD, chunk_of

__all__ = ["AttributeClassifier", "augmented", "train_classifier"]

ROWS = 64
"""Images the network sees at once when it labels, always: a row then depends on itself alone."""

HELD_OUT = 0.2
WIDTH = 24
SMALLEST = 4
"""Feature maps of this many pixels a side are halved no further."""

LARGEST = 64
"""Larger images are reduced to this many pixels a side before the network."""


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two convolutions, the first of which may halve the resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class AttributeClassifier(nn.Module):
    """Images -> probabilities of every attribute's levels.

    It keeps where things are, since faces are aligned and the training set is small. Smooth
    activations, no batch statistics and no dropout: its gradient by the image is meaningful, a row
    depends on itself alone, and training draws nothing from a global generator.

    Args:
        attributes: Attribute -> its levels.
        image_size: Pixels a side.
        width: Channels of the first stage; each of the two others has twice as many.
    """

    def __init__(
        self, attributes: Mapping[str, Sequence[str]], image_size: int, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.attributes = {name: tuple(levels) for name, levels in attributes.items()}
        self.side = min(image_size, LARGEST)
        widths, left, stages = (3, width, 2 * width, 4 * width), self.side, []
        for inputs, outputs in itertools.pairwise(widths):
            stride = 2 if left > SMALLEST else 1
            stages.append(_stage(inputs, outputs, stride))
            left = -(-left // stride)
        self.trunk = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1] * left**2, sum(map(len, self.attributes.values())))

    def log_probabilities(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) float32 in [-1, 1] -> attribute -> (B, K) log probabilities."""
        if pixels.shape[-1] != self.side:
            pixels = functional.interpolate(pixels, (self.side, self.side), mode="area")
        logits = self.head(self.trunk(pixels).flatten(1))
        parts = logits.split([len(levels) for levels in self.attributes.values()], 1)
        return {
            name: part.log_softmax(1) for name, part in zip(self.attributes, parts, strict=True)
        }

    def group_log_probabilities(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """(B, K) log probabilities of the crossing of attributes, given the image independent.

        Raises:
            ContractError: If it doesn't know one of the attributes.
        """
        for name in names:
            if name not in self.attributes:
                known = ", ".join(self.attributes)
                raise ContractError(f"the classifier knows {known}; seen attribute {name!r}")
        found = self.log_probabilities(pixels)
        whole = found[names[0]]
        for name in names[1:]:
            whole = (whole[:, :, None] + found[name][:, None, :]).flatten(1)
        return whole

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """(N, H, W, 3) uint8 -> attribute -> (N, K) probabilities, rows sum to 1."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.attributes}
        device = next(self.parameters()).device
        step = chunk_of(images, ROWS)
        for start in range(0, len(images), step):
            for batch, own in fixed_batches(_pixels(images[start : start + step]), ROWS):
                for name, part in self.log_probabilities(batch.to(device)).items():
                    found[name].append(part[:own].cpu().double().exp())
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}

    def group_probabilities(
        self, images: NDArray[np.uint8], names: Sequence[str]
    ) -> NDArray[np.float64]:
        """(N, H, W, 3) uint8 -> (N, K) probabilities of the crossing of attributes."""
        found = self.probabilities(images)
        whole = found[names[0]]
        for name in names[1:]:
            whole = (whole[:, :, None] * found[name][:, None, :]).reshape(len(images), -1)
        return whole


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class _Drawn:
    """Pixels of images, (N, 3, H, W) in [-1, 1]: held, or made whenever some are asked for."""

    def __init__(self, images: NDArray[np.uint8], device: Any) -> None:
        self._images, self._device = images, device
        held = 4 * int(np.prod(images.shape)) <= MOST_HELD
        self._pixels = _pixels(images).to(device) if held else None

    def __getitem__(self, rows: Tensor) -> Tensor:
        if self._pixels is not None:
            return self._pixels[rows]
        return _pixels(self._images[rows.cpu().numpy()]).to(self._device)


def augmented(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Random mirroring and shifts of up to a sixteenth of the side, a row apart; same shape.

    Colours stay as they are: skin is one of the things to be told apart.
    """
    rows, _, height, width = pixels.shape
    reach = height // 16
    flip = torch.from_numpy(rng.random(rows) < 0.5).to(pixels.device)
    pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    if not reach:
        return pixels
    wide = functional.pad(pixels, (reach,) * 4, mode="replicate")
    at = rng.integers(2 * reach + 1, size=(rows, 2)).tolist()
    return torch.stack(
        [row[:, y : y + height, x : x + width] for row, (y, x) in zip(wide, at, strict=True)]
    )


def _labels(data: ImageSet, names: Sequence[str]) -> dict[str, Tensor]:
    if data.labels is None:
        raise ContractError("expected a labelled reference set to train the classifier on")
    return {name: torch.from_numpy(data.labels[name].astype(np.int64)) for name in names}


def train_classifier(
    method: Classified, task: Task, data: TrainingData, preparation: Preparation, device: Any
) -> tuple[AttributeClassifier, dict[str, Any]]:
    """Train on 4/5 of the reference set, or load what the same training left in the cache.

    All attributes of the task are learned side by side.

    Args:
        method: Number of steps.
        task: Its attributes, which must be among the labelled ones, are learned.
        data: The reference set with labels.
        preparation: Seed, cache, progress.
        device: Where it is to run.
    Returns:
        The frozen classifier, and facts: training seconds, held-out accuracy by attribute, and
        the key that its weights have.
    Raises:
        InputError: If the task has an attribute without labels.
    """
    if data.reference is None:
        raise ContractError(f"{method.card.name} expects a reference set, seen none")
    for name in task.attributes:
        if name not in data.attributes:
            known = ", ".join(data.attributes) or "none"
            raise InputError(
                f"{method.card.name} needs labels of {name!r} in the reference set; labelled "
                f"attributes are {known}"
            )
    attributes = {name: data.attributes[name] for name in task.attributes}
    with seeded_modules(preparation.seed):
        classifier = AttributeClassifier(attributes, data.reference.images.shape[1])
    classifier.to(device)
    pixels = _Drawn(data.reference.images, device)
    held_at_once = chunk_of(data.reference.images, ROWS)
    labels = {k: v.to(device) for k, v in _labels(data.reference, list(attributes)).items()}
    order = np.random.default_rng(0).permutation(len(data.reference.images))
    count = round(HELD_OUT * len(order))
    held_out = torch.from_numpy(order[:count]).to(device)
    fit = order[count:]

    def loss_at(index: Tensor, x: Tensor) -> Tensor:
        found = classifier.log_probabilities(x)
        return torch.stack(
            [functional.nll_loss(found[name], labels[name][index]) for name in found]
        ).sum()

    def loss_of(draws: Draws) -> Tensor:
        chosen = draws.rng.choice(fit, draws.rows, replace=len(fit) < draws.rows)
        index = torch.from_numpy(chosen).to(device)
        return loss_at(index, augmented(pixels[index], draws.rng))

    @torch.no_grad()
    def validate() -> float:
        # Not all may be held; where they are, they are one part.
        parts = torch.split(held_out, held_at_once)
        losses = [float(loss_at(part, pixels[part])) for part in parts]
        if len(losses) == 1:
            return losses[0]
        return float(np.average(losses, weights=[len(part) for part in parts]))

    plan = TrainingPlan(
        steps=method.classifier_steps,
        batch=64,
        learning_rate=2e-3,
        warmup=min(20, method.classifier_steps // 4),
        weight_decay=5e-2,
        ema_decay=0.98,
        validate_every=25,
    )
    content = {
        "network": "attribute classifier",
        "version": 1,
        "data": images_sha256(data.reference),
        "attributes": {name: list(levels) for name, levels in attributes.items()},
        "width": WIDTH,
        "held_out": HELD_OUT,
    }
    facts = train_or_load(
        classifier,
        "classifier",
        content,
        plan,
        loss_of,
        preparation,
        device=device,
        what="training the attribute classifier",
        validate=validate,
    )
    classifier.requires_grad_(False).eval().zero_grad(set_to_none=True)
    found = classifier.probabilities(data.reference.images[order[:count]])
    accuracy = {
        name: float((found[name].argmax(1) == labels[name][held_out].cpu().numpy()).mean())
        for name in found
    }
    return classifier, {
        "seconds": facts["seconds"],
        "steps": facts["steps"],
        "parameters": facts["trained_parameters"],
        "held_out_images": count,
        "held_out_accuracy": accuracy,
        "held_out_loss": facts["validation"]["best"],
    }
