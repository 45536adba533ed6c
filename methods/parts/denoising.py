"""Ordinary denoising score matching on one or several image sets, in given proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet, Preparation, TrainingData
from fairbench.diffusion.backbone import Backbone
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.diffusion.training import Draws
from fairbench.methods.parts.finetuning import (
    FineTunedSampler,
    NoisedImages,
    finetune,
    images_sha256,
    squared_error,
)
from fairbench.methods.parts.training_parameters import FineTuned

__all__ = ["mixed_index", "prepare", "proportioned_index"]


def mixed_index(
    rng: np.random.Generator, sizes: Sequence[int], counts: Sequence[int]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows of several sets laid one after the other: `counts[i]` of set i, in random order.

    Within a set rows are drawn without replacement, as far as it has that many.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    rows = [
        start + rng.choice(size, count, replace=count > size)
        for start, size, count in zip(starts, sizes, counts, strict=True)
    ]
    return rng.permutation(np.concatenate(rows)).astype(np.int64)


def proportioned_index(
    draws: Draws, sizes: Sequence[int], shares: Sequence[float]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows of several sets in given proportions, exact on average and within one row each step.

    Args:
        draws: Gives the number of rows and the randomness.
        sizes: Images of each set.
        shares: Share of each set, in any unit.
    """
    ends = np.cumsum(shares) / np.sum(shares)
    points = (np.arange(draws.rows) + draws.rng.random()) / draws.rows
    which = np.minimum(np.searchsorted(ends, points, side="right"), len(sizes) - 1)
    counts = np.bincount(which, minlength=len(sizes)).tolist()
    return mixed_index(draws.rng, sizes, counts)


def prepare(
    method: FineTuned,
    backbone: Backbone,
    sets: Sequence[ImageSet | None],
    data: TrainingData,
    preparation: Preparation,
    shares: Sequence[float] | None = None,
) -> DDIMSampler:
    """Train a copy of the backbone's network by the loss it was made with.

    Args:
        method: The shared parameters.
        backbone: Where to start from.
        sets: Image sets.
        data: Names the subjects.
        preparation: Seed, cache, progress, sampling.
        shares: Share of each set in a batch; None: that of its size.
    """
    seen = [part for part in sets if part is not None]
    if len(seen) < len(sets):
        raise ContractError(f"{method.card.name} expects {len(sets)} image sets, seen {len(seen)}")
    images = NoisedImages(backbone, seen, data.subjects)
    sizes = [len(part) for part in seen]
    wanted = np.array(shares if shares is not None else sizes, dtype=float)

    def loss_of(student: Backbone, draws: Draws, weights: Tensor) -> Tensor:
        batch = images.draw(draws, proportioned_index(draws, sizes, wanted.tolist()))
        target = student.schedule.target(batch.clean, batch.noise, batch.t)
        error = squared_error(student.predict(batch.x_t, batch.t, batch.context), target)
        return (weights[batch.t] * error).mean()

    content = {
        "method": method.card.name,
        "version": method.version,
        "data": images_sha256(*seen),
        "shares": wanted.tolist(),
    }
    what = f"training {method.card.name}"
    student, facts = finetune(method, backbone, content, loss_of, preparation, what=what)
    facts = {"training_seconds": facts["seconds"], "training": facts}
    return FineTunedSampler(student, preparation.sampling, facts)
