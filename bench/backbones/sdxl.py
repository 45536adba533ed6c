"""Stable Diffusion XL: two text encoders, a pooled embedding and sizes beside the prompt.

Source: Podell et al. 2023, SDXL, arXiv 2307.01952.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fairbench.backbones.base import Description, Family
from fairbench.backbones.diffusers_pipelines import (
    DiffusersBackbone,
    describe_unet,
    loader_of,
    token_ids,
)
from fairbench.backbones.folders import PipelineFolder
from fairbench.core.errors import AssetError
from fairbench.core.method import SamplingConfig

SAMPLING = SamplingConfig(steps=25, guidance=5.0)
PARTS = (
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "vae",
)


SIZES = 6
"""Numbers that the network is told of an image's size and crop."""


class XLBackbone(DiffusersBackbone):
    """SDXL behind the one interface; as its base.

    A context is (B, L + P, D): the L tokens, then the pooled embedding spread over P rows of D,
    filled up with zeros. An empty prompt is all zeros where the pipeline says so
    (``force_zeros_for_empty_prompt``). Images count as whole ones of the network's own size.
    """

    def __init__(self, name: str, pipeline: Any, **options: Any) -> None:
        super().__init__(name, pipeline, **options)
        found = [
            (
                getattr(pipeline, f"tokenizer{which}", None),
                getattr(pipeline, f"text_encoder{which}", None),
            )
            for which in ("", "_2")
        ]
        self._encoders = [(words, text) for words, text in found if text is not None]
        for _, text in self._encoders:
            text.to(self.device, self.dtype).eval().requires_grad_(False)
        words: Any = self._encoders[0][0]
        self._tokenizer, self._tokens = words, int(words.model_max_length)
        self.token_limit = self._tokens - 2
        self.conditional = True
        self._zero_empty = bool(pipeline.config.get("force_zeros_for_empty_prompt"))
        self._pooled = int(self._encoders[-1][1].config.projection_dim)
        side = float(self.image_size)
        # Original height and width, top and left of the crop, height and width that are wanted.
        self._sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=self.device)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Tokens of both encoders and the pooled embedding of the last one, (B, L + P, D)."""
        distinct = list(dict.fromkeys(prompts))
        ids = torch.cat([token_ids(words, distinct).input_ids for words, _ in self._encoders], 1)
        states = self._in_fixed_batches(self._encoded, ids)
        if self._zero_empty and "" in distinct:
            states[distinct.index("")] = 0
        where = {prompt: i for i, prompt in enumerate(distinct)}
        return states[[where[prompt] for prompt in prompts]]

    def _encoded(self, ids: Tensor) -> Tensor:
        """(B, encoders · L) token ids to (B, L + P, D)."""
        parts = ids.chunk(len(self._encoders), dim=1)
        outputs = [
            text(part, output_hidden_states=True)
            for part, (_, text) in zip(parts, self._encoders, strict=True)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        width = tokens.shape[-1]
        pooled = outputs[-1][0]
        rows = -(-pooled.shape[1] // width)
        pooled = torch.nn.functional.pad(pooled, (0, rows * width - pooled.shape[1]))
        return torch.cat([tokens, pooled.reshape(-1, rows, width)], dim=1)

    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        dtype = next(self._unet.parameters()).dtype
        both = cast("Tensor", context).to(dtype)
        added = {
            "text_embeds": both[:, self._tokens :].flatten(1)[:, : self._pooled],
            "time_ids": self._sizes.to(dtype).expand(len(x_t), -1),
        }
        output = self._unet(
            x_t.to(dtype),
            t,
            encoder_hidden_states=both[:, : self._tokens],
            added_cond_kwargs=added,
        ).sample
        return cast("Tensor", output).float()

    def _statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of latents, (1, C, 1, 1) each; None for a VAE that has none."""
        config = cast("Any", self._vae).config
        found = config.get("latents_mean"), config.get("latents_std")
        if found[0] is None or found[1] is None:
            return None
        mean, std = (torch.tensor(x, device=self.device).view(1, -1, 1, 1) for x in found)
        return mean, std

    def _scaled(self, latents: Tensor) -> Tensor:
        known = self._statistics()
        factor = cast("Any", self._vae).config.scaling_factor
        return (
            super()._scaled(latents) if known is None else (latents - known[0]) * factor / known[1]
        )

    def _unscaled(self, latents: Tensor) -> Tensor:
        known = self._statistics()
        factor = cast("Any", self._vae).config.scaling_factor
        return (
            super()._unscaled(latents) if known is None else latents * known[1] / factor + known[0]
        )


def describe(pipeline: PipelineFolder) -> Description:
    """What the folder's JSON says; refiners and inpainting models are refused."""
    said = describe_unet(
        pipeline,
        SAMPLING,
        conditional=True,
        parts=("scheduler", "tokenizer_2", "text_encoder_2", "unet", "vae"),
        optional=("tokenizer", "text_encoder"),
        inputs={"addition_embed_type": "text_time"},
    )
    unet, pooled = pipeline.config("unet"), pipeline.config("text_encoder_2").get("projection_dim")
    each, takes = (
        unet.get(name)
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    )
    other = (
        isinstance(each, int)
        and isinstance(takes, int)
        and isinstance(pooled, int)
        and takes != pooled + SIZES * each
    )
    if other or pipeline.index.get("requires_aesthetics_score"):
        raise AssetError(
            f"{pipeline.path} is a {pipeline.kind} whose U-Net isn't told the prompt and "
            f"{SIZES} sizes of the image: a refiner, which starts from a picture, or another "
            "model's U-Net; use another --backbone"
        )
    return said


FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL, text-to-image with two text encoders",
    pipelines=("StableDiffusionXLPipeline",),
    conditional=True,
    sampling=SAMPLING,
    load=loader_of(XLBackbone, PARTS),
    capabilities=frozenset({"predictions", "training", "bottleneck", "cross-attention", "ddim"}),
    parts=PARTS,
    describe=describe,
)
