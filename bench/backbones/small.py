"""Random backbones of 4 x 4 pixels, on which a method is tried in a second; nothing is loaded."""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fairbench.backbones.diffusers_pipelines import DiffusersBackbone
from fairbench.backbones.mixture import GaussianMixture
from fairbench.diffusion.backbone import Backbone

__all__ = ["SMALL_BACKBONES", "StubTextEncoder", "StubTokenizer", "pixel_network", "text_network"]

BATCH = 4
"""Rows of a network call: so few that ten images are several calls, the last one not full."""


class StubTokenizer:
    """A word is its checksum; no vocabulary file is needed."""

    model_max_length = 8

    def __call__(self, texts: Sequence[str], **options: Any) -> SimpleNamespace:
        """(B, 8) numbers of the words, filled up with zeros."""
        rows = [[1 + zlib.crc32(word.encode()) % 97 for word in text.split()] for text in texts]
        length = self.model_max_length
        return SimpleNamespace(input_ids=torch.tensor([(r + [0] * length)[:length] for r in rows]))

    def tokenize(self, text: str) -> list[str]:
        """The words."""
        return text.split()


class StubTextEncoder(nn.Module):
    """Every token knows its sentence, as in a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(98, width)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        """(B, L) -> (B, L, D)."""
        states = self.table(ids)
        return (states + states.mean(1, keepdim=True),)


def _scheduler(prediction_type: str) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type=prediction_type,
        clip_sample=True,
        clip_sample_range=1.0,
    )


@functools.cache
def text_network(prediction_type: str = "epsilon", seed: int = 0) -> SimpleNamespace:
    """A text-to-image pipeline in pixel space with 12 adaptable layers and no middle block."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=3,
            out_channels=3,
            block_out_channels=(16,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        return SimpleNamespace(
            unet=unet,
            text_encoder=StubTextEncoder(12),
            tokenizer=StubTokenizer(),
            scheduler=_scheduler(prediction_type),
        )


@functools.cache
def pixel_network(prediction_type: str = "v_prediction", seed: int = 0) -> SimpleNamespace:
    """An unconditional pipeline, whose middle block is 16 channels of 2 x 2."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=4,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
        )
    return SimpleNamespace(unet=unet, scheduler=_scheduler(prediction_type))


def small_pipeline(name: str, pipeline: SimpleNamespace, sha256: str) -> DiffusersBackbone:
    """A fresh backbone of a pipeline; what a method does to it, the next one doesn't see."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # its notices on casting would mix with what is said of a method
    return DiffusersBackbone(
        name,
        copy.deepcopy(pipeline),
        sha256=sha256,
        device=torch.device("cpu"),
        dtype=torch.float32,
        network_batch=BATCH,
    )


def _mixture() -> GaussianMixture:
    """One component a gender, 90 % male; understands the words female and male."""
    means = torch.stack([torch.full((3, 4, 4), -0.6), torch.full((3, 4, 4), 0.6)])
    mixture = GaussianMixture(means, (0.1, 0.9), 0.2, words={"female": (0,), "male": (1,)})
    mixture.network_batch = BATCH
    return mixture


SMALL_BACKBONES: Mapping[str, Callable[[], Backbone]] = MappingProxyType(
    {
        "mixture": _mixture,
        "pixels": lambda: small_pipeline("pixels", pixel_network(), "pixels"),
        "text": lambda: small_pipeline("tiny", text_network(), "tiny"),
    }
)
"""Kind -> a fresh one, smallest first: a formula that takes prompts, a U-Net, one with prompts."""
