"""Guidance of every image towards a drawn group; ``sample_guidance.py`` has the parameters.

Source: the baseline of that name in Parihar et al. 2024, arXiv 2402.18206.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairbench.core.method import Preparation, Request, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone, Edit
from fairbench.diffusion.denoisers import Denoiser, edited
from fairbench.methods.parts.bottleneck import Heads, guided_times, learn_heads
from fairbench.methods.parts.classifier import train_classifier
from fairbench.methods.parts.distribution_guidance import capped, paper_size
from fairbench.methods.parts.indicator import IndicatedSampler, Indicator

if TYPE_CHECKING:
    from fairbench.methods.sample_guidance import SampleGuidance

__all__ = ["SampleSampler", "sample_gradient"]


def sample_gradient(
    h: Tensor, weight: Tensor, bias: Tensor, wanted: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Gradient of -sum_i pi_i,c_i by h: each row is told its own group.

    Args:
        h: (N, D).
        weight: (K, D) of the linear head.
        bias: (K,).
        wanted: (N,) groups c.
        tau: Temperature of the softmax.
    Returns:
        (N, K) probabilities pi and the (N, D) gradient.
    """
    pi = ((h @ weight.T + bias) / tau).softmax(1)
    own = pi.gather(1, wanted[:, None])
    chosen = torch.nn.functional.one_hot(wanted, len(weight)).to(pi)
    return pi, (-own * (chosen - pi) / tau) @ weight


class SampleSampler(IndicatedSampler):
    """DDIM with every image's bottleneck pushed towards its own group.

    Args:
        backbone: Frozen.
        preparation: Sampling and seed.
        method: Its parameters.
        heads: Branch of guidance -> heads.
        indicator: Draws the group of an image.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        preparation: Preparation,
        method: SampleGuidance,
        heads: Mapping[str, Heads],
        indicator: Indicator,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, preparation.sampling, indicator)
        self.method, self.heads, self.facts = method, heads, facts
        self.extra_parameters = sum(
            part.weight.numel() + part.bias.numel() for part in heads.values()
        )
        self.guided_times = guided_times(method, backbone, self.config)

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """The branch, with its bottleneck pushed where the method has heads for it."""
        plain = super().branch(name, context, requests, groups)
        edit = self._edit(name, self.rows(groups)) if name in self.heads else None
        return edited(plain, self.backbone, edit)

    def _edit(self, branch: str, wanted: Tensor) -> Edit:
        heads, method = self.heads[branch], self.method

        def change(h: Tensor, t: int) -> Tensor:
            if t not in self.guided_times:
                return h
            flat, k = h.flatten(1).float(), heads.index(t)
            _, gradient = sample_gradient(
                flat, heads.weight[k], heads.bias[k], wanted[: len(h)], method.temperature
            )
            size = paper_size(self.backbone.schedule, t, method.scale)
            step = capped(size * gradient, flat, method.max_rel)
            return (flat - step).to(h.dtype).reshape(h.shape)

        return change


def prepare(
    method: SampleGuidance,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> Sampler:
    """Train the classifier and the heads on the task's groups, or load them."""
    classifier, seen = train_classifier(method, task, data, preparation, backbone.device)
    grouping = "/".join(task.attributes)
    heads, learned = learn_heads(method, task, backbone, classifier, data, preparation, [grouping])
    indicator = Indicator.of(method.indicator, task.target, preparation)
    facts = {
        "training_seconds": seen["seconds"] + learned["seconds"],
        "classifier": seen,
        "bottleneck": learned,
    }
    by_branch = {branch: found for (_, branch), found in heads.items()}
    return SampleSampler(backbone, preparation, method, by_branch, indicator, facts)
