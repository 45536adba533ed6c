"""Latents of training images: held where that is small, else made again when they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.core.errors import InputError
from fairbench.diffusion.backbone import Backbone

__all__ = ["MOST_HELD", "DrawnLatents", "chunk_of", "in_chunks", "latents_of", "whole"]

MOST_HELD = 2**30
"""Bytes of latents that are held on the backbone's device."""

AT_ONCE = 64 * 2**20
"""Bytes of images that are taken out of an image set at once, about."""

MOST_AT_ONCE = 1024
"""Images that are taken out of an image set at once at most."""


def chunk_of(images: NDArray[np.uint8], width: int = 1) -> int:
    """How many of (N, H, W, 3) images to take at once: a multiple of `width`, few bytes."""
    size = int(np.prod(images.shape[1:]))
    return width * max(1, min(MOST_AT_ONCE, AT_ONCE // max(size, 1)) // width)


class DrawnLatents:
    """Behaves as an (N, C, h, w) float32 tensor whose rows are encoded when they are asked for.

    A row is encoded in a network batch of fixed shape, so that it is the same in any company.

    Args:
        backbone: Encodes them.
        images: (N, H, W, 3) uint8 arrays, one after the other.
    """

    def __init__(self, backbone: Backbone, images: Sequence[NDArray[np.uint8]]) -> None:
        self._backbone, self._images = backbone, images
        self._starts = np.cumsum([0, *map(len, images)])
        self.shape = (int(self._starts[-1]), *backbone.latent_shape)
        self.device = backbone.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        """The latents at (n,) integers or a slice, (n, C, h, w) float32 on the device."""
        if isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        index = np.arange(len(self))[rows]
        parts = np.searchsorted(self._starts, index, side="right") - 1
        found = torch.empty((len(index), *self.shape[1:]), device=self.device)
        for part, images in enumerate(self._images):
            mine = np.flatnonzero(parts == part)
            step = chunk_of(images, self._backbone.network_batch)
            for start in range(0, len(mine), step):
                some = mine[start : start + step]
                # As those that are held, which aren't made within a training's autocast.
                with torch.autocast(self.device.type, enabled=False):
                    made = self._backbone.encode(images[index[some] - self._starts[part]])
                found[torch.from_numpy(some).to(self.device)] = made
        return found


def latents_of(backbone: Backbone, images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Latents of all images.

    Args:
        backbone: Encodes them.
        images: (N, H, W, 3) uint8 arrays, one after the other.
    Returns:
        (N, C, h, w) float32 on the backbone's device; beyond `MOST_HELD` bytes a `DrawnLatents` in
        its place.
    """
    count = sum(map(len, images))
    if count * int(np.prod(backbone.latent_shape)) * 4 > MOST_HELD:
        return cast("Tensor", DrawnLatents(backbone, images))
    held = torch.empty((count, *backbone.latent_shape), device=backbone.device)
    done = 0
    for part in images:
        step = chunk_of(part, backbone.network_batch)
        for start in range(0, len(part), step):
            made = backbone.encode(part[start : start + step])
            held[done : done + len(made)] = made
            done += len(made)
    return held


def whole(latents: Tensor | DrawnLatents, what: str) -> Tensor:
    """The latents as one tensor, for what is fitted to all of them at once.

    Args:
        latents: Of `latents_of`.
        what: Needs them, in words.
    Raises:
        InputError: If they are too many to be held.
    """
    if isinstance(latents, Tensor):
        return latents
    size = int(np.prod(latents.shape)) * 4
    raise InputError(
        f"{what} needs all latents at once, and those of {len(latents)} images of "
        f"{'x'.join(map(str, latents.shape[1:]))} take {size / 2**30:,.1f} GiB; expected at most "
        f"{MOST_HELD / 2**30:g}: use a --backbone of smaller latents, or another method"
    )


def in_chunks(latents: Tensor | DrawnLatents) -> Iterator[Tensor]:
    """The latents in order, a tensor that is held as one, others some at a time."""
    if isinstance(latents, Tensor):
        yield latents
        return
    step = max(1, AT_ONCE // (int(np.prod(latents.shape[1:])) * 4))
    for start in range(0, len(latents), step):
        yield latents[start : start + step]
