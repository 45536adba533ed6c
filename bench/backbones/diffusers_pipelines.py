"""Pipelines of diffusers behind the one small interface; the code that families share.

A method written against :class:`Backbone` runs unchanged on Stable Diffusion, on an unconditional
DDPM and on a Gaussian mixture whose exact denoiser is a formula.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.backbones.base import Description, default_network_batch
from fairbench.backbones.folders import Component, PipelineFolder, training_card
from fairbench.core.errors import AssetError
from fairbench.core.method import SamplingConfig
from fairbench.diffusion.backbone import (
    Backbone,
    Bottleneck,
    Capability,
    CrossAttention,
    Edit,
    Trainable,
    cross_attention_linears,
    fixed_batches,
    place_of_call,
)
from fairbench.diffusion.schedule import DynamicThreshold, PredictionType, Schedule

__all__ = [
    "DiffusersBackbone",
    "describe_unet",
    "load_parts",
    "load_pipeline",
    "loader_of",
    "quiet",
    "token_ids",
]


def schedule_of(scheduler: Any, *, in_pixels: bool, consistent: bool) -> Schedule:
    """Noise levels of a folder's scheduler, and the bounds that its DDIM puts on clean images.

    Args:
        scheduler: Of diffusers, with a discrete noise schedule.
        in_pixels: Whether images themselves are diffused; DDIM clips those unless it is told not
            to, as diffusers has it for a configuration that doesn't say.
        consistent: As of :class:`Schedule`.
    """
    config = scheduler.config
    levels = scheduler.alphas_cumprod.clone()
    if config.get("rescale_betas_zero_snr"):
        levels[-1] = 0  # some schedulers put a tiny number there
    threshold = None
    if config.get("thresholding"):
        threshold = DynamicThreshold(
            float(config.get("dynamic_thresholding_ratio", 0.995)),
            float(config.get("sample_max_value", 1.0)),
        )
    clips = config.get("clip_sample", in_pixels)
    return Schedule(
        levels,
        cast("PredictionType", config.get("prediction_type", "epsilon")),
        float(config.get("clip_sample_range", 1.0)) if clips else None,
        consistent=consistent,
        threshold=threshold,
    )


class DiffusersBackbone(Backbone):
    """A diffusers pipeline with a U-Net, a discrete noise schedule and at most one text encoder.

    Args:
        name: Its name.
        pipeline: Has ``unet`` and ``scheduler``; a latent one ``vae`` or ``vqvae``, one with
            prompts ``text_encoder`` and ``tokenizer``.
        sha256: Hash of its weights.
        device: Where it is moved to.
        dtype: Format of its weights; latents stay float32 between the calls, and so does a VAE
            that says that it must (``force_upcast``).
        network_batch: Fixed number of rows of every network call without gradients; None: by the
            size of its images.
        consistent: Whether the noise is derived again from a clipped clean image.
    """

    def __init__(
        self,
        name: str,
        pipeline: Any,
        *,
        sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        network_batch: int | None,
        consistent: bool = True,
    ) -> None:
        self.name, self.weights_sha256 = name, sha256
        self.device, self.dtype = device, dtype
        self._vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
        self._text = getattr(pipeline, "text_encoder", None)
        self._tokenizer = getattr(pipeline, "tokenizer", None)
        if self._tokenizer is not None:  # the limit counts its begin and end
            self.token_limit = int(cast("Any", self._tokenizer).model_max_length) - 2
        self._unet: Any = pipeline.unet
        self.unet = self._unet
        upcast = self._vae is not None and bool(self._vae.config.get("force_upcast"))
        self._vae_dtype = torch.float32 if upcast else dtype
        for module, own in ((self._vae, self._vae_dtype), (self._text, dtype), (self.unet, dtype)):
            if module is not None:
                module.to(device, own).eval().requires_grad_(False)
        if device.type == "cuda":  # whose convolutions are quicker so
            for module in (self._vae, self.unet):
                if module is not None:
                    module.to(memory_format=torch.channels_last)
        self.scheduler = pipeline.scheduler
        self.schedule = schedule_of(
            pipeline.scheduler, in_pixels=self._vae is None, consistent=consistent
        )
        size = int(self._unet.config.sample_size)
        self.latent_shape = (int(self._unet.config.in_channels), size, size)
        self.conditional = self._text is not None
        scale = 1
        if self._vae is not None:
            scale = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.image_size = size * scale
        self.network_batch = network_batch or default_network_batch(self.image_size)

    def with_unet(self, unet: nn.Module) -> DiffusersBackbone:
        """The same pipeline with another network of the same kind; the rest is shared."""
        other = copy.copy(self)
        other.unet = other._unet = unet
        return other

    def compile(self) -> str:
        """Compile the denoising network where it is, and try it; why it can't be, or ""."""
        try:
            self._unet.compile()
            with torch.inference_mode():
                blank = torch.zeros((1, *self.latent_shape), device=self.device)
                self.predict(blank, len(self.schedule) - 1, self.embed([""]))
        except Exception as error:  # a compiler may fail in any way
            self._unet._compiled_call_impl = None
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def _in_fixed_batches(
        self, call: Callable[[Tensor], Tensor], rows: Tensor, width: int | None = None
    ) -> Tensor:
        """`call` on rows in network batches, or in those of `width`, the last one filled up."""
        return torch.cat(
            [
                call(batch.to(self.device))[:own]
                for batch, own in fixed_batches(rows, width or self.network_batch)
            ]
        )

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Images, (B, H, W, 3) uint8, to latent means, (B, C, h, w) float32, scaled."""
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self._vae is None:
            grey = self.latent_shape[0] == 1
            return (pixels.mean(1, keepdim=True) if grey else pixels).to(self.device)
        vae = self._vae

        def encoded(x: Tensor) -> Tensor:
            found = vae.encode(x.to(self._vae_dtype))
            latents = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
            return self._scaled(latents.float())

        return self._in_fixed_batches(encoded, pixels)

    def _scaled(self, latents: Tensor) -> Tensor:
        """What is diffused, for latents as the encoder gives them."""
        return latents * float(cast("Any", self._vae).config.scaling_factor)

    def _unscaled(self, latents: Tensor) -> Tensor:
        """What the decoder takes, for latents that were diffused."""
        return latents / float(cast("Any", self._vae).config.scaling_factor)

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents, (B, C, h, w), to pixels, (B, 3, H, W) float32, through the VAE's decoder."""
        if self._vae is None:
            return latents.float().expand(-1, 3, -1, -1)  # grey images have one channel
        vae = self._vae
        return self._in_fixed_batches(
            lambda z: vae.decode(self._unscaled(z).to(self._vae_dtype)).sample,
            latents,
            self.decode_batch,
        ).float()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """Last hidden state of the text encoder, (B, L, D); None without one."""
        if self._text is None:
            return None
        text, tokenizer = self._text, cast("Any", self._tokenizer)
        distinct = list(dict.fromkeys(prompts))
        found = token_ids(tokenizer, distinct)
        if getattr(getattr(text, "config", None), "use_attention_mask", False):
            both = torch.stack([found.input_ids, found.attention_mask], dim=1)
            states = self._in_fixed_batches(
                lambda rows: text(rows[:, 0], attention_mask=rows[:, 1])[0], both
            )
        else:
            states = self._in_fixed_batches(lambda ids: text(ids)[0], found.input_ids)
        where = {prompt: i for i, prompt in enumerate(distinct)}
        return states[[where[prompt] for prompt in prompts]]

    def tokens(self, text: str) -> list[str] | None:
        """The pieces that the tokenizer splits `text` into; None without a tokenizer."""
        tokenizer = cast("Any", self._tokenizer)
        return None if tokenizer is None else list(tokenizer.tokenize(text))

    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        # The network's own: one in training keeps float32 weights whatever the pipeline has.
        dtype = next(self._unet.parameters()).dtype
        x_t = x_t.to(dtype)
        if context is None:
            output = self._unet(x_t, t).sample
        else:
            output = self._unet(x_t, t, encoder_hidden_states=context.to(dtype)).sample
        return cast("Tensor", output).float()

    def capability(self, kind: type[Capability]) -> Capability | None:
        """Training always; the rest where the U-Net has a middle block or cross-attention."""
        found: Any = None
        if kind is Trainable:
            found = Trainable(self._unet, self.with_unet)
        elif kind is Bottleneck and getattr(self._unet, "mid_block", None) is not None:
            found = Bottleneck(self.edit_bottleneck)
        elif kind is CrossAttention and (layers := cross_attention_linears(self._unet)):
            found = CrossAttention(self._unet, layers)
        return cast("Capability | None", found)

    @contextmanager
    def edit_bottleneck(self, edit: Edit) -> Iterator[None]:
        """Hook on the output of the U-Net's middle block, the h-space of Kwon et al. 2022.

        Source: Diffusion models already have a semantic latent space, arXiv 2210.10960.
        """

        def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return edit(output, place_of_call())

        handle = self._unet.mid_block.register_forward_hook(change)
        try:
            yield
        finally:
            handle.remove()


