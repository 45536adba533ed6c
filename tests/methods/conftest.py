from __future__ import annotations

import copy
import functools
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.utils import logging
from torch import nn

from fairbench.backbones.diffusers_pipelines import DiffusersBackbone
from fairbench.backbones.mixture import GaussianMixture
from fairbench.core.method import (
    ImageSet,
    Preparation,
    Request,
    SamplingConfig,
    TrainingData,
)
from fairbench.core.task import Prompt, Task
from fairbench.methods.parts.adapters import AdapterBank

ROLES = ("person", "tennis player", "santa")
LEVELS = {"gender": ("female", "male"), "race": ("asian", "black", "white")}
logging.set_verbosity_error()
SD_UNETS = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}


class StubTokenizer:
    """A word is its checksum; no vocabulary file is needed."""

    model_max_length = 8

    def __call__(self, texts, **options):
        rows = [[1 + zlib.crc32(word.encode()) % 97 for word in text.split()] for text in texts]
        length = self.model_max_length
        return SimpleNamespace(input_ids=torch.tensor([(r + [0] * length)[:length] for r in rows]))


class StubTextEncoder(nn.Module):
    """Every token knows its sentence, as in a transformer."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(98, width)

    def forward(self, ids):
        states = self.table(ids)
        return (states + states.mean(1, keepdim=True),)


def build_backbone(prediction_type="epsilon", network_batch=4, sha256="tiny", seed=0):
    """A random text-to-image backbone in pixel space, 4 x 4, 12 adaptable layers."""
    return DiffusersBackbone(
        "tiny",
        copy.deepcopy(build_pipeline(prediction_type, seed)),
        sha256=sha256,
        device=torch.device("cpu"),
        dtype=torch.float32,
        network_batch=network_batch,
    )


@functools.cache
def build_pipeline(prediction_type, seed):
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
            scheduler=DDIMScheduler(
                num_train_timesteps=1000,
                prediction_type=prediction_type,
                clip_sample=True,
                clip_sample_range=1.0,
            ),
        )


@functools.cache
def build_unconditional_pipeline(prediction_type, seed):
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
    scheduler = build_pipeline(prediction_type, seed).scheduler
    return SimpleNamespace(unet=unet, scheduler=scheduler)


def build_unconditional(prediction_type="v_prediction", network_batch=4, sha256="pixels", seed=0):
    """A random unconditional backbone, 4 x 4, whose middle block is 16 channels of 2 x 2."""
    return DiffusersBackbone(
        "pixels",
        copy.deepcopy(build_unconditional_pipeline(prediction_type, seed)),
        sha256=sha256,
        device=torch.device("cpu"),
        dtype=torch.float32,
        network_batch=network_batch,
    )


@functools.cache
def build_text_unet(prediction_type, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=4,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
        )


@pytest.fixture
def make_text_unet():
    """A random text-to-image backbone, 4 x 4, with a middle block of 16 channels of 2 x 2."""

    def make(prediction_type="epsilon", seed=0):
        pipeline = copy.copy(build_pipeline(prediction_type, seed))
        pipeline.unet = copy.deepcopy(build_text_unet(prediction_type, seed))
        return DiffusersBackbone(
            "tiny-text",
            pipeline,
            sha256=f"text-{prediction_type}",
            device=torch.device("cpu"),
            dtype=torch.float32,
            network_batch=4,
        )

    return make


@pytest.fixture
def make_unconditional():
    return build_unconditional


@pytest.fixture
def make_backbone():
    return build_backbone


@pytest.fixture
def backbone():
    return build_backbone()


@pytest.fixture
def make_mixture():
    """One component a gender, 90 % male; understands the words female and male."""

    def make():
        means = torch.stack([torch.full((3, 4, 4), -0.6), torch.full((3, 4, 4), 0.6)])
        return GaussianMixture(means, (0.1, 0.9), 0.2, words={"female": (0,), "male": (1,)})

    return make


@pytest.fixture
def sd_unet():
    """The U-Net of Stable Diffusion 1.x or 2.x, without storage."""

    def make(name):
        with torch.device("meta"):
            return UNet2DConditionModel(
                sample_size=64, block_out_channels=(320, 640, 1280, 1280), **SD_UNETS[name]
            )

    return make


@pytest.fixture
def randomise():
    """Give the adapters of a bank random non-zero factors."""

    def fill(bank: AdapterBank, size=0.4, seed=3):
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * size)
        return bank

    return fill


@pytest.fixture
def make_task():
    def make(*attributes, target=None, prompts=1):
        levels = {name: LEVELS[name] for name in attributes or ("gender",)}
        groups = 1
        for names in levels.values():
            groups *= len(names)
        roles = tuple(Prompt(role, template="a photo of {}") for role in ROLES[:prompts])
        return Task("tiny", levels, roles, target or (1 / groups,) * groups, prompts > 1)

    return make


def build_images(n, seed, male_share):
    """Random 4 x 4 images, men brighter than women."""
    rng = np.random.default_rng(seed)
    labels = {
        "gender": (rng.random(n) < male_share).astype(np.uint8),
        "race": rng.integers(3, size=n).astype(np.uint8),
    }
    bright = np.where(labels["gender"], 180, 70)[:, None, None, None]
    images = (bright + rng.normal(0, 25, (n, 4, 4, 3))).clip(0, 255).astype(np.uint8)
    return ImageSet(images, rng.integers(len(ROLES), size=n), labels)


@pytest.fixture
def data():
    subjects = tuple(Prompt(role, template="a photo of {}") for role in ROLES)
    return TrainingData(
        neutral_prompts=subjects,
        subjects=subjects,
        training=build_images(48, 0, 0.9),
        reference=build_images(24, 1, 0.5),
        attributes=LEVELS,
    )


@pytest.fixture
def make_preparation(tmp_path):
    def make(progress=lambda *_: None, cache=None, **changes):
        values = {
            "seed": 0,
            "sampling": SamplingConfig(2, 3.0),
            "images_per_prompt": (64, 64, 64),
            "cache": cache or tmp_path,
            "progress": progress,
        }
        return Preparation(**{**values, **changes})

    return make


@pytest.fixture
def make_requests():
    def make(task, images, seed=0):
        return [
            Request(prompt, p, i, seed)
            for p, prompt in enumerate(task.prompts)
            for i in range(images)
        ]

    return make
