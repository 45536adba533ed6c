"""What every pretrained generator can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.core.errors import ContractError, InputError, UnfitError
from fairbench.core.method import MethodCard, Need, SamplingConfig
from fairbench.diffusion.schedule import Prediction, Schedule, columns

Edit = Callable[[Tensor, int], Tensor]

_PLACE: ContextVar[int | Tensor] = ContextVar("timestep of the network call under way")


def place_of_call() -> int:
    """The timestep of the network call under way, of its first row.

    As `Backbone.predict` was asked for it: the network's own copy lies on the device, and reading
    it would wait for all that was computed before.
    """
    t = _PLACE.get()
    return int(t.reshape(-1)[0]) if isinstance(t, Tensor) else int(t)


@dataclass(frozen=True)
class Trainable:
    """A network that can be copied, trained and put in the place of the backbone's own.

    Attributes:
        network: The denoising network; its parameters are frozen.
        replaced: The same backbone with another network of that kind.
    """

    what: ClassVar[str] = "network to train or adapt"
    need: ClassVar[Need] = "training"

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
    need: ClassVar[Need] = "bottleneck"

    edit: Callable[[Edit], AbstractContextManager[None]]


@dataclass(frozen=True)
class CrossAttention:
    """Linear maps by which the network reads prompts, and to which adapters can be added.

    Attributes:
        network: The network that has them.
        layers: Name -> linear map.
    """

    what: ClassVar[str] = "cross-attention to adapt"
    need: ClassVar[Need] = "cross-attention"

    network: nn.Module
    layers: Mapping[str, nn.Linear]


@dataclass(frozen=True)
class WholeCall:
    """A pipeline that makes images in one call; its single predictions can't be had.

    Attributes:
        make: ``make(texts, generators, config)``: B prompts, one generator each -> images,
            (B, H, W, 3) uint8, and network calls spent on each, (B,) int64.
    """

    what: ClassVar[str] = "call that makes whole images"

    make: Callable[
        [Sequence[str], Sequence[torch.Generator], SamplingConfig],
        tuple[NDArray[np.uint8], NDArray[np.int64]],
    ]


Capability = TypeVar("Capability", Trainable, Bottleneck, CrossAttention, WholeCall)


class Backbone(ABC):
    """A pretrained generator.

    Attributes:
        name: Its name on the command line.
        weights_sha256: Hash of everything it was loaded from.
        image_size: Pixels a side of its images.
        latent_shape: (C, h, w) of what is diffused; of the image itself for a pixel model.
        schedule: Its noise levels.
        network_batch: The batch shape that its networks always see when no gradient is wanted.
        decode_batch: The batch shape that its decoder sees; None: `network_batch`.
        device: Where its networks run.
        unet: The denoising network, None for a formula.
        token_limit: Pieces of a prompt that the text encoder reads; the rest is cut off.
        scheduler: The scheduler of the folder, as diffusers has it; None for a formula.
        families: What a capability is called -> the families that have it, for messages.
    """

    name: str
    weights_sha256: str
    image_size: int
    latent_shape: tuple[int, int, int]
    schedule: Schedule
    network_batch: int
    decode_batch: int | None = None
    device: torch.device
    unet: nn.Module | None
    conditional: bool
    token_limit: int = 0
    scheduler: Any = None
    families: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def compile(self) -> str:
        """Compile the denoising network, if that can be done; why it can't, or ""."""
        return f"{self.name} has no network to compile"

    @abstractmethod
    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Images, (B, H, W, 3) uint8, to latents, (B, C, h, w) float32."""

    @abstractmethod
    def pixels(self, latents: Tensor) -> Tensor:
        """Latents, (B, C, h, w), to pixels, (B, 3, H, W) float32, nominally in [-1, 1].

        Not rounded or clamped, so that a gradient flows back to the latents if one is wanted.
        """

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents, (B, C, h, w), to images, (B, H, W, 3) uint8.

        Out of memory, they are decoded again with half the `decode_batch`, which stays so.
        """
        while True:
            try:
                with torch.no_grad():
                    pixels = (self.pixels(latents) + 1) * 127.5
                    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
                return pixels.permute(0, 2, 3, 1).cpu().numpy()
            except torch.OutOfMemoryError:
                rows = self.decode_batch or self.network_batch
                if rows == 1:
                    raise
                self.decode_batch = rows // 2

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Tensor | None:
        """What the network is conditioned on, (B, L, D); None for an unconditional backbone.

        One tensor whatever a family needs, so that a method can pick and mix its rows: further
        conditions, such as a pooled embedding, are rows of L.
        """

    def tokens(self, text: str) -> list[str] | None:
        """The pieces that the tokenizer splits `text` into; None without a tokenizer."""
        return None

    @abstractmethod
    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """One call of the network on a whole batch; output in the model's parameterisation.

        A network that learned the variance puts it out as C further channels.
        """

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
        # Levels of a number are looked up on this side: nothing is copied back from the device.
        asked = torch.as_tensor(t).expand(rows)
        times = asked.to(self.device)
        token = _PLACE.set(t)
        try:
            value = self._filled_up(x_t, times, context)
        finally:
            _PLACE.reset(token)
        variance = None
        if value.shape[1] == 2 * x_t.shape[1]:
            value, variance = value.chunk(2, dim=1)
        return Prediction(
            x_t,
            columns(self.schedule.alpha(asked), x_t),
            columns(self.schedule.sigma(asked), x_t),
            self.schedule.prediction_type,
            value,
            variance=variance,
        )

    def _filled_up(self, x_t: Tensor, times: Tensor, context: Tensor | None) -> Tensor:
        """One network call; without gradients on `network_batch` rows, of which B are returned."""
        rows = len(x_t)
        if torch.is_grad_enabled():
            return self._network(x_t, times, context)
        if rows > self.network_batch:
            raise ContractError(
                f"at most {self.network_batch} rows fit one network call; seen {rows}"
            )
        fill = self.network_batch - rows
        return self._network(
            filled(x_t, fill),
            filled(times, fill),
            None if context is None else filled(context, fill),
        )[:rows]


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