def token_ids(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Token ids and attention mask, (B, L) each, cut or filled up to the tokenizer's length."""
    return tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )


NO_LEVELS = ("FlowMatch", "EDM", "KarrasVe", "ScoreSde", "CMStochastic", "Consistency")
"""How schedulers without the noise levels of a diffusion are called."""

FURTHER_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
"""What a U-Net's configuration says of inputs beside image, timestep and prompt."""


def describe_unet(
    pipeline: PipelineFolder,
    sampling: SamplingConfig,
    *,
    conditional: bool,
    parts: Collection[str],
    optional: Collection[str] = (),
    inputs: Mapping[str, Any] | None = None,
) -> Description:
    """What the JSON of a folder with a U-Net and a discrete noise schedule says.

    Args:
        pipeline: The folder.
        sampling: The family's.
        conditional: Whether it takes prompts.
        parts: What the folder must have.
        optional: What it may have beside; another network would be left out without a word.
        inputs: Further inputs of the U-Net that the family gives it, of `FURTHER_INPUTS`: name ->
            value, None for any.
    Raises:
        AssetError: If it needs something that fairbench has no way to give.
    """

    def refuse(reason: str) -> AssetError:
        return AssetError(f"{pipeline.path} is a {pipeline.kind} {reason}; use another --backbone")

    for name in sorted(parts):
        listed = pipeline.component(name)
        if listed is None:
            raise refuse(f"without a {name}")
        listed.check_config()
    for part in pipeline.components():
        if part.is_model and part.name not in {*parts, *optional, "image_encoder"}:
            raise refuse(
                f"that lists a {part.name} ({part.kind}) too, which such a pipeline doesn't use: "
                "its model_index.json names another class than its own, or a part too many"
            )
    unet, scheduler = pipeline.config("unet"), pipeline.config("scheduler")
    vae = pipeline.config("vae") or pipeline.config("vqvae")
    own = str(scheduler.get("_class_name"))
    if own.startswith(NO_LEVELS):
        raise refuse(
            f"with the scheduler {own}; expected one with a discrete noise schedule "
            "(alphas_cumprod), such as DDIMScheduler"
        )
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise refuse(f"whose network predicts {kind}; expected epsilon, sample or v_prediction")
    if scheduler.get("rescale_betas_zero_snr") and kind == "epsilon":
        raise refuse(
            "that predicts epsilon at zero terminal SNR, where no image follows from the noise; "
            "set prediction_type or rescale_betas_zero_snr in scheduler_config.json"
        )
    given = inputs or {}
    for name in FURTHER_INPUTS:
        value = unet.get(name)
        if value is not None and (name not in given or given[name] not in (None, value)):
            raise refuse(f"whose U-Net has {name}={value!r}, an input that isn't supported")
    rows, channels = int(unet.get("in_channels", 4)), vae.get("latent_channels")
    if channels is not None and rows != channels:
        raise refuse(
            f"whose U-Net takes {rows} channels, where the VAE has {channels}: an inpainting or "
            "image-to-image model, which needs a picture beside the prompt"
        )
    if channels is None and not vae and rows not in (1, 3):
        raise refuse(f"whose U-Net takes {rows} channels; expected pixels in 1 or 3")
    puts_out = int(unet.get("out_channels", rows))
    if puts_out not in (rows, 2 * rows):
        raise refuse(f"whose U-Net takes {rows} channels and puts out {puts_out}")
    size = unet.get("sample_size")
    if not isinstance(size, int) or size < 1:
        raise refuse(f"whose U-Net has sample_size={size!r}; expected one number, at least 1")
    factor = vae.get("scaling_factor", 1.0)
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise refuse(f"whose VAE has scaling_factor={factor!r}; expected a number above 0")
    reads, made = unet.get("cross_attention_dim"), _prompt_width(pipeline, parts, optional)
    if isinstance(reads, int) and made not in (None, reads):
        raise refuse(
            f"whose U-Net reads prompts of {reads} channels, where its text encoders make {made}: "
            "they aren't of one model"
        )
    notes, facts = [], {"scheduler": own}
    checker = pipeline.component("safety_checker")
    if checker is not None:
        facts["safety_checker"] = "not applied"
        notes.append(
            f"the safety checker of {pipeline.path.name} isn't applied: it would blacken images "
            "that are to be measured"
        )
    return Description(conditional, sampling, tuple(notes), facts)


