"""The objective of time-dependent importance reweighting; ``tiw.py`` holds the parameters.

Source: Kim et al., Training unbiased diffusion models from biased dataset, arXiv 2403.01189. The
released code is not followed: it sums weights and errors apart, subtracts the correction of the
clean image instead of adding it, and takes the gradient of the probability instead of its log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet, Preparation, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.diffusion.schedule import PredictionType
from fairbench.diffusion.training import Draws
from fairbench.methods.parts.denoising import proportioned_index
from fairbench.methods.parts.finetuning import (
    FineTunedSampler,
    NoisedBatch,
    NoisedImages,
    finetune,
    images_sha256,
    loss_weights,
    squared_error,
)
from fairbench.methods.parts.latents import in_chunks
from fairbench.methods.parts.mixture_ratio import (
    correction_agreement,
    differing_attributes,
    fit_mixture,
)
from fairbench.methods.parts.ratio import (
    FittedRatio,
    Ratio,
    effective_share,
    fit_ratio,
    log_ratios,
    noise_range,
    noise_shares,
    saturated_share,
)

if TYPE_CHECKING:
    from fairbench.methods.iw import ImportanceReweighting
    from fairbench.methods.parts.reweighted import Reweighted
    from fairbench.methods.tiw import TimeDependentReweighting

__all__ = [
    "Reweighting",
    "clean_shift",
    "mixed_log_ratio",
    "prepare",
    "prepare_clean",
    "target_shift",
]


def mixed_log_ratio(logit: Tensor, share: float) -> Tensor:
    """Log of p_ref / (share p_ref + (1 - share) p_bias), the same shape as `logit`.

    Exactly 0 where `logit` is 0, at most -log(share), finite and with an exact gradient however
    large the logit is; its gradient is (1 - share) / (share w + 1 - share) times the logit's.

    Args:
        logit: log w = log(p_ref / p_bias), any shape.
        share: Share of reference images in the mixture, in [0, 1].

    Source: arXiv 2403.01189, whose mixture has share 1/2, generalised.
    """
    if share == 0:
        return logit
    if share == 1:
        return 0 * logit
    odds = logit.new_tensor(math.log(share) - math.log1p(-share))
    return functional.logsigmoid(logit + odds) - functional.logsigmoid(odds)


def clean_shift(gradient: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Gradient of a log ratio by x_t as a shift of the clean image: sigma² gradient / alpha.

    For the exact ratio it is the difference of two posterior means of the clean image, and so no
    larger than the range of the data. EDM's form, sigma² gradient, is that of alpha = 1.

    Args:
        gradient: (B, C, h, w).
        alpha: (B, 1, 1, 1) share of the clean image, above 0.
        sigma: (B, 1, 1, 1) share of noise.
    """
    return sigma.square() / alpha * gradient


