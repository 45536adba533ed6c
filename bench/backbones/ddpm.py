"""Unconditional diffusion models of pixels."""

from __future__ import annotations

from fairbench.backbones.base import Family
from fairbench.backbones.diffusers_pipelines import load_pipeline
from fairbench.core.method import SamplingConfig

FAMILY = Family(
    name="ddpm",
    title="unconditional DDPM and DDIM pipelines in pixel space",
    pipelines=("DDPMPipeline", "DDIMPipeline"),
    conditional=False,
    sampling=SamplingConfig(steps=25, guidance=1.0),
    network_batch=64,
    load=load_pipeline,
)