def _prompt_width(pipeline: PipelineFolder, *names: Collection[str]) -> int | None:
    """Channels of what the text encoders make of a prompt; None if they don't say."""
    encoders = [
        part
        for part in pipeline.components({name for several in names for name in several})
        if part.name.startswith("text_encoder")
    ]
    if not encoders or not all(part.kind.startswith("CLIPText") for part in encoders):
        return None
    told = [part.config().get("hidden_size") for part in encoders]
    widths = [width for width in told if isinstance(width, int)]
    return sum(widths) if len(widths) == len(told) else None


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block diffusers and transformers say nothing.

    Bars and notices of diffusers and transformers would mix with this program's own.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_parts(
    name: str, folder: Path, parts: Collection[str] | None = None, **options: Any
) -> Any:
    """The pipeline of diffusers in a folder, with the weights that its hash is of.

    Args:
        name: What messages call it.
        folder: The folder.
        parts: The parts to load; None: all but a safety checker.
        options: Further arguments of its ``from_pretrained``.
    Raises:
        AssetError: If it is damaged.
    """
    try:
        with quiet():
            return _loaded(PipelineFolder.read(folder), parts, options)
    except AssetError as error:
        raise AssetError(f"backbone {name!r} at {folder} can't be loaded: {error}") from error
    except Exception as error:  # a foreign or damaged folder makes diffusers raise almost anything
        raise AssetError(
            f"backbone {name!r} at {folder} can't be loaded: {_first(error)}; get the folder "
            "anew, or use another --backbone"
        ) from error


