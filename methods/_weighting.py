"""Weights of the denoising loss over timesteps, each written once in terms of the SNR.

A weighting is a factor on the squared error of the predicted *noise*. At a fixed x_t the errors of
the three parameterisations are proportional, so that one factor has an exact form for each:
w_clean = w_noise SNR and w_velocity = w_noise SNR / (1 + SNR).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fairbench.backbones import PredictionType, Schedule
from fairbench.errors import ContractError, InputError

__all__ = ["WEIGHTINGS", "Weighting", "noise_weight", "timestep_weights"]

Weighting = Literal[
    "native", "constant", "debias", "p2", "min_snr", "truncated_snr", "edm", "edm_lognormal"
]
WEIGHTINGS: tuple[Weighting, ...] = (
    "native",
    "constant",
    "debias",
    "p2",
    "min_snr",
    "truncated_snr",
    "edm",
    "edm_lognormal",
)
EDM_SIGMA_DATA = 0.5
EDM_LOG_MEAN, EDM_LOG_STD = -1.2, 1.2


def noise_weight(
    name: Weighting, snr: Tensor, *, p2_k: float = 1.0, p2_gamma: float = 1.0, gamma: float = 5.0
) -> Tensor:
    """Factor on the squared error of the noise, same shape as `snr`, float64.

    Args:
        name: Any weighting but ``native``, which depends on the network.
        snr: Signal-to-noise ratios along the whole schedule, (T,), decreasing and positive.
        p2_k: k of ``p2``.
        p2_gamma: Exponent of ``p2``.
        gamma: Of ``min_snr``.

    Source: constant, arXiv 2006.11239; debias, arXiv 2310.08442, 1 / sqrt(SNR); p2, arXiv
        2204.00227; min_snr, arXiv 2303.09556; truncated_snr, arXiv 2202.00512; edm, arXiv
        2206.00364, its weight alone or, ``edm_lognormal``, with its density of noise levels too.
    """
    snr = snr.double()
    if name == "constant":
        return torch.ones_like(snr)
    if name == "debias":
        return snr.rsqrt()
    if name == "p2":
        return torch.pow(p2_k + snr, -p2_gamma)
    if name == "min_snr":
        return (gamma / snr).clamp(max=1.0)
    if name == "truncated_snr":
        return (1 / snr).clamp(min=1.0)
    if name == "edm":
        return 1 + 1 / (EDM_SIGMA_DATA**2 * snr)
    if name == "edm_lognormal":
        return _lognormal_ratio(snr) * (1 + 1 / (EDM_SIGMA_DATA**2 * snr))
    raise ContractError(f"unknown weighting {name!r}; known: {', '.join(WEIGHTINGS)}")


def _lognormal_ratio(snr: Tensor) -> Tensor:
    """EDM's density of noise levels over that of evenly drawn timesteps, (T,)."""
    log_level = -0.5 * snr.log()
    spacing: Tensor = torch.gradient(log_level)[0]
    standard = (log_level - EDM_LOG_MEAN) / EDM_LOG_STD
    density = torch.exp(-0.5 * standard.square()) / (EDM_LOG_STD * (2 * torch.pi) ** 0.5)
    ratio: Tensor = len(snr) * density * spacing
    return ratio


# Squared error of the noise = this factor times the squared error of what the network predicts.
_CONVERSIONS: dict[PredictionType, Callable[[Tensor], Tensor]] = {
    "epsilon": torch.ones_like,
    "sample": lambda snr: snr,
    "v_prediction": lambda snr: snr / (1 + snr),
}


def timestep_weights(
    schedule: Schedule,
    name: Weighting,
    *,
    p2_k: float = 1.0,
    p2_gamma: float = 1.0,
    gamma: float = 5.0,
    max_weight: float = 0.0,
    normalise: bool = True,
) -> Tensor:
    """Factor on the squared error of the network's own output at each timestep, (T,) float64.

    Args:
        schedule: Noise levels and parameterisation.
        name: The weighting; ``native`` is 1, the loss that the network's kind is usually trained
            with.
        p2_k: As in :func:`noise_weight`.
        p2_gamma: As in :func:`noise_weight`.
        gamma: As in :func:`noise_weight`.
        max_weight: Bound on the factor of the noise's error, before normalisation; 0: none.
        normalise: Whether the mean over timesteps becomes 1, so that weightings differ in shape
            and not in step size.
    Raises:
        InputError: If a noise-predicting network would get nearly all its weight from a few
            timesteps (a cosine schedule without `max_weight`) or the schedule ends without signal.
    """
    snr = schedule.snr(torch.arange(len(schedule)))
    kind = schedule.prediction_type
    if name == "native":
        return torch.ones_like(snr)
    silent = snr <= 0
    if bool(silent.any()) and kind == "epsilon":
        raise InputError(
            f"loss weighting {name!r}: the schedule's last step has no signal (zero terminal "
            "SNR), where predicting noise teaches nothing; use a backbone that predicts velocity"
        )
    # A step without signal has no finite noise weight; its limit in the native form is 0 or finite
    # and is taken from the smallest signal beside it.
    snr = snr.clamp(min=float(snr[~silent].min()) * 1e-6) if bool(silent.any()) else snr
    weight = noise_weight(name, snr, p2_k=p2_k, p2_gamma=p2_gamma, gamma=gamma)
    if max_weight > 0:
        weight = weight.clamp(max=max_weight)
    weight = weight * _CONVERSIONS[kind](snr)
    if kind == "epsilon" and max_weight <= 0:
        top = float(weight.topk(max(1, len(weight) // 100)).values.sum() / weight.sum())
        if top > 0.5:
            raise InputError(
                f"loss weighting {name!r} puts {top:.0%} of all weight on 1 % of the timesteps of "
                "this schedule with a noise-predicting network; bound it, such as by --param "
                "max_weight=10"
            )
    return weight / weight.mean() if normalise else weight
