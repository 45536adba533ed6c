"""Parameters that training-time methods have in common; imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from fairbench.core.errors import InputError
from fairbench.core.method import MethodBase, MethodCard
from fairbench.core.parameters import refuse_unused

if TYPE_CHECKING:
    from fairbench.diffusion.training import TrainingPlan

__all__ = ["FINE_TUNED", "FROM_SCRATCH", "FineTuned", "ReferenceTrained"]

FINE_TUNED = (
    "Fine-tunes the biased backbone in 600 steps of 64 images by AdamW at 1e-3, with averaged "
    "weights, clipped gradients and timesteps spread evenly over a batch; the paper trains from "
    "random weights by Adam (preset from_scratch)."
)
FROM_SCRATCH: Mapping[str, Any] = MappingProxyType(
    # 11 million images in batches of 256 and half a million images of averaging, as
    # arXiv 2403.01189 takes for CIFAR-10 with 5 % references; the learning rate is its at 64 x 64.
    {
        "start": "scratch",
        "steps": 43_000,
        "batch": 256,
        "learning_rate": 2e-4,
        "ema_decay": 0.99965,
    }
)


@dataclass(frozen=True)
class FineTuned(MethodBase):
    """A method that trains the backbone's network; every such row has the same step budget.

    Attributes:
        steps: Optimiser steps.
        batch: Images a step.
        learning_rate: Peak of AdamW's, after a warm-up.
        rate_schedule: Whether the peak is decayed by a cosine or kept. Kept, a training is the
            beginning of every longer one, so that one training gives a curve over budgets.
        ema_decay: Of the averaged weights that are sampled with. It is reached gradually, as
            1 - n^-0.75 after n steps: 0.992 after 600.
        accumulate: Parts that a batch is split into, for little memory.
        precision: Of autocast while training.
        start: From the shipped biased network, or from random weights.
        prediction: What a network from random weights predicts: what the backbone's does, or the
            noise.
        loss_weighting: Weight of the loss over timesteps.
        p2_k, p2_gamma, min_snr_gamma: Of the weightings of these names.
        max_weight: Bound on the weight of the noise's error; 0: none.
        normalise_weights: Whether weights have mean 1 over the timesteps.
    """

    steps: int = field(default=600, metadata={"help": "optimiser steps", "minimum": 1})
    batch: int = field(default=64, metadata={"help": "images a step", "minimum": 1})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak of AdamW's", "minimum": 0})
    rate_schedule: Literal["cosine", "constant"] = field(
        default="cosine",
        metadata={
            "help": "decay the rate, or keep it: shorter trainings begin longer ones",
            "omit_default": True,
        },
    )
    ema_decay: float = field(
        default=0.995,
        metadata={
            "help": "of the averaged weights, at most 1 - n^-0.75; 0: the last",
            "minimum": 0,
        },
    )
    accumulate: int = field(
        default=1, metadata={"help": "parts a batch is split into", "minimum": 1}
    )
    precision: Literal["auto", "float32", "bfloat16"] = field(
        default="auto", metadata={"help": "of autocast while training"}
    )
    start: Literal["backbone", "scratch"] = field(
        default="backbone",
        metadata={"help": "fine-tune the backbone or train from random weights"},
    )
    prediction: Literal["native", "noise"] = field(
        default="native",
        metadata={"help": "what a network from random weights predicts", "omit_default": True},
    )
    loss_weighting: Literal[
        "native", "constant", "debias", "p2", "min_snr", "truncated_snr", "edm", "edm_lognormal"
    ] = field(default="native", metadata={"help": "weight of the loss over timesteps"})
    p2_k: float = field(default=1.0, metadata={"help": "k of p2", "minimum": 0})
    p2_gamma: float = field(default=1.0, metadata={"help": "gamma of p2", "minimum": 0})
    min_snr_gamma: float = field(default=5.0, metadata={"help": "gamma of min_snr", "minimum": 0})
    max_weight: float = field(
        default=0.0, metadata={"help": "bound on the noise weight; 0: none", "minimum": 0}
    )
    normalise_weights: bool = field(
        default=True, metadata={"help": "weights have mean 1 over timesteps"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.accumulate:
            raise InputError(
                f"--param batch must be a multiple of accumulate; seen {self.batch} and "
                f"{self.accumulate}"
            )
        if not self.ema_decay < 1:
            raise InputError(f"--param ema_decay must be below 1; seen {self.ema_decay:g}")
        if self.start != "scratch":
            refuse_unused(self, ("prediction",), "start=scratch")
        if self.loss_weighting != "p2":
            refuse_unused(self, ("p2_k", "p2_gamma"), "loss_weighting=p2")
        if self.loss_weighting != "min_snr":
            refuse_unused(self, ("min_snr_gamma",), "loss_weighting=min_snr")
        if self.loss_weighting == "native":
            refuse_unused(self, ("normalise_weights",), "a loss_weighting")
        if self.max_weight and self.loss_weighting == "native":
            raise InputError(
                "--param max_weight bounds a loss weighting, and native has none; choose --param "
                f"loss_weighting too, or leave max_weight=0 (seen {self.max_weight:g})"
            )

    def plan(self) -> TrainingPlan:
        """The trainer's view of these parameters."""
        from fairbench.diffusion.training import TrainingPlan

        return TrainingPlan(
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            warmup=min(50, self.steps // 10),
            ema_decay=self.ema_decay,
            accumulate=self.accumulate,
            precision=self.precision,
            rate_schedule=self.rate_schedule,
        )


@dataclass(frozen=True)
class ReferenceTrained(FineTuned):
    """A training that reads a reference set.

    Attributes:
        reference_images: How many of it; fewer are as balanced as their number allows.
    """

    reference_images: int = field(
        default=800,
        metadata={"help": "reference images, 800 at most", "minimum": 2, "omit_default": True},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference_images > self.card.reference_images:
            raise InputError(
                f"--param reference_images must be at most {self.card.reference_images}, the size "
                f"of the reference set; seen {self.reference_images}"
            )

    def configured_card(self) -> MethodCard:
        """The card of as many reference images as are asked for."""
        return dataclasses.replace(self.card, reference_images=self.reference_images)
