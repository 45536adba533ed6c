"""Noise levels, and what a network output says at one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class DynamicThreshold:
    """Bound on the predicted clean image that follows each image's own largest values.

    Attributes:
        ratio: Quantile of the absolute values that becomes the bound.
        largest: The bound is at least 1 and at most this.

    Source: Saharia et al. 2022, Imagen, arXiv 2205.11487, section 2.3.
    """

    ratio: float
    largest: float

    def __call__(self, clean: Tensor) -> Tensor:
        """(B, C, h, w) cut at each image's bound and divided by it."""
        sizes = clean.float().flatten(1).abs()
        # Row by row: torch.quantile has a limit on the elements of one call.
        bounds = torch.stack([torch.quantile(row, self.ratio) for row in sizes])
        bound = columns(bounds.clamp(1.0, self.largest), clean)
        return clean.clamp(-bound, bound) / bound


class Schedule:
    """Noise levels of a diffusion: x_t = alpha x_0 + sigma noise, alpha² + sigma² = 1.

    Args:
        alphas_cumprod: (T,) alpha², decreasing in t, kept in float64.
        prediction_type: What the network was trained to predict.
        clip: Bound that the sampler puts on the predicted clean image, None for none; pixel models
            have one.
        consistent: Whether the noise is derived again from a clean image that was cut, so that
            both still add up to x_t; diffusers' DDIM leaves the noise as predicted.
        threshold: Dynamic bound, in the place of `clip`.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        prediction_type: PredictionType,
        clip: float | None = None,
        *,
        consistent: bool = True,
        threshold: DynamicThreshold | None = None,
    ) -> None:
        self.alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float64)
        self.prediction_type, self.clip = prediction_type, clip
        self.consistent, self.threshold = consistent, threshold

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def predicting(self, kind: PredictionType) -> Schedule:
        """The same noise levels and bounds for a network that predicts something else."""
        return Schedule(
            self.alphas_cumprod,
            kind,
            self.clip,
            consistent=self.consistent,
            threshold=self.threshold,
        )

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

    def bounded(self, predicted: Prediction) -> Prediction:
        """The prediction with its clean image inside the sampler's bounds; itself without any."""
        if self.threshold is not None:
            return predicted.bounded(self.threshold, consistent=self.consistent)
        return predicted.clipped(self.clip, consistent=self.consistent)

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
        variance: (B, C, h, w) what a network that learned it says of the variance of a step;
            None for others.
        inside: (B, C, h, w) clean image in the place of the predicted one, None for that one.
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    kind: PredictionType
    value: Tensor
    variance: Tensor | None = field(default=None, kw_only=True)
    inside: Tensor | None = field(default=None, kw_only=True)

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
        if self.inside is not None:
            return self.inside
        if self.kind == "sample":
            return self.value
        if self.kind == "v_prediction":
            return self.alpha * self.x_t - self.sigma * self.value
        return (self.x_t - self.sigma * self.value) / self.alpha

    @cached_property
    def velocity(self) -> Tensor:
        """Predicted velocity alpha noise - sigma clean, (B, C, h, w)."""
        if self.kind == "v_prediction" and self.inside is None:
            return self.value
        return self.alpha * self.noise - self.sigma * self.clean

    def as_kind(self, kind: PredictionType) -> Tensor:
        """The same prediction as a network of another kind would put it out, (B, C, h, w)."""
        if kind == self.kind:
            return self.value
        return {"epsilon": self.noise, "sample": self.clean, "v_prediction": self.velocity}[kind]

    def rows(self, part: slice, x_t: Tensor) -> Prediction:
        """Some of the rows, of a batch that holds them.

        Args:
            part: Which.
            x_t: What the network saw in them.
        """
        return replace(
            self,
            x_t=x_t,
            alpha=self.alpha[part],
            sigma=self.sigma[part],
            value=self.value[part],
            variance=None if self.variance is None else self.variance[part],
        )

    def with_value(self, value: Tensor) -> Prediction:
        """The same place with another network output."""
        return replace(self, value=value, inside=None)

    def bounded(self, bound: Callable[[Tensor], Tensor], *, consistent: bool = True) -> Prediction:
        """The same place with a clean image that was brought into bounds.

        Args:
            bound: Brings images, (B, C, h, w), into bounds.
            consistent: Whether the noise then follows from the image and x_t, or stays as it was
                predicted.
        """
        clean = bound(self.clean)
        if consistent:
            return replace(self, kind="sample", value=clean, inside=None)
        return replace(self, inside=clean)

    def clipped(self, limit: float | None, *, consistent: bool = True) -> Prediction:
        """The same place with the clean image in [-limit, limit]; itself without a limit."""
        if limit is None:
            return self
        return self.bounded(lambda clean: clean.clamp(-limit, limit), consistent=consistent)
