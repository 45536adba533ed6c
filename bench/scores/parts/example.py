"""Small made-up evidence, for tests of score families."""

from __future__ import annotations

import numpy as np

from fairbench.core.measurements import Measurements
from fairbench.core.task import Prompt, Task
from fairbench.scores.parts.crossings import Reading, Sample
from fairbench.scores.parts.evidence import Columns, Evidence, Reference

__all__ = ["example_evidence"]

LEVELS = {"shape": ("round", "square")}


def example_evidence(
    num_images: int = 200, share: float = 0.7, *, num_real: int = 200, seed: int = 0
) -> Evidence:
    """Images of round and square things, read by one sure judge and seen by one encoder.

    Features, (N, 4), are normal with variance 1, about another mean for each group; real images
    are balanced, and drawn from the same distributions.

    Args:
        num_images: N.
        share: Of square things among the generated images.
        num_real: Real images.
        seed: Of every draw.
    """
    rng = np.random.default_rng(seed)
    groups = (np.arange(num_images) < share * num_images).astype(np.int64)
    real = np.arange(num_real) % 2
    features, real_features = (
        (rng.normal(size=(len(cells), 4)) + 2 * np.eye(4)[cells]).astype(np.float32)
        for cells in (groups, real)
    )
    probabilities = np.where(np.eye(2)[groups] > 0, 0.98, 0.02).astype(np.float32)
    measured = Measurements(
        features={"example": features},
        probabilities={"judge": {"shape": probabilities}},
        valid=np.ones(num_images, dtype=bool),
    )
    prompts = np.zeros(num_images, dtype=np.int64)
    sample = Sample(measured, prompts, None, np.arange(num_images))
    task = Task("shape", LEVELS, (Prompt("thing", template="a photo of {}"),), (0.5, 0.5))
    reference = Reference(
        {"example": real_features}, {"shape": real}, np.zeros(num_real, dtype=np.int64), None
    )
    return Evidence(
        readings=(Reading(sample, "judge", LEVELS, task),),
        sensitive=("shape",),
        confusions={"judge": {"shape": np.diag([500, 500])}},
        encoders={"example": Columns("example", "frechet_example", "kernel_example")},
        reference=reference,
        seed=seed,
    )
