"""Noise levels, and what a network output says at one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]


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
        return columns(self.alpha(t), clean) * noise - columns(self.sigma(t), clean) * clean

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """x_t of `clean` and `noise`, (B, C, h, w) each, at `t`, a number or (B,)."""
        return columns(self.alpha(t), clean) * clean + columns(self.sigma(t), clean) * noise


def columns(value: Tensor, like: Tensor) -> Tensor:
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
