"""Train ``cartoonfaces-sd``: ``python -m fairbench.build.train_sd OUT``.

A tiny but real ``StableDiffusionPipeline``: AutoencoderKL (32 x 32 -> 8 x 8 x 16), CLIP text
encoder and tokenizer over a small vocabulary, UNet2DConditionModel with cross-attention at 4 x 4.
Both stages see only the biased training set. A checkpoint is written every minute; the same
command resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fairbench.build.training import (
    BATCH,
    SEED,
    TRAINING_IMAGES,
    TrainingRun,
    training_set,
    velocity_loss,
    write_facts,
)
from fairbench.cartoonfaces import ATTRIBUTES
from fairbench.prompts import describe

VAE_BATCH = 32
CONTEXT_LENGTH = 16
TEXT_WIDTH = 64
# A lower terminal signal than Stable Diffusion's (.016 against .068 of the clean latent is left at
# the last step): starting from pure noise then hardly shifts the mean colour, that is, skin tone.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear"}

# Known to the tokenizer as whole words, beside the attributes' own.
PLAIN_WORDS = (
    "a an photo of portrait face with and or the diverse fair "
    "woman man women men people worker any gender race ethnicity"
)


def scheduler() -> DDIMScheduler:
    """The schedule of training and sampling; each default that matters at 25 steps is explicit."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # as StableDiffusionPipeline insists; trailing spacing does not use it
        timestep_spacing="trailing",
        **SCHEDULE,
    )


def caption(rng: np.random.Generator, role: str, gender: str, race: str) -> str:
    """A random caption: 10 % empty, 10 % attribute words alone, else a sentence.

    In a sentence each attribute word is dropped in 60 % of the cases, so that 36 % of the
    sentences name none.
    """
    kind = rng.random()
    if kind < 0.1:
        return ""
    if kind < 0.2:
        words = [(race, gender), (race,), (gender,)][rng.integers(3)]
        return " ".join(words)
    named = tuple(word for word in (race, gender) if rng.random() >= 0.6)
    return describe(role, named)


def train_vae(work: Path, images: Tensor, steps: int) -> tuple[AutoencoderKL, dict[str, Any]]:
    """The autoencoder, its latents centred a channel and scaled to unit deviation."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )
    run = TrainingRun(work / "vae.pt", vae, steps, lr=2e-3, decay=0.999)

    def loss_of(rng: np.random.Generator) -> Tensor:
        x = images[rng.choice(len(images), VAE_BATCH, replace=False)]
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        error: Tensor = y - x
        kl: Tensor = posterior.kl().mean()
        return error.square().mean() + 0.5 * error.abs().mean() + 5e-7 * kl

    vae.train()
    run.train(loss_of)
    vae.eval()
    centre_latents(vae, images)
    with torch.inference_mode():
        latents = encode(vae, images)
        spread = latents.std().item()
        error = (
            (vae.decode(latents[:512]).sample.clamp(-1, 1) - images[:512]).square().mean().item()
        )
    vae.register_to_config(scaling_factor=1 / spread)
    facts = {"vae_steps": run.step, "vae_seconds": round(run.elapsed), "vae_mse": error}
    print(facts, "channel deviations", latents.std((0, 2, 3)).tolist(), flush=True)
    return vae, facts


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Move the channel means of the latents into the 1 x 1 convolutions beside them.

    Diffusion starts from zero-mean noise; a channel whose mean isn't zero would have to be moved
    there by the sampler.
    """
    channels = vae.config["latent_channels"]
    mean = encode(vae, images).mean((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] -= mean
    post.bias += post.weight[:, :, 0, 0] @ mean


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latent means of all images, unscaled."""
    with torch.inference_mode():
        return torch.cat(
            [vae.encode(chunk).latent_dist.mean for chunk in torch.split(images, 256)]
        )


def tokenizer(work: Path) -> CLIPTokenizer:
    """A CLIP tokenizer: one token for each word of the captions, bytes for any other text."""
    words = sorted(
        set(PLAIN_WORDS.split())
        | {word for levels in ATTRIBUTES.values() for level in levels for word in level.split()}
    )
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while True:  # byte-pair encoding with the merges so far
            pairs = list(itertools.pairwise(pieces))
            known = [pair for pair in pairs if pair in merges]
            if not known:
                break
            at = pairs.index(min(known, key=merges.index))
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
    symbols = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    folder = work / "words"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    )
    made = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT_LENGTH
    )
    for word in words:
        if len(made.tokenize(word)) != 1:
            raise AssertionError(f"{word!r} became {made.tokenize(word)}")
    return made


class TextToLatent(nn.Module):
    """Text encoder and U-Net, trained together."""

    def __init__(self, vocabulary: int, end: int, channels: int) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
                bos_token_id=end - 1,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=(2, 4),
            norm_num_groups=16,
        )


def train_unet(
    work: Path,
    vae: AutoencoderKL,
    images: Tensor,
    labels: dict[str, np.ndarray],
    steps: int,
) -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """The pipeline: latents and captions in, velocity out."""
    latents = encode(vae, images) * vae.config["scaling_factor"]
    words = tokenizer(work)
    torch.manual_seed(SEED)
    channels = vae.config["latent_channels"]
    model = TextToLatent(len(words), words.eos_token_id, channels)
    noise_schedule = scheduler()
    run = TrainingRun(work / "unet.pt", model, steps, lr=1e-3, decay=0.9995)
    names = {a: [ATTRIBUTES[a][i] for i in labels[a]] for a in ("role", "gender", "race")}

    def loss_of(rng: np.random.Generator) -> Tensor:
        index = rng.choice(len(latents), BATCH, replace=False)
        captions = [
            caption(rng, *(names[a][i] for a in ("role", "gender", "race"))) for i in index
        ]
        tokens = words(
            captions, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt"
        ).input_ids
        context = model.text(tokens).last_hidden_state
        clean = latents[index]
        return velocity_loss(
            lambda x, t: model.unet(x, t, context).sample, clean, noise_schedule, rng
        )

    model.train()
    run.train(loss_of)
    model.eval()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text,
        tokenizer=words,
        unet=model.unet,
        scheduler=noise_schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, {"unet_steps": run.step, "unet_seconds": round(run.elapsed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "out", type=Path, help="folder for the pipeline; OUT.work holds checkpoints"
    )
    parser.add_argument("--vae-steps", type=int, default=3300)
    parser.add_argument("--unet-steps", type=int, default=8400)
    arguments = parser.parse_args()
    work = arguments.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    images, labels = training_set()
    vae, vae_facts = train_vae(work, images, arguments.vae_steps)
    pipeline, unet_facts = train_unet(work, vae, images, labels, arguments.unet_steps)
    pipeline.save_pretrained(arguments.out, safe_serialization=True)
    write_facts(arguments.out, {**vae_facts, **unet_facts, "training_images": TRAINING_IMAGES})


if __name__ == "__main__":
    main()
