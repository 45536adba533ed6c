"""Which group each image is asked to be in: the distribution indicator of arXiv 2412.18810."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.core.method import Preparation, Request, SamplingConfig
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.sampling import DDIMSampler, Stream, indicator_rng

__all__ = ["IndicatedSampler", "Indicator", "IndicatorKind", "systematic"]

IndicatorKind = Literal["iid", "stratified", "per_prompt"]


def systematic(shares: Sequence[float], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) groups in random order whose counts lie within 1 of n times the shares.

    Source: systematic sampling, Madow 1949.
    """
    points = (np.arange(n) + rng.random()) / n
    ends = np.cumsum(shares) / np.sum(shares)
    return rng.permutation(_group_at(ends, points))


def _group_at(ends: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.int64]:
    # The last end may round below 1; a point above it belongs to the last group with a share.
    last = int(np.searchsorted(ends, ends[-1]))
    return np.minimum(np.searchsorted(ends, points, side="right"), last).astype(np.int64)


class Indicator:
    """A seeded draw of one group an image.

    Args:
        kind: ``iid``, one draw an image; ``stratified``, shuffled quotas a prompt; ``per_prompt``,
            one draw for all images of a prompt, as the code released with the paper does.
        target: (K,) wanted shares.
        seed: The run's seed.
        images_per_prompt: Images that will be asked for, by prompt.
    """

    def __init__(
        self,
        kind: IndicatorKind,
        target: Sequence[float],
        seed: int,
        images_per_prompt: Sequence[int],
    ) -> None:
        self.kind = kind
        self.ends = np.cumsum(target) / np.sum(target)
        self.quotas = []
        self.of_prompt = []
        for prompt, n in enumerate(images_per_prompt):
            rng = np.random.default_rng(np.random.SeedSequence([seed, Stream.INDICATOR, prompt]))
            self.quotas.append(systematic(target, n, rng))
            self.of_prompt.append(int(_group_at(self.ends, rng.random(1))[0]))

    @classmethod
    def of(
        cls, kind: IndicatorKind, target: Sequence[float], preparation: Preparation
    ) -> Indicator:
        """That of a run: its seed, and as many images of each prompt as it asks for."""
        return cls(kind, target, preparation.seed, preparation.images_per_prompt)

    def batch_id(self, request: Request) -> int | None:
        """The prompt, if one draw serves all its images, so that they depend on each other."""
        return request.prompt_index if self.kind == "per_prompt" else None

    def __call__(self, request: Request) -> int:
        """Index of the group that the image is asked to be in."""
        if self.kind == "per_prompt":
            return self.of_prompt[request.prompt_index]
        if self.kind == "stratified":
            return int(self.quotas[request.prompt_index][request.image_index])
        return int(_group_at(self.ends, indicator_rng(request).random(1))[0])


class IndicatedSampler(DDIMSampler):
    """The one sampling loop, asking each image to be in the group that an indicator draws."""

    def __init__(self, backbone: Backbone, config: SamplingConfig, indicator: Indicator) -> None:
        super().__init__(backbone, config)
        self.indicator = indicator

    def group(self, request: Request) -> int:
        """The group that the indicator draws."""
        return self.indicator(request)

    def batch_id(self, request: Request) -> int:
        """Shared by images for which one draw was made."""
        shared = self.indicator.batch_id(request)
        return super().batch_id(request) if shared is None else shared

    def rows(self, groups: Sequence[int | None]) -> Tensor:
        """The groups of B images on the device, filled up with the first to a network batch.

        Padding rows of a network call are treated like any other, so that shapes never change.
        """
        rows = torch.zeros(self.backbone.network_batch, dtype=torch.long)
        rows[: len(groups)] = torch.tensor([group or 0 for group in groups])
        return rows.to(self.backbone.device)
