"""Unconditional latent diffusion, LDM: an autoencoder of code words around a U-Net.

Source: Rombach et al. 2022, High-resolution image synthesis with latent diffusion models, arXiv
2112.10752.
"""

from __future__ import annotations

from fairbench.backbones.base import Description, Family
from fairbench.backbones.diffusers_pipelines import DiffusersBackbone, describe_unet, loader_of
from fairbench.backbones.folders import PipelineFolder
from fairbench.core.method import SamplingConfig

SAMPLING = SamplingConfig(steps=50, guidance=1.0)
PARTS = ("scheduler", "unet", "vqvae")


def describe(pipeline: PipelineFolder) -> Description:
    """What the folder's JSON says."""
    return describe_unet(pipeline, SAMPLING, conditional=False, parts=PARTS)


FAMILY = Family(
    name="latent",
    title="unconditional latent diffusion (LDM), decoded from code words or by a VAE",
    pipelines=("LDMPipeline",),
    conditional=False,
    sampling=SAMPLING,
    load=loader_of(DiffusersBackbone, PARTS),
    parts=PARTS,
    describe=describe,
)
