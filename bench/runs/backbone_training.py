"""Training a small pipeline from scratch on a data set's own images, or one further."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.backbones.base import find_family, weights_sha256
from fairbench.backbones.diffusers_pipelines import (
    DiffusersBackbone,
    load_parts,
    quiet,
    token_ids,
)
from fairbench.backbones.parts.captions import PLAIN_WORDS, caption, word_tokenizer, words_of
from fairbench.backbones.parts.fresh import (
    SIZES,
    TextToLatent,
    autoencoder,
    autoencoder_loss,
    centre_latents,
    latent_schedule,
    latent_side,
    pixel_schedule,
    pixel_unet,
)
from fairbench.core.documents import from_json
from fairbench.core.errors import InputError, unknown_name
from fairbench.core.keys import run_key
from fairbench.core.parameters import SIZES as LARGEST
from fairbench.core.progress import Reporter
from fairbench.core.prompts import Phrase
from fairbench.core.task import Prompt, phrases_of
from fairbench.datasets.base import Dataset, ImageSource, matches
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.devices import is_main_process, process_count, resolve_device
from fairbench.diffusion.training import Draws, TrainingPlan, seeded_modules, train_or_load
from fairbench.methods.parts.finetuning import module_sha256
from fairbench.runs.config import check_seed
from fairbench.runs.pixels import pixels_of
from fairbench.runs.plan import find_backbone, image_side
from fairbench.runs.supply import biased_source
from fairbench.storage.files import working_folder

__all__ = ["BackboneRecipe", "Trained", "train_backbone"]

KINDS: Mapping[str, str] = {
    "ddpm": "DDIMPipeline",
    "stable_diffusion": "StableDiffusionPipeline",
}
"""Kind, which is the family that reads the folder -> its pipeline of diffusers."""

SIDES = (32, 64, 128, 256, 512)

CENTRED_ON = 2048
"""Images that the mean and the deviation of latents are taken of."""

HELD = 2**30
"""Bytes of latents that are kept; more are encoded anew whenever they are drawn."""

SPARE_WORDS = 6
"""Tokens of a prompt beyond the longest caption, for what methods append to it."""

CARD = "training.json"


@dataclass(frozen=True)
class BackboneRecipe:
    """How a backbone is trained.

    Attributes:
        kind: ``"ddpm"``, pixels without prompts, or ``"stable_diffusion"``, text to image.
        bias: Composition of the training set, as `fairbench.runs.supply.biased_source` reads it.
        size: How large its networks are, one of `fairbench.backbones.parts.fresh.SIZES`.
        side: Pixels a side, one of 32, 64, 128, 256 and 512; None: those of the images, at most
            64.
        steps: Optimiser steps of the U-Net, and of a text encoder with it.
        vae_steps: Those of the autoencoder before.
        batch: Images a step.
        learning_rate: Peak of AdamW's; None: 1e-3 from scratch and 1e-4 further.
        accumulate: Parts that a batch is split into, for little memory.
        num_images: Images trained on at most; a bias may leave fewer.
        seed: Of weights and draws.
        start: Pipeline to train further: a name, a folder or a hub id; only its U-Net changes.
    """

    kind: Literal["ddpm", "stable_diffusion"] = "stable_diffusion"
    bias: str = "default"
    size: str = "tiny"
    side: int | None = None
    steps: int = 8000
    vae_steps: int = 3000
    batch: int = 64
    learning_rate: float | None = None
    accumulate: int = 1
    num_images: int = 20_000
    seed: int = 0
    start: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"--kind must be {' or '.join(KINDS)}; seen {self.kind!r}")
        if self.size not in SIZES:
            raise unknown_name("size", self.size, SIZES)
        if self.side is not None and self.side not in SIDES:
            raise InputError(
                f"--side must be one of {', '.join(map(str, SIDES))}; seen {self.side}"
            )
        for name, value, most in (
            ("steps", self.steps, LARGEST["steps"]),
            ("vae-steps", self.vae_steps, LARGEST["steps"]),
            ("batch", self.batch, LARGEST["batch"]),
            ("accumulate", self.accumulate, LARGEST["accumulate"]),
            ("num-images", self.num_images, 1_000_000),
        ):
            if not 1 <= value <= most:
                raise InputError(f"--{name} must lie in 1…{most}; seen {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise InputError(f"--learning-rate must lie in (0, 1]; seen {self.learning_rate:g}")
        check_seed(self.seed)

    @property
    def rate(self) -> float:
        """The peak of the learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.start is None else 1e-4

    def plan(self, steps: int) -> TrainingPlan:
        """The shared trainer's plan for so many steps; the averaged weights are kept."""
        return TrainingPlan(
            steps=steps,
            batch=self.batch,
            learning_rate=self.rate,
            warmup=min(200, steps // 10),
            ema_decay=0.9995,
            accumulate=self.accumulate,
        )


@dataclass(frozen=True)
class Trained:
    """A pipeline folder.

    Attributes:
        folder: Where it lies; ``--backbone`` takes it.
        card: What its ``training.json`` says.
        found: Whether it was there before.
    """

    folder: Path
    card: Mapping[str, Any]
    found: bool


@dataclass(frozen=True)
class _Surroundings:
    """Of one training."""

    seed: int
    cache: Path
    progress: Any
    dtype: str = "float32"


class Captioned:
    """Training images, and what captions may say of each.

    Args:
        source: The images.
        dataset: Whose.
        side: Pixels a side that they are brought to.
    """

    def __init__(self, source: ImageSource, dataset: Dataset, side: int) -> None:
        self.images = pixels_of(source, side)
        self._labels = {name: np.asarray(source.labels[name]) for name in dataset.sensitive}
        self._subjects = np.full(len(source), -1)
        for i, prompt in enumerate(dataset.subjects):
            self._subjects[matches(prompt, source.labels, dataset.attributes, len(source))] = i
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, index: NDArray[np.int64]) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]."""
        chosen = torch.from_numpy(np.ascontiguousarray(self.images[index]))
        return chosen.permute(0, 3, 1, 2).float() / 127.5 - 1

    def prompt(self, row: int) -> Prompt:
        """What an image shows, without any attribute word."""
        subject = int(self._subjects[row])
        return self._dataset.subjects[subject] if subject >= 0 else Prompt("")

    def phrases(self, row: int) -> tuple[Phrase, ...]:
        """How its attributes are said, in declared order."""
        return tuple(
            phrase
            for name, values in self._labels.items()
            for phrase in phrases_of(
                name, self._dataset.attributes[name][int(values[row])], self._dataset.card.said
            )
        )

    def captions(self, index: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
        """A random caption for each image."""
        return [caption(rng, self.prompt(int(i)), self.phrases(int(i))) for i in index]


def sentences(dataset: Dataset) -> list[str]:
    """Sentences that hold every word of a data set's captions; the first are the longest."""
    said = dataset.card.said
    longest = [
        max((phrases_of(name, level, said)[0] for level in levels), key=lambda p: len(p.text))
        for name, levels in dataset.attributes.items()
        if name in dataset.sensitive
    ]
    words = [
        phrases_of(name, level, said)[0].text
        for name in dataset.sensitive
        for level in dataset.attributes[name]
    ]
    return [subject.naming(longest) for subject in dataset.subjects] + words


