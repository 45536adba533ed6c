"""Stable Diffusion 1.x and 2.x: latent text-to-image models with one text encoder."""

from __future__ import annotations

from fairbench.backbones.base import Description, Family
from fairbench.backbones.diffusers_pipelines import PARTS, describe_unet, load_pipeline
from fairbench.backbones.folders import PipelineFolder
from fairbench.core.method import SamplingConfig

SAMPLING = SamplingConfig(steps=25, guidance=7.5)


def describe(pipeline: PipelineFolder) -> Description:
    """What the folder's JSON says; inpainting, depth and upscaling models are refused."""
    return describe_unet(pipeline, SAMPLING, conditional=True, parts=PARTS)


FAMILY = Family(
    name="stable_diffusion",
    title="Stable Diffusion 1.x and 2.x, text-to-image in a VAE's latent space",
    pipelines=("StableDiffusionPipeline",),
    conditional=True,
    sampling=SAMPLING,
    load=load_pipeline,
    capabilities=frozenset({"predictions", "training", "bottleneck", "cross-attention", "ddim"}),
    parts=PARTS,
    describe=describe,
)
