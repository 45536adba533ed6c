"""Weights of the denoising loss over timesteps, each written once in terms of the SNR.

At a fixed x_t the errors of the three parameterisations are proportional, so that a weighting has
an exact form for each. It is written here as the factor on the squared error of the predicted
*clean image*, the only one that stays finite where no signal is left; the others follow:
w_noise = w_clean / SNR and w_velocity = w_clean / (1 + SNR).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fairbench.core.errors import ContractError, InputError
from fairbench.diffusion.schedule import PredictionType, Schedule

__all__ = [
    "WEIGHTINGS",
    "Weighting",
    "clean_weight",
    "noise_weight",
    "timestep_weights",
    "weight_summary",
]

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


def clean_weight(
    name: Weighting,
    snr: Tensor,
    *,
    p2_k: float = 1.0,
    p2_gamma: float = 1.0,
    gamma: float = 5.0,
    sigma_data: float = EDM_SIGMA_DATA,
) -> Tensor:
    """Factor on the squared error of the clean image, same shape as `snr`, float64.

    Args:
        name: Any weighting but ``native``, which depends on the network.
        snr: Signal-to-noise ratios along the whole schedule, (T,), decreasing; the last may be 0.
        p2_k: k of ``p2``.
        p2_gamma: Exponent of ``p2``.
        gamma: Of ``min_snr``.
        sigma_data: Deviation of the data that ``edm`` assumes.

    Source: constant, arXiv 2006.11239; debias, arXiv 2310.08442, 1 / sqrt(SNR) on the noise; p2,
        arXiv 2204.00227; min_snr, arXiv 2303.09556; truncated_snr, arXiv 2202.00512; edm, arXiv
        2206.00364, its weight alone or, ``edm_lognormal``, with its density of noise levels too.
    """
    snr = snr.double()
    if name == "constant":
        return snr
    if name == "debias":
        return snr.sqrt()
    if name == "p2":
        # k = 0 apart: 0 times infinity where there is no signal.
        return snr.pow(1 - p2_gamma) if p2_k == 0 else snr * (p2_k + snr).pow(-p2_gamma)
    if name == "min_snr":
        return snr.clamp(max=gamma)
    if name == "truncated_snr":
        return snr.clamp(min=1.0)
    if name == "edm":
        return snr + sigma_data**-2
    if name == "edm_lognormal":
        return _lognormal_ratio(snr) * (snr + sigma_data**-2)
    raise ContractError(f"unknown weighting {name!r}; known: {', '.join(WEIGHTINGS)}")


def noise_weight(
    name: Weighting,
    snr: Tensor,
    *,
    p2_k: float = 1.0,
    p2_gamma: float = 1.0,
    gamma: float = 5.0,
    sigma_data: float = EDM_SIGMA_DATA,
) -> Tensor:
    """Factor on the squared error of the noise; arguments as in :func:`clean_weight`."""
    clean = clean_weight(
        name, snr, p2_k=p2_k, p2_gamma=p2_gamma, gamma=gamma, sigma_data=sigma_data
    )
    return clean / snr.double()


def _lognormal_ratio(snr: Tensor) -> Tensor:
    """EDM's density of noise levels over that of evenly drawn timesteps, (T,).

    A step without signal lies infinitely far out, where EDM draws no noise level.
    """
    ratio = torch.zeros_like(snr)
    heard = snr > 0
    log_level = -0.5 * snr[heard].log()
    spacing: Tensor = torch.gradient(log_level)[0]
    standard = (log_level - EDM_LOG_MEAN) / EDM_LOG_STD
    density = torch.exp(-0.5 * standard.square()) / (EDM_LOG_STD * (2 * torch.pi) ** 0.5)
    ratio[heard] = len(snr) * density * spacing
    return ratio


# Squared error of the clean image = this factor times the squared error of what the network
# predicts.
_CONVERSIONS: dict[PredictionType, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: 1 / snr,
    "sample": torch.ones_like,
    "v_prediction": lambda snr: 1 / (1 + snr),
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
        p2_k: As in :func:`clean_weight`.
        p2_gamma: As in :func:`clean_weight`.
        gamma: As in :func:`clean_weight`.
        max_weight: Bound on the factor of the noise's error, before normalisation; 0: none.
        normalise: Whether the mean over timesteps becomes 1, so that weightings differ in shape
            and not in step size.
    Raises:
        InputError: If a noise-predicting network would get most of its weight from a few
            timesteps (a cosine schedule without `max_weight`), the schedule ends without signal,
            or a weight isn't finite.
    """
    snr = schedule.snr(torch.arange(len(schedule)))
    kind = schedule.prediction_type
    if name == "native":
        return torch.ones_like(snr)
    if kind == "epsilon" and bool((snr <= 0).any()):
        raise InputError(
            f"loss weighting {name!r}: the schedule's last step has no signal (zero terminal "
            "SNR), where predicting noise teaches nothing; use a backbone that predicts velocity"
        )
    weight = clean_weight(name, snr, p2_k=p2_k, p2_gamma=p2_gamma, gamma=gamma)
    if max_weight > 0:
        weight = torch.minimum(weight, max_weight * snr)
    weight = weight * _CONVERSIONS[kind](snr)
    if not bool(torch.isfinite(weight).all()):
        raise InputError(
            f"loss weighting {name!r} has a weight that isn't finite on this schedule; choose "
            "other parameters or bound it, such as by --param max_weight=10"
        )
    if not float(weight.sum()) > 0:
        raise InputError(
            f"loss weighting {name!r} is 0 everywhere with these parameters; raise its "
            "--param min_snr_gamma, or max_weight"
        )
    if kind == "epsilon" and max_weight <= 0:
        top = float(weight.topk(max(1, len(weight) // 100)).values.sum() / weight.sum())
        if top > 0.5:
            raise InputError(
                f"loss weighting {name!r} puts {top:.0%} of all weight on 1 % of the timesteps of "
                "this schedule with a noise-predicting network; bound it, such as by --param "
                "max_weight=10"
            )
    return weight / weight.mean() if normalise else weight


def weight_summary(weights: Tensor) -> dict[str, float]:
    """What the record says about weights over timesteps, (T,).

    ``effective_share`` is (sum w)² / (T sum w²): 1 for equal weights, small if few timesteps
    carry them all. ``untrained_timesteps`` have weight 0 and learn nothing, as the last one of a
    schedule that ends without signal does under some weightings.
    """
    w = weights.cpu().double()  # on the CPU first: MPS has no float64
    return {
        "mean": float(w.mean()),
        "effective_share": float(w.sum().square() / (len(w) * w.square().sum())),
        "share_of_noisiest_quarter": float(w[len(w) * 3 // 4 :].sum() / w.sum()),
        "share_of_noisiest_tenth": float(w[len(w) * 9 // 10 :].sum() / w.sum()),
        "untrained_timesteps": int((w == 0).sum()),
    }