class Latents:
    """Latents of the training images: kept where they are small, else made when drawn.

    Args:
        backbone: Encodes them.
        images: Whose.
    """

    def __init__(self, backbone: Backbone, images: Captioned) -> None:
        self._backbone, self._images = backbone, images
        self._kept: Tensor | None = None
        size = len(images) * int(np.prod(backbone.latent_shape)) * 4
        if size <= HELD:
            step = backbone.network_batch * 16
            self._kept = torch.cat(
                [
                    backbone.encode(images.images[start : start + step]).cpu()
                    for start in range(0, len(images), step)
                ]
            )

    def __call__(self, index: NDArray[np.int64]) -> Tensor:
        """(B, C, h, w) float32 on the backbone's device."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(index)].to(self._backbone.device)
        with torch.autocast(self._backbone.device.type, enabled=False):  # as those that are kept
            return self._backbone.encode(self._images.images[index])


def train_backbone(
    dataset: Dataset,
    recipe: BackboneRecipe,
    output: Path,
    cache: Path,
    report: Reporter,
    *,
    device: str = "auto",
    allow_download: bool = False,
) -> Trained:
    """Train a pipeline and write it in diffusers' folder format, or find the one of this recipe.

    An interrupted training goes on where it stopped, and ends in the same weights.

    Args:
        dataset: Whose images.
        recipe: How.
        output: Folder to write; it may hold what this very recipe made before, nothing else.
        cache: Cache folder; checkpoints lie there.
        report: Told about progress.
        device: As ``--device``.
        allow_download: Whether a `start` of the hub may be downloaded.
    Raises:
        InputError: If the data set can't give such images, `output` is another's, or the training
            diverges.
    """
    start = None
    if recipe.start is not None:
        start = find_backbone(dataset, recipe.start, allow_download=allow_download).folder
        _check_start(recipe, start)
    source = biased_source(dataset, recipe.bias, recipe.num_images)
    side = _side(recipe, source, start)
    source = biased_source(dataset.sized(side), recipe.bias, recipe.num_images)
    asked = {name: value for name, value in asdict(recipe).items() if name != "start"}
    content = {
        "recipe": asked | {"side": side, "learning_rate": recipe.rate},
        "start": None if start is None else weights_sha256(start),
        "dataset": dataset.name,
        "data_sha256": dataset.data_sha256(),
        "images": len(source),
    }
    if process_count() > 1:  # each draws rows of its own
        content["processes"] = process_count()
    key = run_key(content)
    made = _card(output)
    if made is not None and made.get("key") == key:
        return Trained(output, made, True)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"--output {output} exists and isn't what these options make; choose another folder, "
            "or remove it"
        )
    if len(source) < recipe.batch:
        report.warn(
            f"{len(source)} images to train on, fewer than a batch of {recipe.batch}: the model "
            "will repeat them; give it more by --num-images or another --bias"
        )
    images = Captioned(source, dataset, side)
    where = resolve_device(device)
    surroundings = _Surroundings(recipe.seed, cache / "trained", report.progress)
    facts: dict[str, Any] = {}
    with quiet(), working_folder(cache) as work:
        if start is not None:
            pipeline: Any = load_parts(start.name, start)
        elif recipe.kind == "ddpm":
            pipeline = _fresh_pixels(recipe, side)
        else:
            vae, facts["autoencoder"] = _train_autoencoder(
                recipe, side, images, where, content, surroundings
            )
            pipeline = _fresh_text(recipe, side, vae, dataset, work / "words")
        facts |= _train_network(pipeline, recipe, start, images, where, content, surroundings)
        card = {
            "key": key,
            **content,
            "start_name": recipe.start,
            "shares": shares_of(source, dataset),
            "licence": dataset.card.licence,
            "training": facts,
        }
        if start is not None and (_card(start) or {}).get("clipping"):
            card["clipping"] = (_card(start) or {})["clipping"]  # a part of what is trained
        if is_main_process():
            _write(pipeline, card, output)
    return Trained(output, card, False)


def shares_of(source: ImageSource, dataset: Dataset) -> dict[str, dict[str, float]]:
    """Sensitive attribute -> level -> share among images."""
    found = {}
    for name in dataset.sensitive:
        levels = dataset.attributes[name]
        counts = np.bincount(np.asarray(source.labels[name]), minlength=len(levels))
        found[name] = dict(zip(levels, (counts / len(source)).tolist(), strict=True))
    return found


def _check_start(recipe: BackboneRecipe, folder: Path) -> None:
    family = find_family(folder)
    if family.name != recipe.kind:
        raise InputError(
            f"--start {recipe.start} is of the family {family.name}; expected one of --kind "
            f"{recipe.kind}"
        )
    network = folder / "unet" / "config.json"
    if network.is_file() and from_json(network.read_bytes()).get("num_class_embeds") is not None:
        raise InputError(f"--start {recipe.start} takes classes, which captions don't name")


def _side(recipe: BackboneRecipe, source: ImageSource, start: Path | None) -> int:
    """Pixels a side of what is trained."""
    if start is not None:
        side = image_side(start)
        if side is None:
            raise InputError(f"--start {recipe.start}: its configuration names no size of images")
        if recipe.side not in (None, side):
            raise InputError(f"--side {recipe.side}: --start {recipe.start} makes {side} pixels")
        return side
    if recipe.side is not None:
        return recipe.side
    own = next(iter(source.take(np.arange(1)).batches(1))).shape[1:3]
    return max(side for side in (32, 64) if side == 32 or side <= min(own))


def _card(folder: Path) -> dict[str, Any] | None:
    """What made the folder; None if it isn't known."""
    try:
        card = from_json((folder / CARD).read_bytes())
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def _fresh_pixels(recipe: BackboneRecipe, side: int) -> Any:
    from diffusers import DDIMPipeline

    with seeded_modules(recipe.seed):
        unet = pixel_unet(SIZES[recipe.size], side)
    return DDIMPipeline(unet, pixel_schedule())


