"""DINOv2, an encoder that was trained without labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.core.specs import InstrumentSpec
from fairbench.instruments.base import (
    Kind,
    NetworkFromFile,
    Outputs,
    normalised,
    torch_resized,
)
from fairbench.instruments.loading import load_public, load_transformer
from fairbench.storage.readings import check_images

if TYPE_CHECKING:
    pass

__all__ = ["INSTRUMENTS", "DinoEncoder"]

SIDE = 224
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoEncoder(NetworkFromFile):
    """DINOv2: the class token after the last norm.

    Images are resized to 224 x 224 in torch, antialiased bicubic on floats, oblong ones
    squeezed. Not clean-fid's resizing: the network was trained with torch-style resizing.

    Source: Stein et al. 2023, arXiv 2306.04675 (dgm-eval). Deviation: positions are interpolated
    as transformers does it, which differs from the DINOv2 repository in the last digits.
    """

    kind: Kind = "encoder"
    outputs: Outputs = MappingProxyType({"features": np.float32})
    side = SIDE
    preprocessing = f"torch bicubic antialias float {SIDE}, ImageNet normalisation"

    def network(self, path: Path) -> nn.Module:
        """A whole DINOv2, from a folder in transformers' format."""
        from transformers import Dinov2Model

        model = load_transformer(Dinov2Model, path, "dinov2")
        self.dimension = int(model.config.hidden_size)
        module: nn.Module = model
        return module

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Class tokens (N, D); arguments and errors as for Inception."""
        check_images(images)
        (tokens,) = self._runner.run(images, self._resized, self._token, self.name)
        return {"features": tokens}

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        return normalised(torch_resized(images, SIDE), IMAGENET_MEAN, IMAGENET_DEVIATION)

    def _token(self, pixels: Tensor) -> tuple[Tensor]:
        return (self._runner.module(pixel_values=pixels).last_hidden_state[:, 0],)


def _spec(size: str, dimension: int) -> InstrumentSpec:
    name = f"dinov2-vit-{size}-14"
    load = partial(load_public, name, name, DinoEncoder, dimension, SIDE)
    return InstrumentSpec(name, "encoder", f"DINOv2 {size.upper()}, its class token", load, name)


INSTRUMENTS = (_spec("b", 768), _spec("l", 1024))
