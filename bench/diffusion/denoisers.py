"""Denoisers, and the few ways in which one wraps another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fairbench.diffusion.backbone import Backbone, Edit
from fairbench.diffusion.schedule import Prediction

__all__ = ["Denoiser", "conditioned", "edited", "guided", "guided_at_once", "within"]

Denoiser = Callable[[Tensor, int], Prediction]
"""(B, C, h, w) and a timestep -> what the model, guided or not, predicts there.

The backbone's own scheduler may stop between two integers.
"""


def conditioned(backbone: Backbone, context: Tensor | None) -> Denoiser:
    """The backbone's own prediction given a context, (B, L, D), or without one."""
    return lambda x, t: backbone.predict(x, t, context)


def guided(conditional: Denoiser, unconditional: Denoiser | None, scale: float) -> Denoiser:
    """Classifier-free guidance between two denoisers.

    Args:
        conditional: Given the prompt.
        unconditional: Given the empty prompt; None: no guidance, the conditional one alone.
        scale: w; 1 is the conditional prediction.

    Source: Ho and Salimans 2022, arXiv 2207.12598, in the form empty + w (prompt - empty).
    """
    if unconditional is None:
        return conditional
    return lambda x, t: _between(unconditional(x, t), conditional(x, t), scale)


def guided_at_once(
    backbone: Backbone, context: Tensor, empty: Tensor, scale: float
) -> Denoiser | None:
    """Guidance by one network call a step, of the same shape as the two would have had.

    Args:
        backbone: What predicts.
        context: (B, L, D) of the prompts.
        empty: (B, L, D) of the empty prompt.
        scale: As of `guided`.
    Returns:
        The denoiser; None if one network batch doesn't hold both.
    """
    rows = len(context)
    if 2 * rows > backbone.network_batch or context.shape != empty.shape:
        return None
    both = conditioned(backbone, torch.cat([empty, context]))

    def denoise(x: Tensor, t: int) -> Prediction:
        found = both(torch.cat([x, x]), t)
        return _between(found.rows(slice(rows), x), found.rows(slice(rows, None), x), scale)

    return denoise


def _between(empty: Prediction, prompted: Prediction, scale: float) -> Prediction:
    """Beyond the prompted prediction, as seen from the empty one."""
    return empty.with_value(empty.value + scale * (prompted.value - empty.value))


def within(
    denoiser: Denoiser, open_context: Callable[[], AbstractContextManager[None]]
) -> Denoiser:
    """The denoiser with each of its calls inside a fresh context, such as that of adapters."""

    def denoise(x: Tensor, t: int) -> Prediction:
        with open_context():
            return denoiser(x, t)

    return denoise


def edited(denoiser: Denoiser, backbone: Backbone, edit: Edit | None) -> Denoiser:
    """The denoiser with the backbone's bottleneck edited, or only read; None leaves it alone."""
    return denoiser if edit is None else within(denoiser, lambda: backbone.edit_bottleneck(edit))
