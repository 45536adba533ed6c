"""The sampling loop, DDIM or the backbone's own scheduler, and the randomness of every method."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Request, Samples, SamplingConfig
from fairbench.diffusion.backbone import Backbone, WholeCall
from fairbench.diffusion.denoisers import Denoiser, conditioned, guided, guided_at_once

__all__ = [
    "DDIMSampler",
    "Listener",
    "Stream",
    "ddim",
    "gaussian",
    "generator",
    "indicator_rng",
    "listening",
    "own_steps",
]

SEEDLESS = frozenset({"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler", "NoneType"})
"""Schedulers that draw noise for a whole batch from a source of their own."""


Listener = Callable[[int, int, int], None]
"""``listener(step, steps, rows)``: called after each step that this many images took."""

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block each step of sampling is told, whatever method takes it.

    Args:
        listener: ``listener(step, steps, rows)``; steps count from 1.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def _tell(step: int, steps: int, rows: int) -> None:
    listener = _LISTENER.get()
    if listener is not None:
        listener(step, steps, rows)


class Stream(IntEnum):
    """Independent sources of randomness of one run."""

    INITIAL_NOISE = 0
    SAMPLER_NOISE = 1
    INDICATOR = 2
    TRAINING = 3


def _sequence(request: Request, stream: Stream) -> np.random.SeedSequence:
    return np.random.SeedSequence(
        [request.seed, stream, request.prompt_index, request.image_index]
    )


def generator(request: Request, stream: Stream) -> torch.Generator:
    """One image's own CPU generator, the same whatever batch the image is made in."""
    seed = int(_sequence(request, stream).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)


def indicator_rng(request: Request) -> np.random.Generator:
    """One image's own generator of categorical draws."""
    return np.random.default_rng(_sequence(request, Stream.INDICATOR))


