"""Guidance by a classifier of the predicted clean image; ``universal_guidance.py`` has the rest.

Source: baseline of Parihar et al. 2024, arXiv 2402.18206, after Bansal et al. 2023, Universal
Guidance for Diffusion Models, arXiv 2302.07121.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairbench.core.errors import InputError
from fairbench.core.method import Preparation, Request, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.denoisers import Denoiser
from fairbench.diffusion.schedule import Prediction
from fairbench.methods.parts.classifier import AttributeClassifier, train_classifier
from fairbench.methods.parts.indicator import IndicatedSampler, Indicator

if TYPE_CHECKING:
    from fairbench.methods.universal_guidance import UniversalGuidance

__all__ = ["UniversalSampler", "clean_gradient", "guided_noise"]


def clean_gradient(
    backbone: Backbone,
    classifier: AttributeClassifier,
    names: Sequence[str],
    clean: Tensor,
    wanted: Tensor,
    tau: float,
) -> Tensor:
    """Gradient of -sum_i softmax(logits / tau)_i,c_i by the predicted clean latents.

    It goes through the classifier and, for latents, through the decoder; never through the U-Net.

    Args:
        backbone: Decodes.
        classifier: Frozen.
        names: Attributes whose crossing the groups are.
        clean: (B, C, h, w).
        wanted: (B,) groups c.
        tau: Temperature.
    """
    # Tensors made in inference mode can't be differentiated; copies made outside of it can.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = clean.clone().requires_grad_(True)
        logits = classifier.group_log_probabilities(backbone.pixels(leaf).float(), names)
        chosen = (logits / tau).softmax(1).gather(1, wanted.clone()[:, None])
        (gradient,) = torch.autograd.grad(-chosen.sum(), leaf)
    return gradient


def guided_noise(predicted: Prediction, gradient: Tensor, scale: float) -> Prediction:
    """Noise + sigma scale dL/dx_t, for the gradient (B, C, h, w) by the clean image.

    With the noise held constant, clean = (x_t - sigma noise) / alpha, so that dL/dx_t is the
    gradient by the clean image divided by alpha.
    """
    shift = predicted.sigma * scale * gradient / predicted.alpha
    return dataclasses.replace(predicted, kind="epsilon", value=predicted.noise + shift)


class UniversalSampler(IndicatedSampler):
    """DDIM with the noise shifted by a classifier's gradient at every step.

    Args:
        backbone: Frozen.
        preparation: Sampling and seed.
        method: Its parameters.
        task: Names the attributes of its groups.
        classifier: Frozen.
        indicator: Draws the group of an image.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        preparation: Preparation,
        method: UniversalGuidance,
        task: Task,
        classifier: AttributeClassifier,
        indicator: Indicator,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, preparation.sampling, indicator)
        self.method, self.names, self.classifier = method, list(task.attributes), classifier
        self.facts = facts
        self.extra_parameters = sum(p.numel() for p in classifier.parameters())

    def denoiser(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> tuple[Denoiser, int]:
        """The guided denoiser and its calls an image and step."""
        inner, calls = super().denoiser(requests, groups)
        width = self.backbone.network_batch
        wanted = self.rows(groups)

        def denoise(x: Tensor, t: int) -> Prediction:
            predicted = inner(x, t)
            # Filled up, as network batches are: a row then depends on itself alone.
            fill = x.new_zeros((width - len(x), *x.shape[1:]))
            clean = torch.cat([predicted.clean, fill])
            gradient = clean_gradient(
                self.backbone,
                self.classifier,
                self.names,
                clean,
                wanted,
                self.method.temperature,
            )
            return guided_noise(predicted, gradient[: len(x)], self.method.scale)

        return denoise, calls


def prepare(
    method: UniversalGuidance,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> Sampler:
    """Train the classifier, or load it.

    Raises:
        InputError: If the sampler starts without signal, where there is no clean image to judge.
    """
    first = backbone.schedule.timesteps(preparation.sampling.steps, preparation.sampling.spacing)[
        0
    ]
    if float(backbone.schedule.alpha(first)) == 0:
        raise InputError(
            f"universal_guidance divides by the signal, and {backbone.name} has none at its first "
            f"timestep {first} (zero terminal SNR); use sample_guidance"
        )
    classifier, seen = train_classifier(method, task, data, preparation, backbone.device)
    indicator = Indicator.of(method.indicator, task.target, preparation)
    facts = {"training_seconds": seen["seconds"], "classifier": seen}
    return UniversalSampler(backbone, preparation, method, task, classifier, indicator, facts)
