"""A Gaussian mixture, whose exact denoiser is a formula."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.backbones.base import Description, Family
from fairbench.backbones.folders import PipelineFolder
from fairbench.core.errors import AssetError, ContractError
from fairbench.core.method import SamplingConfig
from fairbench.diffusion.backbone import Backbone, Bottleneck, Capability, Edit
from fairbench.diffusion.schedule import Schedule

LEAST = -40.0
"""Least log posterior in the bottleneck: such a component's part is below float64's rounding."""


class GaussianMixture(Backbone):
    """Exact denoiser of sum_k w_k N(mean_k, std² I): a right answer in milliseconds.

    Its bottleneck is the (B, K, 1, 1) log posterior of the components, so that an edit there moves
    an image between components, as an edit of a U-Net's bottleneck moves it between attributes. It
    is finite, as activations of a network are: less than `LEAST` counts as `LEAST` there. What a
    prompt rules out stays so under every edit.

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
            edited = self._edit(logits.clamp(min=LEAST)[:, :, None, None], int(t[0]))[:, :, 0, 0]
            logits = edited.masked_fill(prior == -torch.inf, -torch.inf).log_softmax(-1)
        shrink = alpha * self.std**2 / variance
        clean = torch.einsum("bk,bkd->bd", logits.exp(), means + shrink[:, :, None] * away)
        noise = (flat - alpha * clean) / sigma
        return noise.reshape(x_t.shape).to(x_t.dtype)

    def capability(self, kind: type[Capability]) -> Capability | None:
        """A bottleneck alone: there is no network to train."""
        found: Any = Bottleneck(self.edit_bottleneck) if kind is Bottleneck else None
        return cast("Capability | None", found)

    @contextmanager
    def edit_bottleneck(self, edit: Edit) -> Iterator[None]:
        """Edit the (B, K, 1, 1) log posterior of the components; it is normalised again."""
        outer = self._edit
        self._edit = edit if outer is None else lambda h, t: edit(outer(h, t), t)
        try:
            yield
        finally:
            self._edit = outer


SAMPLING = SamplingConfig(steps=40, guidance=1.0)
PARTS = ("unet",)


def describe(pipeline: PipelineFolder) -> Description:
    """What the folder's JSON says: a mixture with words takes prompts."""
    return Description(pipeline.config("unet").get("words") is not None, SAMPLING)


def load(name: str, folder: Path, *, sha256: str, **options: Any) -> GaussianMixture:
    """Load the means, weights and words of a folder; a formula has no device or number format.

    Raises:
        AssetError: If the folder is damaged.
    """
    from safetensors.torch import load_file

    pipeline = PipelineFolder.read(folder)
    config = pipeline.config("unet")
    (path,) = (one for one in pipeline.files(PARTS) if one.suffix == ".safetensors")
    try:
        mixture = GaussianMixture(
            load_file(path)["means"], config["weights"], config["std"], config["words"]
        )
    except Exception as error:  # safetensors' own errors, missing names, wrong numbers
        raise AssetError(
            f"{folder}: not a Gaussian mixture ({type(error).__name__}: {error}); reinstall "
            "fairbench-diffusion"
        ) from error
    mixture.name, mixture.weights_sha256 = name, sha256
    rows = options.get("network_batch")
    mixture.network_batch = mixture.network_batch if rows is None else rows
    return mixture


FAMILY = Family(
    name="mixture",
    title="Gaussian mixtures, whose exact denoiser is a formula",
    pipelines=("GaussianMixturePipeline",),
    conditional=False,
    sampling=SAMPLING,
    load=load,
    capabilities=frozenset({"predictions", "bottleneck", "ddim"}),
    parts=PARTS,
    describe=describe,
)
