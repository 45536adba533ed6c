"""Stable Diffusion 1.5's configuration, with random weights, beside diffusers' own pipeline.

Run by hand on a machine with a GPU and nothing else on it:

    python tests/performance/stable_diffusion.py
    python tests/performance/stable_diffusion.py --compile
    python tests/performance/stable_diffusion.py --narrow --device cpu --steps 2 --rounds 1

512 pixels, 25 steps, guidance 7.5, bfloat16, a network batch of 8 images; both decode what they
made. In one process each round makes a batch with one, with the other, and with the first once
more; the second's time is divided by the mean of the two around it. Reported: images a second of
both, the median of fairbench's speed over diffusers' with its quartiles, and peak memory of each.
Goal: 1.0, compiled 1.3 (against a pipeline that isn't). `--narrow` tries the script itself with
networks of 8 channels. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from fairbench.backbones.diffusers_pipelines import DiffusersBackbone, quiet
from fairbench.backbones.parts.captions import PLAIN_WORDS, word_tokenizer, words_of
from fairbench.core.method import Request, SamplingConfig
from fairbench.core.task import Prompt
from fairbench.diffusion.sampling import DDIMSampler

PROMPT = Prompt("person", template="a photo of {}")


def made(narrow: bool, device: torch.device) -> Any:
    """The pipeline; its tokenizer knows few words and fills up to 77 tokens, as the real one."""
    width, text = ((8, 16, 16, 16), 16) if narrow else ((320, 640, 1280, 1280), 768)
    coder = (8, 8, 8, 8) if narrow else (128, 256, 512, 512)
    groups = 8 if narrow else 32
    with tempfile.TemporaryDirectory() as folder:
        words = word_tokenizer(Path(folder), words_of([PLAIN_WORDS]), 77)
    torch.manual_seed(0)
    with device:
        return StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=coder,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                norm_num_groups=groups,
                scaling_factor=0.18215,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(words),
                    hidden_size=text,
                    intermediate_size=4 * text,
                    num_hidden_layers=2 if narrow else 12,
                    num_attention_heads=2 if narrow else 12,
                    eos_token_id=words.eos_token_id,
                )
            ),
            tokenizer=words,
            unet=UNet2DConditionModel(
                sample_size=64,
                block_out_channels=width,
                cross_attention_dim=text,
                attention_head_dim=8,
                norm_num_groups=groups,
            ),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=True,
                steps_offset=1,
                timestep_spacing="trailing",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time of a call, the device's work with it."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--narrow", action="store_true")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with quiet():
        pipeline = made(chosen.narrow, device).to(device, dtype)
        backbone = DiffusersBackbone(
            "sd",
            made(chosen.narrow, device),
            sha256="",
            device=device,
            dtype=dtype,
            network_batch=chosen.rows,
        )
    pipeline.set_progress_bar_config(disable=True)
    if chosen.compile:
        print("compiled" if not (reason := backbone.compile()) else f"not compiled: {reason}")
    sampler = DDIMSampler(backbone, SamplingConfig(chosen.steps, 7.5))
    requests = [Request(PROMPT, 0, i, 0) for i in range(chosen.rows)]

    def ours() -> None:
        sampler(requests)

    def theirs() -> None:
        pipeline(
            [PROMPT.text] * chosen.rows,
            num_inference_steps=chosen.steps,
            guidance_scale=7.5,
            output_type="np",
        )

    peaks = {}
    for name, call in (("fairbench", ours), ("diffusers", theirs)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        call()  # the first is longer
        if device.type == "cuda":
            peaks[name] = torch.cuda.max_memory_allocated(device) / 2**30
    ratios, spent = [], []
    for _ in range(chosen.rounds):
        before, mine, after = (seconds(call, device) for call in (theirs, ours, theirs))
        ratios.append((before + after) / 2 / mine)
        spent.append((mine, (before + after) / 2))
    mine, other = np.median(spent, axis=0)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"fairbench {chosen.rows / mine:.3f} images/s, diffusers {chosen.rows / other:.3f}")
    print(f"fairbench is {middle:.3f} [{low:.3f}, {high:.3f}] times as fast")
    for name, peak in peaks.items():
        print(f"{name}: at most {peak:.2f} GiB, both pipelines' weights with it")


if __name__ == "__main__":
    main()
