"""Pretrained generators behind one small interface.

A method written against :class:`Backbone` runs unchanged on Stable Diffusion 1.x/2.x, on an
unconditional DDPM and on a Gaussian mixture whose exact denoiser is a formula.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.errors import AssetError, ContractError, InputError

__all__ = [
    "Backbone",
    "DiffusersBackbone",
    "GaussianMixture",
    "Prediction",
    "PredictionType",
    "Schedule",
    "load_backbone",
    "weights_sha256",
]

PredictionType = Literal["epsilon", "sample", "v_prediction"]
Edit = Callable[[Tensor, int], Tensor]


class Schedule:
    """Noise levels of a diffusion: x_t = alpha x_0 + sigma noise, alpha² + sigma² = 1.

    Args:
        alphas_cumprod: (T,) alpha², decreasing in t, kept in float64.
        prediction_type: What the network was trained to predict.
        clip: Bound that the sampler puts on the predicted clean image, None for none; pixel models
            have one.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        prediction_type: PredictionType,
        clip: float | None = None,
    ) -> None:
        self.alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float64)
        self.prediction_type, self.clip = prediction_type, clip

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _alpha_squared(self, t: Tensor | float) -> Tensor:
        # Between integers log SNR is interpolated, in which both alpha and sigma are smooth; the
        # two neighbours of an integer are itself, so that the table's own values come back.
        at = torch.as_tensor(t).cpu().double()  # on the CPU first: MPS has no float64
        low = at.floor().clamp(0, len(self) - 1).long()
        high = at.ceil().clamp(0, len(self) - 1).long()
        table = torch.logit(self.alphas_cumprod)
        between = torch.sigmoid(torch.lerp(table[low], table[high], at - low))
        return torch.where(low == high, self.alphas_cumprod[low], between)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Share of the clean image at timestep `t` (integer or continuous), same shape as `t`."""
        return self._alpha_squared(t).sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        """Share of noise at timestep `t`, same shape as `t`."""
        return (1 - self._alpha_squared(t)).sqrt()

    def snr(self, t: Tensor | float) -> Tensor:
        """Signal-to-noise ratio alpha² / sigma² at `t`, same shape as `t`."""
        squared = self._alpha_squared(t)
        return squared / (1 - squared)

    def timesteps(self, steps: int, spacing: Literal["trailing", "linspace"]) -> list[int]:
        """Timesteps of a trajectory, from noise to image.

        Both begin at the noisiest level, T - 1; ``leading``, which doesn't, isn't offered.
        """
        total = len(self)
        if spacing == "trailing":
            return [round(total - i * total / steps) - 1 for i in range(steps)]
        return [int(t) for t in np.linspace(total - 1, 0, steps).round()]

    def target(self, clean: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """What the network is trained to put out for x_t of `clean` and `noise`, same shape."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        return _columns(self.alpha(t), clean) * noise - _columns(self.sigma(t), clean) * clean

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """x_t of `clean` and `noise`, (B, C, h, w) each, at `t`, a number or (B,)."""
        return _columns(self.alpha(t), clean) * clean + _columns(self.sigma(t), clean) * noise