def _train_autoencoder(
    recipe: BackboneRecipe,
    side: int,
    images: Captioned,
    device: torch.device,
    content: Mapping[str, Any],
    surroundings: _Surroundings,
) -> tuple[nn.Module, dict[str, Any]]:
    """An autoencoder of the images, its latents centred and scaled, and facts."""
    with seeded_modules(recipe.seed):
        vae = autoencoder(SIZES[recipe.size], side)
    vae.to(device)

    def loss_of(draws: Draws) -> Tensor:
        index = draws.rng.integers(0, len(images), draws.rows)
        pixels = images.pixels(index).to(device)
        return autoencoder_loss(vae, pixels, lambda like: draws.gaussian(*like.shape)).float()

    facts = train_or_load(
        vae,
        "autoencoder",
        # What comes after it changes nothing of it.
        {**content, "recipe": {**content["recipe"], "steps": None}},
        recipe.plan(recipe.vae_steps),
        loss_of,
        surroundings,
        device=device,
        what="training the autoencoder",
    )
    some = np.random.default_rng([recipe.seed, 0xCE]).permutation(len(images))[:CENTRED_ON]
    pixels = images.pixels(np.sort(some)).to(device)
    facts["deviations"] = centre_latents(vae, pixels).tolist()
    with torch.inference_mode():
        rebuilt = vae.decode(vae.encode(pixels[:256]).latent_dist.mean).sample.clamp(-1, 1)
        facts["squared_error"] = float((rebuilt - pixels[:256]).square().mean())
    return vae, facts


