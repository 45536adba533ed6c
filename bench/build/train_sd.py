"""Train ``cartoonfaces-sd``: ``python -m fairbench.build.train_sd OUT``.

A tiny but real ``StableDiffusionPipeline``: AutoencoderKL (32 x 32 -> 8 x 8 x 16), CLIP text
encoder and tokenizer over a small vocabulary, UNet2DConditionModel with cross-attention at 4 x 4.
Both stages see only the biased training set. A checkpoint is written every minute; the same
command resumes. With ``--start FOLDER`` the decoder and the U-Net of a pipeline made before are
trained further; its encoder, and with it the latents, stay as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fairbench.build.training import (
    BATCH,
    SEED,
    TrainingRun,
    earlier_stages,
    training_set,
    velocity_loss,
    write_facts,
)
from fairbench.core.prompts import Phrase, describe
from fairbench.datasets.cartoonfaces import ATTRIBUTES, TEMPLATE

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
    # Declared order: gender before race, read the other way round.
    return describe(role, [Phrase(word) for word in reversed(named)], TEMPLATE)


def reconstruction_loss(error: Tensor) -> Tensor:
    """Squared and absolute error, means over all values of `error`."""
    return error.square().mean() + 0.5 * error.abs().mean()


def train_vae(work: Path, images: Tensor, steps: int) -> tuple[AutoencoderKL, float]:
    """The autoencoder, latents centred a channel and scaled to unit deviation, and its seconds."""
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
        kl: Tensor = posterior.kl().mean()
        return reconstruction_loss(y - x) + 5e-7 * kl

    vae.train()
    run.train(loss_of)
    vae.eval()
    centre_latents(vae, images)
    latents = encode(vae, images)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    print("channel deviations", latents.std((0, 2, 3)).tolist(), flush=True)
    return vae, run.elapsed


def refine_decoder(work: Path, vae: AutoencoderKL, images: Tensor, steps: int, seed: int) -> float:
    """Train the decoder further, in place, on latents as imprecise as a sampler's; its seconds."""
    latents = encode(vae, images)
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
        rebuilt = vae.decode(encode(vae, images[:512])).sample.clamp(-1, 1)
        error: float = (rebuilt - images[:512]).square().mean().item()
    return error


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
    start: StableDiffusionPipeline | None = None,
    seed: int = SEED,
) -> tuple[StableDiffusionPipeline, float]:
    """The pipeline, latents and captions in, velocity out, and its seconds.

    `start` gives the first weights.
    """
    latents = encode(vae, images) * vae.config["scaling_factor"]
    words = tokenizer(work)
    torch.manual_seed(SEED)
    channels = vae.config["latent_channels"]
    model = TextToLatent(len(words), words.eos_token_id, channels)
    if start is not None:
        model.text.load_state_dict(start.text_encoder.state_dict())
        model.unet.load_state_dict(start.unet.state_dict())
    noise_schedule = scheduler()
    lr = 1e-3 if start is None else 6e-4
    run = TrainingRun(work / "unet.pt", model, steps, lr=lr, decay=0.9995, seed=seed)
    names = {a: [ATTRIBUTES[a][i] for i in labels[a]] for a in ("role", "gender", "race")}

    def loss_of(rng: np.random.Generator) -> Tensor:
        index = rng.choice(len(latents), BATCH, replace=False)
        captions = [
            caption(rng, *(names[a][i] for a in ("role", "gender", "race"))) for i in index
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
