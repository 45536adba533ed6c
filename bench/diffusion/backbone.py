"""What every pretrained generator can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.core.errors import ContractError, InputError
from fairbench.diffusion.schedule import Prediction, Schedule, columns

Edit = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Trainable:
    """A network that can be copied, trained and put in the place of the backbone's own.

    Attributes:
        network: The denoising network; its parameters are frozen.
        replaced: The same backbone with another network of that kind.
    """

    what: ClassVar[str] = "network to train or adapt"

    network: nn.Module
    replaced: Callable[[nn.Module], Backbone]

    @property
    def dtype(self) -> torch.dtype:
        """Format of the network's weights."""
        return next(self.network.parameters()).dtype


@dataclass(frozen=True)
class Bottleneck:
    """A place in the middle of the network that can be read and edited.

    Attributes:
        edit: Opens a context in which the bottleneck h is ``edit(h, t)``, (B, c, h', w') both.
    """

    what: ClassVar[str] = "bottleneck, such as the middle block of a U-Net"

    edit: Callable[[Edit], AbstractContextManager[None]]


@dataclass(frozen=True)
class CrossAttention:
    """Linear maps by which the network reads prompts, and to which adapters can be added.

    Attributes:
        network: The network that has them.
        layers: Name -> linear map.
    """

    what: ClassVar[str] = "cross-attention to adapt"

    network: nn.Module
    layers: Mapping[str, nn.Linear]


Capability = TypeVar("Capability", Trainable, Bottleneck, CrossAttention)


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
    def capability(self, kind: type[Capability]) -> Capability | None:
        """What else the backbone can do, beside predicting; None if it can't do that."""

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
                filled(x_t, fill),
                filled(times, fill),
                None if context is None else filled(context, fill),
            )[:rows]
        return Prediction(
            x_t,
            columns(self.schedule.alpha(times), x_t),
            columns(self.schedule.sigma(times), x_t),
            self.schedule.prediction_type,
            value,
        )


def filled(rows: Tensor, fill: int) -> Tensor:
    """The rows and `fill` rows of zeros."""
    return torch.cat([rows, rows.new_zeros((fill, *rows.shape[1:]))]) if fill else rows


def fixed_batches(rows: Tensor, width: int) -> Iterator[tuple[Tensor, int]]:
    """Batches of exactly `width` rows, the last one filled up with zeros.

    A network that always sees one batch shape rounds a row the same whatever is beside it.

    Yields:
        The batch and how many of its rows are asked for.
    """
    for chunk in torch.split(rows, width):
        yield filled(chunk, width - len(chunk)), len(chunk)


def required(backbone: Backbone, kind: type[Capability], method: str) -> Capability:
    """What a method needs of a backbone.

    Raises:
        InputError: If the backbone doesn't have it, naming all three.
    """
    found = backbone.capability(kind)
    if found is None:
        raise InputError(
            f"{method}: {backbone.name} has no {kind.what}; choose another --backbone"
        )
    return found


def cross_attention_linears(network: nn.Module) -> dict[str, nn.Linear]:
    """Every linear map inside a cross-attention (``attn2``): to_q, to_k, to_v and to_out.

    Matched by type, so that a subclass of Linear counts too.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "attn2" in name.split(".")
    }
