"""Published configurations at their true sizes, without their weights: on the meta device."""

from __future__ import annotations

import types

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fairbench.backbones.base import default_network_batch
from fairbench.backbones.ddpm import PixelBackbone
from fairbench.backbones.diffusers_pipelines import DiffusersBackbone
from fairbench.backbones.sdxl import XLBackbone
from fairbench.diffusion.backbone import Bottleneck, CrossAttention, Trainable
from fairbench.methods import get_method
from fairbench.methods.parts.adapters import AdapterBank

META = torch.device("meta")
WORDS = types.SimpleNamespace(model_max_length=77)


def scheduler(**changes):
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        **changes,
    )


def vae(scale):
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=scale,
    )


def text(kind, width, layers, heads, **changes):
    return kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            **changes,
        )
    )


def stable_diffusion(width, size, kind, **unet):
    return types.SimpleNamespace(
        unet=UNet2DConditionModel(
            sample_size=size,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=width,
            **unet,
        ),
        vae=vae(0.18215),
        text_encoder=text(CLIPTextModel, width, 12 if width == 768 else 23, width // 64),
        tokenizer=WORDS,
        scheduler=scheduler(prediction_type=kind),
    )


def sdxl():
    return types.SimpleNamespace(
        unet=UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        vae=vae(0.13025),
        text_encoder=text(CLIPTextModel, 768, 12, 12),
        text_encoder_2=text(CLIPTextModelWithProjection, 1280, 32, 20, projection_dim=1280),
        tokenizer=WORDS,
        tokenizer_2=WORDS,
        scheduler=scheduler(),
        config={"force_zeros_for_empty_prompt": True},
    )


def ddpm():
    return types.SimpleNamespace(
        unet=UNet2DModel(
            sample_size=256,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            layers_per_block=2,
            attention_head_dim=None,
            down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        ),
        scheduler=DDPMScheduler(),
    )


MODELS = {
    # name: class, pipeline, pixels, rows of a call, parameters of the U-Net, FairGen's a category
    "sd15": (
        DiffusersBackbone,
        lambda: stable_diffusion(768, 64, "epsilon", attention_head_dim=8),
        (512, 8),
        859_520_964,
        99_456,
    ),
    "sd21": (
        DiffusersBackbone,
        lambda: stable_diffusion(
            1024,
            96,
            "v_prediction",
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        (768, 4),
        865_910_724,
        107_648,
    ),
    "sdxl": (XLBackbone, sdxl, (1024, 4), 2_567_463_684, 785_920),
    "ddpm256": (PixelBackbone, ddpm, (256, 16), 113_673_219, None),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    kind, pipeline, *facts = MODELS[request.param]
    with META:
        made = pipeline()
    made.scheduler.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    backbone = kind(
        request.param, made, sha256="", device=META, dtype=torch.bfloat16, network_batch=None
    )
    return backbone, *facts


def test_sizes_and_parameters(model):
    backbone, (pixels, rows), parameters, _ = model
    assert sum(p.numel() for p in backbone.unet.parameters()) == parameters
    assert backbone.image_size == pixels
    assert backbone.network_batch == rows


def test_one_call_of_the_network_has_the_shape_of_what_is_diffused(model):
    backbone, *_ = model
    x = torch.empty((2, *backbone.latent_shape), device=META)
    context = None
    if backbone.conditional:
        ids = torch.zeros((2, 77), dtype=torch.long, device=META)
        if isinstance(backbone, XLBackbone):
            context = backbone._encoded(torch.cat([ids, ids], 1))
            assert context.shape == (2, 78, 2048)  # the pooled embedding is the last row
        else:
            context = backbone._text(ids)[0]
    t = torch.zeros(2, dtype=torch.long, device=META)
    assert backbone._network(x, t, context).shape == x.shape
    assert backbone.pixels(x).shape == (2, 3, backbone.image_size, backbone.image_size)


def test_what_methods_ask_for(model):
    backbone, _, _, adapters = model
    assert backbone.capability(Trainable).network is backbone.unet
    assert backbone.capability(Bottleneck) is not None
    found = backbone.capability(CrossAttention)
    if adapters is None:
        assert found is None
        return
    bank = AdapterBank(found.network, ["female"], found.layers, rank=get_method("fairgen")().rank)
    assert bank.parameters_a_category == adapters


@pytest.mark.parametrize(
    ("side", "rows"),
    [(8, 64), (32, 64), (64, 64), (65, 16), (256, 16), (512, 8), (768, 4), (1024, 4)],
)
def test_rows_of_a_call_follow_the_size(side, rows):
    assert default_network_batch(side) == rows
