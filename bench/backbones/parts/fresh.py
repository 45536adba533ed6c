"""Pipelines with fresh weights, in three sizes, and what it takes to train them from scratch.

At 32 pixels the tiny ones have the structure of the two that come with fairbench.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

__all__ = [
    "LATENT_SCHEDULE",
    "SIZES",
    "Size",
    "TextToLatent",
    "autoencoder",
    "autoencoder_loss",
    "centre_latents",
    "latent_schedule",
    "latent_side",
    "latents_of",
    "pixel_schedule",
    "pixel_unet",
    "reconstruction_loss",
]

AT_ONCE = 256
"""Images encoded at once at 32 pixels, fewer where they are larger."""

# A lower terminal signal than Stable Diffusion's (.016 against .068 of the clean latent is left at
# the last step): starting from pure noise then hardly shifts the mean colour, that is, skin tone.
LATENT_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear"}

HEAD = 32
"""Channels of an attention head."""


@dataclass(frozen=True)
class Size:
    """How large the networks of a pipeline are; the last width stands for all further levels.

    Attributes:
        pixel_widths: Channels of a pixel model's U-Net by level.
        coder_widths: Channels of an autoencoder that shrinks a side by 4; one that shrinks it by
            8 has two thirds of the first in front.
        latent_channels: Of that autoencoder.
        latent_widths: Channels of the U-Net in its latent space, by level.
        text_width, text_layers: Of the text encoder.
        layers: Of a block, everywhere.
        attention: Side in pixels at and below which a pixel model has attention.
    """

    pixel_widths: tuple[int, ...]
    coder_widths: tuple[int, int, int]
    latent_channels: int
    latent_widths: tuple[int, ...]
    text_width: int
    text_layers: int
    layers: int
    attention: int


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "tiny": Size((24, 48, 96, 128), (24, 48, 64), 16, (64, 128), 64, 2, 1, 8),
        "small": Size((64, 128, 192, 256), (48, 96, 128), 16, (128, 256), 128, 4, 2, 16),
        "base": Size((128, 256, 384, 512), (96, 192, 384), 16, (320, 640, 1280), 768, 12, 2, 16),
    }
)
"""Name -> how large: minutes to hours on a CPU, hours on a GPU, days on a GPU."""


def _by_level(widths: tuple[int, ...], side: int, smallest: int = 4) -> tuple[int, ...]:
    """Width of each level from `side` down to `smallest` pixels a side."""
    levels = 1
    while side > smallest:
        side //= 2
        levels += 1
    return tuple(widths[min(level, len(widths) - 1)] for level in range(levels))


def pixel_schedule() -> DDIMScheduler:
    """Linear betas as in DDPM; at the last step .6 % of the clean image is left."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def latent_schedule() -> DDIMScheduler:
    """The schedule of training and sampling; each default that matters at 25 steps is explicit."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # as StableDiffusionPipeline insists; trailing spacing does not use it
        timestep_spacing="trailing",
        **LATENT_SCHEDULE,
    )


def pixel_unet(size: Size, side: int) -> UNet2DModel:
    """A U-Net of pixels; most of the work of a tiny one is done where a CPU is quick.

    Args:
        size: How large.
        side: Pixels a side, a power of two.
    """
    widths = _by_level(size.pixel_widths, side)
    attends = [side // 2**level <= size.attention for level in range(len(widths))]
    return UNet2DModel(
        sample_size=side,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        layers_per_block=size.layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        attention_head_dim=HEAD,
        norm_num_groups=8,
    )


def latent_side(side: int) -> int:
    """Side of the latents of images: a quarter, and an eighth from 64 pixels on."""
    return side // (4 if side < 64 else 8)


def autoencoder(size: Size, side: int) -> AutoencoderKL:
    """An autoencoder of images of `side` pixels."""
    widths: tuple[int, ...] = size.coder_widths
    if latent_side(side) * 4 < side:
        widths = (widths[0] * 2 // 3, *widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=size.layers,
        latent_channels=size.latent_channels,
        norm_num_groups=8,
        sample_size=side,
        mid_block_add_attention=size.layers > 1,
    )


class TextToLatent(nn.Module):
    """Text encoder and U-Net, trained together.

    Args:
        words: Gives the vocabulary and the length of a prompt.
        size: How large.
        side: Of the latents.
    """

    def __init__(self, words: CLIPTokenizer, size: Size, side: int) -> None:
        super().__init__()
        end = words.eos_token_id
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=size.text_width,
                intermediate_size=4 * size.text_width,
                num_hidden_layers=size.text_layers,
                num_attention_heads=max(4, size.text_width // 64),
                max_position_embeddings=words.model_max_length,
                bos_token_id=end - 1,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        widths = _by_level(size.latent_widths, side)
        reads = [level > 0 for level in range(len(widths))]  # not at the full side
        self.unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=size.latent_channels,
            out_channels=size.latent_channels,
            block_out_channels=widths,
            layers_per_block=size.layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if r else "DownBlock2D" for r in reads),
            up_block_types=tuple("CrossAttnUpBlock2D" if r else "UpBlock2D" for r in reads[::-1]),
            cross_attention_dim=size.text_width,
            attention_head_dim=tuple(width // HEAD for width in widths),  # that is, their number
            norm_num_groups=16,
        )


def reconstruction_loss(error: Tensor) -> Tensor:
    """Squared and absolute error, means over all values of `error`."""
    return error.square().mean() + 0.5 * error.abs().mean()


def autoencoder_loss(
    vae: AutoencoderKL, pixels: Tensor, noise_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Reconstruction error, and a little of the latents' distance from a normal distribution.

    Args:
        vae: In training.
        pixels: (B, 3, H, W) in [-1, 1].
        noise_of: Standard normal numbers, as many as a tensor has.
    """
    posterior = vae.encode(pixels).latent_dist
    rebuilt = vae.decode(posterior.mean + posterior.std * noise_of(posterior.mean)).sample
    kl: Tensor = posterior.kl().mean()
    return reconstruction_loss(rebuilt - pixels) + 5e-7 * kl


def latents_of(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Latent means of all images, unscaled."""
    with torch.inference_mode():
        return torch.cat(list(_encoded(vae, pixels)))


def _encoded(vae: AutoencoderKL, pixels: Tensor) -> Iterator[Tensor]:
    step = max(1, AT_ONCE * 32**2 // pixels.shape[-1] ** 2)
    for chunk in torch.split(pixels, step):
        yield vae.encode(chunk).latent_dist.mean


@torch.no_grad()
def centre_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Move the channel means of the latents into the 1 x 1 convolutions beside them.

    Diffusion starts from zero-mean noise; a channel whose mean isn't zero would have to be moved
    there by the sampler. The scaling factor then brings the latents to unit deviation.

    Args:
        vae: Changed in place.
        pixels: (N, 3, H, W) in [-1, 1], what the means are of.
    Returns:
        (C,) deviations of the channels, before scaling.
    """
    channels = vae.config["latent_channels"]
    mean = latents_of(vae, pixels).mean((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] -= mean
    post.bias += post.weight[:, :, 0, 0] @ mean
    centred = latents_of(vae, pixels)
    vae.register_to_config(scaling_factor=1 / centred.std().item())
    return centred.std((0, 2, 3))