def _first(error: Exception) -> str:
    """What an error of diffusers or transformers says, without its advice to programmers."""
    said = " ".join((str(error).splitlines() or [""])[0].split())
    if said.startswith("You set `ignore_mismatched_sizes`"):  # it points at a report elsewhere
        said = "weights of other shapes than its configuration says"
    return f"{type(error).__name__}: {said.split('. If you want to instead')[0].rstrip('. ')}"


def _loaded(
    pipeline: PipelineFolder, names: Collection[str] | None, options: Mapping[str, Any]
) -> Any:
    from diffusers import DiffusionPipeline

    listed = pipeline.components(names)
    made: dict[str, Any] = {
        name: None
        for name, entry in pipeline.index.items()
        if isinstance(entry, list) and name not in {part.name for part in listed}
    }
    for part in listed:
        if part.is_model and part.library in ("diffusers", "transformers"):
            made[part.name] = _network(part)
    return DiffusionPipeline.from_pretrained(
        pipeline.path, local_files_only=True, **made, **options
    )


def _network(part: Component) -> Any:
    """One network of a pipeline, with all of its weights.

    Raises:
        AssetError: If its class isn't there, or its weights are incomplete, of other shapes than
            its configuration says, or no numbers.
    """
    found, library = part.weights(), importlib.import_module(part.library)
    kind = getattr(library, part.kind, None)
    if kind is None:
        raise AssetError(
            f"model_index.json names a {part.kind} as the {part.name}, which {part.library} "
            f"{library.__version__} doesn't know; get a newer {part.library}, or use another "
            "--backbone"
        )
    try:
        made, info = kind.from_pretrained(
            part.folder,
            variant=found.variant,
            use_safetensors=found.safe,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # of damaged weights almost anything
        raise AssetError(
            f"the {part.name} ({part.kind}) in {part.folder}: {_first(error)}; see that its "
            "config.json is that of its weights, or get the folder anew"
        ) from error
    # Else they would be random numbers without a word.
    lost = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    if lost:
        raise AssetError(
            f"{found.files[0]} lacks {len(lost)} of the {part.name}'s weights, such as "
            f"{lost[0]}; complete the folder"
        )
    for name, value in made.named_parameters():
        # A sum reads them once; one that is too large for its format is looked at again.
        total = value.detach().sum(dtype=torch.float32)
        if not bool(torch.isfinite(total)) and not bool(torch.isfinite(value).all()):
            raise AssetError(
                f"{found.files[0]} holds weights of the {part.name} that aren't finite numbers, "
                f"such as {name}; get it anew"
            )
    return made


def consistent_clipping(folder: Path) -> bool:
    """Whether a folder's ``training.json`` asks for noise that follows from the clipped image."""
    return training_card(folder).get("clipping") == "consistent"


def loader_of(
    kind: type[DiffusersBackbone], parts: Collection[str]
) -> Callable[..., DiffusersBackbone]:
    """A family's loader: reads these parts of a folder and gives them to a class.

    Args:
        kind: What to make.
        parts: What it needs of a folder.
    """

    def load(
        name: str,
        folder: Path,
        *,
        sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        network_batch: int | None,
    ) -> DiffusersBackbone:
        pipeline = load_parts(name, folder, parts)
        if not hasattr(pipeline.scheduler, "alphas_cumprod"):
            raise AssetError(
                f"backbone {name!r} at {folder} has the scheduler "
                f"{type(pipeline.scheduler).__name__}; expected one with a discrete noise "
                "schedule (alphas_cumprod), such as DDIMScheduler"
            )
        with quiet():
            return kind(
                name,
                pipeline,
                sha256=sha256,
                device=device,
                dtype=dtype,
                network_batch=network_batch,
                consistent=consistent_clipping(folder),
            )

    return load


PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
"""What the loader below reads of a folder, as far as it is there."""

load_pipeline = loader_of(DiffusersBackbone, PARTS)
"""Loads a folder with a U-Net and at most one text encoder; see :func:`loader_of`."""
