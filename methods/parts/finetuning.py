"""What training-time methods share: noised batches, the loss, a trained copy of the U-Net."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.core.errors import InputError
from fairbench.core.method import ImageSet, Preparation
from fairbench.core.task import Prompt
from fairbench.diffusion.backbone import Backbone, Trainable, required
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.diffusion.schedule import Prediction, Schedule
from fairbench.diffusion.training import Draws, seeded_modules, train_or_load
from fairbench.methods.parts.latents import chunk_of, latents_of
from fairbench.methods.parts.training_parameters import FineTuned
from fairbench.methods.parts.weighting import timestep_weights, weight_summary

__all__ = [
    "FineTunedSampler",
    "NoisedBatch",
    "NoisedImages",
    "finetune",
    "images_sha256",
    "loss_weights",
    "module_sha256",
    "squared_error",
    "tensor_sha256",
]

CAPTION_DROP = 0.1
"""Share of prompts replaced by the empty one, so that classifier-free guidance goes on working."""


@dataclass(frozen=True)
class NoisedBatch:
    """Rows of a training step.

    Attributes:
        index: (B,) rows of the image set.
        clean, noise, x_t: (B, C, h, w) float32, x_t = alpha clean + sigma noise.
        t: (B,) integer timesteps.
        context: (B, L, D) or None for an unconditional backbone.
        dropped: (B,) rows whose prompt was replaced by the empty one; None: none was.
    """

    index: NDArray[np.int64]
    clean: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    context: Tensor | None
    dropped: NDArray[np.bool_] | None = None


class NoisedImages:
    """Images as latents, from which noised batches are drawn.

    Args:
        backbone: Encodes images and prompts.
        sets: Image sets, one after the other.
        subjects: What the sets' subjects index.
    """

    def __init__(
        self, backbone: Backbone, sets: Sequence[ImageSet], subjects: Sequence[Prompt]
    ) -> None:
        self.backbone = backbone
        self.latents = latents_of(backbone, [part.images for part in sets])
        self.subjects = np.concatenate([part.subjects for part in sets])
        self.contexts = backbone.embed([*(subject.text for subject in subjects), ""])

    def __len__(self) -> int:
        return len(self.latents)

    def at(
        self, index: NDArray[np.int64], t: Tensor, noise: Tensor, context: Tensor | None
    ) -> NoisedBatch:
        """The images `index` at timesteps `t`, (B,), with `noise`, (B, C, h, w)."""
        clean = self.latents[torch.from_numpy(index).to(self.latents.device)]
        x_t = self.backbone.schedule.add_noise(clean, noise, t)
        return NoisedBatch(index, clean, noise, x_t, t, context)

    def prompts(
        self, index: NDArray[np.int64], dropped: NDArray[np.bool_] | None = None
    ) -> Tensor | None:
        """Contexts of the images' own neutral prompts, (B, L, D); the empty one where dropped."""
        if self.contexts is None:
            return None
        rows = self.subjects[index]
        if dropped is not None:
            rows = np.where(dropped, len(self.contexts) - 1, rows)
        return self.contexts[torch.from_numpy(rows).to(self.contexts.device)]

    def draw(self, draws: Draws, index: NDArray[np.int64]) -> NoisedBatch:
        """Noise the images `index` at timesteps spread evenly over the schedule."""
        t = (draws.stratified() * len(self.backbone.schedule)).long().to(self.latents.device)
        noise = draws.gaussian(len(index), *self.latents.shape[1:])
        dropped = draws.rng.random(len(index)) < CAPTION_DROP
        return replace(self.at(index, t, noise, self.prompts(index, dropped)), dropped=dropped)


def squared_error(prediction: Prediction, target: Tensor) -> Tensor:
    """(B,) float32 mean squared error of the network's own output, before any weight."""
    return (prediction.value.float() - target).square().flatten(1).mean(1)