def _fresh_text(
    recipe: BackboneRecipe, side: int, vae: nn.Module, dataset: Dataset, folder: Path
) -> Any:
    """A text-to-image pipeline around an autoencoder; text encoder and U-Net are fresh.

    Args:
        recipe: How large, and which weights.
        side: Pixels a side.
        vae: The autoencoder.
        dataset: Whose words its tokenizer knows.
        folder: Where the tokenizer's files go.
    """
    from diffusers import StableDiffusionPipeline

    spoken = sentences(dataset)
    tokenizer = word_tokenizer(folder, words_of([PLAIN_WORDS, *spoken]), 77)
    longest = max(len(tokenizer(one).input_ids) for one in spoken)
    tokenizer.model_max_length = min(77, longest + SPARE_WORDS)
    with seeded_modules(recipe.seed):
        networks = TextToLatent(tokenizer, SIZES[recipe.size], latent_side(side))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=networks.text,
        tokenizer=tokenizer,
        unet=networks.unet,
        scheduler=latent_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _train_network(
    pipeline: Any,
    recipe: BackboneRecipe,
    start: Path | None,
    images: Captioned,
    device: torch.device,
    content: Mapping[str, Any],
    surroundings: _Surroundings,
) -> dict[str, Any]:
    """Train the pipeline's U-Net in place, with its text encoder from scratch."""
    backbone = DiffusersBackbone(
        recipe.kind, pipeline, sha256="", device=device, dtype=torch.float32, network_batch=None
    )
    latents, vae = Latents(backbone, images), getattr(pipeline, "vae", None)
    parts: dict[str, nn.Module] = {"unet": pipeline.unet}
    if backbone.conditional and start is None:
        parts["text"] = pipeline.text_encoder
    trained = nn.ModuleDict(parts).requires_grad_(True)

    def context_of(texts: Sequence[str]) -> Tensor | None:
        if "text" not in parts:
            return backbone.embed(texts)
        tokens = token_ids(pipeline.tokenizer, texts).input_ids.to(device)
        return cast("Tensor", pipeline.text_encoder(tokens).last_hidden_state)

    def loss_of(draws: Draws) -> Tensor:
        index = draws.rng.integers(0, len(images), draws.rows)
        clean = latents(index)
        context = None
        if backbone.conditional:
            context = context_of(images.captions(index, draws.rng))
        t = (draws.stratified() * len(backbone.schedule)).long().to(device)
        noise = draws.gaussian(*clean.shape)
        predicted = backbone.predict(backbone.schedule.add_noise(clean, noise, t), t, context)
        target = backbone.schedule.target(clean, noise, t)
        return nn.functional.mse_loss(predicted.value.float(), target)

    facts = train_or_load(
        trained,
        "backbone",
        {**content, "autoencoder": None if vae is None else module_sha256(vae)},
        recipe.plan(recipe.steps),
        loss_of,
        surroundings,
        device=device,
        what=f"training {recipe.kind}",
    )
    trained.requires_grad_(False).eval()
    return facts


def _write(pipeline: Any, card: Mapping[str, Any], output: Path) -> None:
    """Put the pipeline and its card into the folder, at once."""
    pipeline.to("cpu")
    with working_folder(output.absolute().parent) as work:
        whole = work / "pipeline"
        pipeline.save_pretrained(whole, safe_serialization=True)
        (whole / CARD).write_text(json.dumps(card, indent=1) + "\n")
        if output.exists():
            output.rmdir()  # it is empty
        whole.replace(output)
