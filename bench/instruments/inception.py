"""Inception-v3, the encoder of ``fid`` and ``kid``, fed in two ways."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import AssetError
from fairbench.core.specs import InstrumentSpec
from fairbench.inputs.resizing import resize_bicubic
from fairbench.instruments.base import (
    Kind,
    NetworkFromFile,
    Outputs,
    channels_first,
)
from fairbench.instruments.loading import load_public, load_state
from fairbench.storage.readings import check_images

__all__ = ["INSTRUMENTS", "InceptionEncoder", "clean_resize"]

SIDE = 299
DIMENSION = 2048
WEIGHTS = "inception-torch-fidelity"


def clean_resize(images: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.float32]:
    """Resize as clean-fid does.

    Args:
        images: (N, H, W, 3) uint8; oblong ones are squeezed, as there.
        side: Pixels a side.

    Returns:
        (N, side, side, 3) float32 in [0, 255], not rounded.
    """
    return np.stack([resize_bicubic(Image.fromarray(pixels), side) for pixels in images])


class InceptionEncoder(NetworkFromFile):
    """Inception-v3 of 2015-12-05: pool3 features, and logits from the same pass.

    ``clean`` feeds floats resized as clean-fid does to torch-fidelity's layers; ``tf`` feeds
    bytes to torch-fidelity's own forward, which resizes as TensorFlow 1 did. Numbers of the two
    never share a column.

    Source: torch-fidelity 0.4.0 ``FeatureExtractorInceptionV3``, whose layers and weights both
    modes use.
    """

    kind: Kind = "encoder"
    outputs: Outputs = MappingProxyType({"features": np.float32, "logits": np.float32})
    dimension = DIMENSION
    side = SIDE

    def __init__(
        self,
        name: str,
        path: Path,
        weights_sha256: str,
        *,
        clean: bool,
        **options: Any,
    ) -> None:
        """As `NetworkFromFile`; `clean` says how images are resized."""
        self.preprocessing = (
            f"clean-fid PIL bicubic float {SIDE}, (x-128)/128"
            if clean
            else f"torch-fidelity TF1 bilinear uint8 {SIDE}, (x-128)/128"
        )
        self._clean = clean
        super().__init__(name, path, weights_sha256, **options)
        # The extractor registers its layers in the order in which an image passes them; the last
        # is the classifier. Its own forward takes bytes only, and would round what was resized.
        *trunk, classifier = self._runner.module.children()
        self._trunk = nn.Sequential(*trunk)
        self._classifier = cast(nn.Linear, classifier)

    def network(self, path: Path) -> nn.Module:
        """Both layers, from torch-fidelity's weight file."""
        return _inception(path)

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Pool3 features (N, 2048) and unbiased logits (N, 1008).

        Args:
            images: (N, H, W, 3) uint8, N >= 1.

        Raises:
            ContractError: If the images are of another shape or type, or there are none.
        """
        check_images(images)
        if self._clean:
            prepare, call = self._resized, self._layers
        else:
            prepare, call = channels_first, self._runner.module
        pooled, logits = self._runner.run(images, prepare, call, self.name)
        return {"features": pooled, "logits": logits}

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        return (channels_first(clean_resize(images)) - 128) / 128

    def _layers(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self._trunk(pixels).flatten(1)
        return pooled, functional.linear(pooled, self._classifier.weight)


def _inception(path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = load_state(path)
    # Upstream unpickles whatever it is given without restraint; so it is given bytes that were
    # written here, from tensors that were loaded with restraint.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):
            module: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=safe,
            )
    except (RuntimeError, AttributeError, TypeError) as error:
        raise AssetError(
            f"{path}: doesn't hold the weights of torch-fidelity's Inception-v3; delete it and "
            "get it anew"
        ) from error
    return module


def _spec(name: str, title: str, *, clean: bool) -> InstrumentSpec:
    architecture = partial(InceptionEncoder, clean=clean)
    load = partial(load_public, name, WEIGHTS, architecture, DIMENSION, SIDE)
    return InstrumentSpec(name, "encoder", title, load, WEIGHTS)


INSTRUMENTS = (
    _spec("inception@clean", "Inception-v3 on images resized as clean-fid does", clean=True),
    _spec("inception@tf", "Inception-v3 on images resized as TensorFlow 1 did", clean=False),
)