def _columns(value: Tensor, like: Tensor) -> Tensor:
    """A scalar or (B,) as something that multiplies (B, C, h, w)."""
    return value.to(like.device, like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Prediction:
    """One network output, seen as noise, clean image or velocity.

    Attributes:
        x_t: (B, C, h, w) what the network saw.
        alpha, sigma: (B or 1, 1, 1, 1) its noise level.
        kind: What `value` is.
        value: (B, C, h, w) in the model's own parameterisation.
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    kind: PredictionType
    value: Tensor

    @cached_property
    def noise(self) -> Tensor:
        """Predicted noise, (B, C, h, w)."""
        if self.kind == "epsilon":
            return self.value
        if self.kind == "v_prediction":
            return self.sigma * self.x_t + self.alpha * self.value
        return (self.x_t - self.alpha * self.value) / self.sigma

    @cached_property
    def clean(self) -> Tensor:
        """Predicted clean image or latent, (B, C, h, w)."""
        if self.kind == "sample":
            return self.value
        if self.kind == "v_prediction":
            return self.alpha * self.x_t - self.sigma * self.value
        return (self.x_t - self.sigma * self.value) / self.alpha

    @cached_property
    def velocity(self) -> Tensor:
        """Predicted velocity alpha noise - sigma clean, (B, C, h, w)."""
        if self.kind == "v_prediction":
            return self.value
        return self.alpha * self.noise - self.sigma * self.clean

    def with_value(self, value: Tensor) -> Prediction:
        """The same place with another network output."""
        return replace(self, value=value)

    def clipped(self, bound: float | None) -> Prediction:
        """The same place with the clean image in [-bound, bound]; itself without a bound."""
        if bound is None:
            return self
        return replace(self, kind="sample", value=self.clean.clamp(-bound, bound))


class Backbone(ABC):
    """A pretrained generator.

    Attributes:
        name: Its name on the command line.
        weights_sha256: Hash of everything it was loaded from.
        image_size: Pixels a side of its images.
        latent_shape: (C, h, w) of what is diffused; of the image itself for a pixel model.
        schedule: Its noise levels.
        network_batch: The batch shape that its networks always see when no gradient is wanted.
        device: Where its networks run.
        unet: The denoising network, None for a formula.
        token_limit: Pieces of a prompt that the text encoder reads; the rest is cut off.
    """

    name: str
    weights_sha256: str
    image_size: int
    latent_shape: tuple[int, int, int]
    schedule: Schedule
    network_batch: int
    device: torch.device
    unet: nn.Module | None
    conditional: bool
    token_limit: int = 0

    @abstractmethod
    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Images, (B, H, W, 3) uint8, to latents, (B, C, h, w) float32."""

    @abstractmethod
    def pixels(self, latents: Tensor) -> Tensor:
        """Latents, (B, C, h, w), to pixels, (B, 3, H, W) float32, nominally in [-1, 1].

        Not rounded or clamped, so that a gradient flows back to the latents if one is wanted.
        """

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents, (B, C, h, w), to images, (B, H, W, 3) uint8."""
        with torch.no_grad():
            pixels = ((self.pixels(latents) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """What the network is conditioned on, (B, L, D); None for an unconditional backbone."""

    def tokens(self, text: str) -> list[str] | None:
        """The pieces that the tokenizer splits `text` into; None without a tokenizer."""
        return None

    @abstractmethod
    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """One call of the network on a whole batch; output in the model's parameterisation."""

    @abstractmethod
    def with_unet(self, unet: nn.Module) -> Backbone:
        """The same backbone with another network of the same kind; the rest is shared.

        Raises:
            ContractError: If the backbone has no network.
        """

    @abstractmethod
    def edit_bottleneck(self, edit: Edit) -> AbstractContextManager[None]:
        """Within the context the bottleneck h becomes ``edit(h, t)``, (B, c, h', w') both."""

    def predict(self, x_t: Tensor, t: int | Tensor, context: Tensor | None) -> Prediction:
        """One network call on (B, C, h, w) at timestep `t`, one for all or (B,).

        Without gradients the batch is filled up to `network_batch` rows, because kernels round
        differently for another batch shape; a row then depends on itself alone.
        """
        rows = len(x_t)
        times = torch.as_tensor(t, device=self.device).expand(rows)
        if torch.is_grad_enabled():
            value = self._network(x_t, times, context)
        elif rows > self.network_batch:
            raise ContractError(
                f"at most {self.network_batch} rows fit one network call; seen {rows}"
            )
        else:
            fill = self.network_batch - rows
            value = self._network(
                _filled(x_t, fill),
                _filled(times, fill),
                None if context is None else _filled(context, fill),
            )[:rows]
        return Prediction(
            x_t,
            _columns(self.schedule.alpha(times), x_t),
            _columns(self.schedule.sigma(times), x_t),
            self.schedule.prediction_type,
            value,
        )


def _filled(rows: Tensor, fill: int) -> Tensor:
    """The rows and `fill` rows of zeros."""
    return torch.cat([rows, rows.new_zeros((fill, *rows.shape[1:]))]) if fill else rows


class DiffusersBackbone(Backbone):
    """A diffusers pipeline: Stable Diffusion 1.x/2.x, or an unconditional DDPM or DDIM one.

    Args:
        name: Its name.
        pipeline: ``StableDiffusionPipeline``, ``DDPMPipeline`` or ``DDIMPipeline``.
        sha256: Hash of its weights.
        device: Where it is moved to.
        dtype: Format of its weights; latents stay float32 between the calls.
        network_batch: Fixed number of rows of every network call without gradients.
    """

    def __init__(
        self,
        name: str,
        pipeline: Any,
        *,
        sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        network_batch: int,
    ) -> None:
        self.name, self.weights_sha256, self.network_batch = name, sha256, network_batch
        self.device, self.dtype = device, dtype
        self._vae = getattr(pipeline, "vae", None)
        self._text = getattr(pipeline, "text_encoder", None)
        self._tokenizer = getattr(pipeline, "tokenizer", None)
        if self._text is not None:  # the limit counts its begin and end
            self.token_limit = int(cast("Any", self._tokenizer).model_max_length) - 2
        self._unet: Any = pipeline.unet
        self.unet = self._unet
        for module in (self._vae, self._text, self._unet):
            if module is not None:
                module.to(device, dtype).eval().requires_grad_(False)
        config = pipeline.scheduler.config
        self.schedule = Schedule(
            pipeline.scheduler.alphas_cumprod,
            cast("PredictionType", config.get("prediction_type", "epsilon")),
            float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None,
        )
        size = int(self._unet.config.sample_size)
        self.latent_shape = (int(self._unet.config.in_channels), size, size)
        self.conditional = self._text is not None
        scale = 1
        if self._vae is not None:
            scale = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.image_size = size * scale

    def with_unet(self, unet: nn.Module) -> DiffusersBackbone:
        """The same pipeline with another network of the same kind; the rest is shared."""
        other = copy.copy(self)
        other.unet = other._unet = unet
        return other

    def _in_fixed_batches(self, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """`call` on rows in network batches, the last one filled up."""
        done = []
        for chunk in torch.split(rows, self.network_batch):
            full = _filled(chunk, self.network_batch - len(chunk))
            done.append(call(full.to(self.device))[: len(chunk)])
        return torch.cat(done)

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Images, (B, H, W, 3) uint8, to latent means, (B, C, h, w) float32, scaled."""
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self._vae is None:
            return pixels.to(self.device)
        vae = self._vae
        return self._in_fixed_batches(
            lambda x: (
                vae.encode(x.to(self.dtype)).latent_dist.mean.float() * vae.config.scaling_factor
            ),
            pixels,
        )

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents, (B, C, h, w), to pixels, (B, 3, H, W) float32, through the VAE's decoder."""
        if self._vae is None:
            return latents.float()
        vae = self._vae
        return self._in_fixed_batches(
            lambda z: vae.decode((z / vae.config.scaling_factor).to(self.dtype)).sample, latents
        ).float()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """Last hidden state of the text encoder, (B, L, D); None without one."""
        if self._text is None:
            return None
        text, tokenizer = self._text, cast("Any", self._tokenizer)
        distinct = list(dict.fromkeys(prompts))
        tokens = tokenizer(
            distinct,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        states = self._in_fixed_batches(lambda ids: text(ids)[0], tokens)
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

    @contextmanager
    def edit_bottleneck(self, edit: Edit) -> Iterator[None]:
        """Hook on the output of the U-Net's middle block, the h-space of Kwon et al. 2022.

        Source: Diffusion models already have a semantic latent space, arXiv 2210.10960.
        """
        times: list[int] = []

        def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
            times[:] = [int(args[1].reshape(-1)[0])]

        def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return edit(output, times[0])

        handles = [
            self._unet.register_forward_pre_hook(remember),
            self._unet.mid_block.register_forward_hook(change),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class GaussianMixture(Backbone):
    """Exact denoiser of sum_k w_k N(mean_k, std² I): a right answer in milliseconds.

    Its bottleneck is the (B, K, 1, 1) log posterior of the components, so that an edit there moves
    an image between components, as an edit of a U-Net's bottleneck moves it between attributes.

    Args:
        means: (K, 3, S, S) component means in [-1, 1].
        weights: (K,) shares, sum 1.
        std: Deviation of every pixel around its mean.
        words: Word -> components that it allows; a prompt keeps the components that all its known
            words allow. None: unconditional.
        steps: Length of the noise schedule.
    """

    unet = None
    network_batch = 64

    def __init__(
        self,
        means: Tensor,
        weights: Sequence[float],
        std: float,
        words: Mapping[str, Sequence[int]] | None = None,
        steps: int = 1000,
    ) -> None:
        self.name, self.device = "gaussian-mixture", torch.device("cpu")
        self.means, self.std = means.double(), std
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        if len(weights) != len(means) or abs(sum(weights) - 1) > 1e-9:
            raise ContractError(
                f"expected one weight for each of {len(means)} components, summing to 1; "
                f"seen {len(weights)} summing to {sum(weights)}"
            )
        self.latent_shape = cast("tuple[int, int, int]", tuple(means.shape[1:]))
        self.image_size = means.shape[-1]
        self.words, self.conditional = words or {}, words is not None
        betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
        self.schedule = Schedule(torch.cumprod(1 - betas.clamp(max=0.999), 0), "epsilon")
        state = repr((self.means.tolist(), list(weights), std, sorted(self.words.items()), steps))
        self.weights_sha256 = hashlib.sha256(state.encode()).hexdigest()
        self._edit: Edit | None = None

    def with_unet(self, unet: nn.Module) -> GaussianMixture:
        """Not possible: the denoiser is a formula."""
        raise ContractError(f"{self.name} has no network to replace; its denoiser is a formula")

    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Images, (B, S, S, 3) uint8, to (B, 3, S, S) float32 in [-1, 1]."""
        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, 3, S, S), as they are."""
        return latents

    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """(B, 1, K) log weights of the components that each prompt allows.

        Raises:
            ContractError: If the words of a prompt allow no component together.
        """
        if not self.conditional:
            return None
        rows = []
        for prompt in prompts:
            allowed = set(range(len(self.means)))
            for word in prompt.split():
                allowed &= set(self.words.get(word, allowed))
            if not allowed:
                raise ContractError(f"no component is allowed by all words of {prompt!r}")
            mask = torch.tensor(
                [0.0 if k in allowed else -torch.inf for k in range(len(self.means))]
            )
            rows.append((self.log_weights + mask).log_softmax(0))
        return torch.stack(rows)[:, None]

    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        flat, means = x_t.double().flatten(1), self.means.flatten(1)
        variance = (alpha * self.std).square() + sigma.square()
        away = flat[:, None] - alpha[:, :, None] * means
        prior = self.log_weights if context is None else context[:, 0].double()
        logits = (prior - away.square().sum(-1) / (2 * variance)).log_softmax(-1)
        if self._edit is not None:
            edited = self._edit(logits[:, :, None, None], int(t[0]))
            logits = edited[:, :, 0, 0].log_softmax(-1)
        shrink = alpha * self.std**2 / variance
        clean = torch.einsum("bk,bkd->bd", logits.exp(), means + shrink[:, :, None] * away)
        noise = (flat - alpha * clean) / sigma
        return noise.reshape(x_t.shape).to(x_t.dtype)

    @contextmanager
    def edit_bottleneck(self, edit: Edit) -> Iterator[None]:
        """Edit the (B, K, 1, 1) log posterior of the components; it is normalised again."""
        outer = self._edit
        self._edit = edit if outer is None else lambda h, t: edit(outer(h, t), t)
        try:
            yield
        finally:
            self._edit = outer


def weights_sha256(folder: Path) -> str:
    """Hash of a pipeline folder: names and contents of its weight and configuration files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt") and path.parent != folder:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def load_backbone(
    name: str, folder: Path, *, device: torch.device, dtype: torch.dtype, network_batch: int = 64
) -> DiffusersBackbone:
    """Load a pipeline saved in diffusers' folder format; nothing is downloaded.

    Args:
        name: What to call it.
        folder: Holds ``model_index.json`` and safetensors.
        device: Where its networks are to run.
        dtype: Format of its weights.
        network_batch: Fixed number of rows of every network call.
    Raises:
        AssetError: If the folder is missing or isn't a pipeline that fairbench can drive.
    """
    if not (folder / "model_index.json").is_file():
        raise AssetError(
            f"backbone {name!r}: expected a diffusers pipeline folder with model_index.json at "
            f"{folder}, found none; give --backbone a folder made by save_pretrained"
        )
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Their bars and notices would mix with this program's own.
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # a foreign or damaged folder makes diffusers raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise AssetError(f"backbone {name!r} at {folder} can't be loaded: {reason}") from error
    if not hasattr(pipeline, "unet") or not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise InputError(
            f"backbone {name!r} is a {type(pipeline).__name__}; fairbench drives pipelines with a "
            "U-Net and a discrete noise schedule, such as Stable Diffusion 1.x/2.x or DDPM"
        )
    return DiffusersBackbone(
        name,
        pipeline,
        sha256=weights_sha256(folder),
        device=device,
        dtype=dtype,
        network_batch=network_batch,
    )
