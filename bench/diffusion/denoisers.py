"""Denoisers, and the few ways in which one wraps another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from fairbench.diffusion.backbone import Backbone, Edit
from fairbench.diffusion.schedule import Prediction

__all__ = ["Denoiser", "conditioned", "edited", "guided", "within"]

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

    def denoise(x: Tensor, t: int) -> Prediction:
        empty = unconditional(x, t)
        prompted = conditional(x, t)
        return empty.with_value(empty.value + scale * (prompted.value - empty.value))

    return denoise


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
