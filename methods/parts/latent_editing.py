"""Fixed directions on the bottleneck; ``latent_editing.py`` has the parameters.

Source: baseline of Parihar et al. 2024, arXiv 2402.18206, after Kwon et al. 2022, arXiv
2210.10960.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.core.method import Preparation, Request, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.diffusion.backbone import Backbone, Edit
from fairbench.diffusion.denoisers import Denoiser, edited
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.methods.parts.bottleneck import Heads, guided_times, learn_heads
from fairbench.methods.parts.classifier import train_classifier
from fairbench.methods.parts.indicator import Indicator

if TYPE_CHECKING:
    from fairbench.methods.latent_editing import LatentEditing

__all__ = ["EditingSampler", "directions", "edit_shares"]


def edit_shares(natural: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K + 1,) shares of images: left alone, then edited to be in each group.

    The fewest edits with which the expected shares are the target if every edit succeeds. An image
    isn't looked at before its edit is drawn: u natural + e = target with u + sum(e) = 1, all
    non-negative, has its largest u at min(target / natural).

    Args:
        natural: (K,) shares without any edit.
        target: (K,) wanted shares.
    """
    there = natural > 0
    alone = min(1.0, float((target[there] / natural[there]).min()))
    edited = np.clip(target - alone * natural, 0, None)
    whole = np.concatenate([[alone], edited])
    result: NDArray[np.float64] = whole / whole.sum()
    return result


def directions(heads: Heads) -> Tensor:
    """(S, K, D) unit vectors from the mean of the other groups' means to each group's mean."""
    means = heads.means
    groups = means.shape[1]
    others = (means.sum(1, keepdim=True) - means) / max(groups - 1, 1)
    away = means - others
    units: Tensor = away / away.norm(dim=2, keepdim=True).clamp(min=1e-12)
    return units


class EditingSampler(DDIMSampler):
    """DDIM with a fixed vector added to the bottleneck of some images.

    Args:
        backbone: Frozen.
        preparation: Sampling and seed.
        method: Its parameters.
        heads: Branch of guidance -> means and lengths of h.
        indicators: Prompt by prompt; draw 0 for no edit, else 1 + the group.
        facts: For the record.
    """

    def __init__(
        self,
        backbone: Backbone,
        preparation: Preparation,
        method: LatentEditing,
        heads: Mapping[str, Heads],
        indicators: Sequence[Indicator],
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(backbone, preparation.sampling)
        self.method, self.heads, self.indicators, self.facts = method, heads, indicators, facts
        # A row of zeros first: no edit.
        self.vectors = {
            name: torch.cat(
                [
                    torch.zeros_like(part.means[:, :1]),
                    method.strength * part.norms[:, None, None] * directions(part),
                ],
                1,
            )
            for name, part in heads.items()
        }
        self.extra_parameters = sum(part[:, 1:].numel() for part in self.vectors.values())
        self.edited_times = guided_times(method, backbone, self.config)

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """The branch, with the directions of the drawn edits added where the method has some."""
        plain = super().branch(name, context, requests, groups)
        drawn = torch.zeros(self.backbone.network_batch, dtype=torch.long)
        drawn[: len(requests)] = torch.tensor(
            [self.indicators[request.prompt_index](request) for request in requests]
        )
        drawn = drawn.to(self.backbone.device)
        edit = self._edit(name, drawn) if name in self.heads else None
        return edited(plain, self.backbone, edit)

    def _edit(self, branch: str, drawn: Tensor) -> Edit:
        heads, vectors = self.heads[branch], self.vectors[branch]

        def change(h: Tensor, t: int) -> Tensor:
            if t not in self.edited_times:
                return h
            added = vectors[heads.index(t)][drawn[: len(h)]]
            return h + added.to(h.dtype).reshape(h.shape)

        return change


def prepare(
    method: LatentEditing,
    task: Task,
    backbone: Backbone,
    data: TrainingData,
    preparation: Preparation,
) -> Sampler:
    """Find the directions, and the share of images to edit for each prompt."""
    classifier, seen = train_classifier(method, task, data, preparation, backbone.device)
    grouping = "/".join(task.attributes)
    heads, learned = learn_heads(method, task, backbone, classifier, data, preparation, [grouping])
    by_branch = {branch: found for (_, branch), found in heads.items()}
    natural = by_branch["cond"].shares
    shares = [
        edit_shares(natural[min(p, len(natural) - 1)], np.array(task.target))
        for p in range(len(task.prompts))
    ]
    indicators = [Indicator.of(method.indicator, found.tolist(), preparation) for found in shares]
    facts = {
        "training_seconds": seen["seconds"] + learned["seconds"],
        "classifier": seen,
        "bottleneck": learned,
        "edited_shares": [np.round(found[1:], 4).tolist() for found in shares],
    }
    return EditingSampler(backbone, preparation, method, by_branch, indicators, facts)
