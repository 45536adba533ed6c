"""Train ``cartoonfaces-sd``: ``python -m fairbench.build.train_sd OUT``.

A tiny but real ``StableDiffusionPipeline``: AutoencoderKL (32 x 32 -> 8 x 8 x 16), CLIP text
encoder and tokenizer over a small vocabulary, UNet2DConditionModel with cross-attention at 4 x 4.
Both stages see only the biased training set. A checkpoint is written every minute; the same
command resumes. With ``--start FOLDER`` the decoder and the U-Net of a pipeline made before are
trained further; its encoder, and with it the latents, stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from fairbench.backbones.parts.captions import PLAIN_WORDS, caption, word_tokenizer, words_of
from fairbench.backbones.parts.fresh import (
    SIZES,
    TextToLatent,
    autoencoder,
    autoencoder_loss,
    centre_latents,
    latent_schedule,
    latent_side,
    latents_of,
    reconstruction_loss,
)
from fairbench.build.training import (
    BATCH,
    SEED,
    TrainingRun,
    earlier_stages,
    training_set,
    velocity_loss,
    write_facts,
)
from fairbench.core.prompts import Phrase
from fairbench.datasets.cartoonfaces import ATTRIBUTES, DATASET

VAE_BATCH = 32
CONTEXT_LENGTH = 16
SIDE = 32
SIZE = SIZES["tiny"]


def train_vae(work: Path, images: Tensor, steps: int) -> tuple[AutoencoderKL, float]:
    """The autoencoder, latents centred a channel and scaled to unit deviation, and its seconds."""
    torch.manual_seed(SEED)
    vae = autoencoder(SIZE, SIDE)
    run = TrainingRun(work / "vae.pt", vae, steps, lr=2e-3, decay=0.999)

    def loss_of(rng: np.random.Generator) -> Tensor:
        x = images[rng.choice(len(images), VAE_BATCH, replace=False)]
        return autoencoder_loss(vae, x, torch.randn_like)

    vae.train()
    run.train(loss_of)
    vae.eval()
    print("channel deviations", centre_latents(vae, images).tolist(), flush=True)
    return vae, run.elapsed


def refine_decoder(work: Path, vae: AutoencoderKL, images: Tensor, steps: int, seed: int) -> float:
    """Train the decoder further, in place, on latents as imprecise as a sampler's; its seconds."""
    latents = latents_of(vae, images)
    spread = 1 / vae.config["scaling_factor"]
    decoder = vae.decoder
    run = TrainingRun(work / "decoder.pt", decoder, steps, lr=1e-3, decay=0.999, seed=seed)

    def loss_of(rng: np.random.Generator) -> Tensor:
        index = rng.choice(len(images), VAE_BATCH, replace=False)
        strength = 0.1 * spread * torch.rand(VAE_BATCH, 1, 1, 1)
        z = latents[index] + strength * torch.randn_like(latents[index])
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder(vae.post_quant_conv(z))
        return reconstruction_loss(y.float() - images[index])

    vae.requires_grad_(False)
    decoder.requires_grad_(True).train()
    run.train(loss_of)
    vae.eval()
    return run.elapsed


def squared_error(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean squared error of the first 512 reconstructions, on the scale [-1, 1]."""
    with torch.inference_mode():
        rebuilt = vae.decode(latents_of(vae, images[:512])).sample.clamp(-1, 1)
        error: float = (rebuilt - images[:512]).square().mean().item()
    return error


def tokenizer(work: Path) -> CLIPTokenizer:
    """A CLIP tokenizer: one token for each word of the captions, bytes for any other text."""
    levels = (level for levels in ATTRIBUTES.values() for level in levels)
    words = words_of([PLAIN_WORDS, *levels])
    return word_tokenizer(work / "words", words, CONTEXT_LENGTH)


def train_unet(
    work: Path,
    vae: AutoencoderKL,
    images: Tensor,
    labels: dict[str, np.ndarray],
    steps: int,
    start: StableDiffusionPipeline | None = None,
    seed: int = SEED,
) -> tuple[StableDiffusionPipeline, float]:
    """The pipeline, latents and captions in, velocity out, and its seconds.

    `start` gives the first weights.
    """
    latents = latents_of(vae, images) * vae.config["scaling_factor"]
    words = tokenizer(work)
    torch.manual_seed(SEED)
    model = TextToLatent(words, SIZE, latent_side(SIDE))
    if start is not None:
        model.text.load_state_dict(start.text_encoder.state_dict())
        model.unet.load_state_dict(start.unet.state_dict())
    noise_schedule = latent_schedule()
    lr = 1e-3 if start is None else 6e-4
    run = TrainingRun(work / "unet.pt", model, steps, lr=lr, decay=0.9995, seed=seed)
    said = {a: [Phrase(ATTRIBUTES[a][i]) for i in labels[a]] for a in ("gender", "race")}

    def loss_of(rng: np.random.Generator) -> Tensor:
        index = rng.choice(len(latents), BATCH, replace=False)
        captions = [
            caption(rng, DATASET.subjects[labels["role"][i]], (said["gender"][i], said["race"][i]))
            for i in index
        ]
        tokens = words(
            captions, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt"
        ).input_ids
        with torch.autocast("cpu", torch.bfloat16):
            context = model.text(tokens).last_hidden_state

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                predicted: Tensor = model.unet(x, t, context).sample
            return predicted.float()

        return velocity_loss(velocity, latents[index], noise_schedule, rng)

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
    return pipeline, run.elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "out", type=Path, help="folder for the pipeline; OUT.work holds checkpoints"
    )
    parser.add_argument("--vae-steps", type=int, default=3300, help="of the decoder after --start")
    parser.add_argument("--unet-steps", type=int, default=8400)
    parser.add_argument("--start", type=Path, help="pipeline folder to train further")
    arguments = parser.parse_args()
    work = arguments.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    images, labels = training_set()
    command = (
        f"fairbench.build.train_sd OUT --vae-steps {arguments.vae_steps} "
        f"--unet-steps {arguments.unet_steps}"
    )
    start = None
    seed = SEED + len(earlier_stages(arguments.start))  # other draws than in the stages before
    if arguments.start is None:
        vae, seconds = train_vae(work, images, arguments.vae_steps)
    else:
        start = StableDiffusionPipeline.from_pretrained(arguments.start)
        vae = start.vae
        seconds = refine_decoder(work, vae, images, arguments.vae_steps, seed)
        command += " --start FOLDER"
    pipeline, unet_seconds = train_unet(
        work, vae, images, labels, arguments.unet_steps, start, seed
    )
    vae.register_to_config(_name_or_path="")  # where the start lay
    pipeline.save_pretrained(arguments.out, safe_serialization=True)
    facts = {"vae_mse": squared_error(vae, images)}
    write_facts(arguments.out, command, seconds + unet_seconds, facts, arguments.start)


if __name__ == "__main__":
    main()
