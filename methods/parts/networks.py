"""A small convolutional network on clean or noised images: classifiers and density ratios."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ImageNetwork"]


class _Block(nn.Module):
    """Two convolutions beside a shortcut, told the noise level by a scale and a shift."""

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(8, outputs)
        self.told = nn.Linear(level, 2 * outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.told(level)[:, :, None, None].chunk(2, 1)
        y = functional.silu(self.norm(self.first(x)) * (1 + scale) + shift)
        result: Tensor = self.shortcut(x) + self.second(y)
        return result


class ImageNetwork(nn.Module):
    """Images or latents at any noise level -> logits.

    Smooth activations and no batch statistics: its gradient by the input is meaningful, and a row
    depends on itself alone.

    Args:
        channels: Of the input.
        outputs: K logits.
        width: Channels of the first stage; each of the two further stages has twice as many.
    """

    LEVEL = 32

    def __init__(self, channels: int, outputs: int, width: int = 24) -> None:
        super().__init__()
        level = 2 * self.LEVEL
        self.embed = nn.Sequential(
            nn.Linear(self.LEVEL, level), nn.SiLU(), nn.Linear(level, level)
        )
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        widths = [(width, width), (width, 2 * width), (2 * width, 4 * width)]
        self.blocks = nn.ModuleList(_Block(i, o, level) for i, o in widths)
        self.leave = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.SiLU())
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor, log_noise: Tensor) -> Tensor:
        """(B, C, h, w) and the log of sigma / alpha of each row, (B,) -> (B, K) logits.

        The input is expected as alpha x_0 + sigma noise with alpha² + sigma² = 1, whose size is
        the same at every noise level.
        """
        half = self.LEVEL // 2
        frequencies = torch.exp(torch.linspace(0, math.log(30.0), half, device=x.device))
        angles = log_noise.to(x.dtype)[:, None] * frequencies / 4
        level = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        y = self.enter(x)
        for i, block in enumerate(self.blocks):
            if i:
                y = functional.avg_pool2d(y, 2) if min(y.shape[-2:]) > 1 else y
            y = block(y, level)
        logits: Tensor = self.head(self.leave(functional.silu(y).mean((2, 3))))
        return logits