def check_needs(card: MethodCard, backbone: Backbone) -> None:
    """Refuse a method that wants more than images of a pipeline that is called as a whole.

    Raises:
        InputError: If it does, naming the families that have what it needs.
    """
    if card.needs and backbone.capability(WholeCall) is not None:
        raise lacking(card, backbone.name, sorted(card.needs), backbone.families)


def lacking(
    card: MethodCard, name: str, needs: Sequence[Need], families: Mapping[str, Sequence[str]]
) -> InputError:
    """The error for a backbone without what a method needs, with the families that have it all.

    Args:
        card: Of the method.
        name: Of the backbone.
        needs: What the backbone lacks.
        families: Need -> families that have it.
    """
    words = {
        "predictions": "single predictions of the network",
        "training": "a network to train",
        "bottleneck": "a bottleneck",
        "cross-attention": "cross-attention",
        "ddim": "DDIM's timesteps",
    }
    able = [set(families.get(need, ())) for need in sorted(card.needs)]
    fitting = ", ".join(sorted(set.intersection(*able))) if able else ""
    return UnfitError(
        f"{card.name} needs {' and '.join(words[need] for need in needs)}, which {name} hasn't; "
        "choose another --backbone" + (f", of one of the families {fitting}" if fitting else "")
    )


def required(backbone: Backbone, kind: type[Capability], method: str) -> Capability:
    """What a method needs of a backbone.

    Raises:
        InputError: If the backbone doesn't have it, naming all three.
    """
    found = backbone.capability(kind)
    if found is None:
        able = ", ".join(backbone.families.get(getattr(kind, "need", ""), ()))
        raise InputError(
            f"{method}: {backbone.name} has no {kind.what}; choose another --backbone"
            + (f", of a family that has it: {able}" if able else "")
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