def images_sha256(*sets: ImageSet | None) -> str:
    """Hash of images, subjects and labels that a training sees."""
    total = hashlib.sha256()
    for part in sets:
        if part is None:
            total.update(b"none")
            continue
        arrays: list[NDArray[Any]] = [part.images, part.subjects, *(part.labels or {}).values()]
        for array in arrays:
            total.update(str((array.dtype, array.shape)).encode())
            step = chunk_of(array)
            for start in range(0, len(array), step):  # not all images may be held
                total.update(np.ascontiguousarray(array[start : start + step]).tobytes())
    return total.hexdigest()


def tensor_sha256(values: Tensor) -> str:
    """Hash of the numbers of a tensor, for a content key."""
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def module_sha256(module: nn.Module) -> str:
    """Hash of the names and numbers of a module's state, for a key of what it leads to."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def trained_schedule(method: FineTuned, backbone: Backbone) -> Schedule:
    """The backbone's noise levels, and what the trained network predicts at them.

    Raises:
        InputError: If it is to predict noise where some step has no signal: nothing could be told
            of the image there.
    """
    schedule = backbone.schedule
    if method.prediction == "native":
        return schedule
    if not bool(schedule.snr(torch.arange(len(schedule))).min() > 0):
        raise InputError(
            f"{backbone.name}'s noisiest step has no signal, so that a network which predicts "
            "noise can't begin there; leave --param prediction=native"
        )
    return schedule.predicting("epsilon")


def loss_weights(method: FineTuned, backbone: Backbone) -> Tensor:
    """(T,) float32 factors on the squared error of the network's own output."""
    return (
        timestep_weights(
            trained_schedule(method, backbone),
            method.loss_weighting,
            p2_k=method.p2_k,
            p2_gamma=method.p2_gamma,
            gamma=method.min_snr_gamma,
            max_weight=method.max_weight,
            normalise=method.normalise_weights,
        )
        .float()
        .to(backbone.device)
    )


def finetune(
    method: FineTuned,
    backbone: Backbone,
    content: Mapping[str, Any],
    loss_of: Callable[[Backbone, Draws, Tensor], Tensor],
    preparation: Preparation,
    *,
    what: str,
) -> tuple[Backbone, dict[str, Any]]:
    """Train a copy of the backbone's U-Net; the backbone itself stays as it is.

    Args:
        method: Steps, batch, learning rate, where to start, loss weighting.
        backbone: Where to start from.
        content: Everything that the loss depends on beside the shared parameters: method name and
            version, its own parameters, hash of the data, hashes of networks in the loss.
        loss_of: (backbone under training, draws, (T,) weights of the timesteps) -> mean loss.
        preparation: Seed, cache, progress.
        what: What the user reads while it trains.
    Returns:
        The backbone with the trained network, and facts for the record.
    Raises:
        InputError: If the backbone has no network to train.
    """
    trainable = required(backbone, Trainable, str(content["method"]))
    weights = loss_weights(method, backbone)
    unet = copy.deepcopy(trainable.network).float().requires_grad_(True)
    if method.start == "scratch":
        _initialise(unet, preparation.seed)
    student = trainable.replaced(unet)
    student.schedule = trained_schedule(method, backbone)
    facts = train_or_load(
        unet,
        str(content["method"]),
        {
            **content,
            "backbone": backbone.weights_sha256,
            "start": method.start,
            "weights": tensor_sha256(weights),
            **({} if method.prediction == "native" else {"prediction": method.prediction}),
        },
        method.plan(),
        lambda draws: loss_of(student, draws, weights),
        preparation,
        device=backbone.device,
        what=what,
    )
    unet.requires_grad_(False)
    unet.to(trainable.dtype)
    return student, {**facts, "weights": weight_summary(weights)}


def _initialise(unet: nn.Module, seed: int) -> None:
    """Fresh weights, as the class itself draws them."""
    config = cast("Any", unet).config
    with seeded_modules(seed):
        fresh = type(unet).from_config(config)  # type: ignore[attr-defined]
    unet.load_state_dict(fresh.state_dict())


class FineTunedSampler(DDIMSampler):
    """The one sampling loop with a trained network, and what the training says of itself."""

    def __init__(self, backbone: Backbone, config: Any, facts: Mapping[str, Any]) -> None:
        super().__init__(backbone, config)
        self.facts = facts