def target_shift(kind: PredictionType, shift: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Shift of what the network is trained to put out, given that of the clean image, same shape.

    x_t = alpha clean + sigma noise stays as it is, so that the clean image moves against the noise
    and the velocity: by sigma² g / alpha, -sigma g and -sigma g / alpha for a gradient g.
    """
    if kind == "sample":
        return shift
    if kind == "epsilon":
        return -(alpha / sigma) * shift
    return -(alpha.square() / sigma + sigma) * shift


class Reweighting:
    """Weight and correction at noised images, without gradients to the ratio.

    Args:
        ratio: Frozen.
        levels: Range of log noise levels that the ratio knows; beyond it the nearest is used.
        share: Share of reference images in the mixture that is trained on.
        strength: Exponent of the mixture's ratio.
        bound: (1, C, 1, 1) bound on the shift of the clean image, None for none.
        weighs: Whether rows are weighted; else every weight is 1.
        corrects: Whether targets are corrected; else every shift is 0.
    """

    def __init__(
        self,
        ratio: Ratio,
        levels: tuple[float, float],
        *,
        share: float,
        strength: float = 1.0,
        bound: Tensor | None = None,
        weighs: bool = True,
        corrects: bool = True,
    ) -> None:
        self.ratio, self.levels = ratio, levels
        self.share, self.strength, self.bound = share, strength, bound
        self.weighs, self.corrects = weighs, corrects

    def __call__(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor, caption: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """(B,) weights and (B, C, h, w) shifts of the clean image, both detached float32.

        Args:
            x_t: (B, C, h, w) what the trained network sees.
            alpha: (B,) share of the clean image.
            sigma: (B,) share of noise.
            caption: (B,) captions, -1 for the empty one.
            draws: Takes the diagnostics.
        """
        # On the CPU, for MPS has no float64.
        level = sigma.cpu().double().log() - alpha.cpu().double().log()
        level = level.clamp(*self.levels).float().to(x_t.device)
        # A step without signal is asked at the noisiest known level, where the shift is finite.
        signal, noise = (part[:, None, None, None] for part in noise_shares(level))
        with torch.enable_grad(), torch.autocast(x_t.device.type, enabled=False):
            x = x_t.detach().float().requires_grad_(self.corrects)
            logit = self.ratio(x, level, caption)
            log_weight = mixed_log_ratio(logit, self.share)
            shift = torch.zeros_like(x_t, dtype=torch.float32)
            if self.corrects:
                # The sum's gradient is every row's own: the ratio couples no rows.
                (gradient,) = torch.autograd.grad(log_weight.sum(), x)
                shift = self._bounded(clean_shift(gradient, signal, noise), draws)
        weight = (self.strength * log_weight.detach()).exp()
        draws.log("effective_sample_share", effective_share(weight))
        draws.log("saturated_share", saturated_share(logit.detach()))
        return weight if self.weighs else torch.ones_like(weight), self.strength * shift

    def _bounded(self, shift: Tensor, draws: Draws) -> Tensor:
        draws.log("correction_root_mean_square", shift.square().mean().sqrt())
        if self.bound is None:
            return shift
        draws.log("clamped_share", (shift.abs() > self.bound).float().mean())
        return shift.clamp(-self.bound, self.bound)


class TiwLoss:
    """Denoising on the mixture, every row weighted and its target corrected.

    Args:
        images: The biased set, then the reference set.
        sizes: Images of the two sets.
        reweighting: At the noised images.
    """

    def __init__(
        self, images: NoisedImages, sizes: tuple[int, int], reweighting: Reweighting
    ) -> None:
        self.images, self.sizes, self.reweighting = images, sizes, reweighting

    def __call__(self, student: Backbone, draws: Draws, weights: Tensor) -> Tensor:
        """Mean loss of the rows of one part of a step."""
        share = self.reweighting.share
        batch = self.images.draw(draws, proportioned_index(draws, self.sizes, (1 - share, share)))
        return self.rows(student, batch, draws, weights).mean()

    def rows(self, student: Backbone, batch: NoisedBatch, draws: Draws, weights: Tensor) -> Tensor:
        """(B,) loss of every row: timestep weight times ratio times squared error."""
        schedule = student.schedule
        alpha, sigma = (part(batch.t).to(batch.x_t) for part in (schedule.alpha, schedule.sigma))
        weight, shift = self.reweighting(
            batch.x_t, alpha, sigma, seen_captions(self.images, batch), draws
        )
        kind = schedule.prediction_type
        target = schedule.target(batch.clean, batch.noise, batch.t) + target_shift(
            kind, shift, alpha[:, None, None, None], sigma[:, None, None, None]
        )
        error = squared_error(student.predict(batch.x_t, batch.t, batch.context), target)
        return weights[batch.t] * weight * error


def seen_captions(images: NoisedImages, batch: NoisedBatch) -> Tensor:
    """(B,) int64 captions that the network is told, -1 for the empty one."""
    caption = images.subjects[batch.index].astype(np.int64)
    if images.contexts is None:
        caption = np.full_like(caption, -1)
    elif batch.dropped is not None:
        caption = np.where(batch.dropped, -1, caption)
    return torch.from_numpy(caption).to(batch.x_t.device)


def value_range(latents: Tensor) -> Tensor:
    """(1, C, 1, 1) difference of the largest and the smallest value of each channel."""
    ends = [
        torch.stack([part.amax((0, 2, 3)), -part.amin((0, 2, 3))]) for part in in_chunks(latents)
    ]
    widths: Tensor = torch.stack(ends).amax(0).sum(0)
    return widths[None, :, None, None]


def both_sets(method: Reweighted, data: TrainingData) -> tuple[ImageSet, ImageSet]:
    """The biased and the reference set."""
    if data.training is None or data.reference is None:
        raise ContractError(f"{method.card.name} expects a biased and a reference set")
    return data.training, data.reference


def prepare(
    method: TimeDependentReweighting,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> DDIMSampler:
    """Fit the ratio at every noise level, then train a copy of the backbone's network with it."""
    loss_weights(method, backbone)  # refused before the ratio is trained
    parts = both_sets(method, data)
    images = NoisedImages(backbone, parts, data.subjects)
    levels = noise_range(backbone.schedule)
    if method.ratio in ("mixture", "labelled_mixture"):
        labels: tuple[str, ...] = ()
        if method.ratio == "labelled_mixture":
            # Where the sets differ in no attribute, the task's are as good as any.
            labels = differing_attributes(parts, tuple(data.attributes)) or tuple(task.attributes)
        fitted = fit_mixture(method, backbone, images, parts, preparation, labels=labels)
    else:
        labels = tuple(task.attributes) if method.ratio == "labelled_network" else ()
        fitted = fit_ratio(
            method, backbone, images, parts, preparation, labels=labels, levels=levels
        )
    if fitted.held is not None:
        preparation.examine(
            "correction",
            partial(
                correction_agreement,
                fitted.ratio,
                backbone,
                images,
                fitted.held,
                seed=preparation.seed,
            ),
        )
    reweighting = Reweighting(
        fitted.ratio,
        levels,
        share=method.reference_share,
        strength=method.strength,
        bound=value_range(images.latents) if method.clamp else None,
        weighs=method.weight,
        corrects=method.correction,
    )
    loss_of = TiwLoss(images, (len(parts[0]), len(parts[1])), reweighting)
    content = {
        "method": method.card.name,
        "version": method.version,
        "data": images_sha256(*parts),
        "ratio": fitted.sha256,
        "reference_share": method.reference_share,
        "strength": method.strength,
        "weight": method.weight,
        "correction": method.correction,
        "clamp": method.clamp,
    }
    student, facts = finetune(method, backbone, content, loss_of, preparation, what="training tiw")
    return FineTunedSampler(student, preparation.sampling, joint_facts(fitted, facts))


def prepare_clean(
    method: ImportanceReweighting,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> DDIMSampler:
    """Train the ratio of clean images, weigh every image once, train the network with that."""
    loss_weights(method, backbone)  # refused before the ratio is trained
    parts = both_sets(method, data)
    images = NoisedImages(backbone, parts, data.subjects)
    fitted = fit_ratio(method, backbone, images, parts, preparation, levels=None)
    share = method.reference_share
    caption = torch.from_numpy(images.subjects.astype(np.int64)).to(images.latents.device)
    level = torch.zeros(len(images), device=images.latents.device)
    said, done = [], 0
    for part in in_chunks(images.latents):
        rows = slice(done, done + len(part))
        said.append(log_ratios(fitted.ratio, part, level[rows], caption[rows]))
        done += len(part)
    logit = torch.cat(said)
    weight = (method.strength * mixed_log_ratio(logit, share)).exp()
    sizes = [len(part) for part in parts]

    def loss_of(student: Backbone, draws: Draws, weights: Tensor) -> Tensor:
        batch = images.draw(draws, proportioned_index(draws, sizes, (1 - share, share)))
        target = student.schedule.target(batch.clean, batch.noise, batch.t)
        error = squared_error(student.predict(batch.x_t, batch.t, batch.context), target)
        own = weight[torch.from_numpy(batch.index).to(weight.device)]
        draws.log("effective_sample_share", effective_share(own))
        return (weights[batch.t] * own * error).mean()

    content = {
        "method": method.card.name,
        "version": method.version,
        "data": images_sha256(*parts),
        "ratio": fitted.sha256,
        "reference_share": share,
        "strength": method.strength,
    }
    student, facts = finetune(method, backbone, content, loss_of, preparation, what="training iw")
    return FineTunedSampler(student, preparation.sampling, joint_facts(fitted, facts))


def joint_facts(fitted: FittedRatio, training: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the ratio and of the network trained with it; the seconds are those of both."""
    return {
        "training_seconds": fitted.seconds + training["seconds"],
        "ratio": fitted.facts,
        "training": training,
    }
