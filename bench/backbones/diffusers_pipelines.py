"""Pipelines of diffusers behind the one small interface; the code that families share.

A method written against :class:`Backbone` runs unchanged on Stable Diffusion 1.x/2.x, on an
unconditional DDPM and on a Gaussian mixture whose exact denoiser is a formula.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.core.errors import AssetError, InputError
from fairbench.diffusion.backbone import (
    Backbone,
    Bottleneck,
    Capability,
    CrossAttention,
    Edit,
    Trainable,
    cross_attention_linears,
    fixed_batches,
)
from fairbench.diffusion.schedule import PredictionType, Schedule

__all__ = ["DiffusersBackbone", "load_pipeline"]


class DiffusersBackbone(Backbone):
    """A diffusers pipeline: Stable Diffusion 1.x/2.x, or an unconditional DDPM or DDIM one.

    Args:
        name: Its name.
        pipeline: ``StableDiffusionPipeline``, ``DDPMPipeline`` or ``DDIMPipeline``.
        sha256: Hash of its weights.
        device: Where it is moved to.
        dtype: Format of its weights; latents stay float32 between the calls.
        network_batch: Fixed number of rows of every network call without gradients.
    """

    def __init__(
        self,
        name: str,
        pipeline: Any,
        *,
        sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        network_batch: int,
    ) -> None:
        self.name, self.weights_sha256, self.network_batch = name, sha256, network_batch
        self.device, self.dtype = device, dtype
        self._vae = getattr(pipeline, "vae", None)
        self._text = getattr(pipeline, "text_encoder", None)
        self._tokenizer = getattr(pipeline, "tokenizer", None)
        if self._text is not None:  # the limit counts its begin and end
            self.token_limit = int(cast("Any", self._tokenizer).model_max_length) - 2
        self._unet: Any = pipeline.unet
        self.unet = self._unet
        for module in (self._vae, self._text, self._unet):
            if module is not None:
                module.to(device, dtype).eval().requires_grad_(False)
        config = pipeline.scheduler.config
        self.schedule = Schedule(
            pipeline.scheduler.alphas_cumprod,
            cast("PredictionType", config.get("prediction_type", "epsilon")),
            float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None,
        )
        size = int(self._unet.config.sample_size)
        self.latent_shape = (int(self._unet.config.in_channels), size, size)
        self.conditional = self._text is not None
        scale = 1
        if self._vae is not None:
            scale = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.image_size = size * scale

    def with_unet(self, unet: nn.Module) -> DiffusersBackbone:
        """The same pipeline with another network of the same kind; the rest is shared."""
        other = copy.copy(self)
        other.unet = other._unet = unet
        return other

    def _in_fixed_batches(self, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """`call` on rows in network batches, the last one filled up."""
        return torch.cat(
            [
                call(batch.to(self.device))[:own]
                for batch, own in fixed_batches(rows, self.network_batch)
            ]
        )

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Images, (B, H, W, 3) uint8, to latent means, (B, C, h, w) float32, scaled."""
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self._vae is None:
            return pixels.to(self.device)
        vae = self._vae
        return self._in_fixed_batches(
            lambda x: (
                vae.encode(x.to(self.dtype)).latent_dist.mean.float() * vae.config.scaling_factor
            ),
            pixels,
        )

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents, (B, C, h, w), to pixels, (B, 3, H, W) float32, through the VAE's decoder."""
        if self._vae is None:
            return latents.float()
        vae = self._vae
        return self._in_fixed_batches(
            lambda z: vae.decode((z / vae.config.scaling_factor).to(self.dtype)).sample, latents
        ).float()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """Last hidden state of the text encoder, (B, L, D); None without one."""
        if self._text is None:
            return None
        text, tokenizer = self._text, cast("Any", self._tokenizer)
        distinct = list(dict.fromkeys(prompts))
        tokens = tokenizer(
            distinct,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        states = self._in_fixed_batches(lambda ids: text(ids)[0], tokens)
        where = {prompt: i for i, prompt in enumerate(distinct)}
        return states[[where[prompt] for prompt in prompts]]

    def tokens(self, text: str) -> list[str] | None:
        """The pieces that the tokenizer splits `text` into; None without a tokenizer."""
        tokenizer = cast("Any", self._tokenizer)
        return None if tokenizer is None else list(tokenizer.tokenize(text))

    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        # The network's own: one in training keeps float32 weights whatever the pipeline has.
        dtype = next(self._unet.parameters()).dtype
        x_t = x_t.to(dtype)
        if context is None:
            output = self._unet(x_t, t).sample
        else:
            output = self._unet(x_t, t, encoder_hidden_states=context.to(dtype)).sample
        return cast("Tensor", output).float()

    def capability(self, kind: type[Capability]) -> Capability | None:
        """Training always; the rest where the U-Net has a middle block or cross-attention."""
        found: Any = None
        if kind is Trainable:
            found = Trainable(self._unet, self.with_unet)
        elif kind is Bottleneck and getattr(self._unet, "mid_block", None) is not None:
            found = Bottleneck(self.edit_bottleneck)
        elif kind is CrossAttention and (layers := cross_attention_linears(self._unet)):
            found = CrossAttention(self._unet, layers)
        return cast("Capability | None", found)

    @contextmanager
    def edit_bottleneck(self, edit: Edit) -> Iterator[None]:
        """Hook on the output of the U-Net's middle block, the h-space of Kwon et al. 2022.

        Source: Diffusion models already have a semantic latent space, arXiv 2210.10960.
        """
        times: list[int] = []

        def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
            times[:] = [int(args[1].reshape(-1)[0])]

        def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return edit(output, times[0])

        handles = [
            self._unet.register_forward_pre_hook(remember),
            self._unet.mid_block.register_forward_hook(change),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def load_pipeline(
    name: str,
    folder: Path,
    *,
    sha256: str,
    device: torch.device,
    dtype: torch.dtype,
    network_batch: int,
) -> DiffusersBackbone:
    """Load a pipeline folder with a U-Net and a discrete noise schedule.

    Raises:
        AssetError: If it can't be loaded.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Their bars and notices would mix with this program's own.
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # a foreign or damaged folder makes diffusers raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise AssetError(f"backbone {name!r} at {folder} can't be loaded: {reason}") from error
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise InputError(
            f"backbone {name!r} at {folder} has the scheduler {type(pipeline.scheduler).__name__};"
            " expected one with a discrete noise schedule (alphas_cumprod), such as DDIMScheduler"
        )
    return DiffusersBackbone(
        name,
        pipeline,
        sha256=sha256,
        device=device,
        dtype=dtype,
        network_batch=network_batch,
    )
