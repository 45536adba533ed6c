"""Narrow pipelines with random weights and true structure, to try things out in a second.

``python -m fairbench.build.stand_ins KIND FOLDER`` writes one, in the folder format of the
published model of its kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMPipeline,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from fairbench.build.train_sd import tokenizer

__all__ = ["STAND_INS", "write_stand_in"]

# scheduler_config.json of the published folders.
BETAS: Mapping[str, Any] = MappingProxyType(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)


def text_encoder(words: CLIPTokenizer, width: int, projection: int | None = None) -> Any:
    """A CLIP text encoder of two layers; with a projection, as the second one of SDXL."""
    end = words.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
        projection_dim=projection or 512,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def vae(channels: int = 4) -> AutoencoderKL:
    """A VAE that halves the side once."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.7,
        force_upcast=True,
    )


def pixel_unet(size: int = 8, **changes: Any) -> UNet2DModel:
    """A U-Net without prompts, with attention in its lower half."""
    return UNet2DModel(
        sample_size=size,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **changes,
    )


def text_unet(width: int, **changes: Any) -> UNet2DConditionModel:
    """A U-Net with cross-attention to prompts of so many channels."""
    options: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": width,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**{**options, **changes})


def stable_diffusion(work: Path, scheduler: Any, **unet: Any) -> Any:
    """Stable Diffusion 1.x or 2.x."""
    words = tokenizer(work)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(words, 16),
        tokenizer=words,
        unet=text_unet(16, **unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pndm() -> PNDMScheduler:
    """As of Stable Diffusion 1.5."""
    return PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


def ddim_velocity(**changes: Any) -> DDIMScheduler:
    """As of Stable Diffusion 2.1."""
    return DDIMScheduler(
        **BETAS,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **changes,
    )


def sdxl(work: Path, scheduler: Any) -> Any:
    """Stable Diffusion XL."""
    words = tokenizer(work)
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(words, 16),
        text_encoder_2=text_encoder(words, 24, projection=20),
        tokenizer=words,
        tokenizer_2=words,
        unet=text_unet(
            40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def ldm() -> Any:
    """Unconditional latent diffusion with code words, as of CelebA-HQ 256."""
    return LDMPipeline(
        vqvae=VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            num_vq_embeddings=64,
            norm_num_groups=4,
            scaling_factor=0.5,
        ),
        unet=pixel_unet(),
        scheduler=DDIMScheduler(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
        ),
    )


def lcm(work: Path) -> Any:
    """A latent consistency model, whose U-Net is told the guidance scale."""
    words = tokenizer(work)
    return LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=text_encoder(words, 16),
        tokenizer=words,
        unet=text_unet(16, time_cond_proj_dim=8),
        scheduler=LCMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3(work: Path) -> Any:
    """Stable Diffusion 3 without its third text encoder, which it can do without."""
    words = tokenizer(work)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=16,
            pooled_projection_dim=40,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.7,
            shift_factor=0.1,
        ),
        text_encoder=text_encoder(words, 16, projection=16),
        tokenizer=words,
        text_encoder_2=text_encoder(words, 24, projection=24),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


STAND_INS: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    {
        "sd1": lambda work: stable_diffusion(work, pndm()),
        "sd2": lambda work: stable_diffusion(
            work, ddim_velocity(), use_linear_projection=True, attention_head_dim=(2, 4)
        ),
        "sd_zero_snr": lambda work: stable_diffusion(
            work, ddim_velocity(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        ),
        "sdxl": lambda work: sdxl(
            work, EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
        ),
        "ddpm": lambda work: DDPMPipeline(pixel_unet(), DDPMScheduler()),
        "ddim": lambda work: DDIMPipeline(pixel_unet(), DDIMScheduler()),
        "learned_variance": lambda work: DDPMPipeline(
            pixel_unet(out_channels=6), DDPMScheduler(variance_type="learned_range")
        ),
        "thresholding": lambda work: DDPMPipeline(
            pixel_unet(), DDPMScheduler(thresholding=True, sample_max_value=1.5)
        ),
        "classes": lambda work: DDPMPipeline(pixel_unet(num_class_embeds=4), DDPMScheduler()),
        "ldm": lambda work: ldm(),
        "lcm": lcm,
        "sdxl_turbo": lambda work: sdxl(
            work, EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
        ),
        "sd3": stable_diffusion_3,
    }
)
"""Kind -> makes one, given a folder to work in."""


def write_stand_in(kind: str, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Write a stand-in in diffusers' folder format.

    Args:
        kind: Of `STAND_INS`.
        folder: Where to.
        seed: Of the weights.
        options: Of ``save_pretrained``, such as ``variant="fp16"``.
    Returns:
        The folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = STAND_INS[kind](folder.with_suffix(".work"))
    pipeline.save_pretrained(folder, **options)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(STAND_INS))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_stand_in(arguments.kind, arguments.folder)


if __name__ == "__main__":
    main()
