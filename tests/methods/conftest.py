from __future__ import annotations

import copy
import functools

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging

from fairbench.backbones.diffusers_pipelines import DiffusersBackbone
from fairbench.backbones.mixture import GaussianMixture
from fairbench.backbones.small import pixel_network, text_network
from fairbench.core.method import (
    Preparation,
    Request,
    SamplingConfig,
)
from fairbench.core.task import Prompt, Task
from fairbench.methods.parts.adapters import AdapterBank
from fairbench.methods.parts.contract import LEVELS, SUBJECTS, small_data

logging.set_verbosity_error()
SD_UNETS = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}


def build_backbone(prediction_type="epsilon", network_batch=4, sha256="tiny", seed=0):
    """A random text-to-image backbone in pixel space, 4 x 4, 12 adaptable layers."""
    return DiffusersBackbone(
        "tiny",
        copy.deepcopy(text_network(prediction_type, seed)),
        sha256=sha256,
        device=torch.device("cpu"),
        dtype=torch.float32,
        network_batch=network_batch,
    )


def build_unconditional(prediction_type="v_prediction", network_batch=4, sha256="pixels", seed=0):
    """A random unconditional backbone, 4 x 4, whose middle block is 16 channels of 2 x 2."""
    return DiffusersBackbone(
        "pixels",
        copy.deepcopy(pixel_network(prediction_type, seed)),
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
        pipeline = copy.copy(text_network(prediction_type, seed))
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
        roles = tuple(Prompt(role, template="a photo of {}") for role in SUBJECTS[:prompts])
        return Task("tiny", levels, roles, target or (1 / groups,) * groups, prompts > 1)

    return make


@pytest.fixture
def data():
    return small_data()


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
