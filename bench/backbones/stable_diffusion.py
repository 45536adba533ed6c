"""Stable Diffusion 1.x and 2.x: latent text-to-image models with one text encoder."""

from __future__ import annotations

from fairbench.backbones.base import Family
from fairbench.backbones.diffusers_pipelines import load_pipeline
from fairbench.core.method import SamplingConfig

FAMILY = Family(
    name="stable_diffusion",
    title="Stable Diffusion 1.x and 2.x, text-to-image in a VAE's latent space",
    pipelines=("StableDiffusionPipeline",),
    conditional=True,
    sampling=SamplingConfig(steps=25, guidance=7.5),
    network_batch=64,
    load=load_pipeline,
)
