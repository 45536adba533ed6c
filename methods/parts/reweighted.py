"""Parameters of the methods that weigh images by a learned density ratio; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fairbench.core.errors import InputError
from fairbench.methods.parts.training_parameters import FROM_SCRATCH, ReferenceTrained

if TYPE_CHECKING:
    from fairbench.diffusion.training import TrainingPlan

__all__ = ["RATIO_FROM_SCRATCH", "Reweighted"]

RATIO_FROM_SCRATCH: Mapping[str, Any] = MappingProxyType(
    {**FROM_SCRATCH, "ratio_batch": 256, "ratio_steps": 20_000, "ratio_learning_rate": 3e-4}
)


@dataclass(frozen=True)
class Reweighted(ReferenceTrained):
    """A training on biased and reference images together, led by the ratio of their densities.

    Attributes:
        reference_share: Share of reference images in a batch; the ratio is taken against exactly
            this mixture.
        strength: Exponent of the ratio; 1 is the method, 0 ordinary training on the mixture.
        held_out: Share of each set that the ratio network doesn't train on.
        ratio_steps: Optimiser steps of the ratio network, of which the best one is kept. Its
            held-out cross-entropy (0.693 knows nothing) on cartoonfaces-ddpm is 0.666 after 600
            steps of 128 images and 0.645 after 2,400 of 64; on -sd, 0.632 and 0.636.
        ratio_batch: Images a step of the ratio network, half of them reference images.
        ratio_learning_rate: Of the ratio network.
        ratio_width: Channels of its first stage.
    """

    reference_share: float = field(
        default=0.5, metadata={"help": "share of reference images in a batch", "minimum": 0}
    )
    strength: float = field(
        default=1.0, metadata={"help": "exponent of the density ratio", "minimum": 0}
    )
    held_out: float = field(
        default=0.2,
        metadata={"help": "share of each set held out from the ratio network", "minimum": 0},
    )
    ratio_steps: int = field(
        default=2400,
        metadata={"help": "steps of the ratio network; the best is kept", "minimum": 1},
    )
    ratio_batch: int = field(
        default=64, metadata={"help": "images a step of the ratio network", "minimum": 2}
    )
    ratio_learning_rate: float = field(
        default=2e-3, metadata={"help": "of the ratio network", "minimum": 0}
    )
    ratio_width: int = field(
        default=24,
        metadata={"help": "channels of its first stage, a multiple of 8", "minimum": 8},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.reference_share <= 1:
            raise InputError(
                f"--param reference_share must lie in [0, 1]; seen {self.reference_share:g}"
            )
        if not 0 < self.held_out < 1:
            raise InputError(f"--param held_out must lie between 0 and 1; seen {self.held_out:g}")
        if self.ratio_width % 8:
            raise InputError(
                f"--param ratio_width must be a multiple of 8; seen {self.ratio_width}"
            )

    def ratio_plan(self) -> TrainingPlan:
        """The trainer's view of the ratio network's parameters."""
        from fairbench.diffusion.training import TrainingPlan

        return TrainingPlan(
            steps=self.ratio_steps,
            batch=self.ratio_batch,
            learning_rate=self.ratio_learning_rate,
            warmup=min(25, self.ratio_steps // 10),
            ema_decay=0.99,
            # Weights and corrections come from differences of large logits.
            precision="float32",
            validate_every=25,
        )