def gaussian(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device
) -> Tensor:
    """(B, *shape) standard normal float32, row b drawn from generator b on the CPU."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)


def ddim(
    backbone: Backbone,
    denoise: Denoiser,
    requests: Sequence[Request],
    config: SamplingConfig,
    *,
    observe: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """Follow the DDIM trajectory of each request.

    Args:
        backbone: Gives the noise schedule and the shape.
        denoise: Called once a step.
        requests: B images.
        config: Steps, spacing and eta; its guidance is the denoiser's business.
        observe: Called with x_t (B, C, h, w) and t before each step.
    Returns:
        (B, C, h, w) float32 clean latents.
    Raises:
        InputError: If they aren't finite, which would be black images.

    Source: Song et al. 2021, Denoising diffusion implicit models, arXiv 2010.02502, eq. 12 and 16.
        Two choices where diffusers offers several: a step goes to the next timestep of the list;
        the last one goes to alpha = 1. Whether the noise is derived again from a clean image that
        was cut is the schedule's.
    """
    schedule = backbone.schedule
    if config.steps > len(schedule):
        raise InputError(
            f"--steps must be at most the {len(schedule)} timesteps of {backbone.name}; "
            f"seen {config.steps}"
        )
    times = schedule.timesteps(config.steps, config.spacing)
    starts = [generator(request, Stream.INITIAL_NOISE) for request in requests]
    x = gaussian(starts, backbone.latent_shape, backbone.device)
    noises = [generator(request, Stream.SAMPLER_NOISE) for request in requests]
    for place, (t, following) in enumerate(zip(times, [*times[1:], None], strict=True)):
        if observe is not None:
            observe(x, t)
        predicted = schedule.bounded(denoise(x, t))
        alpha, sigma = 1.0, 0.0
        if following is not None:
            alpha, sigma = float(schedule.alpha(following)), float(schedule.sigma(following))
        if config.eta > 0 and following is not None:
            ratio = float(schedule.alpha(t)) / alpha
            jump = sigma / float(schedule.sigma(t)) * (1 - ratio**2) ** 0.5
            fresh = config.eta * jump
            kept = max(sigma**2 - fresh**2, 0.0) ** 0.5
            noise = gaussian(noises, backbone.latent_shape, backbone.device)
            x = alpha * predicted.clean + kept * predicted.noise + fresh * noise
        else:
            x = alpha * predicted.clean + sigma * predicted.noise
        _tell(place + 1, len(times), len(requests))
    return _finite(x, backbone)


def _finite(x: Tensor, backbone: Backbone) -> Tensor:
    if not bool(torch.isfinite(x).all()):
        raise InputError(
            f"images of {backbone.name} aren't finite numbers: guidance or a method's scale or "
            "strength is too large, or what it trained is broken; lower --guidance, or the "
            "method's scale, strength or learning rate by --param"
        )
    return x


def own_steps(
    backbone: Backbone, denoise: Denoiser, requests: Sequence[Request], config: SamplingConfig
) -> tuple[Tensor, int]:
    """Follow the scheduler that the backbone's folder names, as its own pipeline does.

    Args:
        backbone: Gives the scheduler and the shape.
        denoise: Called once for each of the scheduler's timesteps, which may be more than steps.
        requests: B images.
        config: Steps and eta; its guidance is the denoiser's business, its spacing isn't used.
    Returns:
        (B, C, h, w) float32 clean latents, and how often the denoiser was called.
    Raises:
        InputError: If the scheduler can't do what is asked, or latents aren't finite.
    """
    kind = type(backbone.scheduler).__name__
    if backbone.scheduler is None or kind in SEEDLESS:
        raise InputError(
            f"--scheduler own: {backbone.name} has {'none' if kind == 'NoneType' else kind}, "
            "whose noise can't be drawn for each image from its seed; use --scheduler ddim"
        )
    scheduler = copy.deepcopy(backbone.scheduler)
    accepted = inspect.signature(scheduler.step).parameters
    if config.eta and "eta" not in accepted:
        raise InputError(f"--eta {config.eta:g}: {kind} of {backbone.name} has none; leave it out")
    with warnings.catch_warnings():  # of NumPy, on what diffusers does
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(config.steps, device=backbone.device)
    starts = [generator(request, Stream.INITIAL_NOISE) for request in requests]
    noises = [generator(request, Stream.SAMPLER_NOISE) for request in requests]
    options: dict[str, Any] = {"eta": config.eta} if "eta" in accepted else {}
    if "generator" in accepted:
        options["generator"] = noises
    x = gaussian(starts, backbone.latent_shape, backbone.device) * scheduler.init_noise_sigma
    calls = 0
    # Some schedulers stop between the integers. All are looked at once, not one a step.
    numbers = [
        int(one) if one.is_integer() else one for one in scheduler.timesteps.double().tolist()
    ]
    for t, number in zip(scheduler.timesteps, numbers, strict=True):
        seen = scheduler.scale_model_input(x, t)
        predicted = denoise(seen, cast("int", number))
        # A network that was trained in the backbone's place may predict something else.
        output = predicted.as_kind(scheduler.config.get("prediction_type", predicted.kind))
        if predicted.variance is not None and str(
            scheduler.config.get("variance_type", "")
        ).startswith("learned"):
            output = torch.cat([output, predicted.variance], dim=1)
        x = scheduler.step(output, t, x, **options).prev_sample
        calls += 1
        _tell(calls, len(scheduler.timesteps), len(requests))
    return _finite(x.float(), backbone), calls


class DDIMSampler:
    """The sampler of most methods; a method overrides the pieces in which it differs.

    Args:
        backbone: What to sample.
        config: How.
    """

    extra_parameters = 0

    def __init__(self, backbone: Backbone, config: SamplingConfig) -> None:
        self.backbone, self.config = backbone, config
        self.facts: Mapping[str, Any] = {}

    def text(self, request: Request, group: int | None) -> str:
        """The prompt that the network is to see."""
        return request.prompt.text

    def group(self, request: Request) -> int | None:
        """The group the image is to be in, None if the method asks for none."""
        return None

    def batch_id(self, request: Request) -> int:
        """Equal for images that depend on each other; here every image is on its own."""
        return request.prompt_index << 32 | request.image_index

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """What one branch of guidance predicts; most methods change this alone.

        Args:
            name: ``cond`` or ``uncond``.
            context: (B, L, D) of the branch's prompts; None for an unconditional backbone.
            requests: B images.
            groups: The group that each of them is to be in.
        """
        return conditioned(self.backbone, context)

    def contexts(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> dict[str, Tensor | None]:
        """Branch -> its context; ``uncond`` is left out where there is no guidance."""
        texts = [self.text(r, g) for r, g in zip(requests, groups, strict=True)]
        context = self.backbone.embed(texts)
        if context is None or self.config.guidance == 1:
            return {"cond": context}
        return {"cond": context, "uncond": self.backbone.embed([""] * len(requests))}

    def joined(self, branches: Mapping[str, Denoiser]) -> tuple[Denoiser, int]:
        """The guided denoiser of one or two branches, and its network calls a step."""
        whole = guided(branches["cond"], branches.get("uncond"), self.config.guidance)
        return whole, len(branches)

    def denoiser(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> tuple[Denoiser, int]:
        """A guided denoiser for these requests and its network calls an image and step."""
        contexts = self.contexts(requests, groups)
        prompted, empty = contexts["cond"], contexts.get("uncond")
        # Others give their branches apart, or take gradients, whose batches aren't filled up.
        own = (type(self).branch, type(self).joined, type(self).denoiser)
        plain = own == (DDIMSampler.branch, DDIMSampler.joined, DDIMSampler.denoiser)
        if plain and prompted is not None and empty is not None:
            at_once = guided_at_once(self.backbone, prompted, empty, self.config.guidance)
            if at_once is not None:
                return at_once, 2
        return self.joined(
            {
                name: self.branch(name, context, requests, groups)
                for name, context in contexts.items()
            }
        )

    def observed(self, diagnostics: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        """Nothing; for methods that look at what they make."""
        return {}

    def batches(self, requests: Sequence[Request], size: int) -> list[list[Request]]:
        """Consecutive runs of at most `size` requests."""
        return [list(requests[i : i + size]) for i in range(0, len(requests), size)]

    def make(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images, (B, H, W, 3) uint8, of at most a network batch of requests, and their calls.

        Args:
            requests: B images.
            groups: The group that each of them is to be in.
        """
        whole = self.backbone.capability(WholeCall)
        if whole is not None:
            texts = [self.text(r, g) for r, g in zip(requests, groups, strict=True)]
            starts = [generator(request, Stream.INITIAL_NOISE) for request in requests]
            return whole.make(texts, starts, self.config)
        denoise, a_step = self.denoiser(requests, groups)
        if self.config.scheduler == "own":
            latents, steps = own_steps(self.backbone, denoise, requests, self.config)
        else:
            latents = ddim(self.backbone, denoise, requests, self.config)
            steps = self.config.steps
        return self.backbone.decode(latents), np.full(len(requests), a_step * steps, np.int64)

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> Samples:
        """Make one image a request, in network batches.

        Raises:
            ContractError: If there are no requests.
        """
        if not requests:
            raise ContractError("expected at least one request, seen none")
        groups = [self.group(request) for request in requests]
        images, calls = [], []
        width = self.backbone.network_batch
        for start in range(0, len(requests), width):
            part = slice(start, start + width)
            made, spent = self.make(requests[part], groups[part])
            images.append(made)
            calls.append(spent)
        asked = None if groups[0] is None else np.array(groups, dtype=np.int64)
        return Samples(
            images=np.concatenate(images),
            requested=asked,
            network_calls=np.concatenate(calls),
            batch_id=np.array([self.batch_id(request) for request in requests], np.int64),
        )
